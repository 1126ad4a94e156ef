"""The language model behind a gateway: what it is asked, what it answers, how it fails.

A `Model` takes an OpenAI chat-completions request body (a plain dict, as parsed from JSON) and gives either
one complete `Answer` or a stream of `Chunk`s. Both are already OpenAI-shaped: the gateway copies the dicts
into its responses and adds what is the gateway's own (ids, prices, proofs).

It does not know payments, sessions, HTTP responses or SSE framing, and it never sees a wallet.

Shapes, all JSON-ready:

`Answer.message`
    `{"role": "assistant", "content": str | None, "tool_calls"?: [ToolCall], "reasoning_content"?: str}`
    `content` is None exactly when there are tool calls and no text. Whatever else a model says of its message goes on
    to the client as it is: `refusal`, `annotations`, `audio`, `reasoning_details`, `images`.
ToolCall
    `{"id": str, "type": "function", "function": {"name": str, "arguments": str}}`, arguments being JSON text.
`Answer.finish_reason`
    `"stop"`, `"length"`, `"tool_calls"` or `"content_filter"`.
`Answer.usage`, `Chunk.usage`
    `{"prompt_tokens": int, "completion_tokens": int, "total_tokens": int,
    "prompt_tokens_details"?: {"cached_tokens": int, "audio_tokens": int},
    "completion_tokens_details"?: {"reasoning_tokens": int, "audio_tokens": int}}`
`Chunk.delta`
    any subset of `{"role": "assistant", "content": str, "reasoning_content": str, "tool_calls": [part]}`; a
    part is `{"index": int | None, "id"?: str, "type"?: "function", "function": {"name"?, "arguments"?}}`. What else
    there is goes on as it is, thought signatures in tool calls among it.
`choice_members`, `members`
    what stands beside the message in a choice (`logprobs`), and beside the choices (`system_fingerprint`,
    `service_tier`, `citations`); of a chunk, what its own event had, and of the last one also what came after it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from opengradient_devnet.tool_call_styles import ToolCallStyle

# What a provider's refusal is for the gateway's client. The provider's 401 is the gateway's key, not the
# client's, so it must not look as if the client had failed to authenticate.
_STATUSES = {400: 400, 404: 404, 408: 504, 413: 413, 415: 415, 422: 400, 429: 429, 503: 503, 504: 504}
_BAD_GATEWAY = 502
_RETRYABLE = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How an answer is cut up and timed.

    Complete answers follow it where it changes what is said: `broken_arguments`, and `WITH_TEXT`'s text.
    """

    pace_s: float = 0.0
    """seconds to wait before each chunk after the first, the terminal one included."""
    tokens_per_chunk: int = 2
    """the most tokens in one chunk; the answer comes in at least three chunks if it has three tokens."""
    tool_calls: ToolCallStyle = ToolCallStyle.FRAGMENTS
    broken_arguments: bool = False
    """cut the JSON of tool arguments short, as models do now and then; complete answers are cut too."""
    as_message: bool = False
    """put `message` where `delta` belongs, as some gateways do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One complete answer: `choices[0]` of a chat completion, and its usage."""

    message: dict[str, Any]
    finish_reason: str
    usage: dict[str, Any]
    model: str
    """the model that answered, under the name that the response should carry."""
    choice_members: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    def choice(self) -> dict[str, Any]:
        """`choices[0]` of a `chat.completion`."""
        return {**self.choice_members, "index": 0, "message": self.message, "finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of a streamed answer: `choices[0]` of a `chat.completion.chunk`.

    A stream is any number of chunks whose `finish_reason` is None, then exactly one terminal chunk: empty
    delta, `finish_reason` set, `usage` set. A stream without a terminal chunk is a fault of the model.
    """

    delta: dict[str, Any]
    model: str
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    as_message: bool = False
    choice_members: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        """True for the last chunk of a stream, which carries finish_reason and usage."""
        return self.finish_reason is not None

    def choice(self) -> dict[str, Any]:
        """`choices[0]` of a `chat.completion.chunk`, under `delta` or, when so delivered, under `message`."""
        return {
            **self.choice_members,
            "index": 0,
            "message" if self.as_message else "delta": self.delta,
            "finish_reason": self.finish_reason,
        }


class ModelError(Exception):
    """The model, or the server behind it, did not answer. `status` is the HTTP status to pass on.

    400 and 404: the request cannot be served as it is (body, model name). 429: the provider is busy.
    502: the provider's answer is unusable, or it cannot be reached. 503: it is down. 504: it took too long.
    """

    def __init__(
        self, status: int, message: str, *, provider_status: int | None = None, is_retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.provider_status = provider_status
        """what the provider itself answered, when it did answer."""
        self.is_retryable = is_retryable


def status_for(provider_status: int) -> tuple[int, bool]:
    """What a provider's HTTP status becomes for the gateway's client, and whether trying again may help."""
    status = _STATUSES.get(provider_status, _BAD_GATEWAY)
    return status, status in _RETRYABLE


class Model(Protocol):
    """Something that answers chat-completions requests. One instance serves any number of calls at once."""

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery = ...) -> Answer:
        """Answer `request` in one piece. Raises ModelError."""
        ...

    def stream(self, request: Mapping[str, Any], *, delivery: Delivery = ...) -> AsyncGenerator[Chunk, None]:
        """Answer `request` piece by piece, each yielded as soon as it exists; see `Chunk` for the order.

        A plain call that returns an async generator (no await): iterate it with `async for`, and `aclose()`
        it when the reader goes away, which also ends the work upstream. Raises ModelError from the first or
        any later iteration.
        """
        ...

    async def aclose(self) -> None:
        """Release connections. Call it on the loop that used the model."""
        ...


@runtime_checkable
class ListsModels(Protocol):
    """A model that knows under which names it answers."""

    async def names(self) -> list[str]:
        """The names, as a request may carry them. Raises ModelError."""
        ...
