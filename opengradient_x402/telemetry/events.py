"""What happens to a process's money, as typed events: one INFO line each, and objects for listeners.

`Payments(on_event=...)` gets the events of one payer, `listen(...)` those of all. Listeners are called in a
thread of their own, one event after the other: a slow or failing listener never holds up a call. Without listeners
there is no thread and no queue, and a call that is served makes no event.

The lines go to the logger `opengradient_x402.events`. Each has the event's fields as attributes (`extra=`), with
`event` for what happened; amounts are decimal strings of atomic units there, since 10 OPG exceed 64 bits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Self

from opengradient_x402.errors import ErrorKind, MoneyOutcome
from opengradient_x402.ledger.authorizations import Authorization, token_fields
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import amount_in
from opengradient_x402.process import Ending, Resident, belongs

_log = logging.getLogger("opengradient_x402.events")
MOST_WAITING: Final = 10_000
"""Events that wait for slow listeners; further ones are dropped, and a warning says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the money of `payer` on `network` (its CAIP-2 name), at `at_s` in Unix seconds."""

    name: ClassVar[str] = ""
    payer: str
    network: str
    at_s: float = field(default_factory=lambda: time.time())  # noqa: PLW0108  (a test may turn the clock)

    def sentence(self) -> str:
        """What happened, for people."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class OfMoney(Event):
    """An event with amounts, in atomic units of `asset`; whole tokens have `asset_decimals` decimals."""

    asset: str
    asset_symbol: str | None = None
    asset_decimals: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(OfMoney):
    """A payment of up to `amount_atomic` was signed, after it had been recorded."""

    name = "signed"
    call_id: str
    authorization_id: str
    endpoint: str
    model: str
    payee: str
    amount_atomic: int
    deadline: int
    """Unix seconds."""

    def sentence(self) -> str:
        return f"Signed up to {amount_in(self, self.amount_atomic)} to {self.payee} for call {self.call_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(OfMoney):
    """A gateway took a payment, and serves calls for it until `amount_atomic` is used up."""

    name = "session_opened"
    authorization_id: str
    origin: str
    amount_atomic: int
    deadline: int

    def sentence(self) -> str:
        return f"Opened a session at {self.origin}, paid by {self.authorization_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRetired(OfMoney):
    """No further call uses a session. `reason` is `gateway` (it ended the session), `idle`, `age`, `deadline` or
    `full`; those of time are noticed by the next call. `spent_atomic` is what its calls are believed to have cost."""

    name = "session_retired"
    authorization_id: str
    origin: str
    reason: str
    spent_atomic: int

    def sentence(self) -> str:
        return f"Retired the session at {self.origin} ({self.reason}), paid by {self.authorization_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRefused(Event):
    """A call ended with an error. `money` says what that means for the payment; the log's `event` is `failed` unless
    it is `not_paid`."""

    name = "refused"
    call_id: str
    endpoint: str
    model: str
    error: str
    """The class of the error."""
    kind: ErrorKind
    money: MoneyOutcome
    message: str

    def sentence(self) -> str:
        verb = "refused" if self.money is MoneyOutcome.NOT_PAID else "failed"
        return f"Call {self.call_id} was {verb} (money: {self.money}): {self.error}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A paid call ended, well or not. The only event without a line in the log: it comes with every call."""

    name = "ended"
    receipt: SettlementReceipt

    def sentence(self) -> str:
        return f"Call {self.receipt.call_id} ended: {self.receipt.outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(OfMoney):
    """The chain shows a settlement: `amount_atomic` of at most `authorized_atomic`, in `tx_hash`.

    `lag_s` is the time from the first signature until this process saw it, in seconds.
    """

    name = "settled"
    authorization_id: str
    endpoint: str
    amount_atomic: int
    authorized_atomic: int
    tx_hash: str
    lag_s: float

    def sentence(self) -> str:
        taken, most = amount_in(self, self.amount_atomic), amount_in(self, self.authorized_atomic)
        return f"Settled {taken} of {most} for {self.authorization_id} in {self.tx_hash}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(OfMoney):
    """An authorization can take nothing any more: its deadline passed unused, or (`is_cancelled`) the payer made its
    nonce invalid. `authorized_atomic` is free again."""

    name = "expired"
    authorization_id: str
    endpoint: str
    authorized_atomic: int
    is_cancelled: bool

    def sentence(self) -> str:
        how = "was cancelled" if self.is_cancelled else "expired"
        return f"{self.authorization_id} {how}: {amount_in(self, self.authorized_atomic)} are free again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened(OfMoney):
    """The chain no longer shows what was recorded (its block is gone): the authorization may settle again."""

    name = "reopened"
    authorization_id: str
    endpoint: str
    authorized_atomic: int

    def sentence(self) -> str:
        return f"{self.authorization_id} is open again: the chain no longer shows what was recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disputed(Event):
    """The chain contradicts what a gateway said of a call. Nothing more is paid there until the user clears it."""

    name = "disputed"
    call_id: str
    authorization_id: str
    endpoint: str
    dispute: str

    @classmethod
    def of(cls, receipt: SettlementReceipt, *, dispute: str | None = None) -> Self:
        """The dispute of this receipt, or the one that is about to be recorded."""
        return cls(
            payer=receipt.payer,
            network=receipt.network,
            call_id=receipt.call_id,
            authorization_id=receipt.authorization_id,
            endpoint=receipt.endpoint,
            dispute=dispute or receipt.dispute or "",
        )

    def sentence(self) -> str:
        return f"Call {self.call_id} is disputed with {self.endpoint}: {self.dispute}"


