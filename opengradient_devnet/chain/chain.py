"""`Chain`: what the parts of the devnet ask of a chain, the same for both engines.

An engine implements `rpc`, `now_s`, `advance`, `close` and `rewind` (`pyevm.PyEvmChain`, `anvil.AnvilChain`). Sending,
calling and funding are written here, over JSON-RPC.
"""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import rlp  # type: ignore[import-untyped]  # rlp has no py.typed
from eth_keys.datatypes import PrivateKey
from eth_utils.address import to_canonical_address
from eth_utils.crypto import keccak

from opengradient_devnet.contracts import contract
from opengradient_devnet.money import OPG_TOKEN, Token

PRIVATE_CHAIN_ID = 31402
FAUCET_WEI = 10**9 * 10**18
# Half of a block: registering an enclave with its certificate stores some 4 KB and takes about 5 million.
SEND_GAS = 15_000_000
RECEIPT_TIMEOUT_S = 20.0
_MINT_LIMIT_ATOMIC = 1_000_000 * 10**18  # OPG.vy refuses more in one mint
_MOST_MINTS = 100
"""For one wish: each is a transaction."""
_DYNAMIC_FEE_TYPE = 2  # EIP-1559


class RpcError(Exception):
    """A JSON-RPC error answer: `code`, `message`, and `data` (0x revert bytes when `code` is 3)."""

    def __init__(self, code: int, message: str, *, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class ChainTimeout(TimeoutError):
    """A transaction was accepted and no receipt came in time: it may still be mined."""


class KeyHolder(Protocol):
    """An account whose key is at hand; `private_key` is 0x-hex."""

    @property
    def address(self) -> str: ...

    @property
    def private_key(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FaucetKey:
    """The account that owns the coins of the genesis; a new one each run."""

    address: str
    private_key: str = field(repr=False)


def new_faucet_key() -> FaucetKey:
    # A devnet key holds nothing of value, yet a fixed one would invite reuse on a live chain.
    key = PrivateKey(secrets.token_bytes(32))
    return FaucetKey(address=key.public_key.to_checksum_address(), private_key=key.to_hex())


def sign_transaction(
    private_key: str,
    *,
    chain_id: int,
    nonce: int,
    to: str | None,
    data: bytes,
    value: int,
    gas: int,
    max_fee_wei: int,
    priority_fee_wei: int,
) -> bytes:
    """A raw EIP-1559 transaction. Done by hand, because importing eth-account takes longer than the chain."""
    key = PrivateKey(bytes.fromhex(private_key.removeprefix("0x")))
    receiver = b"" if to is None else to_canonical_address(to)
    fields = [chain_id, nonce, priority_fee_wei, max_fee_wei, gas, receiver, value, data, []]
    type_byte = bytes([_DYNAMIC_FEE_TYPE])
    signature = key.sign_msg_hash(keccak(type_byte + rlp.encode(fields)))
    signed: bytes = type_byte + rlp.encode([*fields, signature.v, signature.r, signature.s])
    return signed


class Chain(ABC):
    """A running chain. Safe to use from any thread. Amounts are wei or atomic token units."""

    def __init__(self, *, chain_id: int, faucet: FaucetKey) -> None:
        self.chain_id = chain_id
        self.faucet = faucet
        self.token: Token = OPG_TOKEN
        """What the devnet is paid in; `token_balance` and `fund` are about it."""
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @abstractmethod
    def rpc(self, method: str, params: list[Any]) -> Any:
        """Answer one JSON-RPC method; raises `RpcError`."""

    @abstractmethod
    def now_s(self) -> int:
        """The time that a block mined now would carry."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Put the chain's clock ahead: its next block is later by this."""

    @abstractmethod
    def close(self) -> None:
        """Stop what the chain runs (a subprocess, a ticking thread); the chain is unusable afterwards."""

    @abstractmethod
    def rewind(self, block_count: int) -> None:
        """Forget the last blocks, with all that happened in them. `reorganise` is what nodes go through."""

    def reorganise(self, depth: int, *, lose: Collection[str] | Literal["all"] = ()) -> list[str]:
        """Replace the last `depth` blocks by another, longer branch, as a node does that finds a better one.

        Transactions of the old branch are mined again, in new blocks, except those in `lose` (hashes, or "all");
        who was overtaken that way waits for its nonce. Returns the hashes that are in no block afterwards.
        Call it while nothing else is sent. Raises ValueError when the chain is not that long.
        """
        head_number = int(self.rpc("eth_blockNumber", []), 16)
        if not 0 < depth <= head_number:
            raise ValueError(f"The chain has {head_number} blocks after its genesis; {depth} cannot be replaced.")
        hashes = [
            tx_hash
            for number in range(head_number - depth + 1, head_number + 1)
            for tx_hash in self.rpc("eth_getBlockByNumber", [hex(number), False])["transactions"]
        ]
        unwanted = set(hashes) if lose == "all" else {tx_hash.lower() for tx_hash in lose}
        kept = [self.rpc("eth_getRawTransactionByHash", [tx_hash]) for tx_hash in hashes if tx_hash not in unwanted]
        self.rewind(depth)
        for raw in kept:
            self.rpc("eth_sendRawTransaction", [raw])
        while int(self.rpc("eth_blockNumber", []), 16) <= head_number:
            self.rpc("evm_mine", [])
        return [tx_hash for tx_hash in hashes if self.rpc("eth_getTransactionReceipt", [tx_hash]) is None]

    def send(self, account: KeyHolder, *, to: str | None, data: bytes = b"", value: int = 0) -> dict[str, Any]:
        """Sign, send and mine one transaction; returns its receipt (`status` is 0x0 when it reverted).

        The sends of one account are serialized here, nonce included: callers need no lock of their own.
        Raises `RpcError` when the chain refuses it, `ChainTimeout` when it is not mined in time.
        """
        with self._locks[account.address.lower()]:
            gas_price_wei = int(self.rpc("eth_gasPrice", []), 16)
            raw = sign_transaction(
                account.private_key,
                chain_id=self.chain_id,
                nonce=int(self.rpc("eth_getTransactionCount", [account.address, "pending"]), 16),
                to=to,
                data=data,
                value=value,
                gas=SEND_GAS,
                max_fee_wei=2 * gas_price_wei,
                priority_fee_wei=min(10**6, gas_price_wei),
            )
            return self.send_raw("0x" + raw.hex())

    def send_raw(self, raw: str) -> dict[str, Any]:
        """Send what somebody signed (0x-hex), and return its receipt; raises as `send` does."""
        return self._receipt(self.rpc("eth_sendRawTransaction", [raw]))

    def _receipt(self, tx_hash: str) -> dict[str, Any]:
        give_up_at = time.monotonic() + RECEIPT_TIMEOUT_S
        while time.monotonic() < give_up_at:
            receipt: dict[str, Any] | None = self.rpc("eth_getTransactionReceipt", [tx_hash])
            if receipt is not None:
                return receipt
            time.sleep(0.005)
        message = f"Transaction {tx_hash} has no receipt after {RECEIPT_TIMEOUT_S} s; look for it later."
        raise ChainTimeout(message)

    def call(self, *, to: str, data: bytes, sender: str | None = None) -> bytes:
        """Run `eth_call` at the head with the time of now; a revert raises `RpcError` code 3."""
        transaction = {"to": to, "data": "0x" + data.hex()}
        if sender is not None:
            transaction["from"] = sender
        answer: str = self.rpc("eth_call", [transaction, "latest"])
        return bytes.fromhex(answer[2:])

    def code(self, address: str) -> bytes:
        answer: str = self.rpc("eth_getCode", [address, "latest"])
        return bytes.fromhex(answer[2:])

    def token_balance(self, address: str) -> int:
        """Tokens of an address, in atomic units."""
        return int.from_bytes(
            self.call(to=self.token.address, data=contract("OPG").encode("balanceOf", address)), "big"
        )

    def balance(self, address: str) -> int:
        """Native coins of an address, in wei."""
        return int(self.rpc("eth_getBalance", [address, "latest"]), 16)

    def fund(self, address: str, *, token_atomic: int = 0, native_wei: int = 0) -> None:
        """Give native coins and tokens to an address, by real transactions of the faucet account.

        Raises ValueError for more tokens than the faucet gives at once.
        """
        if token_atomic > (most := _MOST_MINTS * _MINT_LIMIT_ATOMIC):
            raise ValueError(
                f"The faucet gives at most {self.token.text(most)} {self.token.symbol} at once. Nothing was sent."
            )
        if native_wei:
            self._faucet_send(to=address, data=b"", value=native_wei)
        while token_atomic > 0:
            amount_atomic = min(token_atomic, _MINT_LIMIT_ATOMIC)
            mint = contract("OPG").encode("mint", address, amount_atomic)
            self._faucet_send(to=self.token.address, data=mint, value=0)
            token_atomic -= amount_atomic

    def _faucet_send(self, *, to: str, data: bytes, value: int) -> None:
        receipt = self.send(self.faucet, to=to, data=data, value=value)
        if receipt["status"] != "0x1":
            raise RpcError(-32000, f"the faucet's transaction {receipt['transactionHash']} to {to} reverted")
