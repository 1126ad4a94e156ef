"""Which paid session serves which endpoint: opened once, shared by all, retired before it dies.

A gateway answers a payment with a session id; later calls send only that id and add to one bill (docs/wire.md,
"Sessions"). The pool hands out seats: a lease on a live session, a wait for one that is being opened, or a
ticket to open it. It does not know HTTP, signatures or amounts other than the cap and what calls cost so far.

Anybody who has a session id can spend from the payer's authorization, and httpcore prints the headers of every response
at DEBUG level: `redact_sessions` blanks that value there.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from opengradient_x402.ledger.authorizations import Authorization, SignedTerms, receipt_fields

SESSION_HEADER: Final = "X-Upto-Session"
"""The header with the session id. Its sender spends from the session (docs/wire.md, "Sessions")."""
IDLE_SHARE = 0.75
"""A session is used until this share of the gateway's idle time-out has passed without a call."""
MAX_AGE_S = 540.0
"""Gateways end a session at 600 s of age (docs/wire.md, "Sessions")."""
DEADLINE_MARGIN_S = 150.0
"""Seconds before the deadline in which no call begins: newer gateways (3600 s) settle 120 s before it."""
_MARGIN_SHARE = 0.1
"""Of a signature with a shorter life, only this share is left unused: those gateways settle shortly before its end."""


class SessionKey(NamedTuple):
    """Sessions are bound to an origin, a method and a path, and to who pays."""

    origin: str
    method: str
    path: str
    payer: str


@dataclass(slots=True, eq=False)
class PaidSession:
    """A live session. The id alone spends the cap, so it is in no repr."""

    key: SessionKey
    id: str = field(repr=False)
    authorization: Authorization
    opened_at: float
    last_used: float
    spent_atomic: int = 0
    in_flight: int = 0
    is_retired: bool = False
    terms: SignedTerms = field(init=False)
    """Those that the gateway accepted."""
    not_after: float = field(init=False)
    """No call begins after this (Unix seconds)."""
    receipt_fields: dict[str, Any] = field(init=False, repr=False)
    """What the receipts of all its calls say of what pays for them."""

    def __post_init__(self) -> None:
        self.terms = terms = self.authorization.terms
        margin = min(DEADLINE_MARGIN_S, (terms.deadline - terms.signed_at) * _MARGIN_SHARE)
        self.not_after = terms.deadline - margin
        self.receipt_fields = receipt_fields(self.authorization)


@dataclass(slots=True, eq=False)
class Ticket:
    """The right and the duty to open a session for `key`. Calls that got `Waiting` wait for `done`."""

    key: SessionKey
    thread_id: int
    done: Future[None] = field(default_factory=Future)


@dataclass(slots=True, frozen=True)
class Waiting:
    """Somebody else is opening the session: wait for `done`, then ask again."""

    done: Future[None]


