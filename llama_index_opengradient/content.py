"""Content blocks -> the content parts of the chat-completions wire.

Text, images, audio, documents, citable content and citations are converted; what the wire has no form for is
refused with an error that names the block and the way out. Nothing is dropped silently.

Knows blocks, one at a time. Does not know roles (`messages` does) or payments. Reads a file when a block
names a path; a URL is passed on, never fetched here: the gateway does that, and a blocking download inside
an async call would stop the loop.
"""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any, Final, NoReturn

from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)

from opengradient_x402.completions.content_parts import (
    PDF,
    Part,
    audio_part,
    data_url,
    file_part,
    image_part,
    split_data_url,
    text_part,
)

_TEXT_TYPES: Final = frozenset({"application/json", "application/xml", "application/yaml", "application/x-yaml"})


def content_parts(block: Any) -> list[Part]:
    """The wire's content parts for one block. Raises ValueError for a block that the wire cannot carry."""
    match block:
        case TextBlock():
            return [text_part(block.text)]
        case ImageBlock():
            return [_image(block)]
        case AudioBlock():
            return [_audio(block)]
        case DocumentBlock():
            return [_document(block)]
        case CitableBlock():
            return [
                text_part(f"[{block.title}]({block.source})"),
                *(part for inner in block.content for part in content_parts(inner)),
            ]
        case CitationBlock():
            return [*content_parts(block.cited_content), text_part(f"[{block.title}]({block.source})")]
        case _:
            return refuse(block, "there is no form for it on the chat-completions wire")


def is_media(part: Part) -> bool:
    """Whether only a user message may carry this part."""
    return bool(part["type"] != "text")


def refuse(block: Any, reason: str) -> NoReturn:
    """Raise the error for a block that cannot be sent."""
    kind = getattr(block, "block_type", type(block).__name__)
    raise ValueError(
        f"A content block of type {kind!r} cannot be sent: {reason}. Nothing was paid. "
        "Remove the block, or convert it to text or images."
    )


def _image(block: ImageBlock) -> Part:
    if block.url is not None:
        url = str(block.url)
    else:
        data = _bytes(block, block.image, block.path)
        mimetype = block.image_mimetype or _mimetype_of(block.path)
        if not mimetype:
            refuse(block, "its image type is unknown; set `image_mimetype`")
        url = data_url(mimetype, data)
    return image_part(url, detail=block.detail)


def _audio(block: AudioBlock) -> Part:
    encoded: str | None = None
    mimetype = ""
    if block.url is not None:
        mimetype, encoded = split_data_url(str(block.url))
        if encoded is None:
            refuse(block, "the wire takes audio as data, not by URL; download it and pass `audio=` or `path=`")
    if encoded is None:
        encoded = base64.b64encode(_bytes(block, block.audio, block.path)).decode()
        mimetype = _mimetype_of(block.path) or ""
    part = audio_part(encoded, kind=block.format or mimetype)
    if part is None:
        refuse(block, f"its format {block.format!r} is not wav or mp3; convert it, or set `format`")
    return part


def _document(block: DocumentBlock) -> Part:
    mimetype = block.document_mimetype or _mimetype_of(block.path) or ""
    title = block.title or "document"
    if block.url is not None:
        url_mimetype, encoded = split_data_url(block.url)
        if encoded is None:
            refuse(block, "the wire takes documents as data, not by URL; download it and pass `data=` or `path=`")
        data, mimetype = base64.b64decode(encoded), mimetype or url_mimetype
    else:
        data = _bytes(block, block.data, block.path)
    if mimetype == PDF or (not mimetype and data.startswith(b"%PDF-")):
        return file_part(base64.b64encode(data).decode(), mime_type=PDF, filename=title)
    if mimetype.startswith("text/") or mimetype in _TEXT_TYPES or not mimetype:
        return text_part(f"{title}\n\n{_decoded(block, data)}")
    refuse(block, f"documents of type {mimetype} are not understood; only PDF and text are")


def _decoded(block: DocumentBlock, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        refuse(block, "its type is unknown and it is not UTF-8 text; set `document_mimetype`")


def _bytes(block: Any, data: Any, path: Any) -> bytes:
    """The block's bytes, decoded: the blocks' validators store what they are given as base64."""
    if isinstance(data, bytes):
        raw = base64.b64decode(data)
    elif data is not None:
        data.seek(0)
        raw = data.read()
    elif path is not None:
        raw = Path(path).read_bytes()
    else:
        raw = b""
    if not raw:
        refuse(block, "it is empty")
    return raw


def _mimetype_of(path: Any) -> str | None:
    return mimetypes.guess_type(str(path))[0] if path is not None else None
