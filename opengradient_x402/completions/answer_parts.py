"""What a message says in parts: text, and what some providers add to it; and why the answer ended.

Most gateways send `content` as a string and the reason in OpenAI's words. Some pass on what their provider says: a
list of parts, or a reason in the provider's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_REASONS: Final = {
    "length": ("max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
    "content_filter": (
        "blocklist",
        "image_safety",
        "prohibited_content",
        "recitation",
        "refusal",
        "safety",
        "spii",
    ),
    "tool_calls": ("function_call", "tool_call", "tool_use"),
    "stop": ("end_turn", "eos", "stop_sequence"),
}
"""OpenAI's words, and what Anthropic, Google and Mistral say in their place (API references, "finish reason")."""
_LINK: Final = re.compile(r"[a-z][a-z0-9+.-]*:\S", re.IGNORECASE)
_IMAGES: Final = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}
"""How images begin in base64 (their magic numbers)."""
_PLAIN_REASON: Final = {theirs: ours for ours, known in _REASONS.items() for theirs in (ours, *known)}


def plain_reason(reason: Any) -> str:
    """Why an answer ended, in OpenAI's words; as it is when it is none that is known."""
    return _PLAIN_REASON.get(str(reason).lower(), str(reason))


def join_text(content: Any) -> str:
    """The text of a list of content parts, as some gateways send it instead of a string."""
    if not isinstance(content, Sequence):
        return ""
    return "".join(
        part if isinstance(part, str) else part.get("text", "")
        for part in content
        if isinstance(part, str) or (isinstance(part, Mapping) and isinstance(part.get("text"), str))
    )


def beside_text(content: Any) -> dict[str, Any]:
    """The members of a message that its list of content parts stands for, beside the text."""
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, Sequence) else []
    images = [part for part in parts if part.get("type") in ("image_url", "output_image") and part.get("image_url")]
    members: dict[str, Any] = {
        "reasoning_content": "".join(_texts(part.get("thinking") for part in parts if part.get("type") == "thinking")),
        "refusal": "".join(_texts(part.get("refusal") for part in parts if part.get("type") == "refusal")),
        "images": images,
    }
    return {name: value for name, value in members.items() if value}


def _texts(values: Iterable[Any]) -> list[str]:
    return [value if isinstance(value, str) else join_text(value) for value in values if value is not None]


def image_urls(images: Any) -> list[str]:
    """URLs (or data URLs) of generated images, from any of the shapes gateways use."""
    urls: list[str] = []
    for image in images if isinstance(images, Sequence) and not isinstance(images, str) else [images]:
        inner = image.get("image_url", image) if isinstance(image, Mapping) else image
        url = inner.get("url") or inner.get("b64_json") if isinstance(inner, Mapping) else inner
        if isinstance(url, str) and (url := _as_url(url)):
            urls.append(url)
    return urls


def _as_url(image: str) -> str:
    """A link or a data URL, also made from plain base64 (OpenAI's image API); "" for any other value."""
    if _LINK.match(image):
        return image
    kind = next((kind for begins, kind in _IMAGES.items() if image.startswith(begins)), None)
    return f"data:image/{kind};base64,{image}" if kind else ""
