"""The receipts that a callback handler keeps, as the ledger knows them now.

The handlers of both faces keep their receipts here: one for a call, in the order of the calls, the newest ones only.
What this process learns of a call is written here at once; what another process recorded is read when a caller asks.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from opengradient_x402.errors import OpenGradientError
from opengradient_x402.ledger.receipts import Follower, ReceiptStatus, SettlementReceipt, cost_of
from opengradient_x402.process import OwnLock

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger

MOST_RECEIPTS: Final = 10_000
"""How many receipts are kept, unless a handler sets another number."""
_MOST_GROUPS: Final = 100
_MOST_LEFT_OUT: Final = 1_000
"""How many ids of dropped calls are remembered: a call that has just ended may be reported again."""
_LONGEST_LOOK_S: Final = 1.0
"""A ledger that does not answer in this time is left alone: what was known last is shown."""


class KeptReceipts:
    """Receipts by call id. Thread-safe.

    Above `most` (and a tenth) the oldest are left out; their cost stays in `spent_at_most`, their number in `calls`.
    `on_news` is called with each receipt that replaces an earlier state of it, or that another process recorded.
    """

    def __init__(self, *, most: int | None = None, on_news: Callable[[SettlementReceipt], None] | None = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"A handler that keeps {most} receipts keeps none. Give 1 or more, or None.")
        self.most = MOST_RECEIPTS if most is None else most
        self._on_news = on_news
        self._lock = OwnLock()  # reentrant: a guard reads the receipts while it decides
        self._latest: dict[str, SettlementReceipt] = {}
        self._left_out: list[int] = [0, 0]
        """Calls and authorizations of the receipts that are kept no more."""
        self._left_out_cost: dict[_Token, int] = {}
        self._left_out_ids: dict[str, None] = {}
        self._tokens: dict[_Token, SettlementReceipt] = {}
        """A receipt in each token."""
        self._groups: dict[str, Ledger] = {}
        _all_kept.add(self)

    def add(self, receipt: SettlementReceipt) -> bool:
        """Keeps the receipt of a call; returns whether the call is new here."""
        with self._lock:
            if receipt.call_id in self:
                return False
            self._latest[receipt.call_id] = receipt
            self._tokens[_token_of(receipt)] = receipt
            if len(self._latest) > self.most + self.most // 10:  # many at a time: it looks at all of them
                self._leave_out(len(self._latest) - self.most)
            return True

    def replace(self, receipt: SettlementReceipt) -> None:
        """Replaces the receipt that is kept of this call, if one is.

        Not by one that was read before the call ended: it knows less, and the next look at the ledger knows all.
        """
        with self._lock:
            known = self._latest.get(receipt.call_id)
            if known is None or known == receipt:
                return
            if receipt.outcome == "unknown" and known.outcome != "unknown":
                return
            self._latest[receipt.call_id] = receipt
        if self._on_news is not None:
            self._on_news(receipt)

    def expect(self, group: str, ledger: Ledger) -> None:
        """From now on the calls of this group, which other processes make, are found in their ledger."""
        self._groups[group] = ledger
        while len(self._groups) > _MOST_GROUPS:
            self._groups.pop(next(iter(self._groups)))

    def latest(self) -> tuple[SettlementReceipt, ...]:
        """The receipts as they are known here, without asking the ledger."""
        with self._lock:
            return tuple(self._latest.values())

    def now(self) -> tuple[SettlementReceipt, ...]:
        """The receipts as the ledger knows them now.

        An event loop does not wait for it: there, what other processes recorded is seen at the next look.
        """
        for asked in self._asked():
            asked.add_done_callback(self._take)
            if not _is_in_loop():
                with suppress(TimeoutError, OpenGradientError):
                    asked.result(_LONGEST_LOOK_S)
                    self._take(asked)
        return self.latest()

    def refresh(self) -> None:
        """Asks the chain about what is not final yet. Raises ChainUnavailable."""
        for receipt in self.now():
            if not receipt.is_final:
                self.replace(receipt.refresh())

    async def arefresh(self) -> None:
        """As `refresh`, for coroutines; it waits for the ledger, which `now` does not do in an event loop."""
        for receipt in await asyncio.to_thread(self.now):
            if not receipt.is_final:
                self.replace(await receipt.arefresh())

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return len(self._latest) + self._left_out[0]

    @property
    def authorizations(self) -> int:
        """How many payment signatures they needed."""
        return len({receipt.authorization_id for receipt in self.latest()}) + self._left_out[1]

    def spent_at_most(self, receipts: Iterable[SettlementReceipt]) -> list[tuple[SettlementReceipt, int]]:
        """What these calls, and those that are kept no more, cost at most: a receipt in each token, and the amount."""
        costs = _costs(receipts)
        return [
            (receipt, costs.get(token, 0) + self._left_out_cost.get(token, 0))
            for token, receipt in list(self._tokens.items())
        ]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._latest.clear()
            self._left_out = [0, 0]
            self._left_out_cost.clear()
            self._left_out_ids.clear()
            self._tokens.clear()
            self._groups.clear()

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._latest or call_id in self._left_out_ids

    def _leave_out(self, number: int) -> None:
        known = list(self._latest.items())
        before, authorizations = _costs(self._latest.values()), self.authorizations
        self._latest = dict(known[number:])
        self._left_out_ids |= dict.fromkeys(call_id for call_id, _ in known[:number])
        while len(self._left_out_ids) > _MOST_LEFT_OUT:
            del self._left_out_ids[next(iter(self._left_out_ids))]
        self._left_out[0] += number
        self._left_out[1] += authorizations - self.authorizations
        after = _costs(self._latest.values())
        for token, cost in before.items():
            self._left_out_cost[token] = self._left_out_cost.get(token, 0) + cost - after.get(token, 0)

    def _asked(self) -> list[Future[list[SettlementReceipt]]]:
        followers: dict[int, tuple[Follower, list[SettlementReceipt]]] = {}
        for receipt in self.latest():
            if not receipt.is_final and (follower := receipt.follower) is not None:
                followers.setdefault(id(follower), (follower, []))[1].append(receipt)
        asked = [follower.recorded(receipts) for follower, receipts in followers.values()]
        return asked + [
            ledger.receipts_beginning(f"call_{group}", most=self.most) for group, ledger in self._groups.items()
        ]

    def _take(self, asked: Future[list[SettlementReceipt]]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            return
        for receipt in asked.result():
            known = self._latest.get(receipt.call_id)
            if known is None:
                self._take_new(receipt)
            elif not _is_behind(receipt, known):
                self.replace(receipt if known.follower is None else receipt.followed_by(known.follower))

    def _take_new(self, receipt: SettlementReceipt) -> None:
        """One that another process recorded; one that was left out, or cleared meanwhile, stays away."""
        is_expected = any(receipt.call_id.startswith(f"call_{group}") for group in self._groups)
        if is_expected and self.add(receipt) and self._on_news is not None:
            self._on_news(receipt)


_all_kept: Final[weakref.WeakSet[KeptReceipts]] = weakref.WeakSet()


def update_kept(receipts: Iterable[SettlementReceipt]) -> None:
    """Replaces these calls' receipts in every handler of this process that keeps them."""
    news = list(receipts)
    for kept in _everybody() if news else ():
        for receipt in news:
            if receipt.call_id in kept:
                kept.replace(receipt)