class SessionPool:
    """All sessions of one payer. Thread-safe; never waits itself."""

    def __init__(
        self,
        *,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        on_retired: Callable[..., object] | None = None,
    ) -> None:
        self._idle_s = idle_s * IDLE_SHARE
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_retired = on_retired
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._sessions: dict[SessionKey, list[PaidSession]] = {}
        self._opening: dict[SessionKey, Ticket] = {}
        self._sessionless: set[SessionKey] = set()
        self._largest_call: dict[SessionKey, int] = {}

    def enter(self, key: SessionKey, *, blocking: bool) -> PaidSession | Waiting | Ticket:
        """A seat for one call. A leased session counts the call in `in_flight` until `leave`.

        `blocking` says that the caller would wait by blocking its thread: it is never told to wait for an
        opening in that same thread, which could then never finish (a sync call inside a running loop).
        """
        with self._lock:
            for session in self._sessions.get(key, ()):
                if self._is_usable(session):
                    session.in_flight += 1
                    session.last_used = self._clock()
                    return session
            opening = self._opening.get(key)
            if key in self._sessionless:
                return Ticket(key, threading.get_ident())
            if opening is None:
                ticket = self._opening[key] = Ticket(key, threading.get_ident())
                return ticket
            if blocking and opening.thread_id == threading.get_ident():
                return Ticket(key, threading.get_ident())
            return Waiting(opening.done)

    def opened(self, ticket: Ticket, *, session_id: str, authorization: Authorization) -> PaidSession:
        """Adds the session that this ticket opened, with the opener's call in flight, and wakes who waited."""
        now = self._clock()
        session = PaidSession(
            key=ticket.key,
            id=session_id,
            authorization=authorization,
            opened_at=now,
            last_used=now,
            in_flight=1,
        )
        with self._lock:
            known = self._sessions.get(ticket.key, ())
            # A session that cannot be used and has no call in flight can never be used again.
            why = {old: None if old.in_flight else self._why_unusable(old) for old in known}
            self._sessions[ticket.key] = [*(old for old in known if why[old] is None), session]
            self._sessionless.discard(ticket.key)
        for old, reason in why.items():
            self._report(old, reason)
        self.closed(ticket)
        return session

    def sessionless(self, ticket: Ticket) -> None:
        """This endpoint was paid and gave no session: every call pays for itself, and nobody waits."""
        with self._lock:
            self._sessionless.add(ticket.key)
        self.closed(ticket)

    def closed(self, ticket: Ticket) -> None:
        """The ticket is used up, with or without a session. Calling it again does nothing."""
        with self._lock:
            if self._opening.get(ticket.key) is ticket:
                del self._opening[ticket.key]
        if not ticket.done.done():
            ticket.done.set_result(None)

    def leave(self, session: PaidSession, *, cost_atomic: int = 0) -> None:
        """A call of this session ended; `cost_atomic` is what it is believed to have cost."""
        with self._lock:
            session.in_flight -= 1
            session.last_used = self._clock()
            session.spent_atomic += cost_atomic
            self._largest_call[session.key] = max(cost_atomic, self._largest_call.get(session.key, 0))

    def retire(self, session: PaidSession) -> None:
        """No further call enters this session (the gateway said that it is dead, or we no longer trust it)."""
        with self._lock:
            was_retired, session.is_retired = session.is_retired, True
            live = [known for known in self._sessions.get(session.key, ()) if known is not session]
            self._sessions[session.key] = live
        self._report(session, None if was_retired else "gateway")

    def renew(self) -> None:
        """Forgets everything: this is a forked child, and sessions and their openers are in the parent."""
        self._lock = threading.RLock()
        self._sessions, self._opening = {}, {}

    def live(self) -> list[PaidSession]:
        """The sessions that would serve a call now."""
        with self._lock:
            return [s for sessions in self._sessions.values() for s in sessions if self._is_usable(s)]

    def _report(self, session: PaidSession, reason: str | None) -> None:
        if reason is not None and self._on_retired is not None:
            self._on_retired(
                session.authorization, origin=session.key.origin, reason=reason, spent_atomic=session.spent_atomic
            )

    def _is_usable(self, session: PaidSession) -> bool:
        return self._why_unusable(session) is None

    def _why_unusable(self, session: PaidSession) -> str | None:
        now = self._clock()
        if session.is_retired:
            return "gateway"
        if session.in_flight == 0 and now - session.last_used > self._idle_s:
            return "idle"
        if now - session.opened_at > MAX_AGE_S:
            return "age"
        if self._wall_clock() > session.not_after:
            return "deadline"
        # Beyond the cap a gateway serves unpaid and then closes the session: the loss would not be ours, so
        # the largest call seen so far is estimate enough for those in flight.
        typical = self._largest_call.get(session.key, 0)
        expected = session.spent_atomic + (session.in_flight + 1) * typical
        return "full" if session.spent_atomic > 0 and expected > session.terms.amount_atomic else None


_LOGGERS: Final = ("httpcore.http11", "httpcore.http2")
_SESSION_HEADER: Final = re.compile(r"""(x-upto-session['"]?\s*[:,]\s*b?['"]?)[^'"\s)]+""", re.IGNORECASE)


class _SessionFilter(logging.Filter):
    """Lets every record pass, without the session id."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        redacted = _SESSION_HEADER.sub(r"\1[redacted]", text)
        if redacted != text:
            record.msg, record.args = redacted, ()
        return True


_filter: Final = _SessionFilter()


def redact_sessions() -> None:
    """From now on httpcore logs no session id. A second call does nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
