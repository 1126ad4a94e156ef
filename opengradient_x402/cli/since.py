"""Reading "since when": `24h`, `7d`, a date, a date with a time, or Unix seconds."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import typer

_AGO = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNIX = re.compile(r"[0-9]{9,11}", re.ASCII)


def parse_since(text: str | None) -> int:
    """Unix seconds; 0 (everything) for None. Dates without a zone are UTC. Raises BadParameter."""
    if text is None:
        return 0
    if (ago := _AGO.fullmatch(text)) is not None:
        return int(time.time()) - int(ago[1]) * _UNIT_S[ago[2]]
    if _UNIX.fullmatch(text) is not None:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is no time: write 24h, 7d, 2026-11-21, 2026-11-21T10:00+01:00 or Unix seconds",
            param_hint="--since",
        ) from exc
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
