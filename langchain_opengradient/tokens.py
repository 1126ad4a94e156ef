"""Token counts without a tokenizer: close enough to trim a history, and offline.

Every provider behind the gateways has its own tokenizer, most of them unpublished, and LangChain's default
needs `transformers` and a download. It does not know a model: the counts are estimates, on the high side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import ceil
from typing import Any, Final

from langchain_core.messages import BaseMessage

from langchain_opengradient.messages import to_wire
from langchain_opengradient.tools import to_wire_tool

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
