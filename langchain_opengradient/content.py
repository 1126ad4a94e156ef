"""Content blocks of any dialect -> the content parts that the gateways read.

Takes parts of both OpenAI APIs, LangChain v0 and v1 blocks, Anthropic, Bedrock Converse and Vertex blocks. What
the wire has no place for (videos, file ids, links to files) is refused with `UnsupportedContent`: never dropped,
since a model that was not shown the input still charges for its answer. It does not know roles or messages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langchain_opengradient.errors import UnsupportedContent
from opengradient_x402.completions.content_parts import (
    PDF,
    Part,
    audio_part,
    data_url,
    file_part,
    image_part,
    text_part,
)

Block = Mapping[str, Any]

_DEFAULT_FILENAME: Final = "document"


def to_parts(content: str | Sequence[str | Block]) -> list[Part]:
    """Every block of a message's content as a wire part. Raises UnsupportedContent."""
    if isinstance(content, str):
        return [text_part(content)] if content else []
    return [text_part(block) if isinstance(block, str) else to_part(block) for block in content if not _is_hint(block)]


def _is_hint(block: str | Block) -> bool:
    """Whether the block only says that the blocks before it may be cached (Bedrock Converse)."""
    return not isinstance(block, str) and set(block) == {"cachePoint"}


def to_part(block: Block) -> Part:
    """One content block as a wire part. Raises UnsupportedContent."""
    convert = _CONVERTERS.get(_kind(block))
    if convert is None:
        raise _refused(block, "is of a kind that the gateways do not take")
    try:
        part, mark = convert(block), cache_mark(block)
    except (AttributeError, KeyError, TypeError) as exc:
        raise _refused(block, "is not written as blocks of its kind are") from exc
    return {**part, "cache_control": mark} if mark else part


def cache_mark(block: Block) -> Any:
    """Anthropic's mark that what is before it may be cached, at a tenth of the price; in v1 blocks among the extras."""
    extras = block.get("extras")
    return block.get("cache_control") or (extras.get("cache_control") if isinstance(extras, Mapping) else None)


def _kind(block: Block) -> str:
    kind = block.get("type")
    if kind is None:
        # Bedrock Converse has no type: the only key says what the block is.
        return next((key for key in ("text", "image", "document", "json") if key in block), "")
    return str(kind)


def _text(block: Block) -> Part:
    if not isinstance(block.get("text"), str):
        raise _refused(block, "has no text")
    return text_part(block["text"])


def _json(block: Block) -> Part:
    return text_part(json.dumps(block["json"], ensure_ascii=False))


def _guard(block: Block) -> Part:
    guarded = block.get("guard_content") or {}
    text = guarded.get("text", "")
    return text_part(str(text["text"] if isinstance(text, Mapping) else text))


def _non_standard(block: Block) -> Part:
    value = block.get("value")
    if not isinstance(value, Mapping) or value.get("type") == "non_standard":
        raise _refused(block, "wraps nothing that can be sent")
    return to_part(value)


def _image_url(block: Block) -> Part:
    image = block.get("image_url")
    if isinstance(image, str):
        image = {"url": image}
    if not isinstance(image, Mapping) or not isinstance(image.get("url"), str):
        raise _refused(block, "has no url")
    return image_part(image["url"], detail=image.get("detail"))


def _image(block: Block) -> Part:
    source = _source(block)
    if isinstance(source, str):
        return image_part(source)
    mime_type, data = source
    return image_part(data_url(mime_type or "image/png", data))


def _audio(block: Block) -> Part:
    source = _source(block)
    if isinstance(source, str):
        raise _refused(block, "is a link; the gateways take audio as base64 data only")
    mime_type, data = source
    return _audio_part(block, data, mime_type or "wav")


def _input_audio(block: Block) -> Part:
    audio = block.get("input_audio")
    if not isinstance(audio, Mapping) or not isinstance(audio.get("data"), str):
        raise _refused(block, "has no audio data")
    return _audio_part(block, audio["data"], str(audio.get("format", "wav")))


def _audio_part(block: Block, data: str, kind: str) -> Part:
    part = audio_part(data, kind=kind)
    if part is None:
        raise _refused(block, f"is audio of the kind {kind!r}; the gateways take wav and mp3: convert it first")
    return part


def _file(block: Block) -> Part:
    inner = block.get("file")
    if isinstance(inner, Mapping):
        return _openai_file(block, inner)
    if block.get("source_type") == "text":  # LangChain v0
        return _text(block)
    source = _source(block)
    if isinstance(source, str):
        raise _refused(block, "is a link; the gateways take files as base64 data only: download it first")
    mime_type, data = source
    if (mime_type or "").startswith("text/"):
        return _decoded(block, data)  # providers read PDFs only; text needs no file
    return _document_part(mime_type or PDF, data, _filename(block))


def _openai_file(block: Block, inner: Mapping[str, Any]) -> Part:
    if not isinstance(inner.get("file_data"), str):
        raise _refused(block, "names an uploaded file; the gateways take files as base64 data only")
    return {"type": "file", "file": {**inner, "filename": inner.get("filename") or f"{_DEFAULT_FILENAME}.pdf"}}


