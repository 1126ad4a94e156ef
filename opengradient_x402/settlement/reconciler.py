"""Chain -> ledger: what became of the authorizations, once or every few seconds in a thread.

Users start it (a command, `receipt.wait_settled`, a `BackgroundReconciler`); the payment path runs it once before it
refuses a call for lack of budget. `search` finds the settlements; this module decides which authorizations to ask
about, what to write, and when a settlement is final.

A settlement is final after the network's number of confirmations. Until then its block is looked up again each time,
and when it is gone the authorization is open as before, and searched for anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, assert_never

from opengradient_x402.chain.node import Question, alook_up, look_up
from opengradient_x402.chain.questions import block, receipt, transaction
from opengradient_x402.chain.sources import Sources
from opengradient_x402.effects import Sleep, Steps, Wait
from opengradient_x402.errors import ConfigurationError, OpenGradientError, RpcError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.disputes import forged_transaction, settled_elsewhere
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt, transaction_claim
from opengradient_x402.networks import PRESETS, Network, load_network
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.settings import Settings
from opengradient_x402.settlement.recognition import permit_settlements, transfer_settlements
from opengradient_x402.settlement.search import (
    Cancelled,
    NotSettled,
    Outcome,
    SettledElsewhere,
    SettlementFound,
    Unexplained,
    find_settlements,
)

_FIRST_LOOK_S = 0.1
_LONGEST_LOOK_S = 2.0
_AT_ONCE = 1000
"""So many authorizations are asked about before the answers are written: an outage later loses nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """How many authorizations were asked about, and what the chain said of them.

    `settled` are those found now, `reopened` those whose block is gone again; `changed` are the receipts whose
    state this run moved.
    """

    asked: int = 0
    settled: int = 0
    expired: int = 0
    cancelled: int = 0
    open: int = 0
    unexplained: int = 0
    reopened: int = 0
    changed: tuple[SettlementReceipt, ...] = ()

    @property
    def disputed(self) -> tuple[SettlementReceipt, ...]:
        """The changed receipts that are disputed."""
        return tuple(receipt for receipt in self.changed if receipt.status is ReceiptStatus.DISPUTED)


