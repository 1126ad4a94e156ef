"""A chain as far as payments are concerned: blocks every two seconds, used nonces, settlements, reorganisations.

Blocks are reckoned, not kept: only those with a settlement hold anything. A `View` is the chain as one node shows it,
up to a head. Signatures are taken for valid; everything else that the contracts check is checked here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

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

    def time_of(self, number: int) -> int:
        return self.genesis_s + BLOCK_S * number

    def hash_of(self, number: int) -> str:
        salt = next(salt for first, salt in reversed(self.salts) if first <= number)
        key = (number, salt)
        if (known := self.hashes.get(key)) is None:
            known = self.hashes[key] = "0x" + hashlib.sha256(f"block {number} {salt}".encode()).hexdigest()
        return known

    def settlement(self, method: str, nonce: int) -> Settlement | None:
        for done in self.mined:
            if done.signature.nonce == nonce and done.signature.method == method and done.number <= self.head:
                return done
        return None

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
        self.used: dict[tuple[str, int], Settlement] = {}
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
        return View(self.genesis_s, self.head - lag, self._mined, self._salts, self._hashes)

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
        self.abandoned = View(self.genesis_s, head, list(self._mined), list(self._salts), self._hashes)
        self._salts = [*self._salts, (head - depth + 1, len(self._salts))]
        gone = [done for done in self._mined if done.number > head - depth]
        self._mined = [done for done in self._mined if done.number <= head - depth]
        for index, done in enumerate(gone):
            del self.used[done.signature.method, done.signature.nonce]
            self.by_nonce[done.signature.nonce].remove(done)
            is_late = self.genesis_s + BLOCK_S * (head + 1) > done.signature.deadline
            if not is_late and not drops[index % len(drops)]:
                self._keep(Settlement(done.hash, head + 1, done.signature, done.amount_atomic))

    def _keep(self, done: Settlement) -> None:
        self._mined.append(done)
        self.used[done.signature.method, done.signature.nonce] = done
        self.by_nonce.setdefault(done.signature.nonce, []).append(done)
