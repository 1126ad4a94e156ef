"""Gives an answer again, without a new charge, when the same payment comes again: x402's `payment-identifier`.

A payment that names an id is stored with its answer. The same payment with the same request gets that answer again;
another payment or request under the same id gets 409. Errors are not remembered (docs/wire.md, "Answers that are
given again").
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from opengradient_devnet.gateway.payment import challenge
from opengradient_devnet.gateway.payment.challenge import PAYMENT_SIGNATURE

IDENTIFIER: Final = "payment-identifier"
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{16,128}", re.ASCII)
DECLARATION: Final = {
    IDENTIFIER: {
        "info": {"required": False},
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "required": {"type": "boolean"},
                "id": {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"},
            },
            "required": ["required"],
        },
    }
}
"""What is put into the challenge of a gateway that gives answers again."""


_Kept = tuple[int, list[tuple[bytes, bytes]], bytes] | None


@dataclass(slots=True)
class _Given:
    """One payment's answer, as soon as it is there; None for one that is not given again."""

    fingerprint: str
    answer: asyncio.Future[_Kept] = field(default_factory=asyncio.Future)


class Repeats:
    """The answers of one gateway's identified payments, in memory. Runs on the event loop."""

    def __init__(self) -> None:
        self._given: dict[str, _Given] = {}

    async def answer(self, request: Request, body: bytes | None, make: Callable[[], Awaitable[Response]]) -> Response:
        """What `make` answers, or what it answered to the same payment before."""
        header = request.headers.get(PAYMENT_SIGNATURE, "")
        payment_id = _id_in(header)
        if payment_id is None:
            return await make()
        fingerprint = sha256(header.encode() + b"\n" + (body or b"")).hexdigest()
        known = self._given.get(payment_id)
        if known is not None and known.fingerprint != fingerprint:
            return Response(b'{"error": "payment identifier already used with another payload"}', status_code=409)
        if known is not None and (kept_before := await asyncio.shield(known.answer)) is not None:
            status, headers, content = kept_before
            again = Response(content, status_code=status)
            again.raw_headers = headers
            return again
        given = self._given[payment_id] = _Given(fingerprint)
        kept: _Kept = None
        try:
            response = await make()
            said = getattr(response, "body", None)  # a stream has none
            if response.status_code < 400 and isinstance(said, bytes):
                kept = response.status_code, list(response.raw_headers), said
            return response
        finally:
            if kept is None:
                del self._given[payment_id]
            given.answer.set_result(kept)


def _id_in(header: str) -> str | None:
    """The id that a payment names, if it has the form of one."""
    payment = challenge.parse_payment(header) if header else None
    extensions = None if payment is None else payment.get("extensions")
    named = extensions.get(IDENTIFIER) if isinstance(extensions, dict) else None
    info = named.get("info") if isinstance(named, dict) else None
    payment_id = info.get("id") if isinstance(info, dict) else None
    return payment_id if isinstance(payment_id, str) and _ID.fullmatch(payment_id) else None
