"""The server's routes: chat completions, whole or streamed, and the list of models. Everything else is a clear 404.

A request is passed on as its client sent it; `gateway.request` refuses what no gateway does, before anything is paid.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from opengradient_x402 import strict_json
from opengradient_x402.errors import ConfigurationError, OpenGradientError
from opengradient_x402.gateway.client import AsyncGatewayClient
from opengradient_x402.gateway.request import with_wire_roles
from opengradient_x402.gateway.streams import AsyncCompletionStream
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.models import catalog, find_model
from opengradient_x402.serve.answers import EventWriter, body_of, event
from opengradient_x402.serve.guard import KEY_IN_SCOPE, Guard
from opengradient_x402.serve.keys import ApiKey
from opengradient_x402.serve.refusals import (
    FAILED_AFTER_PAYMENT,
    error_body,
    receipt_headers,
    refusal,
    refusal_of,
)
from opengradient_x402.serve.refusals import body_of as body_of_error
from opengradient_x402.serve.waiting import Answer, HungUp, Waiting, hung_up

LARGEST_BODY: Final = 32 * 1024 * 1024
"""Bytes of a request: images and documents travel in it."""
LONGEST_UPLOAD_S = 60.0
"""How long a client may take to send a request, in seconds."""
KeyListener = Callable[[ApiKey, SettlementReceipt], None]
_JSON: Final = "application/json"
_NOT_FOUND, _METHOD, _TOO_SLOW, _TOO_LARGE, _MEDIA, _NOBODY = 404, 405, 408, 413, 415, 499


def build_app(
    client: AsyncGatewayClient,
    *,
    keys: Sequence[ApiKey],
    hosts: Sequence[str] = (),
    on_receipt: KeyListener | None = None,
) -> ASGIApp:
    """The application that answers requests with one of `keys`, over `client`, which it closes at its end.

    It answers under loopback names, and under `hosts`. `on_receipt` is called at the end of each call that was, or may
    be, paid.
    """
    chat = _Chat(client, on_receipt)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await chat.waiting.aclose()
            await client.aclose()

    async def models(request: Request) -> Response:
        return await _models(client, request.path_params.get("name"))

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat.respond, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", models, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={_NOT_FOUND: _no_route, _METHOD: _no_route, Exception: _broken},
    )
    return Guard(app, keys=keys, hosts=hosts)


class _Chat:
    """Chat completions."""

    def __init__(self, client: AsyncGatewayClient, on_receipt: KeyListener | None) -> None:
        self._client = client
        self._on_receipt = on_receipt
        self.waiting = Waiting()

    async def respond(self, request: Request) -> Response:
        key: ApiKey = request.scope[KEY_IN_SCOPE]
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            return refusal(
                _MEDIA, f"The request is not {_JSON}. Nothing was paid. Send JSON.", code="unsupported_media_type"
            )
        try:
            async with asyncio.timeout(LONGEST_UPLOAD_S):
                content = await _content(request)
        except ClientDisconnect:
            return Response(status_code=_NOBODY)
        except TimeoutError:
            return refusal(
                _TOO_SLOW,
                f"The request did not arrive within {LONGEST_UPLOAD_S:g} s. Nothing was paid. Send it again.",
                code="request_timeout",
            )
        if content is None:
            return refusal(
                _TOO_LARGE,
                f"The request has more than {LARGEST_BODY} bytes. Nothing was paid. Send smaller images or documents.",
                code="request_too_large",
            )
        try:
            asked = _Asked.read(content)
            answer = await self.waiting.answer(
                request, name=key.name, content=content, ask=lambda: self._ask(asked, key)
            )
        except OpenGradientError as exc:
            return refusal_of(exc)
        except HungUp:
            return Response(status_code=_NOBODY)
        if isinstance(answer, AsyncCompletionStream):
            return _StreamedAnswer(answer, EventWriter(model=asked.model, has_usage=asked.has_usage))
        return Response(strict_json.dumps(body_of(answer)), headers=receipt_headers(answer.receipt), media_type=_JSON)

    async def _ask(self, asked: _Asked, key: ApiKey) -> Answer:
        def report(receipt: SettlementReceipt) -> None:
            if self._on_receipt is not None:
                self._on_receipt(key, receipt)

        make = self._client.stream if asked.is_stream else self._client.chat
        return await make(asked.body, limits=key.limits, on_receipt=report, run=key.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request: what is passed on, and what concerns only how it is answered."""

    body: Mapping[str, Any]
    model: str
    is_stream: bool
    has_usage: bool

    @classmethod
    def read(cls, content: bytes) -> _Asked:
        """Raises ConfigurationError for what is no request for a chat completion."""
        try:
            body = strict_json.loads(content)
        except ValueError as exc:
            raise _unusable(f"The request is not JSON ({exc})") from exc
        if not isinstance(body, dict):
            raise _unusable("The request is not a JSON object")
        if not isinstance(body.get("model"), str):
            raise _unusable("`model` is missing, or is no text")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise _unusable("`messages` is missing, or is no list of messages")
        body["messages"] = with_wire_roles(messages)
        is_stream, options = body.pop("stream", None), body.pop("stream_options", None) or {}
        if is_stream not in (None, True, False) or not isinstance(options, dict):
            raise _unusable("`stream` is true or false, and `stream_options` is an object")
        return cls(
            body=body, model=body["model"], is_stream=bool(is_stream), has_usage=bool(options.get("include_usage"))
        )