class Reconciler:
    """Brings the ledger of one network up to date. Thread-safe, and for any event loop.

    `confirmations` is how many blocks (its own included) make a settlement final; the network's number when
    not given. Everything that reads the chain raises ChainUnavailable when the node does not answer; what was
    recorded before stays recorded.
    """

    def __init__(self, network: Network, ledger: Ledger, *, confirmations: int | None = None) -> None:
        self.network = network
        self._ledger = ledger
        self._sources = Sources()
        self._needed = network.confirmations if confirmations is None else confirmations

    def reconcile(self, *, payer: str | None = None) -> ReconcileReport:
        """Asks the chain about every authorization that may still change, and records the answers."""
        return look_up(self._reconciling(payer))

    async def areconcile(self, *, payer: str | None = None) -> ReconcileReport:
        """As `reconcile`, for coroutines."""
        return await alook_up(self._reconciling(payer))

    def refresh(self, receipt: SettlementReceipt) -> SettlementReceipt:
        """The receipt as the chain has it now."""
        return look_up(self._refreshing(receipt))

    async def arefresh(self, receipt: SettlementReceipt) -> SettlementReceipt:
        """As `refresh`, for coroutines."""
        return await alook_up(self._refreshing(receipt))

    def wait_settled(self, receipt: SettlementReceipt, *, timeout_s: float = 120.0) -> SettlementReceipt:
        """The receipt when it is final, or as it is when the time is up."""
        return look_up(self._waiting(receipt, timeout_s))

    async def await_settled(self, receipt: SettlementReceipt, *, timeout_s: float = 120.0) -> SettlementReceipt:
        """As `wait_settled`, for coroutines."""
        return await alook_up(self._waiting(receipt, timeout_s))

    # -- the work

    def _refreshing(self, receipt: SettlementReceipt) -> Steps[SettlementReceipt]:
        authorizations = yield Wait(self._ledger.unfinished(network=self.network.caip2, payer=receipt.payer))
        yield from self._brought_forward(
            [authorization for authorization in authorizations if authorization.id == receipt.authorization_id]
        )
        return (yield from self._latest(receipt))

    def _waiting(self, receipt: SettlementReceipt, timeout_s: float) -> Steps[SettlementReceipt]:
        deadline, pause_s = time.monotonic() + timeout_s, _FIRST_LOOK_S
        while True:
            current = yield from self._refreshing(receipt)
            left_s = deadline - time.monotonic()
            if current.is_final or left_s <= 0:
                return current
            yield Sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_LOOK_S)

    def _latest(self, receipt: SettlementReceipt) -> Steps[SettlementReceipt]:
        found = yield Wait(self._ledger.receipts(call_ids=[receipt.call_id]))
        current: SettlementReceipt = found[0] if found else replace(receipt)
        return current.followed_by(self)

    def _reconciling(self, payer: str | None) -> Steps[ReconcileReport]:
        authorizations = yield Wait(self._ledger.unfinished(network=self.network.caip2, payer=payer))
        return (yield from self._brought_forward(authorizations))

    def _brought_forward(self, authorizations: Sequence[Authorization]) -> Steps[ReconcileReport]:
        seen = [authorization for authorization in authorizations if authorization.status != "signed"]
        waiting = [authorization for authorization in authorizations if authorization.status == "signed"]
        before = yield from self._receipts_of(authorizations)
        reopened = yield from self._confirmed(seen)
        waiting += reopened
        outcomes: Counter[type[Outcome] | str] = Counter()
        for some in _batches(waiting):
            outcomes += yield from self._searched(some)
        after = yield from self._receipts_of(authorizations)
        return ReconcileReport(
            asked=len(authorizations),
            settled=outcomes[SettlementFound] + outcomes[SettledElsewhere],
            expired=outcomes["expired"],
            cancelled=outcomes[Cancelled],
            open=outcomes[NotSettled],
            unexplained=outcomes[Unexplained],
            reopened=len(reopened),
            changed=tuple(
                receipt.followed_by(self) for call_id, receipt in after.items() if _moved(before.get(call_id), receipt)
            ),
        )

    def _confirmed(self, seen: Sequence[Authorization]) -> Steps[list[Authorization]]:
        """Counts confirmations anew. Gives back those whose block is gone, opened again."""
        if not seen:
            return []
        head, hashes = yield from self._sources.ask(
            self.network, _hashes_of({authorization.block_number or 0 for authorization in seen})
        )
        reopened, writes = [], []
        for authorization in seen:
            at_height = hashes[authorization.block_number or 0]
            if at_height is None:
                continue  # a node that lags behind the one that was asked before: it knows no better
            if at_height == authorization.block_hash:
                confirmations = head - (authorization.block_number or 0) + 1
                writes.append(self._ledger.record_settlement(replace(authorization, confirmations=confirmations)))
            else:
                reopened.append(replace(authorization, **_OPEN))
                writes.append(self._ledger.record_settlement(reopened[-1]))
        yield from _all(writes)
        return reopened

    def _searched(self, authorizations: Sequence[Authorization]) -> Steps[Counter[type[Outcome] | str]]:
        """Asks the chain about open authorizations, and writes what it says."""
        outcomes = yield from self._sources.ask(self.network, find_settlements(authorizations, network=self.network))
        counted: Counter[type[Outcome] | str] = Counter()
        writes, unsettled = [], []
        for authorization, outcome in outcomes.items():
            is_expired = isinstance(outcome, NotSettled) and outcome.is_expired
            counted["expired" if is_expired else type(outcome)] += 1
            if (found := self._judged(authorization, outcome)) is not None:
                writes.append(self._ledger.record_settlement(found))
            elif isinstance(outcome, NotSettled):
                unsettled.append(authorization)
        yield from _all(writes)
        yield from self._claims_checked(unsettled)
        return counted

    def _claims_checked(self, authorizations: Sequence[Authorization]) -> Steps[None]:
        """A transaction that is mined, and that the gateway names, must be the settlement."""
        for call in (yield from self._receipts_of(authorizations)).values():
            claimed = transaction_claim(call.claimed_payment_tx_hash)
            if claimed is None or call.status is ReceiptStatus.DISPUTED:
                continue
            authorization = next(
                authorization for authorization in authorizations if authorization.id == call.authorization_id
            )
            if (yield from self._sources.ask(self.network, _is_something_else(claimed, authorization))):
                dispute = forged_transaction(claimed, why="that transaction is mined and did not settle it")
                yield Wait(self._ledger.record_dispute(call.call_id, dispute))

    def _judged(self, authorization: Authorization, outcome: Outcome) -> Authorization | None:
        """The authorization with what the outcome means for it; None while it stays reserved in full."""
        match outcome:
            case SettlementFound():
                return self._settled(authorization, outcome)
            case SettledElsewhere(settlement=found):
                dispute = settled_elsewhere(
                    authorization, payee=found.payee, amount_atomic=found.amount_atomic, tx_hash=found.tx_hash
                )
                return replace(self._settled(authorization, found), dispute=dispute)
            case Cancelled():
                return replace(
                    authorization,
                    status="cancelled",
                    tx_hash=outcome.tx_hash,
                    block_number=outcome.block_number,
                    block_hash=outcome.block_hash,
                    confirmations=outcome.confirmations,
                    confirmations_needed=self._needed,
                )
            case NotSettled(is_expired=True):
                return replace(authorization, status="expired", confirmations=0, confirmations_needed=0)
            case NotSettled() | Unexplained():
                return None
            case _:
                assert_never(outcome)

    def _settled(self, authorization: Authorization, found: SettlementFound) -> Authorization:
        return replace(
            authorization,
            status="settled",
            settled_atomic=found.amount_atomic,
            tx_hash=found.tx_hash,
            block_number=found.block_number,
            block_hash=found.block_hash,
            confirmations=found.confirmations,
            confirmations_needed=self._needed,
        )

    def _receipts_of(self, authorizations: Sequence[Authorization]) -> Steps[dict[str, SettlementReceipt]]:
        found: dict[str, SettlementReceipt] = {}
        for some in _batches(authorizations):
            receipts = yield Wait(self._ledger.receipts(authorization_ids=[authorization.id for authorization in some]))
            found |= {receipt.call_id: receipt for receipt in receipts}
        return found


