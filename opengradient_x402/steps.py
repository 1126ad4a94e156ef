"""The effects that clients and transports perform for their generators. Plain values; `driving` runs those."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

MAX_PUBLIC_BYTES = 4 * 1024 * 1024
"""Lists of models and keys stay far below."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this through the paying transport and give back the response, body unread."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Collect:
    """Feed the body to `take`, piece by piece, then close the response."""

    response: httpx.Response
    take: Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long before the next attempt."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send this past the payment (it asks for public data) and give back the response, body unread."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the future and give back its result; TimeoutError after `timeout_s`."""

    future: Future[Any]
    timeout_s: float | None = None


T = TypeVar("T")
Effect = Ask | Collect | Pause | Fetch | Wait
Steps = Generator[Effect, Any, T]


def fetch(request: httpx.Request, *, timeout_s: float) -> Steps[httpx.Response]:
    """Public data, read to its end within the time limit. Raises httpx.TransportError."""
    deadline = time.monotonic() + timeout_s
    body = bytearray()

    def take(piece: bytes) -> None:
        body.extend(piece)
        if len(body) > MAX_PUBLIC_BYTES:
            raise httpx.ReadError(f"more than {MAX_PUBLIC_BYTES} bytes")
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout(f"not complete after {timeout_s:g} s")

    response: httpx.Response = yield Fetch(request)
    response.headers.pop("content-encoding", None)  # no encoding was asked for, so none is undone
    yield Collect(response, take)
    return httpx.Response(response.status_code, content=bytes(body))
