"""The calls that a gateway has served: which payment paid for them, what they cost, and the hashes of their proofs.

In memory, and only the newest: for people who look at the devnet. A call is found by the id in its receipt, which the
devnet's network description asks clients to send, or by the hashes of its proof.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

_MOST: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCall:
    """One call that was answered to its end. The hashes are 32 bytes each, or empty without a proof."""

    call_id: str
    """The client's id of the call; empty when it sent none."""
    authorization_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_atomic: int
    data_mode: str
    """How its data are settled: `batch`, `individual` or `private`."""
    request_hash: bytes
    output_hash: bytes
    signature: bytes
    """The enclave's: no other call has the same, not even one with the same question and answer."""
    time_s: float


class ServedCalls:
    """The newest calls of one gateway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[ServedCall] = deque(maxlen=_MOST)

    def add(self, call: ServedCall) -> None:
        """Remember it; the oldest is forgotten when there are too many."""
        with self._lock:
            self._calls.append(call)

    def paid_by(self, authorization_ids: set[str]) -> list[ServedCall]:
        """The calls of these payments, oldest first."""
        with self._lock:
            return [call for call in self._calls if call.authorization_id in authorization_ids]

    def with_id(self, call_id: str) -> list[ServedCall]:
        """The calls to which their clients gave this id. A client that tries again sends the same id."""
        with self._lock:
            return [call for call in self._calls if call_id and call.call_id == call_id]

    def with_hash(self, word: bytes) -> list[ServedCall]:
        """The calls whose request or answer has this hash."""
        with self._lock:
            return [call for call in self._calls if word in (call.request_hash, call.output_hash)]
