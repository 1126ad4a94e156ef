"""A small tokenizer: cuts text into pieces, and counts the tokens of whole requests.

The pieces, joined, are the text again. A token is a run of up to eight ASCII letters, or of up to three digits, or any
other single character, each together with one blank before it; other white space counts one token a run. A message
costs three tokens besides its text, a request three more; an image costs 85 (OpenAI's price of a low-detail image), a
second of 16 kHz audio about 10, a file one per 1000 bytes.

No real model has this vocabulary: counts have the right size, are stable, and are easy to check by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.media import Attachment, MediaKind, attachments_of

_TOKEN = re.compile(r" ?[A-Za-z]{1,8}| ?[0-9]{1,3}| ?[^\sA-Za-z0-9]|\s+")
_TOKENS_PER_MESSAGE = 3
_TOKENS_PER_REQUEST = 3
_TOKENS_PER_IMAGE = 85
_AUDIO_BYTES_PER_TOKEN = 3200
_FILE_BYTES_PER_TOKEN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCount:
    """How many tokens a request is long, and how many of them are audio, cached, or newly cached."""

    total: int
    audio: int = 0
    cached: int = 0
    cache_creation: int = 0


def tokens(text: str) -> list[str]:
    """Cut `text` into tokens; joined, they are `text`."""
    return _TOKEN.findall(text)


def count(text: str) -> int:
    """The number of tokens of `text`."""
    return sum(1 for _ in _TOKEN.finditer(text))


def count_request(request: Mapping[str, Any]) -> PromptCount:
    """Count the messages, the tools and the response format of a chat-completions request.

    Parts marked `cache_control` count as cached when a later message follows (the provider has seen them
    before), and as newly cached when they stand in the last message.
    """
    messages: Sequence[Mapping[str, Any]] = request["messages"]
    media = [item for message in messages for item in attachments_of(message.get("content"))]
    audio = sum(_count_attachment(item) for item in media if item.kind is MediaKind.AUDIO)
    marked = [sum(count(text) for text in _cache_marked(message)) for message in messages]
    total = _TOKENS_PER_REQUEST + sum(_count_message(message) for message in messages)
    for extra in ("tools", "response_format"):
        if request.get(extra):
            total += count(json.dumps(request[extra], ensure_ascii=False))
    return PromptCount(total=total, audio=audio, cached=sum(marked[:-1]), cache_creation=marked[-1])


def count_message(message: Mapping[str, Any]) -> int:
    """The tokens of an assistant message: its text, its reasoning, and its tool calls' names and arguments."""
    return sum(count(text) for text in _texts(message))


def _count_message(message: Mapping[str, Any]) -> int:
    media = sum(_count_attachment(item) for item in attachments_of(message.get("content")))
    return _TOKENS_PER_MESSAGE + count_message(message) + media


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else []:
        yield str(part.get("text") or part.get("refusal") or "")
    yield str(message.get("reasoning_content") or "")
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        yield str(function.get("name") or "")
        yield str(function.get("arguments") or "")


def _count_attachment(item: Attachment) -> int:
    if item.kind is MediaKind.IMAGE:
        return _TOKENS_PER_IMAGE
    per_token = _AUDIO_BYTES_PER_TOKEN if item.kind is MediaKind.AUDIO else _FILE_BYTES_PER_TOKEN
    return 1 + (item.size_bytes or 0) // per_token


def _cache_marked(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        if part.get("cache_control"):
            yield str(part.get("text") or "")
