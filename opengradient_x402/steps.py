"""The effects that clients and transports perform for their generators. Plain values; `driving` runs those."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx


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
    """Send this past the payment (it asks for public data) and give back the response, body read."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the future and give back its result; TimeoutError after `timeout_s`."""

    future: Future[Any]
    timeout_s: float | None = None


T = TypeVar("T")
Effect = Ask | Collect | Pause | Fetch | Wait
Steps = Generator[Effect, Any, T]
