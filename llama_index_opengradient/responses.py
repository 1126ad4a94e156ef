"""Completions and stream deltas -> LlamaIndex responses.

`chat_response` turns a whole `Completion` into a `ChatResponse`; `ChatStream` does so piece by piece, sans-I/O:
each chunk holds the message so far and what is new, and the last one holds the whole message, the usage and
the receipt, because agents keep nothing but the last chunk.

The receipt's short form goes into `raw["x402"]` and `additional_kwargs["x402"]` of the response, never into the
message: messages are stored in memories and find their way into prompts.

Does not know HTTP, events, or how a receipt comes about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    ImageBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index_opengradient.tools import AUDIO_KEY, CALL_EXTRAS_KEY, DETAILS_KEY, mirror, parse_arguments
from opengradient_x402.completions import Completion, Delta, ToolCall, ToolCallDelta
from opengradient_x402.errors import ConfigurationError

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import SettlementReceipt


def chat_response(completion: Completion, *, delta: str | None = None, is_whole: bool = False) -> ChatResponse:
    """The response for a whole answer; `delta` is given when it ends a stream, `is_whole` wants the whole receipt."""
    text = completion.content or completion.refusal
    calls = [_call_block(call) for call in completion.tool_calls]
    message = _message(text, completion.reasoning, calls, _media(completion))
    message.additional_kwargs |= _wanted_back(completion)
    choice: dict[str, Any] = {
        **completion.choice_extras,
        "index": 0,
        "message": _wire_message(completion),
        "finish_reason": completion.finish_reason,
    }
    if completion.logprobs is not None:
        choice["logprobs"] = completion.logprobs
    raw = {
        **completion.response_extras,
        "id": completion.id,
        "model": completion.model,
        "created": completion.created,
        "choices": [choice],
        "usage": completion.token_usage,
    }
    extra: dict[str, Any] = {**completion.message_extras, **_token_counts(completion)}
    if completion.refusal:
        extra["refusal"] = completion.refusal
    if completion.receipt is not None:
        raw["x402"] = completion.receipt.to_message(is_whole=is_whole)
        extra["x402"] = dict(raw["x402"])
        if completion.receipt.payment_hash is not None:
            raw["payment_hash"] = extra["payment_hash"] = completion.receipt.payment_hash
    return ChatResponse(
        message=message, raw=raw, delta=delta, additional_kwargs=extra, logprobs=_logprobs(completion.logprobs)
    )


def _sound(completion: Completion) -> dict[str, Any]:
    sound = completion.message_extras.get("audio")
    return sound if isinstance(sound, dict) else {}


def _media(completion: Completion) -> list[ContentBlock]:
    media: list[ContentBlock] = [ImageBlock(url=url) for url in completion.images]
    if data := _sound(completion).get("data"):
        media.append(AudioBlock(audio=str(data).encode()))
    return media


def _wanted_back(completion: Completion) -> dict[str, Any]:
    """What a message keeps because its provider wants to see it again."""
    kept = {
        AUDIO_KEY: _sound(completion).get("id"),
        DETAILS_KEY: completion.message_extras.get("reasoning_details"),
        CALL_EXTRAS_KEY: {call.id: call.extras for call in completion.tool_calls if call.extras},
    }
    return {name: value for name, value in kept.items() if value}


def completion_response(response: ChatResponse) -> CompletionResponse:
    """The same answer in the vocabulary of text completion."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=dict(response.additional_kwargs),
    )


def receipt_of(response: ChatResponse | CompletionResponse, *, ledger: Ledger | None = None) -> SettlementReceipt:
    """The whole receipt of an answer, as the ledger knows it now.

    `ledger` is the one that recorded the call, if it is neither open here nor in the settings. Raises
    ConfigurationError for a response that no paid call made, and for a call that no ledger knows.
    """
    from opengradient_x402.settlement import restored

    return restored.receipt_of(_call_of(response), ledger=ledger)


