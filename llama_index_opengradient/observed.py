"""The framework's events around a call, and the end of a stream that they follow.

Core's decorators announce a call's start, chunks and end. Two things are different here. The decorators build an
event for every chunk even if there is no handler: a stream without handlers is not decorated. And they leave an
abandoned stream to the garbage collector, which never closes it while a handler keeps its events: here the HTTP
response closes when the caller closes the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler

if TYPE_CHECKING:
    from llama_index.core.llms.llm import LLM

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Response = TypeVar("_Response")
_Converted = TypeVar("_Converted")

# Core's decorators dispatch here; handlers of this dispatcher and of those above it get the events.
_CORE_DISPATCHER = "llama_index.core.llms.callbacks"


def chat_events(method: _Method) -> _Method:
    """Core's decorator for chat methods, with the type of what it decorates."""
    return cast("_Method", llm_chat_callback()(method))


def completion_events(method: _Method) -> _Method:
    """Core's decorator for completion methods, with the type of what it decorates."""
    return cast("_Method", llm_completion_callback()(method))


def is_observed(llm: LLM) -> bool:
    """Whether core's decorators have anything to do: somebody listens, or calls are rationed."""
    # Core has rate limiters since 0.14.16.
    if getattr(llm, "rate_limiter", None) is not None or llm.callback_manager.handlers:
        return True
    dispatcher = get_dispatcher(_CORE_DISPATCHER)
    while True:
        if any(not isinstance(handler, NullEventHandler) for handler in dispatcher.event_handlers):
            return True
        if not dispatcher.propagate:
            return False
        dispatcher = dispatcher.parent


def observed_stream(
    llm: LLM,
    events: Callable[[Any], Any],
    open_stream: Callable[..., Generator[_Response, None, None]],
    subject: Any,
    kwargs: dict[str, Any],
) -> Generator[_Response, None, None]:
    """The stream that `open_stream(subject, **kwargs)` opens; with the events of the decorator `events`, if a handler
    wants them."""
    if not is_observed(llm):
        return open_stream(subject, **kwargs)
    opened: list[Generator[_Response, None, None]] = []

    def call(_llm: LLM, subject: Any, **kwargs: Any) -> Generator[_Response, None, None]:
        opened.append(open_stream(subject, **kwargs))
        return opened[0]

    return converted(events(call)(llm, subject, **kwargs), _same, also_close=opened[0])


async def observed_astream(
    llm: LLM,
    events: Callable[[Any], Any],
    open_stream: Callable[..., Awaitable[AsyncGenerator[_Response, None]]],
    subject: Any,
    kwargs: dict[str, Any],
) -> AsyncGenerator[_Response, None]:
    """The async form of `observed_stream`."""
    if not is_observed(llm):
        return await open_stream(subject, **kwargs)
    opened: list[AsyncGenerator[_Response, None]] = []

    async def call(_llm: LLM, subject: Any, **kwargs: Any) -> AsyncGenerator[_Response, None]:
        opened.append(await open_stream(subject, **kwargs))
        return opened[0]

    return await aconverted(await events(call)(llm, subject, **kwargs), _same, also_close=opened[0])


def _same(response: _Response) -> _Response:
    return response


def converted(
    responses: Generator[_Response, None, None],
    convert: Callable[[_Response], _Converted],
    *,
    also_close: Generator[Any, None, None] | None = None,
) -> Generator[_Converted, None, None]:
    """The responses, each converted, as a generator whose end, however it comes, closes what it reads from."""

    def generator() -> Generator[Any, None, None]:
        try:
            yield
            for response in responses:
                yield convert(response)
        finally:
            responses.close()
            if also_close is not None:
                also_close.close()

    return started(generator())


async def aconverted(
    responses: AsyncGenerator[_Response, None],
    convert: Callable[[_Response], _Converted],
    *,
    also_close: AsyncGenerator[Any, None] | None = None,
) -> AsyncGenerator[_Converted, None]:
    """The async form of `converted`."""

    async def generator() -> AsyncGenerator[Any, None]:
        try:
            yield
            async for response in responses:
                yield convert(response)
        finally:
            await responses.aclose()
            if also_close is not None:
                await also_close.aclose()

    return await astarted(generator())


def started(generator: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """The generator, run up to its first (empty) yield.

    A generator that never ran skips its `finally` when it is dropped: a stream that is opened and then not
    read at all would stay open.
    """
    next(generator)
    return generator


async def astarted(generator: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The async form of `started`."""
    await anext(generator)
    return generator
