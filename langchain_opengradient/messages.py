"""LangChain messages -> the `messages` of a chat-completions request.

Keeps what `langchain_core.messages.convert_to_openai_messages` loses: malformed tool calls (a tool result
answers them), the order of tool results before the user's next words, and it keeps reasoning and tool-call
blocks out of the assistant's text. Pure; it does not know models, tools or HTTP.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_opengradient.content import cache_mark, to_part, to_parts
from langchain_opengradient.conversions import CALL_EXTRAS_KEY
from langchain_opengradient.errors import UnsupportedContent
from langchain_opengradient.tools import to_wire_tool
from opengradient_x402.completions.content_parts import Part, joined, text_part
from opengradient_x402.gateway.request import wire_role

WireMessage = dict[str, Any]

# What an assistant's content holds besides text. Reasoning is the provider's private scratch paper (and signed
# by it), calls travel in `tool_calls`, and server tools are the provider's own affair.
_NOT_ASSISTANT_TEXT: Final = frozenset(
    {
        "code_interpreter_call",
        "file_search_call",
        "function_call",
        "input_json_delta",
        "invalid_tool_call",
        "reasoning",
        "reasoning_content",
        "redacted_thinking",
        "refusal",
        "server_tool_call",
        "server_tool_call_chunk",
        "server_tool_result",
        "server_tool_use",
        "thinking",
        "tool_call",
        "tool_call_chunk",
        "tool_use",
        "web_search_call",
        "web_search_tool_result",
    }
)
_SENT_BACK: Final = ("refusal", "reasoning_details")
"""What providers want to see again of their answers."""
_ASSISTANT_TEXT: Final = frozenset({"non_standard", "output_text", "text"})


class NotResent(UserWarning):
    """A part of an earlier answer cannot be sent in a request, and is left out."""


def to_wire(messages: Iterable[BaseMessage]) -> list[WireMessage]:
    """The request's `messages`, in order. Raises UnsupportedContent before anything is sent."""
    return [wire for message in messages for wire in _convert(message)]


def _convert(message: BaseMessage) -> list[WireMessage]:
    if isinstance(message, AIMessage):
        return [_assistant(message)]
    if isinstance(message, ToolMessage):
        return [_tool_result(message.tool_call_id, message.content, name=message.name)]
    if isinstance(message, HumanMessage):
        return _user(message)
    return [_named(message, {"role": _role(message), "content": joined(to_parts(message.content))})]


def _role(message: BaseMessage) -> str:
    if isinstance(message, SystemMessage):
        return wire_role(str(message.additional_kwargs.get("__openai_role__", "system")))
    if isinstance(message, ChatMessage):
        return wire_role(message.role)
    if isinstance(message, FunctionMessage):
        return "function"
    raise UnsupportedContent(
        f"A {type(message).__name__} is no message that a model can be sent. Nothing was sent or paid. "
        "Use system, human, AI and tool messages."
    )


def _named(message: BaseMessage, wire: WireMessage) -> WireMessage:
    if message.name:
        wire["name"] = message.name
    return wire


def _user(message: HumanMessage) -> list[WireMessage]:
    if isinstance(message.content, str):
        return [_named(message, {"role": "user", "content": message.content})]
    results: list[WireMessage] = []
    rest: list[str | Mapping[str, Any]] = []
    for block in message.content:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":  # Anthropic's form
            results.append(_tool_result(str(block.get("tool_use_id", "")), _marked(block)))
        else:
            rest.append(block)
    if results and not rest:
        return results
    # Results answer the calls just before them; the user's own words come after.
    return [*results, _named(message, {"role": "user", "content": joined(to_parts(rest))})]


def _marked(result: Mapping[str, Any]) -> Any:
    """The content of Anthropic's `tool_result`, with its mark that what is before it may be cached."""
    content = result.get("content") or ""
    is_list = isinstance(content, list) and all(isinstance(one, str | Mapping) for one in content)
    if not is_list and not isinstance(content, str):
        content = _arguments(content)  # what a tool gave, as it gave it
    if not (mark := cache_mark(result)):
        return content
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return [*blocks[:-1], {**blocks[-1], "cache_control": mark}] if blocks else content


def _tool_result(
    call_id: str, content: str | Sequence[str | Mapping[str, Any]], *, name: str | None = None
) -> WireMessage:
    wire: WireMessage = {"role": "tool", "tool_call_id": call_id, "content": joined(to_parts(content))}
    if name:
        wire["name"] = name
    return wire


