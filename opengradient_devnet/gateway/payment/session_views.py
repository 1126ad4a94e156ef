"""What may be shown of a paid session: everything but its id, because the id alone can spend what was signed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_MARK_DIGITS = 12


def session_mark(session_id: str) -> str:
    """A name for a session that is no use to a thief: the beginning of the id's SHA-256."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:_MARK_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One session that is not settled yet, at one moment. Times are unix seconds."""

    mark: str
    state: str
    payer: str
    pay_to: str
    authorization_id: str
    cap_atomic: int
    cost_atomic: int
    calls: int
    in_flight: int
    opened_s: float
    last_used_s: float
    deadline_s: int
