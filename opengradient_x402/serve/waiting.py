"""Calls that clients wait for. One whose client hung up before its answer is kept for a moment.

OpenAI's clients send a request again when its answer takes longer than their time limit, and say so in
`x-stainless-retry-count`. The first attempt is paid by then: the second one gets its answer, in place of a new call.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from starlette.requests import Request
from starlette.types import Receive

from opengradient_x402.completions import Completion
from opengradient_x402.errors import OpenGradientError
from opengradient_x402.gateway.streams import AsyncCompletionStream

RETRIED_WITHIN_S: Final = 20.0
"""OpenAI's clients wait 8 s at most before they try again."""
Answer = Completion | AsyncCompletionStream
_Sameness = tuple[str, bytes]


class HungUp(Exception):
    """Nobody waits for this answer any more."""


class Waiting:
    """The calls of one server."""

    def __init__(self) -> None:
        self._left: defaultdict[_Sameness, list[tuple[asyncio.Task[Answer], asyncio.TimerHandle]]] = defaultdict(list)
        self._closing: set[asyncio.Task[None]] = set()

    async def answer(
        self, request: Request, *, name: str, content: bytes, ask: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """What `ask` gives, or what it gave to the same request before. Raises HungUp, and the errors of `ask`."""
        sameness = (name, hashlib.sha256(content).digest())
        is_retry = request.headers.get("x-stainless-retry-count", "0") != "0"
        call = (self._taken(sameness) if is_retry else None) or asyncio.ensure_future(ask())
        gone = asyncio.create_task(hung_up(request.receive))
        try:
            await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(call)
            raise
        finally:
            gone.cancel()
        if call.done() and not gone.done():
            return call.result()
        until = asyncio.get_running_loop().call_later(RETRIED_WITHIN_S, self._give_up, sameness)
        self._left[sameness].append((call, until))
        raise HungUp

    def _taken(self, sameness: _Sameness) -> asyncio.Task[Answer] | None:
        """The oldest of the calls that are left; it is not ended at its time any more."""
        left = self._left.get(sameness)
        if not left:
            return None
        call, until = left.pop(0)
        until.cancel()
        if not left:
            del self._left[sameness]
        return call

    def _give_up(self, sameness: _Sameness) -> None:
        if (call := self._taken(sameness)) is not None:  # they are left in the order in which their times end
            closing = asyncio.create_task(_end(call))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Ends the calls that nobody came back for."""
        for sameness in list(self._left):
            while (call := self._taken(sameness)) is not None:
                await _end(call)
        if self._closing:
            await asyncio.wait(self._closing)


async def hung_up(receive: Receive) -> None:
    """Returns when the client of a request, whose body was read, has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(call: asyncio.Task[Answer]) -> None:
    """Ends a call, and its stream; its receipt is recorded."""
    call.cancel()
    await asyncio.wait({call})
    with suppress(asyncio.CancelledError, OpenGradientError):
        if isinstance(answer := call.result(), AsyncCompletionStream):
            await answer.aclose()
