"""JSON text for the wire: orjson when it is installed (the `fast` extra), the standard library otherwise.

Both accept bytes and raise `ValueError` for malformed text. This module knows nothing of what the text means.
"""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson as _orjson
except ImportError:  # the `fast` extra is optional
    _orjson = None  # type: ignore[assignment,unused-ignore]


def _dumps_standard(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _dumps_fast(value: Any) -> bytes:
    try:
        return _orjson.dumps(value)
    except TypeError:  # e.g. an int over 64 bits, or a str subclass: the standard library takes them
        return _dumps_standard(value)


loads = json.loads if _orjson is None else _orjson.loads
dumps = _dumps_standard if _orjson is None else _dumps_fast