async def areceipt_of(
    response: ChatResponse | CompletionResponse, *, ledger: Ledger | None = None
) -> SettlementReceipt:
    """As `receipt_of`, for coroutines."""
    from opengradient_x402.settlement import restored

    return await restored.areceipt_of(_call_of(response), ledger=ledger)


def _call_of(response: ChatResponse | CompletionResponse) -> str:
    carried = response.additional_kwargs.get("x402")
    if not isinstance(carried, dict) or not carried.get("call_id"):
        raise ConfigurationError(
            f"This {type(response).__name__} carries no receipt: no paid call made it. Nothing was paid by asking."
        )
    return str(carried["call_id"])


class ChatStream:
    """One streamed answer: `feed` each delta, then `finish` with the whole completion."""

    def __init__(self, *, is_whole: bool = False) -> None:
        self._is_whole = is_whole
        self._text = ""
        self._reasoning = ""
        self._calls: list[ToolCallBlock] = []

    def feed(self, delta: Delta) -> ChatResponse | None:
        """The chunk for one delta; None for an empty delta."""
        if delta.is_empty:
            return None
        self._text += delta.content
        self._reasoning += delta.reasoning
        for part in delta.tool_calls:
            self._extend_call(part)
        return ChatResponse(
            message=_message(self._text, self._reasoning, self._calls, []),
            delta=delta.content,
            raw={"choices": [{"index": 0, "delta": {"content": delta.content}, "finish_reason": None}]},
            additional_kwargs={"thinking_delta": delta.reasoning} if delta.reasoning else {},
        )

    def finish(self, completion: Completion) -> ChatResponse:
        """The last chunk. Its delta is the text that no earlier chunk had, so that the deltas add up to the text."""
        response = chat_response(completion, is_whole=self._is_whole)
        response.delta = (response.message.content or "")[len(self._text) :]
        return response

    def _extend_call(self, part: ToolCallDelta) -> None:
        while part.index >= len(self._calls):
            self._calls.append(ToolCallBlock(tool_call_id="", tool_name="", tool_kwargs=""))
        # The blocks of earlier chunks belong to their readers: a new state is a new block.
        known = self._calls[part.index]
        self._calls[part.index] = ToolCallBlock(
            tool_call_id=known.tool_call_id or part.id or "",
            tool_name=known.tool_name or part.name or "",
            tool_kwargs=f"{known.tool_kwargs}{part.arguments}",
        )


def _message(text: str, reasoning: str, calls: list[ToolCallBlock], media: list[ContentBlock]) -> ChatMessage:
    blocks: list[ContentBlock] = []
    if reasoning:
        blocks.append(ThinkingBlock(content=reasoning))
    if text or not (calls or media):
        blocks.append(TextBlock(text=text))
    blocks += media
    blocks += calls
    if not calls:
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs={"tool_calls": mirror(calls)})


def _call_block(call: ToolCall) -> ToolCallBlock:
    arguments = parse_arguments(call.arguments)
    # Malformed arguments stay as the model wrote them: they go back with the result that complains about them.
    return ToolCallBlock(
        tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments if arguments is None else arguments
    )


def _logprobs(logprobs: dict[str, Any] | None) -> list[list[LogProb]] | None:
    """For each token of the answer its alternatives; the token itself if no alternatives were asked for."""
    tokens = (logprobs or {}).get("content")
    if not isinstance(tokens, list):
        return None
    try:
        return [
            [
                LogProb(token=one.get("token") or "", logprob=one.get("logprob") or 0.0, bytes=one.get("bytes") or [])
                for one in token.get("top_logprobs") or [token]
            ]
            for token in tokens
        ]
    except (AttributeError, TypeError, ValueError):
        return None  # they are in `raw` as they came: an odd one must not take the paid answer away


def _wire_message(completion: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {**completion.message_extras, "role": "assistant", "content": completion.content}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if completion.refusal:
        message["refusal"] = completion.refusal
    if completion.tool_calls:
        message["tool_calls"] = [
            {
                **call.extras,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in completion.tool_calls
        ]
    return message


def _token_counts(completion: Completion) -> dict[str, int]:
    usage = completion.usage
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
