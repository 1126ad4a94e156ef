"""The content parts of a message on the chat-completions wire: text, images, audio, files.

Pure: bytes and URLs in, parts out; the shapes are those of OpenAI's API reference ("Create chat completion"). Which
block of a framework becomes which part, and what is refused in which words, the faces know.
"""

from __future__ import annotations

import base64
from typing import Any, Final

Part = dict[str, Any]

PDF: Final = "application/pdf"
_AUDIO_FORMATS: Final = {
    "mp3": "mp3",
    "mpeg": "mp3",
    "vnd.wave": "wav",
    "wav": "wav",
    "wave": "wav",
    "x-wav": "wav",
}  # OpenAI API reference, `input_audio.format`: wav or mp3


def text_part(text: str) -> Part:
    """A text part."""
    return {"type": "text", "text": text}


def image_part(url: str, *, detail: str | None = None) -> Part:
    """An image, by a URL of the web or a data URL."""
    return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}


def audio_part(data: str, *, kind: str) -> Part | None:
    """Audio from base64 text. `kind`: a MIME type or the name of a format; None for one that the wire does not have."""
    known = _AUDIO_FORMATS.get(kind.partition(";")[0].rpartition("/")[2].strip().lower())
    return None if known is None else {"type": "input_audio", "input_audio": {"data": data, "format": known}}


def file_part(data: str, *, mime_type: str, filename: str) -> Part:
    """A file from base64 text."""
    return {"type": "file", "file": {"filename": filename, "file_data": data_url(mime_type, data)}}


def data_url(mime_type: str, data: str | bytes) -> str:
    """The data URL of bytes, or of base64 text."""
    return f"data:{mime_type};base64,{data if isinstance(data, str) else base64.b64encode(data).decode()}"


def split_data_url(url: str) -> tuple[str, str | None]:
    """MIME type and base64 text of a data URL; ("", None) for any other URL."""
    head, found, encoded = url.partition(";base64,")
    if not found or not head.startswith("data:"):
        return "", None
    return head.removeprefix("data:"), encoded


def joined(parts: list[Part]) -> str | list[Part]:
    """Plain text as a string, the form that every gateway hashes and every model takes; anything else as parts."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "\n".join(part["text"] for part in parts)
    # Beside other parts a blank text says nothing, and Anthropic's models refuse it.
    return [part for part in parts if "cache_control" in part or part["type"] != "text" or part["text"].strip()]
