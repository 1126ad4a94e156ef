"""Media in messages: which images, files and recordings arrived, of what type and how large.

Contents are not decoded. The exact type and size let a test see that an attachment arrived undamaged.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from opengradient_devnet.model.protocol import ModelError

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w=.-]+)*;base64,(?P<data>.*)\Z", re.DOTALL)


class MediaKind(StrEnum):
    """What an attachment is."""

    IMAGE = "image"
    AUDIO = "audio"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One image, recording or file of a message. `size_bytes` is None when only a URL or an id was given."""

    kind: MediaKind
    mime_type: str
    size_bytes: int | None
    name: str = ""

    def describe(self) -> str:
        """`image/png (1234 bytes)`, `application/pdf "a.pdf" (99 bytes)`, `image at https://…`."""
        if self.size_bytes is None:
            return f"{self.kind} at {self.name}"
        name = f' "{self.name}"' if self.name else ""
        return f"{self.mime_type}{name} ({self.size_bytes} bytes)"


def attachments_of(content: object) -> list[Attachment]:
    """The attachments of a message's `content`. Raises ModelError(400) for data that cannot be decoded."""
    if not isinstance(content, list):
        return []
    found = (_attachment(part) for part in content)
    return [item for item in found if item is not None]


def _attachment(part: Mapping[str, Any]) -> Attachment | None:
    kind = part.get("type")
    if kind == "image_url":
        image = part.get("image_url")
        return _image(image if isinstance(image, str) else str((image or {}).get("url", "")))
    if kind == "input_audio":
        audio = part.get("input_audio") or {}
        mime_type = f"audio/{audio.get('format', 'wav')}"
        size = _size(str(audio.get("data", "")), what="input_audio.data")
        return Attachment(kind=MediaKind.AUDIO, mime_type=mime_type, size_bytes=size)
    if kind == "file":
        return _file(part.get("file") or {})
    return None


def _image(url: str) -> Attachment:
    if url.startswith(("http://", "https://")):
        return Attachment(kind=MediaKind.IMAGE, mime_type="image/*", size_bytes=None, name=url)
    mime_type, size = _data_url(url, what="image_url.url")
    if not mime_type.startswith("image/"):
        raise ModelError(400, f"Invalid image_url: {mime_type} is not an image type.")
    return Attachment(kind=MediaKind.IMAGE, mime_type=mime_type, size_bytes=size)


def _file(file: Mapping[str, Any]) -> Attachment:
    name = str(file.get("filename") or "")
    if not file.get("file_data"):
        if not file.get("file_id"):
            raise ModelError(400, "Invalid file part: it has neither file_data nor file_id.")
        reference = str(file["file_id"])
        return Attachment(kind=MediaKind.FILE, mime_type="*/*", size_bytes=None, name=reference)
    mime_type, size = _data_url(str(file["file_data"]), what="file.file_data")
    return Attachment(kind=MediaKind.FILE, mime_type=mime_type, size_bytes=size, name=name)


def _data_url(url: str, *, what: str) -> tuple[str, int]:
    match = _DATA_URL.match(url)
    if match is None:
        raise ModelError(400, f"Invalid {what}: expected an http(s) URL or a base64 data URL.")
    return match["type"] or "application/octet-stream", _size(match["data"], what=what)


def _size(data: str, *, what: str) -> int:
    try:
        size = len(base64.b64decode(data, validate=True))
    except binascii.Error as exc:
        raise ModelError(400, f"Invalid {what}: not base64 ({exc}).") from exc
    if not size:
        raise ModelError(400, f"Invalid {what}: no data.")
    return size
