"""Paid sessions: one signed payment, many calls, one settlement for the sum of their costs.

A session opens with a verified payment and serves calls of one method and path until it is idle, its cap is
used up, its deadline comes near, or the gateway closes. Then it takes no more calls, waits for those in flight,
and is settled once. A call that costs more than is left of the cap is served, and the rest is not paid. Some gateways
(`closes_in_use`, `closes_at_cap`) end sessions earlier, or later.

It starts no thread: the owner of a `SessionBook` calls `settle_due`. All of it may be used from any thread.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol

from opengradient_devnet.facilitator.facilitator import Settlement
from opengradient_devnet.gateway.jobs import Jobs
from opengradient_devnet.gateway.payment.session_views import SessionView, session_mark

# A session is settled this long before its signature expires, so that the transaction still gets in.
DEADLINE_MARGIN_S = 15.0
# With calls still in flight, settlement waits, but not longer than this before the deadline: a facilitator
# refuses permits with fewer than 6 s left (x402 upto scheme).
LAST_CHANCE_MARGIN_S = 8.0
MAX_AGE_S = 600.0


class Settler(Protocol):
    """The part of a facilitator that a session book needs."""

    def settle(
        self, payload: dict[str, Any], requirements: dict[str, Any], amount_atomic: int | None = None
    ) -> Settlement: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A verified payment: the decoded PAYMENT-SIGNATURE, the offer that it answers, and who pays."""

    payload: dict[str, Any]
    requirements: dict[str, Any]
    payer: str

    @property
    def cap_atomic(self) -> int:
        """The most that this payment can take."""
        return int(self.requirements["amount"])

    @property
    def authorization(self) -> dict[str, Any]:
        """The signed part: Permit2 or EIP-3009."""
        content = self.payload["payload"]
        found: dict[str, Any] = content.get("permit2Authorization") or content["authorization"]
        return found

    @property
    def authorization_id(self) -> str:
        """Payer and nonce: what the chain lets happen at most once. Of a voucher: payer, channel and sum."""
        if (voucher := self.payload["payload"].get("voucher")) is not None:
            return f"{self.payer.lower()}:{voucher['channelId']}:{voucher['maxClaimableAmount']}"
        return f"{self.payer.lower()}:{self.authorization['nonce']}"

    @property
    def deadline_s(self) -> int:
        """When the signature expires, in unix seconds."""
        signed = self.authorization
        return int(signed["deadline"] if "deadline" in signed else signed["validBefore"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementRecord:
    """How one payment ended on chain."""

    payer: str
    pay_to: str
    authorization_id: str
    amount_atomic: int
    transaction: str
    block_number: int | None
    success: bool
    reason: str | None
    session_id: str | None
    calls: int

    @classmethod
    def of(
        cls, outcome: Settlement, *, payment: Payment, session_id: str | None = None, calls: int = 1
    ) -> SettlementRecord:
        """What the facilitator said about `payment`."""
        return cls(
            payer=payment.payer,
            pay_to=payment.requirements["payTo"],
            authorization_id=payment.authorization_id,
            amount_atomic=(outcome.amount_atomic or 0) if outcome.success else 0,
            transaction=outcome.transaction,
            block_number=outcome.block_number,
            success=outcome.success,
            reason=outcome.reason,
            session_id=session_id,
            calls=calls,
        )


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    SETTLING = "settling"
    SETTLED = "settled"


class NonceInUse(Exception):
    """Another signature of the same payer with the same nonce already holds an open session."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One open payment and what has been used of it. Only `SessionBook` changes it."""

    id: str
    payment: Payment
    route: tuple[str, str]
    opened_s: float
    last_used_s: float
    cost_atomic: int = 0
    calls: int = 0
    in_flight: int = 0
    state: _State = field(default=_State.OPEN)

    @property
    def is_exhausted(self) -> bool:
        return self.cost_atomic >= self.payment.cap_atomic

    @property
    def due_atomic(self) -> int:
        """What settlement takes: the cost, but never more than was signed."""
        return min(self.cost_atomic, self.payment.cap_atomic)

    def view(self) -> SessionView:
        """What may be shown of it."""
        return SessionView(
            mark=session_mark(self.id),
            state=self.state.value,
            payer=self.payment.payer,
            pay_to=self.payment.requirements["payTo"],
            authorization_id=self.payment.authorization_id,
            cap_atomic=self.payment.cap_atomic,
            cost_atomic=self.cost_atomic,
            calls=self.calls,
            in_flight=self.in_flight,
            opened_s=self.opened_s,
            last_used_s=self.last_used_s,
            deadline_s=self.payment.deadline_s,
        )


class SessionCall:
    """One call inside a session. `finish` it exactly when its cost is known; finishing twice changes nothing."""

    def __init__(self, book: SessionBook, session: Session) -> None:
        self._book = book
        self._session = session
        self._is_finished = False

    @property
    def session_id(self) -> str:
        return self._session.id

    @property
    def payment(self) -> Payment:
        return self._session.payment

    def finish(self, *, cost_atomic: int) -> None:
        """Add the cost to the session, and let it be settled once no other call is in flight."""
        if not self._is_finished:
            self._is_finished = True
            self._book.finish(self._session, cost_atomic=cost_atomic)


class SessionBook:
    """Every open session of one gateway, and the settlements that ended the others."""

    def __init__(
        self,
        settler: Settler,
        *,
        idle_timeout_s: float,
        max_age_s: float = MAX_AGE_S,
        closes_in_use: bool = False,
        closes_at_cap: bool = True,
        jobs: Jobs | None = None,
        on_work: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settler = settler
        self._idle_timeout_s = idle_timeout_s
        self._max_age_s = max_age_s
        self._closes_in_use = closes_in_use
        self._closes_at_cap = closes_at_cap
        self._jobs = jobs
        self._on_work = on_work
        self._clock = clock
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._by_authorization: dict[str, Session] = {}
        self._records: list[SettlementRecord] = []

    @property
    def settlements(self) -> list[SettlementRecord]:
        """Every settlement so far, in the order in which they ended."""
        with self._changed:
            return list(self._records)

    @property
    def open_sessions(self) -> list[str]:
        """The ids of sessions that still take calls."""
        with self._changed:
            return [session.id for session in self._sessions.values() if session.state is _State.OPEN]

    @property
    def views(self) -> list[SessionView]:
        """What may be shown of every session that is not settled yet."""
        with self._changed:
            return [session.view() for session in self._sessions.values()]

    def enter(self, session_id: str, *, route: tuple[str, str]) -> SessionCall | None:
        """Begin a call in an existing session; None when it is unknown, closed, or of another route."""
        with self._changed:
            session = self._sessions.get(session_id)
            if session is None or session.route != route or self._must_close(session):
                return None
            return self._begin(session)

    def attach(self, payment: Payment, *, route: tuple[str, str]) -> SessionCall | None:
        """Begin a call in the session that this very payment opened, if it is still open."""
        with self._changed:
            session = self._by_authorization.get(payment.authorization_id)
            if session is None:
                return None
            if session.payment.payload["payload"] != payment.payload["payload"]:
                raise NonceInUse
            if session.route != route or self._must_close(session):
                raise NonceInUse
            return self._begin(session)

    def open(self, payment: Payment, *, route: tuple[str, str]) -> SessionCall:
        """Begin a call in a new session, or in the one that a twin of this request has just opened."""
        with self._changed:
            twin = self.attach(payment, route=route)
            if twin is not None:
                return twin
            now_s = self._clock()
            session = Session(id=str(uuid.uuid4()), payment=payment, route=route, opened_s=now_s, last_used_s=now_s)
            self._sessions[session.id] = session
            self._by_authorization[payment.authorization_id] = session
            return self._begin(session)

    def finish(self, session: Session, *, cost_atomic: int) -> None:
        """End one call of `session`; see `SessionCall.finish`."""
        with self._changed:
            session.in_flight -= 1
            session.cost_atomic += cost_atomic
            session.last_used_s = self._clock()
            has_work = session.state is _State.CLOSING or self._is_used_up(session)
            self._changed.notify_all()
        if has_work:
            self._on_work()

    def record(self, record: SettlementRecord) -> None:
        """Note a settlement that happened outside of a session."""
        with self._changed:
            self._records.append(record)

    def settle_due(self) -> list[SettlementRecord]:
        """Settle every session whose time has come, in this thread. With jobs: have it done by one, and return none."""
        with self._changed:
            due = [session for session in self._sessions.values() if self._is_due(session)]
            for session in due:
                session.state = _State.SETTLING
        if self._jobs is None:
            return [self._settle(session) for session in due]
        for session in due:
            self._jobs.submit("payment", partial(self._settle, session))
        return []

    def close(self, *, wait_s: float) -> None:
        """Stop all sessions and settle them; those with calls in flight as soon as these end.

        Waits at most `wait_s` for calls in flight. Whatever is left then is settled by a later `settle_due`.
        """
        limit_s = time.monotonic() + wait_s
        with self._changed:
            for session in self._sessions.values():
                if session.state is _State.OPEN:
                    session.state = _State.CLOSING
        while True:
            self.settle_due()
            if self._jobs is not None:
                self._jobs.run_all()
            with self._changed:
                if not self._sessions:
                    return
                rest_s = limit_s - time.monotonic()
                if rest_s <= 0:
                    return
                if not any(self._is_due(session) for session in self._sessions.values()):
                    self._changed.wait(rest_s)

    def _begin(self, session: Session) -> SessionCall:
        session.in_flight += 1
        session.calls += 1
        session.last_used_s = self._clock()
        return SessionCall(self, session)

    def _must_close(self, session: Session) -> bool:
        now_s = self._clock()
        return (
            session.state is not _State.OPEN
            or self._is_used_up(session)
            or ((session.in_flight == 0 or self._closes_in_use) and now_s - session.last_used_s >= self._idle_timeout_s)
            or now_s - session.opened_s >= self._max_age_s
            or now_s >= session.payment.deadline_s - DEADLINE_MARGIN_S
        )

    def _is_used_up(self, session: Session) -> bool:
        return self._closes_at_cap and session.is_exhausted

    def _is_due(self, session: Session) -> bool:
        if session.state in (_State.SETTLING, _State.SETTLED):
            return False
        if session.in_flight:
            return self._clock() >= session.payment.deadline_s - LAST_CHANCE_MARGIN_S
        return self._must_close(session)

    def _settle(self, session: Session) -> SettlementRecord:
        payment = session.payment
        outcome = self._settler.settle(payment.payload, payment.requirements, session.due_atomic)
        record = SettlementRecord.of(outcome, payment=payment, session_id=session.id, calls=session.calls)
        with self._changed:
            session.state = _State.SETTLED
            del self._sessions[session.id]
            del self._by_authorization[payment.authorization_id]
            if session.cost_atomic:
                self._records.append(record)
            self._changed.notify_all()
        return record
