"""Open answers: deltas as they arrive, then the whole answer and the receipt, sync and async.

The bytes are read in `exchange`. This module handles every way in which a stream ends: read to the end, closed early,
broken, dropped without closing (`unread`), closed by another thread.

A stream whose content is complete is read to the end of the HTTP body before its connection is let go, also when
its reader stops there: some gateways bill and prove a call only after their last write went through (docs/wire.md,
"Stream events"). `REST_S` limits that, and the reader has every delta before it begins.
"""

from __future__ import annotations

import _thread
import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Final, Self

import httpx

from opengradient_x402.completions import Completion, Delta
from opengradient_x402.effects import apieces, drive, drive_async, pieces
from opengradient_x402.errors import OpenGradientError, StreamInterrupted
from opengradient_x402.gateway.exchange import Exchange
from opengradient_x402.gateway.unread import OPEN_STREAMS
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.process import Ending, Resident, belongs

REST_S: Final = 1.0
"""Seconds to wait for the end of the body once the content is complete."""
_BROKEN_REST = (TimeoutError, httpx.TransportError, httpx.DecodingError, OpenGradientError)


class _Stream(Resident):
    """An open answer, and how it ended."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        self._response = response
        self._ready: deque[Delta] = deque()
        self._is_closed = False
        self._is_inherited = False
        self._is_given_up = False
        self.read_at: float | None = time.monotonic()
        self.completion: Completion | None = None
        belongs(self, Ending.STREAMS)

    @property
    def receipt(self) -> SettlementReceipt | None:
        """The receipt: of the payment as soon as the stream is open, of the whole call once it has ended."""
        return self._exchange.receipt

    @property
    def unread_limit_s(self) -> float:
        """How long it may stay unread before it is closed, in seconds."""
        return self._exchange.unread_limit_s

    def _has_ended(self) -> bool:
        """Whether it was closed. Raises StreamInterrupted where the reader did not close it."""
        if self._is_inherited:
            raise _inherited()
        if self._is_given_up:
            raise _given_up(self.unread_limit_s)
        return self._is_closed

    def _renew(self) -> None:
        """In a child it has ended. The parent goes on with it: its connection and its receipt are not touched here."""
        self._is_inherited = not self._is_closed
        self._is_closed = True


class CompletionStream(_Stream, Iterator[Delta]):
    """Deltas as they arrive. At the end `completion` is the whole answer, and `receipt` is set."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._bytes = pieces(response)
        self._is_reading = False
        super().__init__(exchange, response)
        OPEN_STREAMS.add(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        self.read_at = None
        try:
            return self._next()
        finally:
            self.read_at = time.monotonic()

    def _next(self) -> Delta:
        while not self._ready:
            try:
                self._take(self._read())
            except StopIteration:
                self._response.close()
                raise
            except BaseException as exc:  # noqa: BLE001  (every end of the stream ends the call)
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
        if self._has_ended():
            raise StopIteration
        return chunk

    def _take(self, chunk: bytes | None) -> None:
        if chunk is None:
            self.completion = self._exchange.finish_stream()
            drive(self._exchange.recorded())
            self._ready.extend(self._exchange.released())
            self.close()
        else:
            self._ready.extend(self._exchange.take_chunk(chunk))

    def close(self) -> None:
        """Ends the response and the call; what was served so far is charged. Closing twice is harmless.

        Another thread may do it: a read that is under way ends then. A stream whose content has all arrived is
        read to its end, for one second at most.
        """
        if not self._is_closed:
            self._is_closed = True
            OPEN_STREAMS.remove(self)
            try:
                if self._is_reading:
                    _hang_up(self._response)  # wakes the reader, which closes the response itself
                else:
                    try:
                        self._read_rest()
                    finally:
                        self._response.close()
            finally:
                self.completion = self._exchange.close_stream(was_shown_whole=not self._ready) or self.completion

    def give_up(self) -> None:
        """Ends a stream that is not read any more. A later read gets an error that says so."""
        self._is_given_up = not self._is_closed
        self.close()

    def _read_rest(self) -> None:
        if not self._exchange.has_all_content or self._response.is_closed:
            return
        ended = _thread.allocate_lock()
        with ended, suppress(*_BROKEN_REST):
            for chunk in self._bytes if _hang_up_later(self._response, unless=ended) else ():
                if not self._exchange.take_rest(chunk):
                    break

    def _end(self, _timeout_s: float, /) -> None:
        """At the end of the process: the receipt is recorded while there is a ledger."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A stream that was dropped without close() must free its connection and keep its receipt.
        if not getattr(self, "_is_closed", True):
            self.close()


class AsyncCompletionStream(_Stream, AsyncIterator[Delta]):
    """Deltas as they arrive. At the end `completion` is the whole answer, and `receipt` is set."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._bytes = apieces(response)
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        super().__init__(exchange, response)
        OPEN_STREAMS.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        self.read_at = None
        try:
            return await self._next()
        finally:
            self.read_at = time.monotonic()

    async def _next(self) -> Delta:
        while not self._ready:
            if self._has_ended():
                raise StopAsyncIteration
            try:
                chunk = None if self._exchange.is_done else await anext(self._bytes, None)
                if chunk is None:
                    self.completion = self._exchange.finish_stream()
                    await self.aclose()
                    await drive_async(self._exchange.recorded())
                    self._ready.extend(self._exchange.released())
                else:
                    self._ready.extend(self._exchange.take_chunk(chunk))
            except GeneratorExit:  # the generator is thrown away: nothing can be awaited any more
                self._drop()
                raise
            except BaseException as exc:  # noqa: BLE001  (every end of the stream ends the call)
                problem = self._exchange.fail(exc)
                await self.aclose()
                raise problem from problem.__cause__
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Ends the response and the call; what was served so far is charged. Closing twice is harmless.

        A stream whose content has all arrived is read to its end, for one second at most.
        """
        if not self._is_closed:
            self._is_closed = True
            OPEN_STREAMS.remove(self)
            try:
                await self._read_rest()
            except asyncio.CancelledError:
                await self._response.aclose()
                raise
            finally:
                self.completion = self._exchange.close_stream(was_shown_whole=not self._ready) or self.completion
            await self._response.aclose()

    def give_up(self) -> None:
        """As `CompletionStream.give_up`, from any thread."""
        if not self._is_closed:
            self._is_given_up = True
            try:
                self._loop.call_soon_threadsafe(self._close_soon)
            except RuntimeError:  # the loop has ended
                self._drop()

    def _close_soon(self) -> None:
        self._closing = self._loop.create_task(self.aclose())

    async def _read_rest(self) -> None:
        if not self._exchange.has_all_content or self._response.is_closed:
            return
        with suppress(*_BROKEN_REST):
            async with asyncio.timeout(REST_S):
                async for chunk in self._bytes:
                    if not self._exchange.take_rest(chunk):
                        break

    def _end(self, _timeout_s: float, /) -> None:
        """At the end of the process: the receipt is recorded while there is a ledger; nothing can be awaited."""
        if not self._is_closed:
            self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Dropped without aclose(): the loop closes the connection when it collects the response's generator;
        # the receipt is recorded here.
        if not getattr(self, "_is_closed", True):
            self._drop()

    def _drop(self) -> None:
        self._is_closed = True
        OPEN_STREAMS.remove(self)
        self._exchange.end("abandoned")


def _inherited() -> StreamInterrupted:
    return StreamInterrupted(
        "This stream was opened before the process was forked, and the parent process goes on reading it. Its call "
        "is paid and recorded there, once. Nothing more was paid here; make a new call in this process.",
        kind="connection",
    )


def _given_up(limit_s: float) -> StreamInterrupted:
    return StreamInterrupted(
        f"Nobody read this stream for {limit_s:.0f} s, so it was closed. What was served until then is paid, and its "
        "receipt is recorded. Read streams without such pauses, or set a longer `timeout`.",
        kind="timeout",
    )


def _hang_up_later(response: httpx.Response, *, unless: _thread.LockType) -> bool:
    """Ends a blocking read of the response in `REST_S`, unless the lock is released before; False if it cannot."""

    def watch() -> None:
        if not unless.acquire(timeout=REST_S):
            _hang_up(response)

    try:
        # Not a `threading.Thread`: its locks are not reentrant, and the garbage collector may close a stream anywhere.
        _thread.start_new_thread(watch, ())
    except RuntimeError:  # the interpreter ends
        return False
    return True


def _hang_up(response: httpx.Response) -> None:
    """Ends the connection under a read of another thread; closing the socket would not wake that thread."""
    if response.is_closed:  # the connection may serve another call already
        return
    stream = response.extensions.get("network_stream")
    line = stream.get_extra_info("socket") if stream is not None else None
    if isinstance(line, socket.socket):
        with suppress(OSError):  # it has ended by itself
            line.shutdown(socket.SHUT_RDWR)
