"""JSON text for the wire: orjson when it is installed (the `fast` extra), the standard library otherwise.

Both accept bytes and raise `ValueError` for malformed text, also for text that is nested too deeply. This
module knows nothing of what the text means.
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


def _dumps_standard(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _dumps_fast(value: Any) -> bytes:
    try:
        return _orjson.dumps(value)
    except TypeError:  # e.g. an int over 64 bits, or a str subclass: the standard library takes them
        return _dumps_standard(value)


loads = _loads_standard if _orjson is None else _orjson.loads
dumps = _dumps_standard if _orjson is None else _dumps_fast
