"""The four effects that the logic asks for, and the two drivers that perform them.

All code that waits for something outside is a generator: it yields an effect and receives the result. A driver performs
the effects, and throws what goes wrong back into the generator, which alone knows what a failure means. These two
loops are the only place where sync and async differ in control flow.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never, cast

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request; the result is the response, its body unread."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Read:
    """Give the body to `take`, piece by piece, and close the response; without `take`, close it unread."""

    response: httpx.Response
    take: Callable[[bytes], None] | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the future; the result is its result. Raises TimeoutError after `timeout_s`."""

    future: Future[Any]
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before going on."""

    seconds: float


Effect = Send | Read | Wait | Sleep
Steps = Generator[Effect, Any, T]
"""Work that yields effects; what the generator returns is the result."""


def drive(steps: Steps[T], send: Callable[[httpx.Request], httpx.Response] | None = None) -> T:
    """Runs `steps` to the end in this thread, and returns the result. Steps that send nothing need no `send`."""
    try:
        effect = next(steps)
        while True:
            try:
                result = _performed(effect, send)
            except BaseException as exc:  # noqa: BLE001  (the generator decides what a failure means)
                effect = steps.throw(exc)
            else:
                effect = steps.send(result)
    except StopIteration as done:
        return cast("T", done.value)


async def drive_async(steps: Steps[T], send: Callable[[httpx.Request], Awaitable[httpx.Response]] | None = None) -> T:
    """Runs `steps` to the end in this task, and returns the result. Steps that send nothing need no `send`."""
    try:
        effect = next(steps)
        while True:
            try:
                result = await _performed_async(effect, send)
            except BaseException as exc:  # noqa: BLE001  (cancellation included: it may come after a signature)
                effect = steps.throw(exc)
            else:
                effect = steps.send(result)
    except StopIteration as done:
        return cast("T", done.value)


def _performed(effect: Effect, send: Callable[[httpx.Request], httpx.Response] | None) -> Any:
    match effect:
        case Send(request):
            return cast("Callable[[httpx.Request], httpx.Response]", send)(request)
        case Read(response, take):
            try:
                if take is not None:
                    for piece in pieces(response):
                        take(piece)
            finally:
                response.close()
        case Wait(future, timeout_s):
            return future.result(timeout_s)
        case Sleep(seconds):
            time.sleep(seconds)
        case _:
            assert_never(effect)
    return None


async def _performed_async(effect: Effect, send: Callable[[httpx.Request], Awaitable[httpx.Response]] | None) -> Any:
    match effect:
        case Send(request):
            return await cast("Callable[[httpx.Request], Awaitable[httpx.Response]]", send)(request)
        case Read(response, take):
            try:
                if take is not None:
                    async for piece in apieces(response):
                        take(piece)
            finally:
                await response.aclose()
        case Wait(future, timeout_s):
            return await awaited(future, timeout_s)
        case Sleep(seconds):
            await asyncio.sleep(seconds)
        case _:
            assert_never(effect)
    return None


def pieces(response: httpx.Response) -> Iterator[bytes]:
    """The body as it comes, unpacked; what is not packed goes through no further hands."""
    if response.headers.get("content-encoding"):
        return response.iter_bytes()
    return iter(cast("Iterable[bytes]", response.stream))


def apieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """As `pieces`, for coroutines."""
    if response.headers.get("content-encoding"):
        return response.aiter_bytes()
    return aiter(cast("AsyncIterable[bytes]", response.stream))


def in_thread(work: Callable[[], T], *, name: str) -> Future[T]:
    """Runs rare, slow work in a thread of its own, which does not keep the process alive; `Wait` for the result."""
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
    if future.done():
        return future.result()
    # Not `wrap_future`: the future is shared with others, who must not be cancelled with this task, and it may
    # be done when this loop is closed.
    loop = asyncio.get_running_loop()
    bell = _BELLS.get(loop)
    if bell is None:
        bell = _BELLS.setdefault(loop, _Bell(loop))
    done = loop.create_future()
    future.add_done_callback(lambda _: bell.ring(done))
    async with asyncio.timeout(timeout_s):
        await done
    return future.result()


class _Bell:
    """Wakes tasks of one loop, from any thread: those that are to be woken at about the same time, together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_rung = False

    def ring(self, done: asyncio.Future[None]) -> None:
        self._waiting.append(done)
        if not self._is_rung:  # else the loop has not begun to look yet, and finds this one too
            self._is_rung = True
            if (loop := self._loop()) is not None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                    loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._is_rung = False
        while self._waiting:
            done = self._waiting.popleft()
            if not done.done():
                done.set_result(None)


_BELLS: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell]] = weakref.WeakKeyDictionary()


def when_done(future: Future[T], then: Callable[[], object]) -> Future[T]:
    """The same future; `then` is called when it is done without an error."""
    future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else then())
    return future
