"""What a gateway can say wrong about the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewClock:
    """Let the gateway's Date header be wrong by this number of seconds (negative: it is behind)."""

    by_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OmitDate:
    """Send no Date header at all."""
