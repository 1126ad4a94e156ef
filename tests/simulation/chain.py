"""A chain as far as payments are concerned: blocks every two seconds, used nonces, settlements, reorganisations.

Blocks are reckoned, not kept: only those with a settlement hold anything. A `View` is the chain as one node shows it,
up to a head. Signatures are taken for valid; everything else that the contracts check is checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from simulation.contract import ChannelEvent, ChannelOnChain, DepositSignature, after, moved, state_of

BLOCK_S = 2


class Signature(NamedTuple):
    """What a PAYMENT-SIGNATURE allows: one way to use a nonce."""

    method: str
    nonce: int
    amount_atomic: int
    deadline: int
    payee: str
    spender: str
    scheme: str


@dataclass(frozen=True, slots=True, eq=False)
class Settlement:
    """A mined transaction that used a nonce."""

    hash: str
    number: int
    signature: Signature
    amount_atomic: int


@dataclass(slots=True)
class View:
    """The chain up to a head."""

    genesis_s: int
    head: int
    mined: list[Settlement]
    salts: list[tuple[int, int]]
    hashes: dict[tuple[int, int], str] = field(default_factory=dict)
    channel_events: list[ChannelEvent] = field(default_factory=list)

    def time_of(self, number: int) -> int:
        return self.genesis_s + BLOCK_S * number

    def hash_of(self, number: int) -> str:
        salt = next(salt for first, salt in reversed(self.salts) if first <= number)
        key = (number, salt)
        if (known := self.hashes.get(key)) is None:
            known = self.hashes[key] = "0x" + hashlib.sha256(f"block {number} {salt}".encode()).hexdigest()
        return known

    def channel(self, channel_id: str) -> ChannelOnChain:
        return state_of(self.channel_events, channel_id, self.head, self.time_of)

    def claims(self) -> Iterator[tuple[ChannelEvent, int]]:
        """The claims up to here that the contract took, and what each added."""
        states: dict[str, ChannelOnChain] = {}
        for event in sorted(self.channel_events, key=lambda event: event.number):
            if event.number <= self.head:
                before = states.get(event.channel_id, ChannelOnChain())
                states[event.channel_id] = now = after(before, event, self.time_of(event.number))
                if now.claimed_atomic > before.claimed_atomic:
                    yield event, now.claimed_atomic - before.claimed_atomic

    def used_nonces(self, method: str) -> list[int]:
        """The nonces that this method's contract shows as used."""
        used = [done.signature.nonce for done in self.mined if self._shows(done, method, done.signature.method)]
        return used + [
            done.deposit.nonce
            for done in self.channel_events
            if done.deposit is not None and self._shows(done, method, done.deposit.method)
        ]

    def _shows(self, done: Settlement | ChannelEvent, method: str, its_method: str) -> bool:
        return done.number <= self.head and its_method == method

    def transaction(self, tx_hash: str) -> Settlement | None:
        return next((done for done in self.mined if done.hash == tx_hash and done.number <= self.head), None)

    def numbered(self, block_hash: str) -> int | None:
        """The height of one of the last blocks, by its hash."""
        recent = range(self.head, max(-1, self.head - 64), -1)
        return next((number for number in recent if self.hash_of(number) == block_hash), None)


