"""What one run may spend: the calls that ended count with their cost, those under way with their worst case.

A call asks each of its limits before it is paid, and reports to them when it has ended (`handshake`,
`gateway.exchange`): one that was never paid, was refused elsewhere or was cancelled counts for nothing. The
`SpendGuard`s of both faces are made of this. Sans-I/O; what a wallet may spend at all is `policy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from opengradient_x402.errors import BudgetExceeded, ConfigurationError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt, cost_of
from opengradient_x402.money import Asset, PaidIn, only, parse_amount, shown
from opengradient_x402.process import OwnLock

_MOST_CALLS = 10_000
"""How many calls are kept one by one; of older ones only the sum is kept."""
_MOST_DECIMALS = 77
"""Of any token: the asset of a limit is known with the first payment, and the amount is read again then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """What one call takes from the limit."""

    token: tuple[str, str]
    authorization_id: str
    cap_atomic: int
    amount_atomic: int
    """What the call cost; what it could cost, while that is not known."""
    is_under_way: bool = False
    is_known: bool = False
    taken_atomic: int = 0
    """What the gateway says that it has taken for this call."""
    sum_of: str | None = None
    """The name of a sum of many calls."""


class RunLimit:
    """Refuses the payment that could take the calls which share this limit above it. Thread-safe.

    `limit` is an amount in whole tokens (`"0.5"`), of the token that the calls are paid in; each token counts for
    itself. `reserve_per_call` takes the place of the worst case of a call under way, except where the signed amount is
    what it costs (`exact`). What calls of one authorization could cost is together never more than it allows.

    A refusal says whose limit it is (`subject`), and what to do (`remedy`).
    """

    def __init__(
        self,
        limit: str,
        *,
        reserve_per_call: str | None = None,
        subject: str = "This run",
        remedy: str = "Raise the SpendGuard's limit, lower `max_tokens`, or end the run here.",
    ) -> None:
        for name, amount in (("limit", limit), ("reserve_per_call", reserve_per_call)):
            if amount is not None:
                _check(name, amount)
        self.limit = limit
        self.reserve_per_call = reserve_per_call
        self._subject = subject
        self._remedy = remedy
        self._lock = OwnLock()
        self._tokens: dict[tuple[str, str], PaidIn] = {}
        """A record in each token that was paid in."""
        self._calls: dict[str, _Counted] = {}

    @property
    def spent_atomic(self) -> int:
        """What the calls that have ended cost, at most, in atomic units. Raises ValueError for two tokens."""
        return only(self._spent())

    @property
    def spent(self) -> str:
        """What the calls that have ended cost, at most: "0.0125 OPG", or "0.0125 OPG + 0.02 USDC"."""
        return shown(self._spent())

    def _spent(self) -> list[tuple[PaidIn, int]]:
        with self._lock:
            ended = [call for call in self._calls.values() if not call.is_under_way]
            return [
                (record, _total(call for call in ended if call.token == token))
                for token, record in self._tokens.items()
            ]

    @property
    def under_way(self) -> tuple[str, ...]:
        """The ids of the calls that hold their worst case, since they have not ended."""
        with self._lock:
            return tuple(name for name, call in self._calls.items() if call.is_under_way)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The ids of the calls that have ended, and whose cost is not known yet."""
        with self._lock:
            return tuple(name for name, call in self._calls.items() if not (call.is_known or call.is_under_way))

    def admit(
        self, call_id: str, authorization: Authorization, *, worst_case_atomic: int, asset: Asset, model: str
    ) -> None:
        """Sets the worst case of a call aside, which `authorization` is about to pay. Raises BudgetExceeded.

        A call that is admitted again, with another authorization, counts once.
        """
        limit_atomic, worst = self._parsed(self.limit, asset), worst_case_atomic
        if self.reserve_per_call is not None and authorization.terms.scheme != "exact":
            worst = self._parsed(self.reserve_per_call, asset)
        token = self._token_of(authorization)
        call = _Counted(
            token=token,
            authorization_id=authorization.id,
            cap_atomic=authorization.amount_atomic,
            amount_atomic=worst,
            is_under_way=True,
        )
        with self._lock:
            others = [known for name, known in self._calls.items() if name != call_id and known.token == token]
            total = _total([*others, call])
            if total <= limit_atomic:
                self._calls[call_id] = call
                return
            self._calls.pop(call_id, None)
        under_way = [other for other in others if other.is_under_way]
        spent = _total(other for other in others if not other.is_under_way)
        waiting = (
            f"; {len(under_way)} calls under way could cost {asset.format(_total(under_way))}" if under_way else ""
        )
        raise BudgetExceeded(
            f"{self._subject} has spent up to {asset.format(spent)}{waiting}; its limit is "
            f"{asset.format(limit_atomic)}. "
            f"A call to {model} could cost {asset.format(min(worst, call.cap_atomic))} more. The call was not made and "
            f"not paid. {self._remedy}",
            call_id=call_id,
        )

    def ended(self, call_id: str, receipt: SettlementReceipt | None, *, taken_atomic: int = 0) -> None:
        """The call is over: it counts with its cost if that is known, and with nothing if nothing was paid for it.

        A gateway that settled before it quoted says what it has taken (`taken_atomic`): the larger of the two counts,
        until the chain shows what it was.
        """
        with self._lock:
            held = self._calls.get(call_id)
            if held is None or not held.is_under_way:
                return
            if receipt is None:
                del self._calls[call_id]
            else:
                self._token_of(receipt)
                self._calls[call_id] = _counted(
                    receipt, unless_known_atomic=held.amount_atomic, taken_atomic=taken_atomic
                )
                self._sum_up_old()

    def count(self, receipt: SettlementReceipt) -> None:
        """Counts a call that this limit was not asked about, such as one of another process."""
        with self._lock:
            if receipt.call_id not in self._calls:
                self._token_of(receipt)
                self._calls[receipt.call_id] = _counted(receipt, unless_known_atomic=receipt.authorized_atomic)
                self._sum_up_old()

    def _sum_up_old(self) -> None:
        """Keeps one sum for each token in place of the oldest calls whose cost is known, when there are many."""
        if len(self._calls) <= _MOST_CALLS + _MOST_CALLS // 10:
            return
        known = [name for name, call in self._calls.items() if call.is_known and name != call.sum_of]
        for name in known[: len(self._calls) - _MOST_CALLS]:
            call = self._calls.pop(name)
            sum_of = f"earlier calls {call.token}"
            before = self._calls.get(sum_of)
            total = call.amount_atomic + (0 if before is None else before.amount_atomic)
            self._calls[sum_of] = replace(
                call, authorization_id=sum_of, cap_atomic=total, amount_atomic=total, sum_of=sum_of
            )

    def update(self, receipts: Iterable[SettlementReceipt]) -> None:
        """Replaces what was counted for calls that have ended by what is known of them now."""
        with self._lock:
            for receipt in receipts:
                held = self._calls.get(receipt.call_id)
                if held is not None and not held.is_under_way:
                    self._calls[receipt.call_id] = _counted(
                        receipt, unless_known_atomic=held.amount_atomic, taken_atomic=held.taken_atomic
                    )

    def clear(self) -> None:
        """Forgets the calls that have ended, for a limit that begins at zero again."""
        with self._lock:
            self._calls = {name: call for name, call in self._calls.items() if call.is_under_way}

    def _token_of(self, record: Authorization | SettlementReceipt) -> tuple[str, str]:
        token = (record.network, record.asset)
        self._tokens[token] = record
        return token

    @staticmethod
    def _parsed(amount: str, asset: Asset) -> int:
        try:
            return asset.parse(amount)
        except ValueError as exc:
            raise ConfigurationError(
                f"The limit of a SpendGuard cannot be kept in {asset.symbol}: {exc} Nothing was paid."
            ) from exc


def _counted(receipt: SettlementReceipt, *, unless_known_atomic: int, taken_atomic: int = 0) -> _Counted:
    cost = cost_of(receipt)
    if cost is not None and receipt.settled_atomic is None and not receipt.is_final:
        cost = max(cost, taken_atomic)
    counted = _Counted(
        token=(receipt.network, receipt.asset),
        authorization_id=receipt.authorization_id,
        cap_atomic=max(receipt.authorized_atomic, receipt.authorization_settled_atomic or 0),
        amount_atomic=unless_known_atomic,
        taken_atomic=taken_atomic,
    )
    return counted if cost is None else replace(counted, amount_atomic=cost, is_known=True)


def _total(calls: Iterable[_Counted]) -> int:
    """The most that the calls cost together: those of one authorization are never more than it allows."""
    sums: dict[str, tuple[int, int]] = {}
    for call in calls:
        cap, amount = sums.get(call.authorization_id, (0, 0))
        sums[call.authorization_id] = max(cap, call.cap_atomic), amount + call.amount_atomic
    return sum(min(cap, amount) for cap, amount in sums.values())


def _check(name: str, amount: str) -> None:
    try:
        parse_amount(amount, decimals=len(str(amount).partition(".")[2][:_MOST_DECIMALS]))
    except ValueError as exc:
        raise ConfigurationError(f"`{name}`: {exc} Nothing was paid.") from exc
