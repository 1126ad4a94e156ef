"""What an answer has said so far: its text, its tool calls, and its usage.

It reads the deltas of every tool-call style and assembles the calls in index order, because the proof and the price
of a stream are made from the whole. A stream that was cut short has no usage of its own; then the tokens that were
sent are counted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from opengradient_devnet.model.protocol import Answer, Chunk
from opengradient_devnet.model.tokens import count_message
from opengradient_devnet.model.usage import estimate_prompt

_ASSEMBLED = frozenset({"role", "content", "reasoning_content", "tool_calls"})
_PART = frozenset({"index", "id", "type", "function"})


class Transcript:
    """One answer, complete or in the making."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._calls: dict[int, dict[str, Any]] = {}
        self._latest = -1
        self._usage: dict[str, Any] | None = None
        self.text = ""
        self.content: Any = None
        """The text, or the parts of a whole answer that has other parts than text."""
        self.reasoning = ""
        self.finish_reason: str | None = None
        self.message_members: Mapping[str, Any] = {}
        self.choice_members: Mapping[str, Any] = {}
        self.members: Mapping[str, Any] = {}

    @classmethod
    def of(cls, answer: Answer, *, request: Mapping[str, Any]) -> Transcript:
        """The transcript of an answer that came in one piece."""
        transcript = cls(request)
        content = answer.message.get("content")
        transcript.text = _text_of(content)
        transcript.content = content if _has_other_parts(content) else transcript.text
        transcript.reasoning = answer.message.get("reasoning_content") or ""
        transcript._calls = dict(enumerate(answer.message.get("tool_calls") or []))
        transcript.finish_reason = answer.finish_reason
        transcript.message_members = {name: said for name, said in answer.message.items() if name not in _ASSEMBLED}
        transcript.choice_members, transcript.members = answer.choice_members, answer.members
        transcript._usage = answer.usage
        return transcript

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The assembled calls, in index order."""
        return [self._calls[index] for index in sorted(self._calls)]

    @property
    def usage(self) -> dict[str, Any]:
        """The model's own usage, or a count of what was asked and has been answered so far."""
        if self._usage is not None:
            return self._usage
        prompt_tokens = estimate_prompt(self._request).total
        said = {"content": self.text, "reasoning_content": self.reasoning, "tool_calls": self.tool_calls}
        completion_tokens = count_message(said)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def add(self, chunk: Chunk) -> None:
        """Take in one chunk, in order."""
        self.text += _text_of(chunk.delta.get("content"))
        self.reasoning += chunk.delta.get("reasoning_content") or ""
        for part in chunk.delta.get("tool_calls") or []:
            self._add_part(part)
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self._usage = chunk.usage or self._usage
        if chunk.is_terminal:
            self.choice_members, self.members = chunk.choice_members, chunk.members

    def _add_part(self, part: Mapping[str, Any]) -> None:
        self._latest = self._index_of(part)
        call = self._calls.setdefault(
            self._latest, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        # Some dialects send the name in pieces, and some repeat all of it with every piece.
        known, name = call["function"]["name"], function.get("name") or ""
        call["function"]["name"] = known if name == known or call["function"]["arguments"] else known + name
        arguments = function.get("arguments") or ""
        call["function"]["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)
        call |= {name: said for name, said in part.items() if name not in _PART}  # such as thought signatures

    def _index_of(self, part: Mapping[str, Any]) -> int:
        if part.get("index") is not None:
            return int(part["index"])
        for index, call in self._calls.items():
            if part.get("id") and call["id"] == part["id"]:
                return index
        return self._latest + 1 if part.get("id") else max(self._latest, 0)


def _text_of(content: Any) -> str:
    """Text, which some models give as a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    return content or ""


def _has_other_parts(content: Any) -> bool:
    return isinstance(content, list) and any(not isinstance(part, Mapping) or "text" not in part for part in content)


async def whole_tool_calls(
    chunks: AsyncGenerator[Chunk, None], *, request: Mapping[str, Any]
) -> AsyncGenerator[Chunk, None]:
    """`chunks`, but each tool call comes whole, in a chunk of its own, before the last chunk of all."""
    calls = Transcript(request)
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.is_terminal:
                for index, call in enumerate(calls.tool_calls):
                    yield Chunk(
                        delta={"tool_calls": [{"index": index, **call}]}, model=chunk.model, as_message=chunk.as_message
                    )
                yield chunk
                continue
            calls.add(chunk)
            rest = {name: value for name, value in chunk.delta.items() if name != "tool_calls"}
            if rest or chunk.choice_members or not chunk.delta:
                yield replace(chunk, delta=rest)