def _assistant(message: AIMessage) -> WireMessage:
    wire = _named(message, {"role": "assistant", "content": _assistant_content(message)})
    if calls := _tool_calls(message):
        extras = message.additional_kwargs.get(CALL_EXTRAS_KEY) or {}
        wire["tool_calls"] = [{**extras.get(call["id"], {}), **call} for call in calls]
    for name in _SENT_BACK:
        if value := message.additional_kwargs.get(name):
            wire[name] = value
    if calls and (reasoning := message.additional_kwargs.get("reasoning_content")):
        wire["reasoning_content"] = reasoning  # DeepSeek's models refuse results of calls whose reasons they do not see
    audio = message.additional_kwargs.get("audio")
    if isinstance(audio, Mapping) and audio.get("id"):
        wire["audio"] = {"id": audio["id"]}  # OpenAI keeps the sound itself
    return wire


def _assistant_content(message: AIMessage) -> str | list[Part]:
    if isinstance(message.content, str):
        return message.content
    parts = [part for block in message.content for part in _assistant_parts(block)]
    if any("cache_control" in part for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _assistant_parts(block: str | Mapping[str, Any]) -> list[Part]:
    if isinstance(block, str):
        return [text_part(block)]
    kind = block.get("type") or next(iter(block), "")  # Bedrock Converse: the only key says what the block is
    if kind in _NOT_ASSISTANT_TEXT or (kind == "non_standard" and _is_provider_block(block)):
        return []
    if kind not in _ASSISTANT_TEXT:
        # Not refused: an answer of another provider must not end the conversation with this one.
        warnings.warn(
            f"An earlier answer holds a block of type {kind!r}. Gateways take nothing but text and tool calls back "
            "from an assistant, so it is not sent again; put it into a HumanMessage to show it to the model.",
            NotResent,
            stacklevel=2,
        )
        return []
    return [to_part(block)]


def _is_provider_block(block: Mapping[str, Any]) -> bool:
    value = block.get("value")
    return not isinstance(value, Mapping) or value.get("type") != "text"


def _tool_calls(message: AIMessage) -> list[dict[str, Any]]:
    calls = [_call(call.get("id"), call["name"], _arguments(call["args"])) for call in message.tool_calls]
    # Malformed calls go back as they came: the tool result that complains about them answers their id.
    calls += [
        _call(call.get("id"), call.get("name") or "", call.get("args") or "") for call in message.invalid_tool_calls
    ]
    known = {call["id"] for call in calls}
    return calls + [call for call in _calls_in_content(message) if call["id"] not in known]


def _calls_in_content(message: AIMessage) -> list[dict[str, Any]]:
    """Calls that a user wrote as content blocks only (Anthropic, OpenAI Responses, LangChain v1)."""
    found = []
    for block in message.content if isinstance(message.content, list) else ():
        if not isinstance(block, Mapping):
            continue
        kind = block.get("type")
        if kind == "tool_use":
            found.append(_call(block.get("id"), block.get("name", ""), _arguments(block.get("input") or {})))
        elif kind == "function_call":
            arguments = block.get("arguments") or ""
            arguments = arguments if isinstance(arguments, str) else _arguments(arguments)
            found.append(_call(block.get("call_id"), block.get("name", ""), arguments))
        elif kind == "tool_call":
            found.append(_call(block.get("id"), block.get("name", ""), _arguments(block.get("args") or {})))
    return found


def _arguments(args: Any) -> str:
    # Users write dates, decimals and UUIDs into the calls of their examples.
    return json.dumps(args, ensure_ascii=False, default=str)


def _call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function", "id": call_id or "", "function": {"name": name, "arguments": arguments}}


# English prose is 4 to 4.5 characters a token in every current tokenizer; other scripts are near 1.
_ASCII_CHARS_PER_TOKEN: Final = 4
_TOKENS_PER_MESSAGE: Final = 4
_TOKENS_PER_ATTACHMENT: Final = 1_000
"""A 1024 x 1024 image: 765 at OpenAI, about 1,400 at Anthropic, 1,290 at Google."""


def count_text(text: str) -> int:
    """Estimated tokens of `text`."""
    ascii_chars = sum(1 for char in text if char < "\x80")
    return ceil(ascii_chars / _ASCII_CHARS_PER_TOKEN) + len(text) - ascii_chars


def count_messages(messages: Sequence[BaseMessage], *, tools: Sequence[Any] | None = None) -> int:
    """Estimated prompt tokens of `messages` and tool schemas, as they would be sent."""
    total = sum(_TOKENS_PER_MESSAGE + _count_wire(message) for message in to_wire(messages))
    return total + sum(count_text(json.dumps(to_wire_tool(tool))) for tool in tools or ())


def _count_wire(message: dict[str, Any]) -> int:
    content = message.get("content") or ""
    tokens = count_text(content) if isinstance(content, str) else sum(_count_part(part) for part in content)
    if calls := message.get("tool_calls"):
        tokens += sum(
            count_text(call["function"]["name"] + call["function"]["arguments"]) + _TOKENS_PER_MESSAGE for call in calls
        )
    return tokens + count_text(message.get("name") or "")


def _count_part(part: dict[str, Any]) -> int:
    return count_text(part["text"]) if part["type"] == "text" else _TOKENS_PER_ATTACHMENT
