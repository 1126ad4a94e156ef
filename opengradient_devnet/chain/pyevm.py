"""The embedded chain: an `Evm` behind a lock, with the contracts in its genesis.

`evm` runs transactions, `methods` gives JSON-RPC its meaning; this module puts them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Literal

from opengradient_devnet.chain.chain import FAUCET_WEI, PRIVATE_CHAIN_ID, Chain, new_faucet_key
from opengradient_devnet.chain.evm import Evm
from opengradient_devnet.chain.methods import answer
from opengradient_devnet.contracts import ADDRESSES, contract


class PyEvmChain(Chain):
    """A chain inside this process. `clock` is the time in seconds; it must not be monotonic time."""

    def __init__(self, *, chain_id: int = PRIVATE_CHAIN_ID, clock: Callable[[], float] = time.time) -> None:
        super().__init__(chain_id=chain_id, faucet=new_faucet_key())
        self._lock = threading.RLock()
        self._ahead_s = 0.0
        genesis: dict[str, dict[str, Any]] = {
            address: {"balance": 0, "nonce": 1, "code": contract(name).runtime, "storage": {}}
            for name, address in ADDRESSES.items()
        }
        genesis[self.faucet.address] = {"balance": FAUCET_WEI, "nonce": 0, "code": b"", "storage": {}}
        self._evm = Evm(chain_id=chain_id, genesis=genesis, clock=lambda: clock() + self._ahead_s)

    def rpc(self, method: str, params: list[Any]) -> Any:
        with self._lock:
            return answer(self._evm, method, params)

    def rewind(self, block_count: int) -> None:
        with self._lock:
            self._evm.rewind(block_count)

    def reorganise(self, depth: int, *, lose: Collection[str] | Literal["all"] = ()) -> list[str]:
        """As any chain, but nobody sees it half done."""
        with self._lock:
            return super().reorganise(depth, lose=lose)

    def advance(self, seconds: float) -> None:
        """Put the chain's clock ahead: its next block is later by this."""
        with self._lock:
            self._ahead_s += seconds

    def now_s(self) -> int:
        with self._lock:
            return self._evm.next_timestamp

    def close(self) -> None:
        """Nothing runs between requests, so there is nothing to stop."""
