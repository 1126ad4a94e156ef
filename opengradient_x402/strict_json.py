"""JSON text for the wire: orjson when it is installed (the `fast` extra), the standard library otherwise.

Both accept bytes and raise `ValueError` for malformed text, also for text that is nested too deeply. Both accept half
a character (an escaped surrogate without its other half): servers cut text between the two, and `WholeCharacters` puts
it together again. This module knows nothing of what the text means.
"""

from __future__ import annotations

import json
import re
from typing import Any

try:
    import orjson as _orjson
except ImportError:  # the `fast` extra is optional
    _orjson = None  # type: ignore[assignment,unused-ignore]

MAX_DEPTH = 500
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def check_depth(content: bytes | str) -> None:
    """Raises ValueError for text that is nested more than `MAX_DEPTH` deep.

    The standard library's parser recurses in C and trusts Python's recursion limit, which other packages in
    the process raise (py-evm does): hostile text could then overflow the stack and end the process.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON text is nested more than {MAX_DEPTH} deep")


def _loads_standard(content: bytes | str) -> Any:
    check_depth(content)
    return json.loads(content)


def _loads_fast(content: bytes | str) -> Any:
    try:
        return _orjson.loads(content)
    except ValueError:
        escaped = content.lower() if isinstance(content, bytes) else content.lower().encode("utf-8", "surrogatepass")
        if b"\\ud" not in escaped:
            raise
        return _loads_standard(content)  # takes half a character, and refuses everything else as well


def _dumps_standard(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _dumps_fast(value: Any) -> bytes:
    try:
        return _orjson.dumps(value)
    except TypeError:  # e.g. an int over 64 bits, or a str subclass: the standard library takes them
        return _dumps_standard(value)


loads = _loads_standard if _orjson is None else _loads_fast
dumps = _dumps_standard if _orjson is None else _dumps_fast


_SURROGATE = re.compile("[\ud800-\udfff]")


def whole_characters(text: str) -> str:
    """The text with its pairs of halves joined, and U+FFFD for each half that is alone."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class WholeCharacters:
    """Text that arrives in pieces, each given on with whole characters only: half a character waits for the other."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def take(self, text: str) -> str:
        """What can be given on now."""
        if not self._half and text.isascii():
            return text
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return whole_characters(text)

    def rest(self) -> str:
        """What is left when nothing more comes: U+FFFD for a half that stayed alone."""
        half, self._half = self._half, ""
        return "\ufffd" if half else ""


_DECODER = json.JSONDecoder(strict=False)  # models write line feeds into strings without escaping them


_THOUGHT = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)


def after_thought(text: str) -> str:
    """The text without what a reasoning model thought aloud before it."""
    thought = _THOUGHT.match(text)
    return text if thought is None else text[thought.end() :]


def object_in(text: str) -> str:
    """The JSON object that models put between friendly words, or into a Markdown fence; else the text as it is."""
    text = after_thought(text)
    at = text.find("{")
    while at >= 0:
        try:
            _, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as exc:
            if exc.pos >= len(text.rstrip()) or exc.msg.startswith("Unterminated string"):
                break  # an object that was cut off: one inside it is not the answer
            at = text.find("{", at + 1)
        else:
            return text[at:end]
    return text