_OPEN: dict[str, Any] = {
    "status": "signed",
    "settled_atomic": None,
    "tx_hash": None,
    "block_number": None,
    "block_hash": None,
    "confirmations": None,
    "confirmations_needed": None,
    "dispute": None,
}


def _hashes_of(numbers: Iterable[int]) -> Question[tuple[int, dict[int, str | None]]]:
    """The chain's height, and the hashes of the blocks at these heights now (None: this node has none)."""
    head = yield from block()
    hashes: dict[int, str | None] = {}
    for number in numbers:
        try:
            hashes[number] = (yield from block(number)).hash if number <= head.number else None
        except RpcError:
            hashes[number] = None
    return head.number, hashes


def _is_something_else(tx_hash: str, authorization: Authorization) -> Question[bool]:
    """Whether a transaction is mined and is not the settlement.

    Only the transaction counts, not the nonce: a node that lags would show the nonce of a settlement as unused.
    """
    try:
        done = yield from receipt(tx_hash)
        mined = yield from transaction(tx_hash)
    except RpcError:  # not the form of a hash: no transaction has it
        return True
    if done is None or mined is None:
        return False
    if authorization.transfer_method == "eip3009":
        return not transfer_settlements(done, [authorization])
    return not permit_settlements(mined, done, [authorization])


