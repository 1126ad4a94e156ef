"""`ChatMessage`s -> the wire's messages.

Pure: the caller's messages are read, never changed. Every block of every role is converted or refused with a
clear error. `additional_kwargs` never goes out wholesale, since memories and other integrations keep private
things there: `tool_calls`, `tool_call_id` and what this package keeps for a provider are read from it, nothing else.

Does not know models, responses or payments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    MessageRole,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index_opengradient.content import content_parts, is_media, refuse
from llama_index_opengradient.tools import AUDIO_KEY, CALL_EXTRAS_KEY, DETAILS_KEY, tool_calls_of
from opengradient_x402.completions.content_parts import Part, joined, text_part
from opengradient_x402.gateway.request import wire_tool_name

_WIRE_ROLES: Final = {
    MessageRole.SYSTEM: "system",
    # The enclave signs developer messages as system messages (gateway wire, request hash), so they go out as such.
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}

_MOVED_MEDIA: Final = {
    "tool": "Attachments of the tool results above:",
    "assistant": "Attachments of the answer above:",
}


def wire_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as the wire takes them. Raises ValueError for content that it cannot carry.

    Media in tool results and in the assistant's turns, which only user messages may carry, follow in a user
    message of their own, after the whole run of tool results: providers refuse anything in between.
    """
    if not messages:
        raise ValueError("There is no message to answer. Nothing was paid. Give at least one.")
    conversation = _Conversation()
    for message in messages:
        conversation.add(message)
    return conversation.finish()


class _Conversation:
    """The wire's messages so far, and the media that still have to be placed."""

    def __init__(self) -> None:
        self._out: list[dict[str, Any]] = []
        self._moved: list[Part] = []
        self._moved_from = ""
        self._unnamed_calls: deque[str] = deque()
        self._names_given = 0

    def add(self, message: ChatMessage) -> None:
        role = _WIRE_ROLES[message.role]
        if role != "tool":
            self._place_moved_media()
        parts, reasoning = _parts(message, role)
        if role != "user":
            parts = self._move_media(message, role, parts)
        out: dict[str, Any] = {"role": role, "content": joined(parts)}
        if role == "assistant":
            out |= _wanted_back(message, reasoning)
            if calls := tool_calls_of(message):
                extras = message.additional_kwargs.get(CALL_EXTRAS_KEY) or {}
                out["tool_calls"] = [{**extras.get(call["id"], {}), **self._named(call)} for call in calls]
        elif role == "tool":
            out["tool_call_id"] = self._call_id(message)
        self._out.append(out)

    def finish(self) -> list[dict[str, Any]]:
        self._place_moved_media()
        return self._out

    def _move_media(self, message: ChatMessage, role: str, parts: list[Part]) -> list[Part]:
        media = [part for part in parts if is_media(part)]
        if media and role == "system":
            kind = next(block for block in message.blocks if any(is_media(part) for part in _of(block)))
            refuse(kind, "a system message carries text only; put it into a user message")
        self._moved += media
        self._moved_from = role if media else self._moved_from
        return [part for part in parts if not is_media(part)]

    def _place_moved_media(self) -> None:
        if self._moved:
            self._out.append({"role": "user", "content": [text_part(_MOVED_MEDIA[self._moved_from]), *self._moved]})
            self._moved = []

    def _named(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call with a name that the wire allows, and with an id, since results name the id of their call."""
        if not call["id"]:
            self._names_given += 1
            call["id"] = f"call_{self._names_given}"
            self._unnamed_calls.append(call["id"])
        call["function"]["name"] = wire_tool_name(call["function"]["name"])
        call["function"]["arguments"] = call["function"]["arguments"] or "{}"
        return call

    def _call_id(self, message: ChatMessage) -> str:
        call_id = message.additional_kwargs.get("tool_call_id")
        if call_id:
            return str(call_id)
        if self._unnamed_calls:
            return self._unnamed_calls.popleft()
        raise ValueError(
            "A tool message does not say which call it answers, and no unanswered call without an id precedes it. "
            "Nothing was paid. Set additional_kwargs={'tool_call_id': ...} on the message."
        )


def _wanted_back(message: ChatMessage, reasoning: str) -> dict[str, Any]:
    """What a provider wants to see again of an answer of its own."""
    kept = message.additional_kwargs
    audio_id = kept.get(AUDIO_KEY)
    wanted = {
        "reasoning_content": reasoning,
        "reasoning_details": kept.get(DETAILS_KEY),
        "audio": {"id": audio_id} if audio_id else None,
    }
    return {name: value for name, value in wanted.items() if value}


def _of(block: Any) -> list[Part]:
    return content_parts(block) if not isinstance(block, CachePoint | ThinkingBlock | ToolCallBlock) else []


def _parts(message: ChatMessage, role: str) -> tuple[list[Part], str]:
    """A message's content parts, and its reasoning."""
    parts: list[Part] = []
    reasoning: list[str] = []
    for block in message.blocks:
        match block:
            case ThinkingBlock() if role == "assistant":
                reasoning.append(block.content or "")
            case ToolCallBlock() if role == "assistant":
                pass  # goes into the message's `tool_calls`
            case AudioBlock() if role == "assistant" and message.additional_kwargs.get(AUDIO_KEY):
                pass  # the provider has it under this id
            case ThinkingBlock() | ToolCallBlock():
                refuse(block, f"it belongs to an assistant message, and this message's role is {message.role.value!r}")
            case CachePoint():
                _mark_cache_point(block, parts)
            case _:
                parts += content_parts(block)
    return parts, "\n".join(filter(None, reasoning))


def _mark_cache_point(block: CachePoint, parts: list[Part]) -> None:
    """Everything up to the last part may be cached (Anthropic's `cache_control`, as compatible gateways take it)."""
    if not parts:
        refuse(block, "it marks the content before it in the same message, and there is none")
    parts[-1]["cache_control"] = {"type": block.cache_control.type, "ttl": block.cache_control.ttl}
