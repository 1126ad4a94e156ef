"""Gateway answers -> LangChain messages: whole completions, and stream deltas one by one.

The per-chunk path builds `AIMessageChunk` with the fields that core needs and nothing else; usage, finish
reason, model name and receipt are in the last chunk only, because core adds up what several chunks say.
It does not know the wire (`opengradient_x402.completions` does), nor handlers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, InvalidToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata, add_ai_message_chunks
from langchain_core.messages.tool import ToolCall as MessageToolCall
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.json import parse_partial_json
from pydantic import PrivateAttr

from langchain_opengradient.blocks import PROVIDER
from opengradient_x402.completions import Completion, Delta, ToolCall, ToolCallDelta, Usage
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.receipts import SettlementReceipt

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger

RECEIPT_KEY: Final = "opengradient"
"""Where a message has the short form of its receipt: `message.response_metadata["opengradient"]`."""

CALL_EXTRAS_KEY: Final = "tool_call_extras"
"""Where a message keeps what a provider wants back with its tool calls (thought signatures), by the call's id."""

_OF_A_RUN: Final = ("token_usage", "model_name", "model_provider", "system_fingerprint", "service_tier", "id")
"""What `llm_output` repeats of a message, as ChatOpenAI has it."""

_CHUNK_METADATA: Final = {"model_provider": PROVIDER}  # copied by pydantic, so sharing it is safe


def to_chunk(delta: Delta) -> ChatGenerationChunk:
    """One delta as a chunk. The finish reason waits for the terminal chunk."""
    if not (delta.tool_calls or delta.reasoning or delta.refusal):
        message = AIMessageChunk(content=delta.content, response_metadata=_CHUNK_METADATA)
        return ChatGenerationChunk(message=message)
    extra = {"reasoning_content": delta.reasoning, "refusal": delta.refusal}
    message = AIMessageChunk(
        content=delta.content,
        additional_kwargs={name: text for name, text in extra.items() if text},
        response_metadata=_CHUNK_METADATA,
        tool_call_chunks=[_call_chunk(call) for call in delta.tool_calls] if _are_whole(delta.tool_calls) else [],
    )
    if delta.tool_calls and not message.tool_call_chunks:
        # Set behind core's back: it would try to repair every fragment as JSON of its own, at ten times the
        # cost of everything else. The sum of the chunks is parsed as ever.
        message.tool_call_chunks = [_call_chunk(call) for call in delta.tool_calls]
    return ChatGenerationChunk(message=message)


def _call_chunk(call: ToolCallDelta) -> ToolCallChunk:
    return ToolCallChunk(name=call.name, args=call.arguments, id=call.id, index=call.index, type="tool_call_chunk")


def _are_whole(calls: Sequence[ToolCallDelta]) -> bool:
    """Whether these look like complete calls, so that core can put them into `chunk.tool_calls` at once."""
    return all(call.name and call.arguments.endswith("}") for call in calls)


def to_terminal_chunk(
    completion: Completion,
    receipt: SettlementReceipt | None,
    *,
    model_name: str,
    with_usage: bool,
    is_whole: bool = False,
) -> ChatGenerationChunk:
    """The last chunk of a stream: finish reason, usage and receipt."""
    metadata = _metadata(completion, receipt, model_name, is_whole=is_whole)
    if not with_usage:
        metadata.pop("token_usage", None)
    fragments = _last_fragments(completion.tool_calls)
    message = (ClosingChunk if fragments else AIMessageChunk)(
        content="",
        additional_kwargs=_extras(completion),
        response_metadata=metadata,
        usage_metadata=to_usage(completion.usage) if with_usage else None,
        tool_call_chunks=fragments,
        chunk_position="last",
    )
    if isinstance(message, ClosingChunk):
        message.keep(completion.tool_calls)
    return ChatGenerationChunk(message=message)


def to_result(completion: Completion, *, model_name: str, is_whole: bool = False) -> ChatResult:
    """A whole completion as the result of one call; `is_whole` puts the whole receipt into the message."""
    calls, invalid_calls = to_tool_calls(completion.tool_calls)
    texts = {"reasoning_content": completion.reasoning, "refusal": completion.refusal}
    extra = {**_extras(completion), **{name: text for name, text in texts.items() if text}}
    message = AIMessage(
        content=completion.content,
        additional_kwargs=extra,
        response_metadata=_metadata(completion, completion.receipt, model_name, is_whole=is_whole),
        usage_metadata=to_usage(completion.usage),
        tool_calls=calls,
        invalid_tool_calls=invalid_calls,
    )
    output = {name: message.response_metadata[name] for name in _OF_A_RUN if name in message.response_metadata}
    return ChatResult(generations=[ChatGeneration(message=message)], llm_output=output)


