"""What of a URL may be shown: a provider's key stands in its path, a password or a token in its user part or query.

Errors name a URL by its host, or without its secrets; httpx's own log lines are rewritten. Knows no network.
"""

from __future__ import annotations

import logging
import re
from bisect import insort
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

HIDDEN: Final = "[redacted]"
_SHORTEST_SECRET: Final = 8
"""Shorter pieces of a URL (`v2`, `rpc`, `mainnet`) are words, and no keys."""
_BETWEEN_PIECES: Final = re.compile(r"[/?&=:@#;]")


def host_of(url: str) -> str:
    """The host and the port in a URL, for messages."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or "the node"
    except ValueError:
        return "at an unreadable URL"


def without_secrets(url: str) -> str:
    """A URL for messages: without user part, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable URL"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def secrets_in(url: str) -> tuple[str, ...]:
    """What may be a key in a URL: all long pieces behind the host, and all of the user part. The longest first."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ()
    behind = f"{parts.path}?{parts.query}#{parts.fragment}"
    found = {piece for piece in _BETWEEN_PIECES.split(behind) if len(piece) >= _SHORTEST_SECRET}
    found |= {piece for piece in (parts.netloc.rpartition("@")[0], parts.password or "", parts.username or "") if piece}
    return tuple(sorted(found | {unquote(piece) for piece in found}, key=len, reverse=True))


def hiding(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets. `secrets` begin with the longest, so that none hides half of another."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


_logged: Final[list[tuple[int, str, str]]] = []
"""URLs as httpx writes them, and what its log lines say instead. The longest first (their lengths are negative): one
may be the start of another."""


class _UrlFilter(logging.Filter):
    """Lets every record pass, with what stands behind a host left out."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        for _, url, shown in _logged:
            if url in text:
                text = text.replace(url, shown)
                record.msg, record.args = text, ()
        return True


_FILTER: Final = _UrlFilter()


def keep_out_of_logs(url: str) -> None:
    """Has httpx log the URL by its host, from now on."""
    import httpx

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, UnicodeError):
        return  # no request will be made
    if parsed.raw_path != b"/" or parsed.userinfo:
        entry = (-len(str(parsed)), str(parsed), f"{parsed.scheme}://{host_of(url)}/{HIDDEN}")
        if entry not in _logged:
            insort(_logged, entry)
        logging.getLogger("httpx").addFilter(_FILTER)  # adding it again changes nothing