def found(authorization: Authorization) -> Event:
    """What the chain newly says of an authorization."""
    what: dict[str, Any] = {
        "payer": authorization.payer,
        "network": authorization.network,
        "authorization_id": authorization.id,
        "endpoint": authorization.endpoint,
        "authorized_atomic": authorization.amount_atomic,
        **token_fields(authorization),
    }
    if authorization.status == "settled":
        return Settled(
            amount_atomic=authorization.settled_atomic or 0,
            tx_hash=authorization.tx_hash or "",
            lag_s=max(0.0, time.time() - authorization.signed_at),
            **what,
        )
    if authorization.status == "signed":
        return Reopened(**what)
    return Expired(is_cancelled=authorization.status == "cancelled", **what)


Listener = Callable[[Event], object]


listeners: Final[list[tuple[Listener, str | None]]] = []
"""Who listens in this process, and to which payer; while it is empty, what is for listeners only need not be made."""


class _Hub(Resident):
    """The thread that calls the listeners, and what waits for it."""

    _thread: threading.Thread | None
    _dropped: int

    def __init__(self) -> None:
        self._renew()
        belongs(self, Ending.CONNECTIONS)  # after streams, whose ends are events

    def add(self, listener: Listener, payer: str | None) -> Callable[[], None]:
        entry = (listener, payer)
        listeners.append(entry)

        def stop() -> None:
            listeners[:] = [known for known in listeners if known is not entry]

        return stop

    def put(self, event: Event) -> None:
        heard_by = [listener for listener, payer in listeners if payer in (None, event.payer)]
        if not heard_by:
            return
        if self._waiting.qsize() >= MOST_WAITING:
            self._dropped += 1
            if self._dropped == 1:
                _log.warning("%d events wait for a slow listener; further ones are dropped.", MOST_WAITING)
            return
        self._dropped = 0
        self._waiting.put((event, heard_by))
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._deliver, name="opengradient-events", daemon=True)
                    self._thread.start()

    def _deliver(self) -> None:
        waiting = self._waiting
        while (found := waiting.get()) is not None:
            event, heard_by = found
            for listener in heard_by:
                try:
                    listener(event)
                except Exception:  # noqa: BLE001  the listener's boundary: its fault is not the payment's
                    _log.exception("A listener failed for the event %r", event.name)

    def _renew(self) -> None:
        """A child keeps the listeners. It has no thread and no waiting events of the parent."""
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._waiting: queue.SimpleQueue[tuple[Event, list[Listener]] | None] = queue.SimpleQueue()
        self._thread = None
        self._dropped = 0

    def _end(self, timeout_s: float, /) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout_s)


_HUB: Final = _Hub()


def listen(listener: Listener, *, payer: str | None = None) -> Callable[[], None]:
    """Has `listener` called with every event of this process from now on, or of one payer; call the result to stop.

    It is called in a thread of its own. What it raises is logged, and harms nothing else.
    """
    return _HUB.add(listener, payer)


def report(event: Event) -> None:
    """Logs what happened, and gives it to the listeners. Never raises, never waits for a listener."""
    if not isinstance(event, CallEnded) and _log.isEnabledFor(logging.INFO):
        _log.info("%s", event.sentence(), extra=_extra(event))
    _HUB.put(event)


def _extra(event: Event) -> dict[str, Any]:
    extra: dict[str, Any] = {"event": event.name}
    for each in fields(event):
        value = getattr(event, each.name)
        name = "error_message" if each.name == "message" else each.name  # logging has a `message` of its own
        extra[name] = str(value) if name.endswith("_atomic") else value
    if isinstance(event, CallRefused) and event.money is not MoneyOutcome.NOT_PAID:
        extra["event"] = "failed"
    return extra
