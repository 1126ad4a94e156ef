"""Chain -> ledger: what became of the authorizations.

Users start it (a command, `receipt.wait_settled`, a `BackgroundReconciler`); the payment path runs it once before it
refuses a call for lack of budget. `search` finds the settlements; this module decides which authorizations to ask
about, what to write, and when a settlement is final.

A settlement is final after the network's number of confirmations. Until then its block is looked up again each time,
and when it is gone the authorization is open as before, and searched for again. What has expired is looked at once
more a day later: if the chain then shows a settlement, the ledger follows the chain.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, assert_never

from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.sources import Sources
from opengradient_x402.chain.views import Place, confirmations
from opengradient_x402.effects import Sleep, Steps, Wait, in_thread
from opengradient_x402.errors import (
    ChainUnavailable,
    PaymentOutcomeUnknown,
)
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.disputes import forged_transaction, settled_elsewhere
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt, transaction_claim
from opengradient_x402.networks import Network
from opengradient_x402.settlement.channels import SCHEME, settle_channels
from opengradient_x402.settlement.search import (
    Cancelled,
    NotSettled,
    Outcome,
    SettledElsewhere,
    SettlementFound,
    Unexplained,
    find_settlements,
    settled_nothing_of,
)
from opengradient_x402.telemetry import events
from opengradient_x402.telemetry.kept_receipts import update_kept

T = TypeVar("T")
_FIRST_LOOK_S = 0.1
_LONGEST_LOOK_S = 2.0
_GRACE_S = 0.05
_AT_ONCE = 1000
"""How many authorizations are read, asked about and written at a time: a later outage loses nothing."""
_RECEIPTS_OF_AT_ONCE = 100
_RECHECK_AFTER_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """How many authorizations were asked about, and what the chain said of them.

    `settled` are those found now, `reopened` those whose block is gone again; `changed` are the receipts whose state
    this run changed.
    """

    asked: int = 0
    settled: int = 0
    expired: int = 0
    cancelled: int = 0
    open: int = 0
    unexplained: int = 0
    reopened: int = 0
    rechecked: int = 0
    """Expired ones that were looked at once more; those that the chain shows as used are in `settled`."""
    changed: tuple[SettlementReceipt, ...] = ()

    @property
    def disputed(self) -> tuple[SettlementReceipt, ...]:
        """The changed receipts that are disputed."""
        return tuple(receipt for receipt in self.changed if receipt.status is ReceiptStatus.DISPUTED)

    def __add__(self, other: ReconcileReport) -> ReconcileReport:
        return ReconcileReport(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in _PARTS})


_PARTS = fields(ReconcileReport)


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

    def reconcile(self, *, payer: str | None = None, timeout_s: float | None = None) -> ReconcileReport:
        """Asks the chain about every authorization that may still change, and records the answers.

        Raises ChainUnavailable when that takes longer than `timeout_s`.
        """
        return _in_time(lambda: self._reconciling(payer), timeout_s)

    async def areconcile(self, *, payer: str | None = None, timeout_s: float | None = None) -> ReconcileReport:
        """As `reconcile`, for coroutines."""
        return await _ain_time(self._reconciling(payer), timeout_s)

    def reports(self, *, payer: str | None = None) -> Iterator[ReconcileReport]:
        """As `reconcile`, with a report for every thousand authorizations: memory stays bounded, however many."""
        after: str | None = None
        while True:
            report, after = look_up(self._page(payer, after))
            yield report
            if after is None:
                return

    def reconciling(self, *, payer: str | None = None) -> Steps[None]:
        """As `reconcile`, as a part of a longer look at the chain, and without a report."""
        _, after = yield from self._page(payer, None)
        while after is not None:
            _, after = yield from self._page(payer, after)

    def refresh(self, receipt: SettlementReceipt, *, timeout_s: float | None = None) -> SettlementReceipt:
        """The receipt as the chain has it now. Raises ChainUnavailable, also when it takes longer than `timeout_s`."""
        return _in_time(lambda: self._refreshing(receipt), timeout_s)

    async def arefresh(self, receipt: SettlementReceipt, *, timeout_s: float | None = None) -> SettlementReceipt:
        """As `refresh`, for coroutines."""
        return await _ain_time(self._refreshing(receipt), timeout_s)

    def wait_settled(
        self, receipt: SettlementReceipt, *, timeout_s: float = 120.0, must_settle: bool = False
    ) -> SettlementReceipt:
        """The receipt when it is final. When the time is up, the receipt as it is then, with `is_timed_out`.

        It returns in time, also when the node hangs; a node that fails is asked again until then. With `must_settle`
        it raises PaymentOutcomeUnknown instead.
        """
        wait = _Waiting(receipt)
        work = in_thread(lambda: look_up(self._waiting(wait, timeout_s)), name="opengradient-wait")
        with suppress(TimeoutError):
            work.result(timeout_s + _GRACE_S)
        return wait.ended(timeout_s, must_settle=must_settle).followed_by(self)

    async def await_settled(
        self, receipt: SettlementReceipt, *, timeout_s: float = 120.0, must_settle: bool = False
    ) -> SettlementReceipt:
        """As `wait_settled`, for coroutines."""
        wait = _Waiting(receipt)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s + _GRACE_S):
                await alook_up(self._waiting(wait, timeout_s))
        return wait.ended(timeout_s, must_settle=must_settle).followed_by(self)

    # -- the work

    def recorded(self, receipts: Sequence[SettlementReceipt]) -> Future[list[SettlementReceipt]]:
        """What the ledger knows of these calls now. The chain is not asked."""
        return self._ledger.receipts(call_ids=[receipt.call_id for receipt in receipts])

    def _refreshing(self, receipt: SettlementReceipt) -> Steps[SettlementReceipt]:
        authorizations = yield Wait(
            self._ledger.unfinished(network=self.network.caip2, authorization_id=receipt.authorization_id)
        )
        yield from self._brought_forward(authorizations)
        return (yield from self._latest(receipt))

    def _waiting(self, wait: _Waiting, timeout_s: float) -> Steps[None]:
        deadline, pause_s = time.monotonic() + timeout_s, _FIRST_LOOK_S
        while True:
            try:
                wait.latest = yield from self._refreshing(wait.latest)
                wait.problem = None
            except ChainUnavailable as exc:
                wait.problem = exc
            left_s = deadline - time.monotonic()
            if wait.latest.is_final or left_s <= 0:
                return
            yield Sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_LOOK_S)

    def _latest(self, receipt: SettlementReceipt) -> Steps[SettlementReceipt]:
        found = yield Wait(self._ledger.receipts(call_ids=[receipt.call_id]))
        current: SettlementReceipt = found[0] if found else replace(receipt)
        update_kept([current.followed_by(self)])
        return current

    def _reconciling(self, payer: str | None) -> Steps[ReconcileReport]:
        total, after = yield from self._page(payer, None)
        while after is not None:
            report, after = yield from self._page(payer, after)
            total += report
        return total

    def _page(self, payer: str | None, after: str | None) -> Steps[tuple[ReconcileReport, str | None]]:
        """Up to a thousand authorizations behind `after`; and behind which to go on, if there are more."""
        authorizations = yield Wait(
            self._ledger.unfinished(network=self.network.caip2, payer=payer, after=after, most=_AT_ONCE)
        )
        report = yield from self._brought_forward(authorizations, payer=payer, all_channels=after is None)
        return report, authorizations[-1].id if len(authorizations) == _AT_ONCE else None

    def _brought_forward(
        self, authorizations: Sequence[Authorization], *, payer: str | None = None, all_channels: bool = False
    ) -> Steps[ReconcileReport]:
        vouchers = [entry for entry in authorizations if entry.terms.scheme == SCHEME]
        others = [entry for entry in authorizations if entry.terms.scheme != SCHEME]
        waiting = [entry for entry in others if entry.status in ("signed", "expired")]
        seen = [entry for entry in others if entry.status not in ("signed", "expired")]
        before = yield from self._states_of(authorizations)
        claimed = yield from settle_channels(
            self._sources.ask,
            self._recorded,
            network=self.network,
            ledger=self._ledger,
            needed=self._needed,
            payer=payer,
            ids={f"0x{entry.nonce:064x}" for entry in vouchers},
            with_open=all_channels,
        )
        reopened = yield from self._confirmed(seen)
        outcomes = yield from self._searched([*waiting, *reopened])
        open_ids = {entry.id for entry in authorizations}
        late = [entry for entry in claimed if entry.id not in open_ids]
        changed = yield from self._changed([*authorizations, *late], before)
        return ReconcileReport(
            asked=len(authorizations),
            settled=outcomes[SettlementFound] + outcomes[SettledElsewhere] + len(claimed),
            expired=outcomes["expired"],
            cancelled=outcomes[Cancelled],
            open=outcomes[NotSettled] + sum(entry.id not in {one.id for one in claimed} for entry in vouchers),
            unexplained=outcomes[Unexplained],
            reopened=len(reopened),
            rechecked=sum(entry.status == "expired" for entry in waiting),
            changed=changed,
        )

    def _confirmed(self, seen: Sequence[Authorization]) -> Steps[list[Authorization]]:
        """Counts confirmations again. Returns those whose block is gone, opened again."""
        if not seen:
            return []
        places = {entry: Place(entry.block_number or 0, entry.block_hash or "") for entry in seen}
        counts = yield from self._sources.ask(self.network, confirmations(places.values(), needed=self._needed))
        reopened, writes = [], []
        for authorization, place in places.items():
            count = counts[place]
            if count is None:
                continue  # a node that lags behind the one that was asked before: it does not have the block yet
            if count > (authorization.confirmations or 0):
                writes.append(replace(authorization, confirmations=count))
            elif count == 0:
                reopened.append(replace(authorization, **_OPEN))
                writes.append(reopened[-1])
        yield from self._recorded(writes)
        return reopened

    def _searched(self, authorizations: Sequence[Authorization]) -> Steps[Counter[type[Outcome] | str]]:
        """Asks the chain about open authorizations, and writes what it says."""
        counted: Counter[type[Outcome] | str] = Counter()
        if not authorizations:
            return counted
        outcomes = yield from self._sources.ask(
            self.network, find_settlements(authorizations, network=self.network, needed=self._needed)
        )
        writes, unsettled = [], []
        for authorization, outcome in outcomes.items():
            if authorization.status == "expired" and isinstance(outcome, NotSettled):
                if outcome.is_expired:  # as it was: it is not looked at again
                    writes.append(replace(authorization, recheck_at=None))
                continue
            is_expired = isinstance(outcome, NotSettled) and outcome.is_expired
            counted["expired" if is_expired else type(outcome)] += 1
            if (found := self._judged(authorization, outcome)) is not None:
                writes.append(found)
            elif isinstance(outcome, NotSettled):
                unsettled.append(authorization)
        yield from self._recorded(writes)
        yield from self._claims_checked(unsettled)
        return counted

    def _recorded(self, found: Sequence[Authorization]) -> Steps[None]:
        """Writes it, and reports what is new."""
        for authorization, write in [(each, self._ledger.record_settlement(each)) for each in found]:
            if (yield Wait(write)):
                events.report(events.found(authorization))

    def _claims_checked(self, authorizations: Sequence[Authorization]) -> Steps[None]:
        """A transaction that is mined, and that the gateway names, must be the settlement."""
        by_id = {authorization.id: authorization for authorization in authorizations}
        for some in _batches(authorizations):
            for call in (yield from self._receipts_of(some)):
                claimed, authorization = transaction_claim(call.claimed_payment_tx_hash), by_id[call.authorization_id]
                if claimed is None or call.status is ReceiptStatus.DISPUTED:
                    continue
                if (yield from self._sources.ask(self.network, settled_nothing_of(claimed, authorization))):
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
                return self._ended(authorization, outcome, status="cancelled")
            case NotSettled(is_expired=True):
                recheck_at = int(time.time()) + _RECHECK_AFTER_S
                return replace(
                    authorization, status="expired", confirmations=0, confirmations_needed=0, recheck_at=recheck_at
                )
            case Unexplained() if authorization.status == "expired":
                return replace(authorization, **_OPEN)  # its nonce is used after all: reserved in full again
            case NotSettled() | Unexplained():
                return None
            case _:
                assert_never(outcome)

    def _settled(self, authorization: Authorization, found: SettlementFound) -> Authorization:
        return replace(self._ended(authorization, found, status="settled"), settled_atomic=found.amount_atomic)

    def _ended(self, authorization: Authorization, by: SettlementFound | Cancelled, *, status: str) -> Authorization:
        return replace(
            authorization,
            status=status,
            tx_hash=by.tx_hash,
            block_number=by.block_number,
            block_hash=by.block_hash,
            confirmations=by.confirmations,
            confirmations_needed=self._needed,
            recheck_at=None,
        )

    def _states_of(self, authorizations: Sequence[Authorization]) -> Steps[dict[str, _State]]:
        states: dict[str, _State] = {}
        for some in _batches(authorizations):
            states |= {call.call_id: _state(call) for call in (yield from self._receipts_of(some))}
        return states

    def _changed(
        self, authorizations: Sequence[Authorization], before: dict[str, _State]
    ) -> Steps[tuple[SettlementReceipt, ...]]:
        changed: list[SettlementReceipt] = []
        for some in _batches(authorizations):
            calls = yield from self._receipts_of(some)
            changed += [call.followed_by(self) for call in calls if _state(call) != before.get(call.call_id)]
        for call in changed:
            if call.status is ReceiptStatus.DISPUTED and before.get(call.call_id, (None,))[0] is not call.status:
                events.report(events.Disputed.of(call))
        update_kept(changed)
        return tuple(changed)

    def _receipts_of(self, some: Sequence[Authorization]) -> Steps[list[SettlementReceipt]]:
        found: list[SettlementReceipt] = yield Wait(
            self._ledger.receipts(authorization_ids=[authorization.id for authorization in some])
        )
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
    "recheck_at": None,
}

_State = tuple[ReceiptStatus, bool]


def _state(receipt: SettlementReceipt) -> _State:
    return receipt.status, receipt.is_final


class _Waiting:
    """What a wait has seen so far."""

    def __init__(self, receipt: SettlementReceipt) -> None:
        self.latest = receipt
        self.problem: ChainUnavailable | None = None

    def ended(self, timeout_s: float, *, must_settle: bool) -> SettlementReceipt:
        """The receipt to give back. Raises PaymentOutcomeUnknown for one that is not final and must be."""
        receipt, problem = self.latest, self.problem
        if receipt.is_final:
            return receipt
        if must_settle:
            why = "" if problem is None else f" The node failed: {problem.message}"
            raise PaymentOutcomeUnknown(
                f"Call {receipt.call_id} is {receipt.status} and not final after {timeout_s:g} s.{why} Its payment may "
                "settle until its deadline. Wait longer, or run `opengradient-x402 receipts reconcile` later.",
                call_id=receipt.call_id,
                receipt=receipt,
            ) from problem
        return replace(receipt).timed_out()


def _in_time(steps: Callable[[], Steps[T]], timeout_s: float | None) -> T:
    """The result within this time. A node or database that hangs goes on in its own thread."""
    if timeout_s is None:
        return look_up(steps())
    try:
        return in_thread(lambda: look_up(steps()), name="opengradient-look").result(timeout_s)
    except TimeoutError as exc:
        raise _too_slow(timeout_s) from exc


async def _ain_time(steps: Steps[T], timeout_s: float | None) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await alook_up(steps)
    except TimeoutError as exc:
        raise _too_slow(timeout_s or 0.0) from exc


def _too_slow(timeout_s: float) -> ChainUnavailable:
    return ChainUnavailable(
        f"The chain was not read within {timeout_s:g} s. Nothing was paid by asking; what was found before that is "
        "recorded. Try again with a longer `timeout_s`, or use another `rpc_url`."
    )


def _batches(authorizations: Sequence[Authorization]) -> Iterator[Sequence[Authorization]]:
    for first in range(0, len(authorizations), _RECEIPTS_OF_AT_ONCE):
        yield authorizations[first : first + _RECEIPTS_OF_AT_ONCE]