def _all(futures: Iterable[Future[None]]) -> Steps[None]:
    for future in futures:
        yield Wait(future)


def _batches(authorizations: Sequence[Authorization]) -> Iterator[Sequence[Authorization]]:
    for first in range(0, len(authorizations), _AT_ONCE):
        yield authorizations[first : first + _AT_ONCE]


def _moved(before: SettlementReceipt | None, after: SettlementReceipt) -> bool:
    return before is None or (before.status, before.is_final) != (after.status, after.is_final)


_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 300.0


class BackgroundReconciler(Resident):
    """`with BackgroundReconciler(reconciler): …` reconciles every `interval_s` until the block ends.

    `on_change` is called, in the thread, with every receipt whose state moved: settled, final, expired,
    cancelled, disputed, or open again.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        *,
        interval_s: float = 15.0,
        on_change: Callable[[SettlementReceipt], None] | None = None,
    ) -> None:
        self._reconciler = reconciler
        self._interval_s = interval_s
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        belongs(self, Ending.WATCHERS)

    def start(self) -> None:
        """Begins, with a first run at once. Starting twice changes nothing; after a fork the child starts its own."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()  # its own: a thread that is ending must still see that it shall
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="opengradient-reconciler", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for the run that is under way, unless `on_change` calls this in that run."""
        self._halt(None)

    def _renew(self) -> None:
        """A child has no thread until it calls `start`."""
        self._lock, self._stop, self._thread = threading.Lock(), threading.Event(), None

    def _end(self, timeout_s: float, /) -> None:
        """At the end of the process: `stop`, without waiting longer than this for a slow node."""
        self._halt(timeout_s)

    def _halt(self, timeout_s: float | None) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, stop: threading.Event) -> None:
        pause_s = self._interval_s
        while True:
            pause_s = self._interval_s if self._reconciled() else min(2 * pause_s, _LONGEST_PAUSE_S)
            if stop.wait(pause_s):
                return

    def _reconciled(self) -> bool:
        try:
            report = self._reconciler.reconcile()
        except OpenGradientError as exc:
            _log.warning("Settlements could not be looked up; receipts stay as they are. %s", exc)
            return False
        except Exception:  # noqa: BLE001  the thread's boundary: ended, it would leave all receipts as they are, unsaid
            _log.exception("Settlements could not be looked up; receipts stay as they are.")
            return False
        for changed in report.changed:
            self._tell(changed)
        return True

    def _tell(self, receipt: SettlementReceipt) -> None:
        if self._on_change is not None:
            try:
                self._on_change(receipt)
            except Exception:  # noqa: BLE001  the listener's boundary: its fault must not stop the reconciling
                _log.exception("A listener failed for the receipt of call %s", receipt.call_id)


def reconciler_for(receipt: SettlementReceipt) -> Reconciler:
    """Who can look up a receipt that was read back as plain data: by the user's settings, or a known network.

    Raises ConfigurationError when neither is the receipt's network.
    """
    settings = Settings.load()
    known = next((network for network in PRESETS.values() if network.caip2 == receipt.network), None)
    network = load_network(settings.network)
    if network.caip2 == receipt.network:
        known = network
    if known is None:
        raise ConfigurationError(
            f"The receipt of call {receipt.call_id} is of the network {receipt.network}, and {network.name} is "
            f"{network.caip2}. Nothing was paid by asking. Set OG_NETWORK to the receipt's network, or use "
            "`Reconciler(network, ledger).refresh(receipt)`."
        )
    return _reconciler_of(known, settings.ledger_url)


@lru_cache(maxsize=8)
def _reconciler_of(network: Network, ledger_url: str) -> Reconciler:
    return Reconciler(network, Ledger(ledger_url))