def _everybody() -> list[KeptReceipts]:
    while True:
        try:
            return list(_all_kept)
        except RuntimeError:  # another thread makes a handler meanwhile
            continue


_Token = tuple[str, str]


def _token_of(receipt: SettlementReceipt) -> _Token:
    return receipt.network, receipt.asset


def _costs(receipts: Iterable[SettlementReceipt]) -> dict[_Token, int]:
    by_token: dict[_Token, list[SettlementReceipt]] = {}
    for receipt in receipts:
        by_token.setdefault(_token_of(receipt), []).append(receipt)
    return {token: spent_at_most_atomic(same) for token, same in by_token.items()}


def spent_at_most_atomic(receipts: Iterable[SettlementReceipt]) -> int:
    """What calls that are paid in one token cost, at most, in its atomic units.

    A settled share where the chain is known, else the gateway's claim. Where neither is known (a dropped stream), what
    is left of the authorization: it may still be taken. Calls of one authorization never cost more than it allows.
    """
    known: dict[str, int] = {}
    caps: dict[str, int] = {}
    for receipt in receipts:
        key, cost = receipt.authorization_id, cost_of(receipt)
        caps[key] = max(caps.get(key, 0), receipt.authorized_atomic, receipt.authorization_settled_atomic or 0)
        known[key] = known.get(key, 0) + (receipt.authorized_atomic if cost is None else cost)
    return sum(min(cap, known[key]) for key, cap in caps.items())


def _is_behind(recorded: SettlementReceipt, known: SettlementReceipt) -> bool:
    """Whether the ledger does not have yet what is known here: a call that has just ended, or a stream under way."""
    if recorded.outcome != "unknown":
        return False
    return known.outcome != "unknown" or recorded.status is ReceiptStatus.AUTHORIZED


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
