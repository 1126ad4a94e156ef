"""Answers an admitted call: model, price, proof, data settlement, collection; in one piece or as a stream.

The call comes from `gateway`, which has the routes; `payment.door` has admitted it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from anyio import to_thread

from opengradient_devnet.faults import AddUnsigned, Faults, ForgeProof, GarbleBody, OmitUsage, WrongTransaction
from opengradient_devnet.gateway import answers
from opengradient_devnet.gateway.event_stream import EventKind, EventStream, StreamEvent, spoiled
from opengradient_devnet.gateway.intake import HeaderList
from opengradient_devnet.gateway.payment.door import Admission
from opengradient_devnet.gateway.payment.served import ServedCall, ServedCalls
from opengradient_devnet.gateway.pricing import Cost, ModelPrice, PriceList
from opengradient_devnet.gateway.profile import GatewayProfile
from opengradient_devnet.gateway.proofs.batches import DataSettler, IndividualRecord, SettlementType
from opengradient_devnet.gateway.proofs.forgery import forge
from opengradient_devnet.gateway.proofs.tee import Enclave, Proof, canonical_request
from opengradient_devnet.gateway.transcript import Transcript, whole_tool_calls
from opengradient_devnet.model.protocol import Chunk, Delivery, Model, ModelError
from opengradient_devnet.model.usage import estimate_prompt

# The gateways' own default when a request names no limit.
DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One admitted, well-formed call."""

    request: dict[str, Any]
    price: ModelPrice
    prices: PriceList
    admission: Admission
    settlement_type: SettlementType
    delivery: Delivery
    told_id: str = ""
    """The client's own id of the call, where it sent one."""
    has_whole_tool_calls: bool = False
    """Whether its stream holds tool calls back until they are whole."""
    cost_factor: int = 1

    def cost(self, *, prompt_tokens: int, completion_tokens: int) -> Cost:
        """What the call costs with these numbers of tokens."""
        cost = self.prices.cost(self.price, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        return cost.times(self.cost_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteAnswer:
    """A 200 that is not a stream."""

    body: bytes
    headers: HeaderList


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beginning:
    """How a stream begins: its first chunk, the rest, its headers, and its proof where headers tell that already."""

    first: Chunk | None
    rest: AsyncGenerator[Chunk, None]
    headers: HeaderList
    has_told_proof: bool = False
    proof: Proof | None = None


class ModelService:
    """Answers calls with one model, as `profile` says. `on_work` is called when a batch is full."""

    def __init__(
        self,
        *,
        model: Model,
        enclave: Enclave,
        data_settler: DataSettler,
        profile: GatewayProfile,
        faults: Faults,
        on_work: Callable[[], None],
        served: ServedCalls,
    ) -> None:
        self._model = model
        self._enclave = enclave
        self._data_settler = data_settler
        self._profile = profile
        self._faults = faults
        self._on_work = on_work
        self._served = served
        self._latest_proof: Proof | None = None

    async def ask(self, call: Call) -> Transcript:
        """The model's whole answer. Raises ModelError."""
        answer = await self._model.complete(self._forwarded(call), delivery=call.delivery)
        transcript = Transcript.of(answer, request=call.request)
        transcript.finish_reason = self._told(transcript)
        return transcript

    def _forwarded(self, call: Call) -> dict[str, Any]:
        # A limit of 0 is hashed as 0, and means the model's own.
        unlimited = {name for name in ("max_tokens", "max_completion_tokens") if call.request.get(name) == 0}
        kept_back = self._profile.unforwarded | unlimited
        return {name: value for name, value in call.request.items() if name not in kept_back}

    def _told(self, transcript: Transcript) -> str | None:
        """The finish_reason that clients see, and that is hashed."""
        if transcript.finish_reason is None or self._profile.says_length:
            return transcript.finish_reason
        return "tool_calls" if transcript.tool_calls else "stop"

    async def answer(self, call: Call, *, text_in: Literal["completion", "choices"] | None = None) -> CompleteAnswer:
        """Ask the model and collect the price; `text_in` says where a plain text completion has its text.

        Raises ModelError and CollectionFailed.
        """
        transcript = await self.ask(call)
        cost = self.cost(call, transcript)
        proof = self._prove(call, transcript)
        headers: HeaderList = []
        if call.settlement_type is SettlementType.INDIVIDUAL and proof is not None:
            headers = await self._individual_headers(call, transcript, proof)
        else:
            self._batch(call, proof)
        headers += await call.admission.collect(cost.atomic)
        self._remember(call, transcript, proof)
        content = answers.completion(
            transcript,
            model=call.request["model"],
            created_s=int(time.time()),
            extra=self._members(transcript, proof, cost),
        )
        match text_in:
            case "completion":
                content["completion"] = transcript.text
            case "choices":
                content = answers.text_completion(content)
            case None:
                pass
            case _:
                assert_never(text_in)
        if (added := self._faults.take(AddUnsigned)) is not None:
            content["choices"][0]["message"].update(added.message)
        body = answers.pretty(content)
        if self._faults.take(GarbleBody):
            body = body[: len(body) // 2]
        return CompleteAnswer(body=body, headers=headers)

    def _members(self, transcript: Transcript, proof: Proof | None, cost: Cost) -> dict[str, Any]:
        members: dict[str, Any] = {} if proof is None else proof.fields()
        if self._faults.take(OmitUsage) is None:
            members["usage"] = transcript.usage
        if self._profile.quotes_costs:
            members["opengradient"] = cost.quote()
        return members

    # --- streams -------------------------------------------------------------------------------------------

    async def begin_stream(self, call: Call) -> EventStream:
        """Ask the model for a stream, and respond as soon as it has begun. Raises as `answer` does."""
        chunks = self._model.stream(self._forwarded(call), delivery=call.delivery)
        if call.has_whole_tool_calls:
            chunks = whole_tool_calls(chunks, request=call.request)
        transcript = Transcript(call.request)
        try:
            begun = await self._begin(call, chunks)
        except ModelError:
            await chunks.aclose()
            if not self._profile.hides_failures:
                raise  # an error before the first chunk can still be an HTTP error, and then it costs nothing
            return await self._failed_stream(call)
        except BaseException:
            await chunks.aclose()
            raise

        async def end() -> None:
            # Who bills after the body does not bill a reader who left before that.
            is_unbilled = self._profile.billing_delay_s is not None
            call.admission.end_stream(0 if is_unbilled else self.cost(call, transcript).atomic)
            await chunks.aclose()

        events = self._events(call, transcript, begun)
        return EventStream(spoiled(events, faults=self._faults), headers=begun.headers, on_end=end)

    async def _begin(self, call: Call, chunks: AsyncGenerator[Chunk, None]) -> _Beginning:
        """Raises ModelError and CollectionFailed."""
        worst_case_atomic = self._worst_case(call).atomic
        is_individual = call.settlement_type is SettlementType.INDIVIDUAL
        if not (is_individual and self._profile.individual_stream == "headers"):
            first = await anext(chunks, None)
            return _Beginning(first=first, rest=chunks, headers=await call.admission.begin_stream(worst_case_atomic))
        # Headers come before the body, and a proof covers the whole of it: so everything is waited for.
        said = [chunk async for chunk in chunks]
        whole = Transcript(call.request)
        for chunk in said:
            whole.add(chunk)
        whole.finish_reason = self._told(whole)
        proof = self._prove(call, whole)
        headers = [] if proof is None else await self._individual_headers(call, whole, proof)
        headers += await call.admission.begin_stream(worst_case_atomic)
        rest = _replayed(said)
        return _Beginning(first=await anext(rest, None), rest=rest, headers=headers, has_told_proof=True, proof=proof)

    async def _failed_stream(self, call: Call) -> EventStream:
        await asyncio.sleep(self._profile.failure_delay_s)

        async def one_event() -> AsyncGenerator[StreamEvent, None]:
            yield StreamEvent(kind=EventKind.ERROR, data=answers.event({"error": answers.HIDDEN_FAILURE}))

        async def nothing() -> None:
            """The call is waived already."""

        return EventStream(one_event(), headers=call.admission.waive(), on_end=nothing)

    async def _events(self, call: Call, transcript: Transcript, begun: _Beginning) -> AsyncGenerator[StreamEvent, None]:
        model, chunk = call.request["model"], begun.first
        try:
            while chunk is not None and not chunk.is_terminal:
                transcript.add(chunk)
                yield StreamEvent(kind=EventKind.DELTA, data=answers.delta_event(chunk, model=model))
                chunk = await anext(begun.rest, None)
            if chunk is None:
                raise ModelError(502, "The provider's stream ended before the answer did.", is_retryable=True)
            transcript.add(chunk)
        except ModelError as exc:
            failure = answers.provider_error_fields(exc)
            if self._profile.hides_failures:
                failure = {"error": answers.HIDDEN_FAILURE}
            yield StreamEvent(kind=EventKind.ERROR, data=answers.event(failure))
            return
        transcript.finish_reason = self._told(transcript)
        proof = begun.proof if begun.has_told_proof else self._prove(call, transcript)
        final = await self._finale(call, transcript, proof, has_told_settlement=begun.has_told_proof)
        settled = None
        if self._profile.billing_delay_s is None:
            # Charged before the client can see the end: a client that has the whole answer finds it in the accounts.
            settled = self._bill(call, transcript, proof)
        yield StreamEvent(kind=EventKind.FINAL, data=final)
        if settled is not None:
            yield StreamEvent(kind=EventKind.FINAL, data=answers.settlement_event(settled))
        yield StreamEvent(kind=EventKind.DONE, data=answers.DONE)
        if self._profile.billing_delay_s is not None:
            await asyncio.sleep(self._profile.billing_delay_s)
            self._bill(call, transcript, proof)

    async def _finale(
        self, call: Call, transcript: Transcript, proof: Proof | None, *, has_told_settlement: bool
    ) -> bytes:
        members = self._members(transcript, proof, self.cost(call, transcript))
        is_individual = call.settlement_type is SettlementType.INDIVIDUAL and not has_told_settlement
        if is_individual and proof is not None:
            members |= (await self._settle_data(call, transcript, proof)).fields()
        return answers.final_event(
            transcript, model=call.request["model"], extra=members, is_compact=is_individual and proof is not None
        )

    def _bill(self, call: Call, transcript: Transcript, proof: Proof | None) -> str | None:
        self._batch(call, proof)
        settled = call.admission.end_stream(self.cost(call, transcript).atomic)
        self._remember(call, transcript, proof)
        return settled

    def _remember(self, call: Call, transcript: Transcript, proof: Proof | None) -> None:
        usage = transcript.usage
        self._served.add(
            ServedCall(
                call_id=call.told_id,
                authorization_id=call.admission.payment.authorization_id,
                model=str(call.request["model"]),
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                cost_atomic=self.cost(call, transcript).atomic,
                data_mode=call.settlement_type.name.lower(),
                request_hash=b"" if proof is None else proof.request_hash,
                output_hash=b"" if proof is None else proof.output_hash,
                signature=b"" if proof is None else proof.signature,
                time_s=time.time(),
            )
        )

    # --- price, proof, data settlement -----------------------------------------------------------------------

    def cost(self, call: Call, transcript: Transcript) -> Cost:
        """What the call costs by what has been said so far."""
        usage = transcript.usage
        return call.cost(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])

    def _worst_case(self, call: Call) -> Cost:
        limit = call.request.get("max_completion_tokens") or call.request.get("max_tokens")
        return call.cost(
            prompt_tokens=estimate_prompt(call.request).total,
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
        earlier, self._latest_proof = self._latest_proof, proof
        fault = self._faults.take(ForgeProof)
        return proof if fault is None else forge(proof, fault, enclave=self._enclave, earlier=earlier)

    def _batch(self, call: Call, proof: Proof | None) -> None:
        is_batched = call.settlement_type is SettlementType.BATCH and proof is not None
        if is_batched and proof is not None and self._data_settler.add(proof):
            self._on_work()

    async def _individual_headers(self, call: Call, transcript: Transcript, proof: Proof) -> HeaderList:
        record = await self._settle_data(call, transcript, proof)
        return [*proof.headers().items(), *record.headers().items()]

    async def _settle_data(self, call: Call, transcript: Transcript, proof: Proof) -> IndividualRecord:
        content = {
            "request": canonical_request(call.request, style=self._enclave.style),
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


async def _replayed(chunks: Sequence[Chunk]) -> AsyncGenerator[Chunk, None]:
    for chunk in chunks:
        yield chunk
