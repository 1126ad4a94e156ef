"""A call that changes nothing (`eth_call`, `eth_estimateGas`): its parameters, its overrides, and its failure.

`parameters` reads one from JSON, `evm` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eth.abc import StateAPI
from eth.constants import ZERO_ADDRESS
from eth_utils.address import to_canonical_address


class ExecutionFailed(Exception):
    """A call ended in an error. `output` is the revert data, None when it did not end in a revert."""

    def __init__(self, message: str, *, output: bytes | None) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOverride:
    """What an account is pretended to be during one call (geth's third `eth_call` parameter)."""

    balance: int | None = None
    nonce: int | None = None
    code: bytes | None = None
    slots: Mapping[int, int] = field(default_factory=dict)

    def apply(self, state: StateAPI, address: bytes) -> None:
        if self.balance is not None:
            state.set_balance(to_canonical_address(address), self.balance)
        if self.nonce is not None:
            state.set_nonce(to_canonical_address(address), self.nonce)
        if self.code is not None:
            state.set_code(to_canonical_address(address), self.code)
        for slot, value in self.slots.items():
            state.set_storage(to_canonical_address(address), slot, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """A call that changes nothing. `gas` None means a whole block's; `to` empty means a creation."""

    sender: bytes = ZERO_ADDRESS
    to: bytes = b""
    data: bytes = b""
    value: int = 0
    gas: int | None = None
    overrides: Mapping[bytes, StateOverride] = field(default_factory=dict)
