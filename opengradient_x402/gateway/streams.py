"""Open answers: deltas as they arrive, the whole answer and the receipt afterwards, sync and async.

Thin: what bytes mean is `exchange`'s business. What is here is the end of a stream in all its forms: read to
the end, closed early, broken, dropped without a word, closed by another thread.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import httpx

from opengradient_x402.completions import Completion, Delta
from opengradient_x402.errors import StreamInterrupted
from opengradient_x402.gateway.exchange import Exchange
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.process import Ending, Resident, belongs


class CompletionStream(Iterator[Delta], Resident):
    """Deltas as they arrive. Afterwards `completion` is the whole answer, and `receipt` is set."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._response = response
        self._bytes = response.iter_bytes()
        self._ready: deque[Delta] = deque()
        self._is_reading = False
        self._is_closed = False
        self._is_inherited = False
        self.completion: Completion | None = None
        belongs(self, Ending.STREAMS)

    @property
    def receipt(self) -> SettlementReceipt | None:
        """The receipt: of the payment as soon as the stream is open, of the whole call once it has ended."""
        return self._exchange.receipt

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while not self._ready:
            try:
                self._take(self._read())
            except StopIteration:
                self._response.close()
                raise
            except BaseException as exc:  # noqa: BLE001  (ends the call, whatever ended it)
                problem = self._exchange.fail(exc)
                self.close()
                raise problem from problem.__cause__
        return self._ready.popleft()

    def _read(self) -> bytes | None:
        """The next piece, or None at the end. Raises StopIteration when the stream was closed, also meanwhile."""
        self._is_reading = True
        try:
            chunk = None if self._is_closed or self._exchange.is_done else next(self._bytes, None)
        except httpx.TransportError:
            if not self._is_closed:  # otherwise another thread broke this read by closing
                raise
        finally:
            self._is_reading = False
        if self._is_inherited:
            raise _inherited()
        if self._is_closed:
            raise StopIteration
        return chunk

    def _take(self, chunk: bytes | None) -> None:
        if chunk is None:
            self.completion = self._exchange.finish_stream()
            self.close()
        else:
            self._ready.extend(self._exchange.take_chunk(chunk))

    def close(self) -> None:
        """Ends the response and the call; what was served so far is charged. Closing twice is harmless.

        Another thread may do it: a read that is under way ends then.
        """
        if not self._is_closed:
            self._is_closed = True
            try:
                if self._is_reading:
                    _hang_up(self._response)  # wakes the reader, which closes the response itself
                else:
                    self._response.close()
            finally:
                self._exchange.end("abandoned")

    def _renew(self) -> None:
        """In a child it is over: the parent goes on with it, and neither its line nor its receipt is touched here."""
        self._is_inherited = not self._is_closed
        self._is_closed = True

    def _end(self, _timeout_s: float, /) -> None:
        """At the end of the process: the receipt is recorded while there is a ledger."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A stream that was dropped without close() must neither hold its connection nor lose its receipt.
        if not getattr(self, "_is_closed", True):
            self.close()


class AsyncCompletionStream(AsyncIterator[Delta], Resident):
    """Deltas as they arrive. Afterwards `completion` is the whole answer, and `receipt` is set."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._response = response
        self._bytes = response.aiter_bytes()
        self._ready: deque[Delta] = deque()
        self._is_closed = False
        self._is_inherited = False
        self.completion: Completion | None = None
        belongs(self, Ending.STREAMS)

    @property
    def receipt(self) -> SettlementReceipt | None:
        """The receipt: of the payment as soon as the stream is open, of the whole call once it has ended."""
        return self._exchange.receipt

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._is_inherited:
                raise _inherited()
            if self._is_closed:
                raise StopAsyncIteration
            try:
                chunk = None if self._exchange.is_done else await anext(self._bytes, None)
                if chunk is None:
                    self.completion = self._exchange.finish_stream()
                    await self.aclose()
                else:
                    self._ready.extend(self._exchange.take_chunk(chunk))
            except GeneratorExit:  # thrown away: nothing can be awaited any more
                self._drop()
                raise
            except BaseException as exc:  # noqa: BLE001  (ends the call, whatever ended it)
                problem = self._exchange.fail(exc)
                await self.aclose()
                raise problem from problem.__cause__
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Ends the response and the call; what was served so far is charged. Closing twice is harmless."""
        if not self._is_closed:
            self._is_closed = True
            self._exchange.end("abandoned")
            await self._response.aclose()

    def _renew(self) -> None:
        """As of a `CompletionStream`."""
        self._is_inherited = not self._is_closed
        self._is_closed = True

    def _end(self, _timeout_s: float, /) -> None:
        """At the end of the process: the receipt is recorded while there is a ledger; nothing can be awaited."""
        if not self._is_closed:
            self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Dropped without aclose(): the loop closes the connection when it collects the response's generator;
        # the receipt is recorded here.
        if not getattr(self, "_is_closed", True):
            self._drop()

    def _drop(self) -> None:
        self._is_closed = True
        self._exchange.end("abandoned")


def _inherited() -> StreamInterrupted:
    return StreamInterrupted(
        "This stream was opened before the process was forked, and the parent process goes on reading it. Its call "
        "is paid and recorded there, once. Nothing more was paid here; make a new call in this process.",
        kind="connection",
    )


def _hang_up(response: httpx.Response) -> None:
    """Ends the connection under a read of another thread; closing the socket would not wake that thread."""
    stream = response.extensions.get("network_stream")
    line = stream.get_extra_info("socket") if stream is not None else None
    if isinstance(line, socket.socket):
        with suppress(OSError):  # it has ended by itself
            line.shutdown(socket.SHUT_RDWR)
