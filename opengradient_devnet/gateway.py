"""The paid gateway: OpenAI-shaped chat completions behind a door that takes payments.

A call passes the door (`admission`), is checked (bearer token, type, size, JSON, model), answered by the model,
priced, proven by the enclave, its data settled as `X-SETTLEMENT-TYPE` says, and collected. Errors cost nothing.
A stream is sent as it comes; if its reader goes away, what was streamed until then is charged.

It does not know how payments are verified or settled, what models say, or on which sockets it is served.
Nothing of a payload is ever logged.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from opengradient_devnet import answers
from opengradient_devnet.admission import Admission, CollectionFailed, Door, Refusal
from opengradient_devnet.batches import DataSettler, IndividualRecord, SettlementType
from opengradient_devnet.event_stream import EventKind, EventStream, StreamEvent, hang_up, spoiled
from opengradient_devnet.faults import (
    AnswerStatus,
    Faults,
    ForgeProof,
    GarbleBody,
    HangUp,
    HugeChallenge,
    OmitUsage,
    Redirect,
    SlowDrip,
    StreamStyle,
    WrongTransaction,
)
from opengradient_devnet.forgery import forge
from opengradient_devnet.models import Chunk, Delivery, Model, ModelError
from opengradient_devnet.pricing import Cost, ModelPrice, PriceList
from opengradient_devnet.tee import Enclave, Proof, canonical_request
from opengradient_devnet.transcript import Transcript, count_prompt

MAX_BODY_BYTES = 32 * 2**20
# The gateways' own default when a request names no limit.
DEFAULT_MAX_TOKENS = 4096
_PIECE = b" " * 2**16

HeaderList = list[tuple[str, str]]


class Declined(Exception):
    """A call that gets an error instead of an answer; it costs nothing."""

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: HeaderList | None = None,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers: HeaderList = [("content-type", content_type), *(headers or [])]


class HungUp(Exception):
    """The connection is to be dropped without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One admitted, well-formed call."""

    request: dict[str, Any]
    price: ModelPrice
    admission: Admission
    settlement_type: SettlementType
    delivery: Delivery


class Gateway:
    """The routes of one gateway. Its parts come in ready to use."""

    def __init__(
        self,
        *,
        door: Door,
        model: Model,
        prices: PriceList,
        enclave: Enclave,
        data_settler: DataSettler,
        operator_address: str,
        faults: Faults,
        quotes_costs: bool = True,
        pace_s: float = 0.0,
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._door = door
        self._model = model
        self._prices = prices
        self._enclave = enclave
        self._data_settler = data_settler
        self._operator_address = operator_address
        self._faults = faults
        self._quotes_costs = quotes_costs
        self._pace_s = pace_s
        self._on_work = on_work

    def routes(self) -> list[Route]:
        """What to mount at the root of the gateway's origin."""
        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete_text, methods=["POST"]),
            Route("/v1/models", self._list_models, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/signing-key", self._signing_key, methods=["GET"]),
        ]

    # --- free routes ---------------------------------------------------------------------------------------

    async def _list_models(self, _request: Request) -> Response:
        return _json(200, answers.pretty(models_page(self._prices)))

    async def _health(self, _request: Request) -> Response:
        return _json(200, answers.pretty({"status": "ok", "timestamp": _now_iso()}))

    async def _signing_key(self, _request: Request) -> Response:
        return _json(
            200,
            answers.pretty(
                {
                    "enclave_info": {"instance_type": "devnet", "platform": "none", "version": "1.0.0"},
                    "measurements": None,
                    "public_key": self._enclave.public_key_pem,
                    "tee_id": "0x" + self._enclave.tee_id.hex(),
                    "timestamp": _now_iso(),
                    "wallet_address": self._operator_address,
                }
            ),
        )

    # --- paid routes ---------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        return await self._paid(request, self._answer_chat)

    async def _complete_text(self, request: Request) -> Response:
        return await self._paid(request, self._answer_text)

    async def _paid(self, request: Request, answer: Callable[[Request, bytes | None, Admission], Any]) -> Response:
        # The body is read first: a connection whose request was left unread cannot be used again.
        body = await _read_body(request)
        redirect = self._faults.take(Redirect, when="unpaid")
        if redirect is not None:
            return Response(status_code=redirect.status, headers={"location": redirect.location})
        admission = await self._door.admit(request)
        if isinstance(admission, Refusal):
            return self._refused(admission)
        try:
            response: Response = await answer(request, body, admission)
        except Declined as exc:
            return _response(exc.status, exc.body, exc.headers + admission.waive())
        except ModelError as exc:
            return _json(exc.status, answers.provider_error(exc), admission.waive())
        except CollectionFailed as exc:
            return self._refused(exc.refusal)
        except HungUp:
            hang_up(request.scope)
            return Response(status_code=204)
        except BaseException:
            admission.waive()
            raise
        return response

    def _refused(self, refusal: Refusal) -> Response:
        huge = self._faults.take(HugeChallenge)
        if huge is None:
            return _response(402, refusal.body, refusal.headers)

        async def pieces() -> AsyncGenerator[bytes, None]:
            for _ in range(huge.body_bytes // len(_PIECE)):
                await asyncio.sleep(huge.pace_s)
                yield _PIECE

        response = StreamingResponse(pieces(), status_code=402)
        response.raw_headers = _raw(refusal.headers)
        return response

    async def _answer_chat(self, request: Request, body: bytes | None, admission: Admission) -> Response:
        call = self._parse(request, body, admission)
        await self._misbehave(call)
        if call.request.get("stream"):
            return await self._begin_stream(call)
        transcript = await self._ask(call)
        return await self._answer(call, transcript, is_text=False)

    async def _answer_text(self, request: Request, body: bytes | None, admission: Admission) -> Response:
        call = self._parse(request, body, admission, is_text=True)
        await self._misbehave(call)
        transcript = await self._ask(call)
        return await self._answer(call, transcript, is_text=True)

    # --- checking ------------------------------------------------------------------------------------------

    def _parse(self, request: Request, body: bytes | None, admission: Admission, *, is_text: bool = False) -> Call:
        _check_bearer(request)
        content = _parse_json(request, body)
        if is_text:
            content = _chat_from_text(content)
        _check_chat(content)
        price = self._prices.find(content["model"])
        if price is None:
            raise Declined(400, answers.error(f"Model '{content['model']}' is not supported"))
        return Call(
            request=content,
            price=price,
            admission=admission,
            settlement_type=SettlementType.from_header(request.headers.get("x-settlement-type")),
            delivery=self._delivery(),
        )

    def _delivery(self) -> Delivery:
        drip, style = self._faults.take(SlowDrip), self._faults.take(StreamStyle) or StreamStyle()
        return Delivery(
            pace_s=self._pace_s if drip is None else drip.pace_s,
            tool_calls=style.tool_calls,
            as_message=style.as_message,
            broken_arguments=style.broken_arguments,
        )

    async def _misbehave(self, call: Call) -> None:
        """Carry out the faults that replace an answer."""
        status = self._faults.take(AnswerStatus)
        if status is not None:
            retry_after = [("retry-after", str(status.retry_after_s))] if status.retry_after_s else []
            raise Declined(status.status, status.body.encode(), content_type=status.content_type, headers=retry_after)
        redirect = self._faults.take(Redirect, when="paid")
        if redirect is not None:
            raise Declined(redirect.status, b"", headers=[("location", redirect.location)])
        vanish = self._faults.take(HangUp)
        if vanish is not None:
            await asyncio.sleep(vanish.after_s)
            if vanish.charge:
                transcript = await self._ask(call)
                await call.admission.collect(self._cost(call, transcript).atomic)
            else:
                call.admission.waive()
            raise HungUp

    # --- complete answers ----------------------------------------------------------------------------------

    async def _ask(self, call: Call) -> Transcript:
        answer = await self._model.complete(call.request, delivery=call.delivery)
        return Transcript.of(answer, request=call.request)

    async def _answer(self, call: Call, transcript: Transcript, *, is_text: bool) -> Response:
        cost = self._cost(call, transcript)
        proof = self._prove(call, transcript)
        headers: HeaderList = []
        if call.settlement_type is SettlementType.INDIVIDUAL and proof is not None:
            record = await self._settle_data(call, transcript, proof)
            headers = [*proof.headers().items(), *record.headers().items()]
        elif call.settlement_type is SettlementType.BATCH and proof is not None:
            self._batch(proof)
        headers += await call.admission.collect(cost.atomic)
        content = answers.completion(
            transcript,
            model=call.request["model"],
            created_s=int(time.time()),
            extra=self._members(transcript, proof, cost),
        )
        if is_text:
            content["completion"] = transcript.text
        body = answers.pretty(content)
        if self._faults.take(GarbleBody):
            body = body[: len(body) // 2]
        return _json(200, body, headers)

    def _members(self, transcript: Transcript, proof: Proof | None, cost: Cost) -> dict[str, Any]:
        members: dict[str, Any] = {} if proof is None else proof.fields()
        if self._faults.take(OmitUsage) is None:
            members["usage"] = transcript.usage
        if self._quotes_costs:
            members["opengradient"] = cost.quote()
        return members

    # --- streams -------------------------------------------------------------------------------------------

    async def _begin_stream(self, call: Call) -> Response:
        chunks = self._model.stream(call.request, delivery=call.delivery)
        transcript = Transcript(call.request)
        try:
            # An error before the first chunk can still be an HTTP error, and then it costs nothing.
            first = await anext(chunks, None)
            headers = await call.admission.begin_stream(self._worst_case(call).atomic)
        except BaseException:
            await chunks.aclose()
            raise

        async def end() -> None:
            call.admission.end_stream(self._cost(call, transcript).atomic)
            await chunks.aclose()

        events = self._events(call, transcript, first, chunks)
        return EventStream(spoiled(events, faults=self._faults), headers=headers, on_end=end)

    async def _events(
        self, call: Call, transcript: Transcript, chunk: Chunk | None, chunks: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[StreamEvent, None]:
        model = call.request["model"]
        try:
            while chunk is not None:
                transcript.add(chunk)
                if chunk.is_terminal:
                    break
                yield StreamEvent(kind=EventKind.DELTA, data=answers.delta_event(chunk, model=model))
                chunk = await anext(chunks, None)
            if transcript.finish_reason is None:
                raise ModelError(502, "The provider's stream ended before the answer did.", is_retryable=True)
        except ModelError as exc:
            failure = answers.provider_error_fields(exc)
            yield StreamEvent(kind=EventKind.ERROR, data=answers.event(failure))
            return
        final = await self._finale(call, transcript)
        # Charged before the client can see the end: whoever has the whole answer finds it in the accounts.
        call.admission.end_stream(self._cost(call, transcript).atomic)
        yield StreamEvent(kind=EventKind.FINAL, data=final)
        yield StreamEvent(kind=EventKind.DONE, data=answers.DONE)

    async def _finale(self, call: Call, transcript: Transcript) -> bytes:
        proof = self._prove(call, transcript)
        members = self._members(transcript, proof, self._cost(call, transcript))
        is_individual = call.settlement_type is SettlementType.INDIVIDUAL and proof is not None
        if is_individual and proof is not None:
            record = await self._settle_data(call, transcript, proof)
            members |= record.fields()
        elif call.settlement_type is SettlementType.BATCH and proof is not None:
            self._batch(proof)
        return answers.final_event(transcript, model=call.request["model"], extra=members, is_compact=is_individual)

    # --- price, proof, data settlement -----------------------------------------------------------------------

    def _cost(self, call: Call, transcript: Transcript) -> Cost:
        usage = transcript.usage
        return self._prices.cost(
            call.price,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )

    def _worst_case(self, call: Call) -> Cost:
        limit = call.request.get("max_completion_tokens") or call.request.get("max_tokens")
        return self._prices.cost(
            call.price,
            prompt_tokens=count_prompt(call.request),
            completion_tokens=min(limit or DEFAULT_MAX_TOKENS, call.price.max_output_tokens),
        )

    def _prove(self, call: Call, transcript: Transcript) -> Proof | None:
        proof = self._enclave.prove(
            call.request,
            text=transcript.text,
            tool_calls=transcript.tool_calls,
            finish_reason=transcript.finish_reason or "stop",
            timestamp_s=int(time.time()),
        )
        fault = self._faults.take(ForgeProof)
        return proof if fault is None else forge(proof, fault, enclave=self._enclave)

    def _batch(self, proof: Proof) -> None:
        if self._data_settler.add(proof):
            self._on_work()

    async def _settle_data(self, call: Call, transcript: Transcript, proof: Proof) -> IndividualRecord:
        content = {
            "request": canonical_request(call.request),
            "response": {"content": transcript.text, "tool_calls": transcript.tool_calls},
            "finish_reason": transcript.finish_reason,
            "usage": transcript.usage,
            **proof.fields(),
        }
        record = await to_thread.run_sync(
            lambda: self._data_settler.settle_individual(proof, payer=call.admission.payment.payer, record=content)
        )
        wrong = self._faults.take(WrongTransaction)
        return record if wrong is None else record.naming(wrong.transaction)


def models_page(prices: PriceList) -> dict[str, Any]:
    """The price list as OpenAI's list of models, with prices in USD per token as decimal strings."""
    return {
        "object": "list",
        "opg_price_usd": str(prices.opg_usd),
        "data": [
            {
                "id": price.name,
                "object": "model",
                "created": 0,
                "owned_by": price.provider,
                "context_length": price.context_tokens,
                "max_output_tokens": price.max_output_tokens,
                "pricing": {
                    "input_usd_per_mtok": str(price.input_usd_per_mtok),
                    "output_usd_per_mtok": str(price.output_usd_per_mtok),
                },
            }
            for price in prices.models.values()
        ],
    }


async def _read_body(request: Request) -> bytes | None:
    """The whole body; None when it is too large to be looked at."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            pieces.clear()
        else:
            pieces.append(piece)
    return b"".join(pieces) if size <= MAX_BODY_BYTES else None


def _check_bearer(request: Request) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        body = answers.problem(status=401, title="Unauthorized", detail="No authorization token provided")
        raise Declined(401, body, content_type="application/problem+json")


def _parse_json(request: Request, body: bytes | None) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        detail = f"Invalid Content-type ({content_type}), expected JSON data"
        problem = answers.problem(status=415, title="Unsupported Media Type", detail=detail)
        raise Declined(415, problem, content_type="application/problem+json")
    if body is None:
        problem = answers.problem(status=413, title="Content Too Large", detail=f"The limit is {MAX_BODY_BYTES} bytes")
        raise Declined(413, problem, content_type="application/problem+json")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Declined(400, answers.error("Request body is not valid JSON")) from exc
    if not isinstance(content, dict):
        raise Declined(400, answers.error("Request body must be a JSON object"))
    return content


def _check_chat(content: Mapping[str, Any]) -> None:
    messages: Sequence[Any] = content.get("messages") or ()
    if not isinstance(content.get("model"), str):
        raise Declined(400, answers.error("'model' is a required property"))
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise Declined(400, answers.error("'messages' must be a list of messages, at least one"))
    for field in ("temperature", "max_tokens", "max_completion_tokens"):
        value = content.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Declined(400, answers.error(f"'{field}' must be a number"))


def _chat_from_text(content: Mapping[str, Any]) -> dict[str, Any]:
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        raise Declined(400, answers.error("'prompt' is a required property"))
    rest = {key: value for key, value in content.items() if key not in ("prompt", "stream")}
    return {**rest, "messages": [{"role": "user", "content": prompt}]}


def _raw(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _response(status: int, body: bytes, headers: HeaderList) -> Response:
    response = Response(body, status_code=status)
    response.raw_headers += _raw(headers)
    return response


def _json(status: int, body: bytes, headers: HeaderList | None = None) -> Response:
    return _response(status, body, [("content-type", "application/json"), *(headers or [])])


def _now_iso() -> str:
    return dt.datetime.now(dt.UTC).isoformat()