def combined_outputs(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One `llm_output` for several: the sums of their counts, and the other members of the last one."""
    if len(outputs) == 1:
        return dict(outputs[0])
    combined: dict[str, Any] = {}
    for output in outputs:
        counts = _added(combined.get("token_usage") or {}, output.get("token_usage") or {})
        combined |= {**output, **({"token_usage": counts} if counts else {})}
    return combined


def _added(counts: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    total = dict(counts)
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = _added(total.get(name) or {}, value)
        elif isinstance(value, int | float):
            total[name] = (total.get(name) or 0) + value
        else:
            total[name] = value
    return total


def _extras(completion: Completion) -> dict[str, Any]:
    """What the message has beside text and calls: `annotations`, `audio`, `reasoning_details`, images, …

    In a stream all of it is on the last chunk, because core would add up what several chunks say.
    """
    extras = dict(completion.message_extras)
    if completion.images:
        extras["images"] = list(completion.images)
    if of_calls := {call.id: call.extras for call in completion.tool_calls if call.extras}:
        extras[CALL_EXTRAS_KEY] = of_calls
    return extras


def to_tool_calls(calls: Sequence[ToolCall]) -> tuple[list[MessageToolCall], list[InvalidToolCall]]:
    """The calls whose arguments are a JSON object, and those whose arguments are not. Nothing is repaired."""
    good: list[MessageToolCall] = []
    bad: list[InvalidToolCall] = []
    for call in calls:
        arguments = _parse_arguments(call.arguments)
        if arguments is None:
            # No `error` text: core has none when it files a streamed call, and both must look the same.
            bad.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=None))
        else:
            good.append(tool_call(name=call.name, args=arguments, id=call.id))
    return good, bad


def _parse_arguments(text: str) -> dict[str, Any] | None:
    if text.strip() in ("", "null"):
        return {}  # how some providers call a tool without parameters
    try:
        parsed = json.loads(text, strict=False)  # a bare newline inside a string is clear enough
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


class ClosingChunk(AIMessageChunk):
    """The last chunk of a stream with broken tool calls: in the sum, `invalid_tool_calls` have what the model wrote.

    The bracket that keeps core from repairing them stays in the sum's `tool_call_chunks`, which core reads again
    whenever it loads or copies the message.
    """

    _said: dict[str, str] = PrivateAttr(default_factory=dict)
    _json: frozenset[int] = PrivateAttr(default=frozenset())

    def keep(self, calls: Sequence[ToolCall]) -> None:
        """Remembers the arguments of the calls as the model wrote them."""
        self._said = {call.id: call.arguments for call in calls}
        self._json = frozenset(index for index, call in enumerate(calls) if _is_json(call.arguments))

    @property
    def spoiled(self) -> list[ToolCallChunk]:
        """The fragments that v3 event streams need too."""
        return [one for one in self.tool_call_chunks if one["index"] in self._json]

    @classmethod
    def lc_id(cls) -> list[str]:
        """It is stored as the chunk that it is to everybody else."""
        return AIMessageChunk.lc_id()

    def __radd__(self, other: Any) -> Any:
        # Python asks the right side first when its class is the narrower one.
        if not isinstance(other, AIMessageChunk):
            return NotImplemented
        total = add_ai_message_chunks(other, self)
        for call in total.invalid_tool_calls:
            call["args"] = self._said.get(call["id"] or "", call["args"])
        return total


def _last_fragments(calls: Sequence[ToolCall]) -> list[ToolCallChunk]:
    """A last fragment for each call that core would otherwise read differently in a stream.

    Core completes broken JSON when it merges chunks: `{"path": "/` would become `{"path": "/"}`, and an agent
    would run the tool with it. A bracket that closes nothing makes core file the call under
    `invalid_tool_calls`, where a whole (not streamed) answer has it.
    """
    ends = {index: end for index, call in enumerate(calls) if (end := _end_of(call.arguments))}
    return [
        ToolCallChunk(name=None, args=end, id=None, index=index, type="tool_call_chunk") for index, end in ends.items()
    ]


def _end_of(arguments: str) -> str:
    if not arguments.strip() or _parse_arguments(arguments) is not None:
        return ""
    if _is_json(arguments):
        return unrepairable_end(arguments)  # v3 event streams take any JSON for arguments, and then fail
    try:
        would_run = isinstance(parse_partial_json(arguments), dict)
    except ValueError:
        would_run = False
    return unrepairable_end(arguments) if would_run else ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def unrepairable_end(text: str) -> str:
    """The shortest text that, put after the malformed JSON `text`, closes a bracket that is not open."""
    open_brackets, in_string, escaped = [], False, False
    for char in text:
        if in_string:
            if char == '"' and not escaped:
                in_string = False
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string, escaped = True, False
        elif char in "{[":
            open_brackets.append(char)
        elif char in "}]" and open_brackets:
            open_brackets.pop()
    closing = "]" if not open_brackets or open_brackets[-1] == "{" else "}"
    if not in_string:
        return closing
    return ('\\"' if escaped else '"') + closing


def _metadata(
    completion: Completion, receipt: SettlementReceipt | None, model_name: str, *, is_whole: bool
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        **completion.response_extras,
        **completion.choice_extras,
        "model_provider": PROVIDER,
        "model_name": model_name,
        "finish_reason": completion.finish_reason,
    }
    if (counts := completion.token_usage) is not None:
        metadata["token_usage"] = counts
    if completion.logprobs is not None:
        metadata["logprobs"] = completion.logprobs
    if completion.id:
        metadata["id"] = completion.id
    if receipt is not None:
        metadata[RECEIPT_KEY] = receipt.to_message(is_whole=is_whole)
        if (tx_hash := receipt.payment_tx_hash or receipt.claimed_payment_tx_hash) is not None:
            metadata["payment_hash"] = tx_hash
    return metadata


def receipt_of(message: BaseMessage, *, ledger: Ledger | None = None) -> SettlementReceipt:
    """The whole receipt of an answer, as the ledger knows it now, also of an answer that a checkpoint kept.

    `ledger` is the one that recorded the call, if it is neither open here nor in the settings. Raises
    ConfigurationError for a message that no paid call made, and for a call that no ledger knows.
    """
    from opengradient_x402.settlement import restored

    return restored.receipt_of(_call_of(message), ledger=ledger)


async def areceipt_of(message: BaseMessage, *, ledger: Ledger | None = None) -> SettlementReceipt:
    """As `receipt_of`, for coroutines."""
    from opengradient_x402.settlement import restored

    return await restored.areceipt_of(_call_of(message), ledger=ledger)


def _call_of(message: BaseMessage) -> str:
    carried = message.response_metadata.get(RECEIPT_KEY)
    if not isinstance(carried, dict) or not carried.get("call_id"):
        raise ConfigurationError(
            f"This {type(message).__name__} carries no receipt: no paid call made it. Nothing was paid by asking."
        )
    return str(carried["call_id"])


def to_usage(usage: Usage | None) -> UsageMetadata | None:
    """Token counts in LangChain's words; details only where there are any."""
    if usage is None:
        return None
    metadata = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )
    input_details = InputTokenDetails(
        audio=usage.audio_input_tokens,
        cache_creation=usage.cache_creation_tokens,
        cache_read=usage.cached_tokens,
    )
    output_details = OutputTokenDetails(audio=usage.audio_output_tokens, reasoning=usage.reasoning_tokens)
    if any(input_details.values()):
        metadata["input_token_details"] = InputTokenDetails(**{k: v for k, v in input_details.items() if v})  # type: ignore[typeddict-item] # a filtered copy of the same keys
    if any(output_details.values()):
        metadata["output_token_details"] = OutputTokenDetails(**{k: v for k, v in output_details.items() if v})  # type: ignore[typeddict-item] # a filtered copy of the same keys
    return metadata


def is_from_cache(usage: Mapping[str, Any] | None) -> bool:
    """Whether a message with this usage came out of a cache, and was paid for earlier.

    Core marks a cache hit by a total cost of zero (`BaseChatModel._convert_cached_generations`).
    """
    return usage is not None and usage.get("total_cost") == 0
