"""Server-sent events over ASGI: each event is sent as soon as it exists, and a reader who leaves is noticed.

When the client disconnects, or the server stops, the generator of events is cancelled and closed, and `on_end`
records the cost, even if nothing was sent. The faults that damage a stream are carried out here, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from opengradient_devnet.connection import hang_up, transport_of
from opengradient_devnet.faults import DripHeaders, EmptyStream, ErrorEvent, Faults, OmitDone, RawEvent, TruncateStream
from opengradient_devnet.gateway.answers import DONE, event


class EventKind(Enum):
    DELTA = "delta"
    FINAL = "final"
    DONE = "done"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One event in wire form."""

    kind: EventKind
    data: bytes


class ConnectionCut(Exception):
    """The stream is to end by dropping its connection."""


class DrippedHeaders(Response):
    """A response whose headers come one by one; nothing of it is written by the server."""

    def __init__(self, fault: DripHeaders) -> None:
        super().__init__(status_code=204)
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Drip, end the connection, and then say to the server that it was answered."""
        transport = transport_of(scope)
        transport.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(self._fault.lines):
            await asyncio.sleep(self._fault.pace_s)
            if transport.is_closing():
                break
            transport.write(f"x-drip-{number}: 1\r\n".encode())
        else:
            transport.write(b"content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        transport.close()
        await super().__call__(scope, receive, send)


class EventStream(Response):
    """A streamed response. `on_end` runs once in every case, after `events` is closed."""

    def __init__(
        self,
        events: AsyncGenerator[StreamEvent, None],
        *,
        headers: Sequence[tuple[str, str]],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._on_end = on_end
        content_type = ("content-type", "text/event-stream; charset=utf-8")
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in [content_type, *headers]
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client goes away."""
        try:
            async with aclosing(self._events), anyio.create_task_group() as group:
                group.start_soon(self._send, scope, send, group.cancel_scope)
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._on_end()

    async def _send(self, scope: Scope, send: Send, waiting: anyio.CancelScope) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for item in self._events:
                await send({"type": "http.response.body", "body": item.data, "more_body": True})
        except ConnectionCut:
            hang_up(scope)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        waiting.cancel()


async def spoiled(events: AsyncGenerator[StreamEvent, None], *, faults: Faults) -> AsyncGenerator[StreamEvent, None]:
    """`events` with the faults that are due for this stream; closing it closes `events`."""
    empty, omit_done = faults.take(EmptyStream), faults.take(OmitDone)
    raw, error = faults.take(RawEvent), faults.take(ErrorEvent)
    truncate = faults.take(TruncateStream)
    deltas = 0
    async with aclosing(events):
        async for item in events:
            if raw is not None and deltas == raw.after_deltas:
                yield StreamEvent(kind=EventKind.DELTA, data=raw.text.encode())
                raw = None
            if error is not None and deltas >= error.after_deltas:
                yield StreamEvent(kind=EventKind.ERROR, data=event({"error": error.message}))
                if error.send_done:
                    yield StreamEvent(kind=EventKind.DONE, data=DONE)
                return
            if truncate is not None and deltas >= truncate.after_deltas:
                if truncate.cut_connection:
                    raise ConnectionCut
                return
            deltas += item.kind is EventKind.DELTA
            is_dropped = (empty is not None and not (empty.send_done and item.kind is EventKind.DONE)) or (
                omit_done is not None and item.kind is EventKind.DONE
            )
            if not is_dropped:
                yield item
