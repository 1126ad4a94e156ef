"""Payments whose fate is unknown, and what the chain can say of one."""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import NamedTuple

from opengradient_x402.payment.permits import SignedPayment
from opengradient_x402.payment.sessions import SessionKey


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

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._waiting: dict[SessionKey, list[Doubtful]] = {}

    def add(self, key: SessionKey, doubtful: Doubtful) -> None:
        """Keeps a payment for the next call."""
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
