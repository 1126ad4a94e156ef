"""Chain -> ledger: what became of the open authorizations, written down where receipts are read from.

`reconcile` says how a settlement is recognised; this module only decides which authorizations to ask about
and what to write. Users start it explicitly (a command, `wait_settled`, a background thread); the payment
path runs it once before it refuses a call for lack of budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import assert_never

from opengradient_x402.json_rpc import ChainReader
from opengradient_x402.ledger import AuthorizationEntry, Ledger
from opengradient_x402.networks import Network
from opengradient_x402.receipts import SettlementReceipt
from opengradient_x402.reconcile import (
    Cancelled,
    NotSettled,
    Outcome,
    SettlementFound,
    SignedTerms,
    Unexplained,
    find_settlements,
)

_POLL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """How many authorizations were asked about, and what the chain said of them."""

    asked: int = 0
    settled: int = 0
    expired: int = 0
    cancelled: int = 0
    open: int = 0
    unexplained: int = 0


class Reconciler:
    """Brings the ledger of one network up to date. Thread-safe as far as the ledger is."""

    def __init__(self, network: Network, ledger: Ledger) -> None:
        self._network = network
        self._ledger = ledger

    def reconcile(self, *, payer: str | None = None) -> ReconcileReport:
        """Asks the chain about every authorization that may still change, and records the answers.

        Raises ChainUnavailable when the node does not answer; what was recorded before stays recorded.
        """
        entries = self._ledger.authorizations(status="signed", payer=payer, network=self._network.caip2).result()
        if not entries:
            return ReconcileReport()
        by_terms = {SignedTerms.of_entry(entry): entry for entry in entries}
        with ChainReader(self._network.rpc_url, self._network.chain_id) as chain:
            outcomes = chain.ask(find_settlements(by_terms, network=self._network))
        for terms, outcome in outcomes.items():
            self._record(by_terms[terms], outcome)
        return _report(list(outcomes.values()))

    def wait_settled(self, receipt: SettlementReceipt, *, timeout_s: float = 120.0) -> SettlementReceipt:
        """Reconciles until the receipt is final, or the time is up, and gives back its latest state."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.reconcile(payer=receipt.payer)
            current = next(iter(self._ledger.receipts(call_ids=[receipt.call_id]).result()), receipt)
            if current.is_final or time.monotonic() > deadline:
                return current
            time.sleep(_POLL_S)

    def _record(self, entry: AuthorizationEntry, outcome: Outcome) -> None:
        match outcome:
            case SettlementFound():
                self._ledger.record_settlement(
                    entry.id,
                    status="settled",
                    settled_atomic=outcome.amount_atomic,
                    tx_hash=outcome.tx_hash,
                    block_number=outcome.block_number,
                    block_hash=outcome.block_hash,
                ).result()
            case Cancelled():
                self._ledger.record_settlement(entry.id, status="cancelled", tx_hash=outcome.tx_hash).result()
            case NotSettled(is_expired=True):
                self._ledger.record_settlement(entry.id, status="expired").result()
            case NotSettled() | Unexplained():
                pass  # it stays reserved in full until the chain says more
            case _:
                assert_never(outcome)


def _report(outcomes: list[Outcome]) -> ReconcileReport:
    return ReconcileReport(
        asked=len(outcomes),
        settled=sum(isinstance(outcome, SettlementFound) for outcome in outcomes),
        expired=sum(isinstance(outcome, NotSettled) and outcome.is_expired for outcome in outcomes),
        cancelled=sum(isinstance(outcome, Cancelled) for outcome in outcomes),
        open=sum(isinstance(outcome, NotSettled) and not outcome.is_expired for outcome in outcomes),
        unexplained=sum(isinstance(outcome, Unexplained) for outcome in outcomes),
    )