def _document(block: Block) -> Part:
    document = block.get("document")
    if isinstance(document, Mapping):  # Bedrock Converse
        return _document_part(
            f"application/{document.get('format', 'pdf')}",
            _base64_text(block, document.get("source", {}).get("bytes")),
            document.get("name"),
        )
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        return text_part(str(source.get("data", "")))
    if isinstance(source, Mapping) and source.get("type") == "content":
        return text_part("\n".join(part["text"] for part in to_parts(source["content"]) if "text" in part))
    return _file({**block, "filename": block.get("title")})


def _plain_text(block: Block) -> Part:
    if isinstance(block.get("text"), str):
        return text_part(block["text"])
    if isinstance(block.get("base64"), str):
        return _decoded(block, block["base64"])
    raise _refused(block, "has no text")


def _decoded(block: Block, data: str) -> Part:
    try:
        return text_part(base64.b64decode(data).decode())
    except ValueError as exc:  # binascii.Error and UnicodeDecodeError
        raise _refused(block, "is not base64 of UTF-8 text") from exc


def _search_result(block: Block) -> Part:
    """Anthropic's `search_result`: a document that the user found, as text with its title and source."""
    body = [part["text"] for part in to_parts(block.get("content") or ()) if part["type"] == "text"]
    return text_part("\n".join(str(line) for line in (block.get("title"), block.get("source"), *body) if line))


def _input_file(block: Block) -> Part:
    return _openai_file(block, {key: block[key] for key in ("filename", "file_data") if key in block})


def _media(block: Block) -> Part:
    """Vertex's `media`: an image, audio or a file, as its MIME type says."""
    mime_type = str(block.get("mime_type", ""))
    as_v1 = {"mime_type": mime_type, "base64": _base64_text(block, block.get("data"))}
    family = mime_type.partition("/")[0]
    if family == "image":
        return _image({"type": "image", **as_v1})
    if family == "audio":
        return _audio({"type": "audio", **as_v1})
    if family == "application":
        return _file({"type": "file", **as_v1})
    raise _refused(block, "is of a kind that the gateways do not take")


def _document_part(mime_type: str, data: str, filename: str | None) -> Part:
    if mime_type.startswith("image/"):
        return image_part(data_url(mime_type, data))
    name = filename or f"{_DEFAULT_FILENAME}.{mime_type.rpartition('/')[2]}"
    return file_part(data, mime_type=mime_type, filename=name)


def _filename(block: Block) -> str | None:
    extras, metadata = block.get("extras") or {}, block.get("metadata") or {}
    name = block.get("filename") or extras.get("filename") or metadata.get("filename")
    return None if name is None else str(name)


def _source(block: Block) -> str | tuple[str | None, str]:
    """Where a block's data is: a URL, or (mime type, base64 text). LangChain v1, v0, Anthropic, Bedrock."""
    mime_type = block.get("mime_type")
    if isinstance(block.get("base64"), str):
        return mime_type, block["base64"]
    if isinstance(block.get("data"), str | bytes):  # LangChain v0
        return mime_type, _base64_text(block, block["data"])
    if isinstance(block.get("url"), str):
        return str(block["url"])
    if isinstance(block.get("source"), Mapping):
        return _anthropic_source(block, block["source"])
    if isinstance(inner := block.get("image"), Mapping):  # Bedrock Converse
        data = _base64_text(block, inner.get("source", {}).get("bytes"))
        return f"image/{inner.get('format', 'png')}", data
    raise _refused(block, "holds no data and no link (uploaded-file ids mean nothing to the gateways)")


def _anthropic_source(block: Block, source: Mapping[str, Any]) -> str | tuple[str | None, str]:
    if source.get("type") == "base64":
        return source.get("media_type"), _base64_text(block, source.get("data"))
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    raise _refused(block, f"has a source of type {source.get('type')!r}")


def _base64_text(block: Block, data: Any) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, bytes):
        return base64.b64encode(data).decode("ascii")
    raise _refused(block, "has no data")


def _refused(block: Block, why: str) -> UnsupportedContent:
    # Names the keys, not the values: a block can hold megabytes, or something private.
    shape = f"type {block['type']!r}" if "type" in block else "no type"
    return UnsupportedContent(
        f"A content block ({shape}, keys {sorted(map(str, block))}) {why}. Nothing was sent or paid. "
        "Send text, an image (base64 or https link), a PDF (base64) or audio (base64) instead."
    )


_CONVERTERS: Final[dict[str, Callable[[Block], Part]]] = {
    "audio": _audio,
    "document": _document,
    "file": _file,
    "guard_content": _guard,
    "image": _image,
    "image_url": _image_url,
    "input_audio": _input_audio,
    "input_file": _input_file,  # OpenAI's Responses API, with the next two and output_text
    "input_image": _image_url,
    "input_text": _text,
    "json": _json,
    "media": _media,
    "non_standard": _non_standard,
    "output_text": _text,
    "search_result": _search_result,
    "text": _text,
    "text-plain": _plain_text,
}