class Chain:
    """The canonical chain. `now_s` is the true time, which the world moves."""

    def __init__(self, now_s: float) -> None:
        self.genesis_s = int(now_s) - 40_000
        self.now_s = now_s
        self._salts = [(0, 0)]
        self._hashes: dict[tuple[int, int], str] = {}
        self._mined: list[Settlement] = []
        self._count = 0
        self._channel_events: list[ChannelEvent] = []
        self._states: dict[str, ChannelOnChain] = {}
        """Of channels, since the last event."""
        self.deposited: set[DepositSignature] = set()
        """All that were ever mined."""
        self.used: dict[tuple[str, int], Settlement | ChannelEvent] = {}
        """By method and nonce; the block may be the next one, which is not there yet."""
        self.by_nonce: dict[int, list[Settlement]] = {}
        """What was taken under a number, in whichever nonce space."""
        self.abandoned: View | None = None
        """What a node shows that has not heard of the last reorganisation."""

    @property
    def head(self) -> int:
        return int(self.now_s - self.genesis_s) // BLOCK_S

    def view(self, lag: int = 0) -> View:
        """As a node shows it that is `lag` blocks behind."""
        return View(self.genesis_s, self.head - lag, self._mined, self._salts, self._hashes, self._channel_events)

    # -- channels

    def channel(self, channel_id: str) -> ChannelOnChain:
        """The channel with all that is mined, in the next blocks too."""
        if (known := self._states.get(channel_id)) is None:
            until = self.head + 9
            known = state_of(self._channel_events, channel_id, until, self._time_of)
            if all(event.number <= until for event in self._channel_events):  # or time alone would change it
                self._states[channel_id] = known
        return known

    def is_used(self, deposit: DepositSignature) -> bool:
        return (deposit.method, deposit.nonce) in self.used

    def deposit(self, deposit: DepositSignature, *, after_blocks: int = 1) -> bool:
        """Mines a deposit, unless its nonce is used, or its time is over."""
        number = self.head + after_blocks
        if self.is_used(deposit) or self._time_of(number) > deposit.deadline:
            return False
        event = self._happens("deposit", deposit.channel_id, deposit.amount_atomic, number, deposit)
        self.used[deposit.method, deposit.nonce] = event
        self.deposited.add(deposit)
        return True

    def claim(self, channel_id: str, total_atomic: int, *, after_blocks: int = 1) -> bool:
        """Mines a claim of `total_atomic`, all in all, if the channel holds so much and it is more than before."""
        state = self.channel(channel_id)
        if not state.claimed_atomic < total_atomic <= state.balance_atomic:
            return False
        self._happens("claim", channel_id, total_atomic, self.head + after_blocks)
        return True

    def give_back(self, channel_id: str, kind: str, amount_atomic: int) -> None:
        """Mines a refund, the beginning of a withdrawal, or its end."""
        self._happens(kind, channel_id, amount_atomic, self.head + 1)

    def _happens(
        self, kind: str, channel_id: str, amount_atomic: int, number: int, deposit: DepositSignature | None = None
    ) -> ChannelEvent:
        self._count += 1
        digest = hashlib.sha256(f"{kind} {self._count} {channel_id}".encode()).hexdigest()
        event = ChannelEvent("0x" + digest, number, kind, channel_id, amount_atomic, deposit)
        self._channel_events.append(event)
        self._states.clear()
        return event

    def _time_of(self, number: int) -> int:
        return self.genesis_s + BLOCK_S * number

    # -- settlements

    def settle(self, signature: Signature, amount_atomic: int, *, after_blocks: int = 1) -> bool:
        """Mines a settlement, unless the contracts refuse it."""
        number = self.head + after_blocks
        is_amount_right = (
            amount_atomic == signature.amount_atomic
            if signature.scheme == "exact"
            else 0 < amount_atomic <= signature.amount_atomic
        )
        if (
            not is_amount_right
            or self.genesis_s + BLOCK_S * number > signature.deadline
            or (signature.method, signature.nonce) in self.used
        ):
            return False
        self._count += 1
        digest = hashlib.sha256(f"settlement {self._count} {signature.nonce}".encode()).hexdigest()
        self._keep(Settlement("0x" + digest, number, signature, amount_atomic))
        return True

    def reorganise(self, depth: int, *, drops: list[bool]) -> None:
        """Replaces the last `depth` blocks. Their settlements come back in the next block, or are dropped."""
        head = self.head
        before = list(self._mined), list(self._salts), self._hashes, list(self._channel_events)
        self.abandoned = View(self.genesis_s, head, *before)
        self._salts = [*self._salts, (head - depth + 1, len(self._salts))]
        gone = [done for done in self._mined if done.number > head - depth]
        self._mined = [done for done in self._mined if done.number <= head - depth]
        for index, done in enumerate(gone):
            del self.used[done.signature.method, done.signature.nonce]
            self.by_nonce[done.signature.nonce].remove(done)
            is_late = self.genesis_s + BLOCK_S * (head + 1) > done.signature.deadline
            if not is_late and not drops[index % len(drops)]:
                self._keep(Settlement(done.hash, head + 1, done.signature, done.amount_atomic))

        self._reorganise_channels(head, depth, drops)

    def _reorganise_channels(self, head: int, depth: int, drops: list[bool]) -> None:
        self._states.clear()
        gone = [event for event in self._channel_events if event.number > head - depth]
        self._channel_events = [event for event in self._channel_events if event.number <= head - depth]
        for index, event in enumerate(gone):
            deposit = event.deposit
            if deposit is not None:
                del self.used[deposit.method, deposit.nonce]
            is_late = deposit is not None and self._time_of(head + 1) > deposit.deadline
            if not is_late and not drops[index % len(drops)]:
                again = moved(event, head + 1)
                self._channel_events.append(again)
                if deposit is not None:
                    self.used[deposit.method, deposit.nonce] = again

    def _keep(self, done: Settlement) -> None:
        self._mined.append(done)
        self.used[done.signature.method, done.signature.nonce] = done
        self.by_nonce.setdefault(done.signature.nonce, []).append(done)
