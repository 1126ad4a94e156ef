"""Rare, slow work beside the caller: a thread of its own for each piece, a `Future` for who waits.

Callers of either colour wait for the same future. Does not know what the work is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], *, name: str) -> Future[T]:
    """Runs `work` in a thread, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001  (the thread's boundary: everything goes to who waits)
            future.set_exception(exc)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


async def awaited(future: Future[T], timeout_s: float | None = None) -> T:
    """The future's result, from a coroutine. Raises TimeoutError."""
    # Not `wrap_future`: the future is shared with others, who must not be cancelled with this task, and it may
    # be done when this loop is closed.
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    await asyncio.wait_for(done.wait(), timeout_s)
    return future.result()
