"""The Date header of every response: right; wrong or missing on the gateway's paths when a fault says so."""

from __future__ import annotations

import time
from email.utils import formatdate

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opengradient_devnet.faults import Faults, OmitDate, SkewClock

_GATEWAY_PATHS = "/v1/"


def dated(app: ASGIApp, *, faults: Faults) -> ASGIApp:
    """`app` with a Date header (RFC 9110 §6.6.1); the server must not write one of its own."""

    async def with_date(scope: Scope, receive: Receive, send: Send) -> None:
        is_gateway = scope["type"] == "http" and scope["path"].startswith(_GATEWAY_PATHS)

        async def send_dated(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and not (is_gateway and faults.take(OmitDate)):
                skewed = faults.take(SkewClock) if is_gateway else None
                now_s = time.time() + (skewed.by_s if skewed else 0.0)
                date = (b"date", formatdate(now_s, usegmt=True).encode())
                message = {**message, "headers": [date, *message.get("headers", [])]}
            await send(message)

        await app(scope, receive, send_dated)

    return with_date