def _unusable(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}. Nothing was paid. Send what OpenAI's chat completions take.", kind="invalid_request"
    )


async def _content(request: Request) -> bytes | None:
    """The body; None for one that is too large."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > LARGEST_BODY:
        return None
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > LARGEST_BODY:
            return None
    return bytes(content)


class _StreamedAnswer(Response):
    """Sends a stream on. A client that hangs up ends the call at once; what was served until then is paid."""

    def __init__(self, stream: AsyncCompletionStream, writer: EventWriter) -> None:
        super().__init__(headers=receipt_headers(stream.receipt) | {"cache-control": "no-cache"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._stream = stream
        self._writer = writer

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sending, gone = asyncio.create_task(self._send(send)), asyncio.create_task(hung_up(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.wait({sending})
            await self._stream.aclose()
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for delta in self._stream:
                if written := self._writer.of(delta):
                    await _send_body(send, written)
            if self._stream.completion is None:
                raise AssertionError("a stream that was read to its end has a completion")
            for written in self._writer.end(self._stream.completion, self._stream.receipt):
                await _send_body(send, written)
        except OpenGradientError as exc:
            await _send_body(send, event(body_of_error(exc)))
        await _send_body(send, b"", more=False)


async def _send_body(send: Send, content: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def _models(client: AsyncGatewayClient, name: str | None) -> Response:
    """The models that the gateway lists, under their names in the catalog; the whole catalog if it lists none."""
    served = (await client.models()).names
    names = {one if (info := find_model(one)) is None else info.name for one in served}
    names = names or {info.name for info in catalog() if not info.is_deprecated}
    listed = {
        one: {"id": one, "object": "model", "created": 0, "owned_by": one.rpartition("/")[0] or "opengradient"}
        for one in sorted(names)
    }
    if name is None:
        answer: dict[str, Any] = {"object": "list", "data": list(listed.values())}
    elif name in listed:
        answer = listed[name]
    else:
        return refusal(
            _NOT_FOUND, f"There is no model {name[:100]!r}. Ask `/v1/models`.", code="model_not_found", param="model"
        )
    return Response(strict_json.dumps(answer), media_type=_JSON)


async def _no_route(request: Request, _exc: Exception) -> Response:
    hint = (
        "The Responses API keeps conversations on the server, which the gateways do not. Use chat completions."
        if request.url.path.startswith("/v1/responses")
        else "It has POST /v1/chat/completions and GET /v1/models; the base URL ends in /v1."
    )
    return refusal(
        _NOT_FOUND,
        f"This server has no {request.method} {request.url.path[:200]}. Nothing was paid. {hint}",
        code="unknown_url",
    )


async def _broken(_request: Request, exc: Exception) -> Response:
    """A fault of this server: what became of the money is not known here."""
    message = (
        f"The server failed ({type(exc).__name__}). If the call was paid, its receipt is in the ledger: "
        "`opengradient-x402 receipts list`. Report this, with what the server printed."
    )
    body = error_body(message, kind="api_error", code="internal_error")
    headers = {"x-should-retry": "false"}
    return Response(strict_json.dumps(body), FAILED_AFTER_PAYMENT, headers, media_type=_JSON)
