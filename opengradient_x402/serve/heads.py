"""Closes connections on which the head of a request (its first line and headers) is slow or large.

uvicorn closes a connection that is idle after an answer. It waits without end for a first request, and for the rest of
a head that came in part: a program that opens many such connections would leave no room for others.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD_S = 10.0
"""How long a client may take to send the head of a request, in seconds."""
LARGEST_HEAD: Final = 64 * 1024
"""Bytes of a head. Nginx takes 32 KiB, and Node.js 16 KiB."""


class HeadLimits(HttpToolsProtocol):
    """uvicorn's HTTP/1.1. A head that comes too slowly, or is too large, ends its connection; nothing is answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._reads_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            return  # a request is being answered
        self._await_head()
        if self._reads_head:  # not the rest of a body that was refused unread
            self._head_bytes += len(data)
        if self._head_bytes > LARGEST_HEAD:
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._reads_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reads_head = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(LONGEST_HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
