"""Makes single values fit their schema: numbers within bounds, strings of a length or a format.

`pattern` is not supported.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping
from typing import Any

from opengradient_devnet.model.rules.reading.evidence import Evidence

_FORMATS: dict[str, str] = {
    "date": "2025-01-01",
    "date-time": "2025-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "hostname": "example.com",
}


def bounded(schema: Mapping[str, Any], number: float) -> float:
    """`number` moved to the nearest value that the schema allows; an int where it asks for one."""
    kind = schema.get("type")
    is_integer = kind == "integer" or (isinstance(kind, list) and "integer" in kind)
    step = schema.get("multipleOf") or (1 if is_integer else 0)
    margin = step or 1e-6
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + margin)
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - margin)
    number = max(low, min(high, number))
    if step:
        number = round(number / step) * step
        number += step if number < low else -step if number > high else 0
    return int(number) if is_integer or (float(number).is_integer() and isinstance(step, int) and step) else number


def cut(schema: Mapping[str, Any], text: str) -> str:
    """`text` cut or padded to the lengths that the schema allows."""
    text = text[: schema.get("maxLength")]
    return text.ljust(int(schema.get("minLength", 0)), "x")


def formatted(form: str, evidence: Evidence, *, field: str) -> str:
    """A string of the given `format`: a date of the evidence, an identifier derived from it, or an example."""
    if form == "uuid":
        return str(uuid.UUID(bytes=hashlib.sha256(f"{field} {evidence.text}".encode()).digest()[:16], version=4))
    if form in {"date", "date-time"} and (date := evidence.take_date()):
        return date[:10] if form == "date" else _date_time(date)
    return _FORMATS.get(form) or evidence.take_string(field) or field


def _date_time(date: str) -> str:
    date = date.replace(" ", "T") if len(date) > len("2025-01-01") else f"{date}T00:00:00"
    return date if date.endswith("Z") or "+" in date or date.count("-") > 2 else f"{date}Z"
