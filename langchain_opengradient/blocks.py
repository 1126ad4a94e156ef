"""How messages of `ChatOpenGradient` read as LangChain's standard content blocks (v1, and v3 event streams).

Registered once per process under the provider name `opengradient`. Text stays a plain string in `content`;
reasoning and generated images live in `additional_kwargs`. Stream blocks carry indexes that are stable over
a whole stream, so that core merges text with text and each tool call with itself. It does not know the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import content as blocks
from langchain_core.messages.block_translators import register_translator

PROVIDER: Final = "opengradient"

# `lc_` is the prefix by which core recognises string indexes that it may merge on.
_REASONING_INDEX: Final = "lc_rs_0"
_TEXT_INDEX: Final = "lc_txt_0"
_REFUSAL_INDEX: Final = "lc_rf_0"
_AUDIO_INDEX: Final = "lc_au_0"
_HAS_REFUSALS: Final = hasattr(blocks, "RefusalContentBlock")  # langchain-core 1.7.5


def translate(message: AIMessage) -> list[blocks.ContentBlock]:
    """A finished message's blocks: reasoning, text, images, tool calls."""
    if not isinstance(message.content, str):
        raise NotImplementedError  # core's signal to read a list with its own best effort
    found: list[dict[str, Any]] = []
    if reasoning := message.additional_kwargs.get("reasoning_content"):
        found.append({"type": "reasoning", "reasoning": reasoning})
    if message.content:
        found.append({"type": "text", "text": message.content, **_citations(message)})
    found.extend(_refusal(message))
    found.extend(image_block(url) for url in message.additional_kwargs.get("images") or ())
    found.extend(_audio(message))
    found.extend(
        {"type": "tool_call", "name": call["name"], "args": call["args"], "id": call.get("id")}
        for call in message.tool_calls
    )
    found.extend({**call, "type": "invalid_tool_call"} for call in message.invalid_tool_calls)
    return cast("list[blocks.ContentBlock]", found)


def translate_chunk(chunk: AIMessageChunk) -> list[blocks.ContentBlock]:
    """The blocks of one chunk. For the sum of a whole stream: those of the finished message."""
    if not isinstance(chunk.content, str):
        raise NotImplementedError
    if chunk.chunk_position == "last" and _is_sum(chunk):
        return translate(chunk)
    found: list[dict[str, Any]] = []
    if reasoning := chunk.additional_kwargs.get("reasoning_content"):
        found.append({"type": "reasoning", "reasoning": reasoning, "index": _REASONING_INDEX})
    if chunk.content:
        found.append({"type": "text", "text": chunk.content, "index": _TEXT_INDEX})
    found.extend({**block, "index": _REFUSAL_INDEX} for block in _refusal(chunk))
    if not chunk.content and (cited := _citations(chunk)):
        found.append({"type": "text", "text": "", **cited, "index": _TEXT_INDEX})
    found.extend(
        {**image_block(url), "index": f"lc_img_{number}"}
        for number, url in enumerate(chunk.additional_kwargs.get("images") or ())
    )
    found.extend({**block, "index": _AUDIO_INDEX} for block in _audio(chunk))
    fragments = chunk.tool_call_chunks if chunk.chunk_position != "last" else getattr(chunk, "spoiled", ())
    found.extend(
        {
            "type": "tool_call_chunk",
            "id": call.get("id"),
            "name": call.get("name"),
            "args": call.get("args"),
            "index": f"lc_tc_{call.get('index')}",
        }
        for call in fragments
    )
    return cast("list[blocks.ContentBlock]", found)


def _audio(message: AIMessage) -> list[dict[str, Any]]:
    audio = message.additional_kwargs.get("audio")
    if not isinstance(audio, Mapping) or not audio.get("data"):
        return []
    extras = {name: audio[name] for name in ("transcript", "expires_at") if audio.get(name) is not None}
    named = {name: audio[name] for name in ("id",) if audio.get(name)}
    return [{"type": "audio", **named, "base64": audio["data"], **({"extras": extras} if extras else {})}]


def _refusal(message: AIMessage) -> list[dict[str, Any]]:
    refusal = message.additional_kwargs.get("refusal") if _HAS_REFUSALS else None
    return [{"type": "refusal", "refusal": refusal}] if refusal else []


def _citations(message: AIMessage) -> dict[str, Any]:
    """The pages that an answer cites (`url_citation`), as the standard annotations of its text."""
    found = []
    notes = message.additional_kwargs.get("annotations")
    for note in notes if isinstance(notes, list) else ():
        if not isinstance(note, Mapping) or note.get("type") != "url_citation":
            continue
        cited = note.get("url_citation")
        cited = cited if isinstance(cited, Mapping) else note
        members = ("url", "title", "start_index", "end_index")
        found.append({"type": "citation", **{name: cited[name] for name in members if cited.get(name) is not None}})
    return {"annotations": found} if found else {}


def _is_sum(chunk: AIMessageChunk) -> bool:
    """Whether this is the sum of a stream: the last chunk alone has neither text nor named calls."""
    texts = (chunk.additional_kwargs.get(name) for name in ("reasoning_content", "refusal"))
    calls = (*chunk.tool_calls, *chunk.invalid_tool_calls)
    return bool(chunk.content or any(texts) or any(call["name"] for call in calls))


def image_block(url: str) -> dict[str, Any]:
    """A generated image as a standard block: data URLs as base64, links as links."""
    head, comma, data = url.partition(";base64,")
    if comma and head.startswith("data:"):
        return {"type": "image", "base64": data, "mime_type": head.removeprefix("data:")}
    return {"type": "image", "url": url}


register_translator(PROVIDER, translate, translate_chunk)
