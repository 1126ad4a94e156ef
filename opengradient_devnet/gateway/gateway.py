"""The paid gateway: routes for OpenAI's chat completions and completions, behind a door that takes payments.

A call passes the door (`payment.door`), is checked (`intake`) and answered (`service`). Errors cost nothing. Payloads
are never logged.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from opengradient_devnet.connection import hang_up
from opengradient_devnet.faults import (
    AlterOpgPrice,
    AnswerStatus,
    DripHeaders,
    Faults,
    ForgeAttestation,
    HangUp,
    HugeChallenge,
    InflateCost,
    Redirect,
    SlowDrip,
    StreamStyle,
)
from opengradient_devnet.gateway import answers
from opengradient_devnet.gateway.event_stream import DrippedHeaders
from opengradient_devnet.gateway.intake import (
    Declined,
    HeaderList,
    Invalid,
    chat_from_text,
    check_bearer,
    check_chat,
    parse_json,
    read_body,
    told_call_id,
    unread_role,
)
from opengradient_devnet.gateway.menu import Menu
from opengradient_devnet.gateway.payment.denials import Refusal
from opengradient_devnet.gateway.payment.door import Admission, CollectionFailed, Door
from opengradient_devnet.gateway.payment.repeats import Repeats
from opengradient_devnet.gateway.profile import GatewayProfile
from opengradient_devnet.gateway.proofs.batches import SettlementType
from opengradient_devnet.gateway.proofs.nitro import NONCE_DIGITS, Hypervisor
from opengradient_devnet.gateway.proofs.tee import Enclave
from opengradient_devnet.gateway.service import Call, ModelService
from opengradient_devnet.model.protocol import Delivery, ModelError
from opengradient_devnet.money import OPG_TOKEN
from opengradient_devnet.tool_call_styles import ToolCallStyle

_NONCE = re.compile(rf"[0-9a-fA-F]{{{NONCE_DIGITS}}}", re.ASCII)
_PIECE = b" " * 2**16
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_PROBLEM_JSON = "application/problem+json"
_Answering = Callable[[Request, bytes | None, Admission], Awaitable[Response]]
_PAYWALL = b"<!doctype html><title>Payment required</title><p>This page costs OPG. Connect a wallet to go on.</p>\n"


class HungUp(Exception):
    """The connection is to be dropped without an answer."""


class HeadersDripped(Exception):
    """The answer is to be replaced by headers that drip."""

    def __init__(self, fault: DripHeaders) -> None:
        super().__init__(fault)
        self.fault = fault


class Gateway:
    """The routes of one gateway. Its parts come in ready to use."""

    def __init__(
        self,
        *,
        door: Door,
        service: ModelService,
        menu: Menu,
        enclave: Enclave,
        hypervisor: Hypervisor,
        operator_address: str,
        profile: GatewayProfile,
        faults: Faults,
        pace_s: float = 0.0,
        repeats: Repeats | None = None,
    ) -> None:
        self._door = door
        self._service = service
        self._menu = menu
        self._prices = menu.prices
        self._enclave = enclave
        self._hypervisor = hypervisor
        self._operator_address = operator_address
        self._profile = profile
        self._faults = faults
        self._pace_s = pace_s
        self._repeats = repeats

    def routes(self) -> list[Route]:
        """What to mount at the root of the gateway's origin."""
        paid = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete_text, methods=["POST"]),
        ]
        models = Route("/v1/models", self._list_models, methods=["GET"])
        nothing = Route("/v1/{rest:path}", self._nothing_here, methods=_METHODS)
        return [
            *paid,
            *([models] if self._profile.lists_models else []),
            *([nothing] if self._profile.writes_problems else []),
            Route("/health", self._health, methods=["GET"]),
            Route("/signing-key", self._signing_key, methods=["GET"]),
            Route("/enclave/attestation", self._attestation, methods=["GET"]),
        ]

    # --- free routes ---------------------------------------------------------------------------------------

    async def _list_models(self, _request: Request) -> Response:
        offered = await self._menu.models()
        opg_usd = self._prices.opg_usd if self._prices.token is OPG_TOKEN else None
        return _json(200, answers.pretty(answers.models_page(offered, opg_usd=opg_usd)))

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

    async def _attestation(self, request: Request) -> Response:
        digits = request.query_params.get("nonce", "")
        if _NONCE.fullmatch(digits) is None:
            return _response(400, b"nonce must be 40 hex digits\n", [("content-type", "text/plain")])
        document = self._hypervisor.document(
            nonce=bytes.fromhex(digits), timestamp_s=int(time.time()), fault=self._faults.take(ForgeAttestation)
        )
        return _response(200, base64.b64encode(document) + b"\n", [("content-type", "text/plain")])

    async def _nothing_here(self, request: Request) -> Response:
        if request.url.path in ("/v1/chat/completions", "/v1/completions"):
            problem = answers.problem(status=405, title="Method Not Allowed", detail="")
            return _response(405, problem, [("content-type", _PROBLEM_JSON), ("allow", "POST")])
        problem = answers.problem(status=404, title="Not Found", detail="")
        return _response(404, problem, [("content-type", _PROBLEM_JSON)])

    # --- paid routes ---------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        return await self._paid(request, self._answer_chat)

    async def _complete_text(self, request: Request) -> Response:
        return await self._paid(request, self._answer_text)

    async def _paid(self, request: Request, answer: _Answering) -> Response:
        # The body is read first: a connection whose request was left unread cannot be used again.
        body = await read_body(request)
        redirect = self._faults.take(Redirect, when="unpaid")
        if redirect is not None:
            return Response(status_code=redirect.status, headers={"location": redirect.location})
        drip = self._faults.take(DripHeaders, when="unpaid")
        if drip is not None:
            return DrippedHeaders(drip)
        if self._repeats is None:
            return await self._admitted(request, body, answer)
        return await self._repeats.answer(request, body, lambda: self._admitted(request, body, answer))

    async def _admitted(
        self,
        request: Request,
        body: bytes | None,
        answer: Callable[[Request, bytes | None, Admission], Awaitable[Response]],
    ) -> Response:
        admission = await self._door.admit(request)
        if isinstance(admission, Refusal):
            return self._refused(admission, request)
        try:
            return await self._answered(admission, answer(request, body, admission))
        except CollectionFailed as exc:
            return self._refused(exc.refusal, request)
        except HungUp:
            hang_up(request.scope)
            return Response(status_code=204)
        except BaseException:
            admission.waive()
            raise

    async def _answered(self, admission: Admission, answer: Awaitable[Response]) -> Response:
        """The answer, or the error in its place, which costs nothing."""
        try:
            return await answer
        except Declined as exc:
            return _response(exc.status, exc.body, exc.headers + admission.waive())
        except HeadersDripped as exc:
            admission.waive()
            return DrippedHeaders(exc.fault)
        except Invalid as exc:
            return self._invalid(str(exc), admission.waive())
        except ModelError as exc:
            return await self._failed(exc, admission)

    def _invalid(self, message: str, headers: HeaderList) -> Response:
        if not self._profile.writes_problems:
            return _json(400, answers.error(message), headers)
        problem = answers.problem(status=400, title="Bad Request", detail=message)
        return _response(400, problem, [("content-type", _PROBLEM_JSON), *headers])

    async def _failed(self, failure: ModelError, admission: Admission) -> Response:
        if not self._profile.hides_failures:
            return _json(failure.status, answers.provider_error(failure), admission.waive())
        await asyncio.sleep(self._profile.failure_delay_s)
        return _json(500, answers.error(answers.HIDDEN_FAILURE), admission.waive())

    def _refused(self, refusal: Refusal, request: Request) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and "Mozilla" in request.headers.get(
            "user-agent", ""
        )
        if self._profile.shows_paywall and wants_page:
            return _response(402, _PAYWALL, [("content-type", "text/html")])
        huge = self._faults.take(HugeChallenge)
        if huge is None:
            return _response(refusal.status, refusal.body, refusal.headers)

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
            return await self._service.begin_stream(call)
        answer = await self._service.answer(call)
        return _json(200, answer.body, answer.headers)

    async def _answer_text(self, request: Request, body: bytes | None, admission: Admission) -> Response:
        call = self._parse(request, body, admission, is_text=True)
        await self._misbehave(call)
        answer = await self._service.answer(call, text_in=self._profile.text_completion)
        return _json(200, answer.body, answer.headers)

    # --- checking ------------------------------------------------------------------------------------------

    def _parse(self, request: Request, body: bytes | None, admission: Admission, *, is_text: bool = False) -> Call:
        check_bearer(request)
        content = parse_json(request, body)
        if is_text:
            content = chat_from_text(content)
        check_chat(content)
        price = self._prices.find(content["model"])
        if price is None:
            raise Invalid(f"Model '{content['model']}' is not supported")
        role = unread_role(content)
        if role is not None:
            if self._profile.hides_failures:
                raise ModelError(500, "")
            raise Invalid(
                f"A message has the role '{role}', which the live gateways cannot read: they answer 500, after the "
                "payment. The roles are system, user, assistant and tool."
            )
        style, inflated = self._faults.take(StreamStyle), self._faults.take(InflateCost)
        repriced = self._faults.take(AlterOpgPrice)
        return Call(
            request=content,
            price=price,
            prices=self._prices if repriced is None else self._prices.at(repriced.opg_usd),
            cost_factor=1 if inflated is None else inflated.factor,
            admission=admission,
            settlement_type=SettlementType.from_header(request.headers.get("x-settlement-type")),
            delivery=self._delivery(style or StreamStyle()),
            told_id=told_call_id(request),
            has_whole_tool_calls=style is None and self._profile.tool_calls is ToolCallStyle.WHOLE,
        )

    def _delivery(self, style: StreamStyle) -> Delivery:
        drip = self._faults.take(SlowDrip)
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
        drip = self._faults.take(DripHeaders, when="paid")
        if drip is not None:
            raise HeadersDripped(drip)
        vanish = self._faults.take(HangUp)
        if vanish is not None:
            await asyncio.sleep(vanish.after_s)
            if vanish.charge:
                transcript = await self._service.ask(call)
                await call.admission.collect(self._service.cost(call, transcript).atomic)
            else:
                call.admission.waive()
            raise HungUp


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
