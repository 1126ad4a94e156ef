"""The members of a JSON object that are certain while the rest of it is still arriving.

Tool arguments come in fragments, and agents look at them after every fragment. `parse_partial_object` gives
a view that only ever grows: members appear in order, strings get longer, lists get more elements, and nothing
that was shown is taken back. Numbers and literals are shown when they are complete, since `12` may become `123`.

It knows JSON's grammar only, not tools. It never raises: text that is not JSON has no certain part.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")
_MAY_GO_ON = ("EOF", "trailing characters")  # pydantic_core's words for text that is JSON as far as it goes


def parse_partial_object(text: str) -> dict[str, Any]:
    """The certain members of the JSON object that begins with `text`; `{}` when there is none yet."""
    if _CONTROL.search(text):
        # Models write bare line feeds into strings, where JSON wants them escaped.
        text = _STRING.sub(lambda found: _CONTROL.sub(lambda char: f"\\u{ord(char[0]):04x}", found[0]), text)
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as exc:
        value = _beginning(text) if any(words in str(exc) for words in _MAY_GO_ON) else None
    return value if isinstance(value, dict) else {}


def _beginning(text: str) -> Any:
    try:
        value = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return None
    _drop_open_number(value, text)
    return value


def _drop_open_number(value: Any, text: str) -> None:
    """Takes away a number that the text ends with: more digits may come."""
    if not _STRING.sub("", text).endswith(tuple("0123456789")):
        return
    while isinstance(value, dict | list) and value:
        last = next(reversed(value)) if isinstance(value, dict) else -1
        inner = value[last]
        if isinstance(inner, int | float) and not isinstance(inner, bool):
            del value[last]
        value = inner
