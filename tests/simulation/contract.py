"""The contract of payment channels, as far as a simulated chain needs it: deposits, claims, refunds, withdrawals.

What happened is kept as events; a channel at some block is what its events up to there make of it. The chain drops
events or mines them again when it reorganises, so that each state is reckoned anew. Signatures are taken for valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


class DepositSignature(NamedTuple):
    """What moves an amount into one channel, once."""

    channel_id: str
    method: str
    nonce: int
    amount_atomic: int
    deadline: int


class VoucherSignature(NamedTuple):
    """What can be claimed from a channel, all in all."""

    channel_id: str
    max_atomic: int
    signature: str


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One transaction about a channel. A claim's amount is the new total; other amounts are moved."""

    hash: str
    number: int
    kind: str
    channel_id: str
    amount_atomic: int
    deposit: DepositSignature | None = None


class ChannelOnChain(NamedTuple):
    """A channel at one block. The balance counts what was claimed."""

    balance_atomic: int = 0
    claimed_atomic: int = 0
    withdrawing_atomic: int = 0
    withdrawing_since: int = 0

    @property
    def left_atomic(self) -> int:
        return self.balance_atomic - self.claimed_atomic


def state_of(events: Iterable[ChannelEvent], channel_id: str, head: int, time_of: object) -> ChannelOnChain:
    """The channel at a block; `time_of(number)` is the time of one."""
    state = ChannelOnChain()
    of_channel = [event for event in events if event.channel_id == channel_id and event.number <= head]
    for event in sorted(of_channel, key=lambda event: event.number):
        state = after(state, event, time_of(event.number))  # type: ignore[operator]
    return state


def after(state: ChannelOnChain, event: ChannelEvent, now_s: int) -> ChannelOnChain:
    """What the event makes of a channel; nothing where the contract would refuse it."""
    amount = event.amount_atomic
    match event.kind:
        case "deposit":
            return state._replace(balance_atomic=state.balance_atomic + amount)
        case "claim":
            is_right = state.claimed_atomic < amount <= state.balance_atomic
            return state._replace(claimed_atomic=amount) if is_right else state
        case "refund":
            gone = min(amount, state.left_atomic)
            return state._replace(balance_atomic=state.balance_atomic - gone, withdrawing_atomic=0, withdrawing_since=0)
        case "withdrawal begins":
            return state._replace(withdrawing_atomic=min(amount, state.left_atomic), withdrawing_since=now_s)
        case "withdrawal ends":
            gone = min(state.withdrawing_atomic, state.left_atomic)
            return state._replace(balance_atomic=state.balance_atomic - gone, withdrawing_atomic=0, withdrawing_since=0)
    raise ValueError(event.kind)


def moved(event: ChannelEvent, number: int) -> ChannelEvent:
    """The same transaction in another block."""
    return replace(event, number=number)
