"""What every part of the devnet may ask of a chain, whichever engine runs it.

It does not know py-evm, anvil or HTTP: `pyevm.PyEvmChain` and `anvil.AnvilChain` have this surface, and
`rpc.rpc_app` serves it.
"""

from __future__ import annotations

from typing import Any, Protocol


class RpcError(Exception):
    """A JSON-RPC error answer: `code`, `message`, and `data` (0x revert bytes when `code` is 3)."""

    def __init__(self, code: int, message: str, *, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class KeyHolder(Protocol):
    """An account whose key is at hand. `private_key` is 0x-hex."""

    @property
    def address(self) -> str: ...

    @property
    def private_key(self) -> str: ...


class Chain(Protocol):
    """A running chain. Safe to use from any thread. Amounts are wei or atomic token units."""

    chain_id: int

    def rpc(self, method: str, params: list[Any]) -> Any:
        """Answer one JSON-RPC method; raises `RpcError`."""

    def send(self, account: KeyHolder, *, to: str | None, data: bytes = b"", value: int = 0) -> dict[str, Any]:
        """Sign, send and mine one transaction; returns its JSON-RPC receipt (`status` 0x0 when it reverted).

        One account's sends are serialized here, so callers need no lock of their own.
        """

    def call(self, *, to: str, data: bytes, sender: str | None = None) -> bytes:
        """Run `eth_call` at the head with the time of now; a revert raises `RpcError` code 3."""

    def fund(self, address: str, *, opg_atomic: int = 0, native_wei: int = 0) -> None:
        """Give native coins and OPG to an address, by real transactions of the chain's own faucet account."""

    def token_balance(self, address: str) -> int:
        """OPG of an address, in atomic units."""

    def now_s(self) -> int:
        """The time that the next block will carry."""

    def close(self) -> None:
        """Stop what the chain runs (a subprocess, a ticking thread); the chain is unusable afterwards."""
