"""An event loop in a thread of its own, for callers who wait without one, or inside one that must not block."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from opengradient_x402.process import Ending, Resident, belongs

T = TypeVar("T")
_CLOSING_S: Final = 10.0


class LoopThread(Resident):
    """The loop begins with the first work, and ends with `close`, or when nobody holds this any more.

    `name` is that of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._renew()
        belongs(self, Ending.WATCHERS)

    def _renew(self) -> None:
        """A forked child begins a loop of its own."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: weakref.finalize[..., Any] | None = None

    def _end(self, timeout_s: float, /) -> None:
        self.close(timeout_s)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts the work; the future has its result, and cancels it."""
        with self._lock:
            loop = self._loop or self._started()
            return asyncio.run_coroutine_threadsafe(work, loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, which is cancelled when the caller is interrupted."""
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, timeout_s: float = _CLOSING_S) -> None:
        """Cancels what runs, and ends the thread."""
        with self._lock:
            thread, stop, self._loop, self._thread, self._stop = self._thread, self._stop, None, None, None
        if stop is not None:
            stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _started(self) -> asyncio.AbstractEventLoop:
        begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=_run, args=(begun,), name=self._name, daemon=True)
        self._thread.start()
        self._loop, stopped = begun.result()
        self._stop = weakref.finalize(self, _set, self._loop, stopped)
        self._stop.atexit = False
        return self._loop


def _run(begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    async def until_stopped() -> None:
        stopped = asyncio.Event()
        begun.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()

    with asyncio.Runner() as runner:  # its end closes the clients' connections on this loop
        runner.run(until_stopped())


def _set(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(stopped.set)
