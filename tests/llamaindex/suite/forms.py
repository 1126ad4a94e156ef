"""The eight forms in which LlamaIndex asks for an answer, behind one function.

Sync forms are called as they are, async ones through `asyncio.run`: a test is a program of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from llama_index.core.base.llms.types import ChatMessage, MessageRole

T = TypeVar("T")

CHAT: Final = ("chat", "achat", "stream_chat", "astream_chat")
COMPLETE: Final = ("complete", "acomplete", "stream_complete", "astream_complete")
ALL: Final = CHAT + COMPLETE
STREAMS: Final = ("stream_chat", "astream_chat", "stream_complete", "astream_complete")
CHAT_STREAMS: Final = ("stream_chat", "astream_chat")
WITH_TOOLS: Final = tuple(f"{form}_with_tools" for form in CHAT)
STRUCTURED: Final = (
    "structured_predict",
    "astructured_predict",
    "stream_structured_predict",
    "astream_structured_predict",
)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in an event loop of its own."""
    return asyncio.run(work)


def is_async(form: str) -> bool:
    """Whether the form has to be awaited."""
    return form.startswith("a") and not form.startswith("as_")


def is_stream(form: str) -> bool:
    """Whether the form answers in pieces."""
    return form.startswith(("stream", "astream"))


def ask(llm: Any, form: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Everything that `llm.<form>(…)` gives: one response, or all chunks of a stream."""
    method: Callable[..., Any] = getattr(llm, form)
    if not is_async(form):
        answer = method(*args, **kwargs)
        return list(answer) if is_stream(form) else [answer]
    return run(_ask_async(method(*args, **kwargs), stream=is_stream(form)))


async def _ask_async(answer: Awaitable[Any], *, stream: bool) -> list[Any]:
    given = await answer
    return [piece async for piece in given] if stream else [given]


def subject(form: str, text: str = "Say hello.") -> Any:
    """What to ask in this form: messages for chat, a prompt for completion."""
    return text if "complete" in form else [user(text)]


def text_of(response: Any) -> str:
    """The text of a chat or completion response."""
    return response.text if hasattr(response, "text") else response.message.content or ""


def user(text: str) -> ChatMessage:
    """A user's message."""
    return ChatMessage(role=MessageRole.USER, content=text)


def joined(pieces: Sequence[Any]) -> str:
    """The deltas of a stream, put together."""
    return "".join(piece.delta or "" for piece in pieces)
