"""Parses JSON from strangers, with a limit on nesting.

The EVM needs a high recursion limit. In CPython 3.11 that limit is also the only one of the JSON parser: where threads
have small stacks (512 KB on macOS), 100 KB of `[` would overflow one and end the process.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 64  # of a tool's JSON schema inside a chat request, some 20 are in use
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class JsonRefused(ValueError):
    """The bytes are not JSON, or nested too deeply to be read."""


def parse_json(body: bytes) -> Any:
    """Parse JSON of bounded depth; raises `JsonRefused`."""
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise JsonRefused(f"the JSON is nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(body)
    except ValueError as exc:
        raise JsonRefused(f"the body is not JSON: {exc}") from exc
