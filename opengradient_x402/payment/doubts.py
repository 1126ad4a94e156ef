"""Payments in doubt: a signature has left, and what became of the payment is not known.

Only the chain can say. Until it does, the payer's next call offers such a payment again (`handshake`).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from opengradient_x402.effects import in_thread
from opengradient_x402.errors import ChainUnavailable, PaidButFailed, PaymentOutcomeUnknown
from opengradient_x402.ledger.authorizations import Authorization, unanswered
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.money import Asset
from opengradient_x402.networks import Network
from opengradient_x402.payment.call import Call
from opengradient_x402.payment.permits import SignedPayment
from opengradient_x402.payment.sessions import SessionKey
from opengradient_x402.telemetry.reports import Reports

if TYPE_CHECKING:
    from opengradient_x402.settlement.reconciler import Reconciler

RECLAIM_EVERY_S = 60.0
"""Calls that do not fit into the budget, or into a ledger that misses payments, ask the chain no more often."""


class Fate(Enum):
    """What the chain says of an authorization."""

    OPEN = "open"
    SETTLED = "settled"
    GONE = "gone"
    """Expired or cancelled."""


class Doubtful(NamedTuple):
    """A payment whose fate is unknown.

    `was_refused`: a gateway answered as if it had not taken it. `is_taken`: the chain shows that it took it after all.
    """

    signed: SignedPayment
    was_refused: bool = False
    is_taken: bool = False


class Doubts:
    """The payments of one payer whose fate is unknown: the next call uses one before it signs anything new."""

    def __init__(self, *, payer: str, network: Network, ledger: Ledger, reports: Reports) -> None:
        self._payer = payer
        self._network = network
        self._ledger = ledger
        self._reports = reports
        self.renew()

    def renew(self) -> None:
        """Forgets everything, as a forked child must: payments in doubt stay with the parent."""
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._waiting: dict[SessionKey, list[Doubtful]] = {}
        self._reclaimed: Future[None] | None = None
        self._reclaimed_at = 0.0
        self._looked: Future[str | None] | None = None
        self._looked_at = 0.0

    @cached_property
    def reconciler(self) -> Reconciler:
        """Reads the chain for this ledger."""
        from opengradient_x402.settlement.reconciler import Reconciler

        return Reconciler(self._network, self._ledger)

    def add(self, key: SessionKey, doubtful: Doubtful) -> None:
        """Keeps a payment for the next call, unless it is for one call alone."""
        if doubtful.signed.is_for_one:
            return
        with self._lock:
            self._waiting.setdefault(key, []).append(doubtful)

    def take(self, key: SessionKey) -> Doubtful | None:
        """A payment whose latest signature can still be used; it is handed out once."""
        with self._lock:
            waiting = self._waiting.get(key, [])
            while waiting:
                doubtful = waiting.pop()
                if time.time() < doubtful.signed.authorization.terms.deadline:
                    return doubtful
        return None

    def any_open(self) -> bool:
        """Whether a payment waits to be offered again."""
        now_s = time.time()
        with self._lock:
            return any(
                now_s < doubtful.signed.authorization.deadline
                for waiting in self._waiting.values()
                for doubtful in waiting
            )

    # -- what the chain says

    def reclaim(self) -> Future[None]:
        """Asks the chain about authorizations past their deadline, and frees what was never taken.

        At most once a minute, and once for all processes that come at the same time: calls that are refused meanwhile
        share the answer.
        """
        with self._lock:
            now = time.monotonic()
            if self._reclaimed is None or (self._reclaimed.done() and now - self._reclaimed_at >= RECLAIM_EVERY_S):
                self._reclaimed_at = now
                self._reclaimed = in_thread(self._reclaim, name="opengradient-reclaim")
            return self._reclaimed

    def _reclaim(self) -> None:
        from opengradient_x402.settlement.readings import read_together

        with suppress(ChainUnavailable):  # the budget error that follows says what is reserved
            read_together(self._ledger, f"{self._network.caip2} {self._payer}", self._read_chain)

    def _read_chain(self) -> None:
        for _ in self.reconciler.reports(payer=self._payer):
            pass  # nothing of it is kept: there may be very many

    def refusal(self) -> Future[str | None]:
        """Asks the chain whether the ledger misses payments of a lost one: why nothing may be signed, or None.

        Calls that come at the same time share the answer, and a refusal holds for a minute. The look goes on without
        a call whose time is over: the next one has its answer.
        """
        with self._lock:
            if self._looked is None or (self._looked.done() and not self._is_refusal(self._looked)):
                self._looked = in_thread(self._look, name="opengradient-ledger-lost")
            return self._looked

    def _look(self) -> str | None:
        from opengradient_x402.settlement.lost import refusal

        try:
            return refusal(self._ledger, payer=self._payer, network=self._network)
        finally:
            self._looked_at = time.monotonic()

    def _is_refusal(self, look: Future[str | None]) -> bool:
        is_new = time.monotonic() - self._looked_at < RECLAIM_EVERY_S
        return is_new and look.exception() is None and look.result() is not None

    def recount(self, call: Call) -> Future[None]:
        """Asks the chain, and then the ledger, about the calls whose cost the call's limits do not know yet."""
        return in_thread(lambda: self._recount(call), name="opengradient-recount")

    def _recount(self, call: Call) -> None:
        with suppress(ChainUnavailable):
            self._read_chain()
        for limit in call.limits:
            limit.update(self._ledger.receipts(call_ids=list(limit.unknown)).result())

    def fate(self, authorization: Authorization) -> Future[Fate]:
        """What the chain says of an authorization now; OPEN also when it does not answer."""
        return in_thread(lambda: self._fate(authorization), name="opengradient-fate")

    def _fate(self, authorization: Authorization) -> Fate:
        with suppress(ChainUnavailable):
            self.reconciler.refresh(unanswered(authorization))
        known = self._ledger.authorizations(authorization_id=authorization.id).result()
        status = known[0].status if known else "signed"
        return Fate.OPEN if status == "signed" else Fate.SETTLED if status == "settled" else Fate.GONE

    def dispute(self, signed: SignedPayment) -> Future[None]:
        """Records that a gateway answered a payment as if it had not taken it, and took it."""
        text = "The gateway did not serve this payment, and the chain shows that it took it."
        taken = signed.authorization
        self._reports.disputed(taken, text)
        return self._ledger.record_dispute(taken.call_id, text)

    def taken(self, call: Call, doubtful: Doubtful, key: SessionKey) -> PaidButFailed:
        """The error for a payment that was taken without an answer. It is not offered again, and no other is made."""
        self.add(key, doubtful._replace(is_taken=True))
        return PaidButFailed(
            f"{key.origin} took the payment of call {doubtful.signed.authorization.call_id}, which this call offered "
            "again, and served neither. Nothing else was signed. The settlement is disputed, and nothing more is paid "
            f"there until you clear it: `opengradient-x402 receipts clear-dispute {key.origin}`. Or use another "
            "gateway.",
            call_id=call.id,
            kind="payment",
        )


def not_served(signed: SignedPayment, *, origin: str, call_id: str, reason: str, asset: Asset) -> PaymentOutcomeUnknown:
    """The error for a payment that a gateway says, for `reason`, it did not take."""
    authorization = signed.authorization
    advice = "`opengradient-x402 doctor` checks wallet, clock, network and gateway."
    if "balance" in reason or "insufficient_funds" in reason:
        advice = f"If its reason is true: send {asset.symbol} to {authorization.payer}."
    elif "allowance" in reason:
        advice = "If its reason is true: run `opengradient-x402 approve 5` once for this wallet."
    left_s = max(0, authorization.deadline - int(time.time()))
    return PaymentOutcomeUnknown(
        f"{origin} did not serve call {call_id} after its payment had been sent: {reason}. It holds a signature that "
        f"can take up to {asset.format(authorization.amount_atomic)} for {left_s} s more; only the chain can say "
        "whether it does (`opengradient-x402 receipts reconcile`). Nothing else was signed, and the next call offers "
        f"the same payment again. {advice}",
        call_id=call_id,
        status_code=402,
        kind="payment",
    )
