"""What is already certain in a JSON object that is still arriving.

Tool arguments come in fragments, and agents look at them after every fragment. `parse_partial_object` gives
a view that only ever grows: members appear in order, strings get longer, lists get more elements, and nothing
that was shown is taken back. Numbers and literals are shown when they are complete, since `12` may become `123`.

It knows JSON's grammar only, not tools. It never raises: text that is not JSON has no certain part.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STRING = re.compile(r'"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
_SPACE = re.compile(r"[ \t\r\n]*")
_HIGH_SURROGATE_AT_END = re.compile("[\ud800-\udbff]$")

_AFTER_SCALAR = tuple(",]} \t\r\n")
_NOTHING = object()


class _Stop(Exception):
    """The text ends here, or stops being JSON: what was found before stands."""


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._is_open = False

    def value(self) -> Any:
        """The value at the cursor, or as much of it as is certain; `_NOTHING` when nothing is.

        Afterwards `_ended` says whether the text ended inside the value.
        """
        opening = self._peek()
        if opening == "{":
            return self._object()
        if opening == "[":
            return self._array()
        if opening == '"':
            return self._string()
        return self._scalar()

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        try:
            while self._peek() != "}":
                key = self._key()
                if self._ended():
                    return found
                self._expect(":")
                if (value := self.value()) is not _NOTHING:
                    found[key] = value
                if self._ended():
                    return found
                self._separator("}")
            self._at += 1
        except _Stop:
            self._is_open = True
        return found

    def _key(self) -> str:
        return self._string() if self._peek() == '"' else self._fail()

    def _array(self) -> list[Any]:
        found: list[Any] = []
        self._at += 1
        try:
            while self._peek() != "]":
                if (value := self.value()) is not _NOTHING:
                    found.append(value)
                if self._ended():
                    return found
                self._separator("]")
            self._at += 1
        except _Stop:
            self._is_open = True
        return found

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:  # every caller has seen the opening quote, which the pattern needs
            self._fail()
        self._at = match.end()
        text: str = json.loads(match.group() + '"', strict=False)
        if self._text[self._at : self._at + 1] == '"':
            self._at += 1
        else:
            self._is_open = True
            # half of a surrogate pair would turn into another character when its other half arrives
            text = _HIGH_SURROGATE_AT_END.sub("", text)
        return text

    def _scalar(self) -> Any:
        match = _SCALAR.match(self._text, self._at)
        if match is None or self._text[match.end() : match.end() + 1] not in _AFTER_SCALAR:
            self._is_open = True
            return _NOTHING
        self._at = match.end()
        return json.loads(match.group())

    def _ended(self) -> bool:
        """Whether the text came to its end, or stopped being JSON, inside of what was read last."""
        return self._is_open

    def _separator(self, closing: str) -> None:
        if self._peek() == ",":
            self._at += 1
        elif self._peek() != closing:
            self._fail()

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail()
        self._at += 1

    def _peek(self) -> str:
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches "" at least
        if self._at >= len(self._text):
            raise _Stop
        return self._text[self._at]

    def _fail(self) -> NoReturn:
        raise _Stop


def parse_partial_object(text: str) -> dict[str, Any]:
    """The certain part of a JSON object of which `text` is a beginning; `{}` when there is none yet."""
    try:
        value = _Reader(text).value()
    except _Stop:
        return {}
    return value if isinstance(value, dict) else {}
