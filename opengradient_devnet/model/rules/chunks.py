"""Cuts an answer into stream deltas, in each of the styles that gateways have been seen to use. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, assert_never

from opengradient_devnet.model.protocol import Delivery
from opengradient_devnet.model.tokens import tokens
from opengradient_devnet.tool_call_styles import ToolCallStyle

_FEWEST_PIECES = 3


def deltas(message: Mapping[str, Any], *, delivery: Delivery) -> Iterator[dict[str, Any]]:
    """The deltas that, put together again, are `message`: role, reasoning, text, tool calls."""
    yield {"role": "assistant", "content": ""}
    for piece in pieces(message.get("reasoning_content") or "", size=delivery.tokens_per_chunk):
        yield {"reasoning_content": piece}
    calls = message.get("tool_calls") or []
    content = message.get("content") or ""
    if calls and delivery.tool_calls is ToolCallStyle.WITH_TEXT:
        yield {"content": content, "tool_calls": [_whole(call, index) for index, call in enumerate(calls)]}
        return
    for piece in pieces(content, size=delivery.tokens_per_chunk):
        yield {"content": piece}
    for part in _call_parts(calls, delivery=delivery):
        yield {"tool_calls": [part]}


def pieces(text: str, *, size: int) -> list[str]:
    """`text` in pieces of at most `size` tokens, and of less if there would be fewer than three pieces."""
    found = tokens(text)
    size = max(1, min(size, len(found) // _FEWEST_PIECES))
    return ["".join(found[start : start + size]) for start in range(0, len(found), size)]


def _call_parts(calls: Sequence[Mapping[str, Any]], *, delivery: Delivery) -> Iterator[dict[str, Any]]:
    style = delivery.tool_calls
    match style:
        case ToolCallStyle.WHOLE | ToolCallStyle.WITH_TEXT:
            yield from (_whole(call, index) for index, call in enumerate(calls))
        case ToolCallStyle.INTERLEAVED:
            runs = [list(_fragments(call, index, delivery=delivery)) for index, call in enumerate(calls)]
            for turn in zip_longest(*runs):
                yield from (part for part in turn if part is not None)
        case ToolCallStyle.FRAGMENTS | ToolCallStyle.NULL_INDEX | ToolCallStyle.REPEATED_IDS:
            for index, call in enumerate(calls):
                yield from _fragments(call, index, delivery=delivery)
        case _:
            assert_never(style)


def _whole(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {"index": index, "id": call["id"], "type": "function", "function": dict(call["function"])}


def _fragments(call: Mapping[str, Any], index: int, *, delivery: Delivery) -> Iterator[dict[str, Any]]:
    style = delivery.tool_calls
    at = None if style is ToolCallStyle.NULL_INDEX else index
    name = call["function"]["name"]
    head = {"index": at, "id": call["id"], "type": "function"}
    yield {**head, "function": {"name": name, "arguments": ""}}
    for piece in pieces(call["function"]["arguments"], size=delivery.tokens_per_chunk):
        if style is ToolCallStyle.REPEATED_IDS:
            yield {**head, "function": {"name": name, "arguments": piece}}
        else:
            yield {"index": at, "function": {"arguments": piece}}
