"""Reads a chain for people: blocks, transactions, payments, data settlements, as small frozen objects.

It asks over JSON-RPC, so it works with both engines, and reads only what a page shows. What the gateway claims comes
from elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.contracts import ADDRESSES, EXACT_PROXY, OPG, PERMIT2, RELAY, UPTO_PROXY, contract
from opengradient_devnet.explorer.settle_calls import SettleCall, settle_calls

# Nothing indexes transactions by account; this many blocks are looked through for them.
SCANNED_BLOCKS = 2000
_CONTRACTS = {address.lower(): name for name, address in ADDRESSES.items()}
_PROXIES = [UPTO_PROXY, EXACT_PROXY]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block. `transactions` are JSON-RPC objects."""

    number: int
    hash: str
    parent_hash: str
    time_s: int
    gas_used: int
    base_fee_wei: int
    transactions: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One log. `name` is None when no contract of the devnet emits such a thing."""

    contract: str
    address: str
    name: str | None
    arguments: dict[str, Any]
    topics: tuple[str, ...]
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One mined transaction, decoded as far as it calls a contract of the devnet."""

    hash: str
    block_number: int
    block_hash: str
    time_s: int
    confirmations: int
    sender: str
    to: str | None
    created: str | None
    value_wei: int
    nonce: int
    gas_used: int
    gas_price_wei: int
    succeeded: bool
    data: bytes
    function: str | None
    arguments: dict[str, Any]
    events: tuple[Event, ...]
    payments: tuple[SettleCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One settled authorization and where it was settled."""

    tx_hash: str
    block_number: int
    time_s: int
    call: SettleCall


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """One event of the settlement relay."""

    tx_hash: str
    block_number: int
    time_s: int
    kind: str
    arguments: dict[str, Any]

    @property
    def blob_id(self) -> str:
        return bytes(self.arguments["walrusBlobId"]).decode("ascii", "replace")


def contract_name(address: str | None) -> str | None:
    """The devnet's own name of a contract, by address."""
    return _CONTRACTS.get((address or "").lower())


def called(to: str | None, data: bytes) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments of the call in a transaction's input; None when it is not known."""
    name = contract_name(to)
    if name is None or len(data) < 4:
        return None, {}
    try:
        call = contract(name).decode_call(data)
    except (KeyError, DecodingError, OverflowError):
        return None, {}
    return call["function"], call["arguments"]


def decode_event(log: dict[str, Any]) -> Event:
    """A JSON-RPC log in words."""
    name = contract_name(log["address"])
    try:
        decoded = contract(name).decode_log(log) if name else {}
    except (KeyError, DecodingError):
        decoded = {}
    return Event(
        contract=name or "",
        address=to_checksum_address(log["address"]),
        name=decoded.pop("event", None),
        arguments=decoded,
        topics=tuple(log["topics"]),
        data=log["data"],
    )


class ChainReader:
    """Questions about one chain. Every answer is read anew: a page never shows what is out of date."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def head_number(self) -> int:
        return int(self._chain.rpc("eth_blockNumber", []), 16)

    def now_s(self) -> int:
        return self._chain.now_s()

    def block(self, number_or_hash: int | str) -> Block | None:
        """A block by number or 0x-hash; None when the chain does not have it."""
        if isinstance(number_or_hash, int):
            found = self._chain.rpc("eth_getBlockByNumber", [hex(number_or_hash), True])
        else:
            found = self._chain.rpc("eth_getBlockByHash", [number_or_hash, True])
        return None if found is None else _block(found)

    def blocks(self, *, newest: int, count: int) -> list[Block]:
        """`count` blocks downwards from `newest`."""
        numbers = range(newest, max(-1, newest - count), -1)
        return [block for number in numbers if (block := self.block(number)) is not None]

    def busy_blocks(self, *, newest: int) -> Iterator[Block]:
        """Blocks with transactions, downwards from `newest`, within the scanned range."""
        for number in range(newest, max(-1, newest - SCANNED_BLOCKS), -1):
            block = self.block(number)
            if block is not None and block.transactions:
                yield block

    def transaction(self, tx_hash: str) -> Transaction | None:
        """A mined transaction; None when the chain does not have it (any more)."""
        receipt = self._chain.rpc("eth_getTransactionReceipt", [tx_hash])
        transaction = self._chain.rpc("eth_getTransactionByHash", [tx_hash])
        block = None if receipt is None else self.block(int(receipt["blockNumber"], 16))
        if receipt is None or transaction is None or block is None:
            return None
        data = bytes.fromhex(transaction["input"][2:])
        function, arguments = called(transaction["to"], data)
        return Transaction(
            hash=receipt["transactionHash"],
            block_number=block.number,
            block_hash=block.hash,
            time_s=block.time_s,
            confirmations=self.head_number() - block.number,
            sender=to_checksum_address(transaction["from"]),
            to=to_checksum_address(transaction["to"]) if transaction["to"] else None,
            created=receipt.get("contractAddress"),
            value_wei=int(transaction["value"], 16),
            nonce=int(transaction["nonce"], 16),
            gas_used=int(receipt["gasUsed"], 16),
            gas_price_wei=int(receipt["effectiveGasPrice"], 16),
            succeeded=receipt["status"] == "0x1",
            data=data,
            function=function,
            arguments=arguments,
            events=tuple(decode_event(log) for log in receipt["logs"]),
            payments=tuple(settle_calls(data)) if receipt["status"] == "0x1" else (),
        )

    # Payments.

    def payment_count(self) -> int:
        """How many logs say that a payment was settled."""
        return len(self._settling_logs())

    def payments(self, *, skip: int = 0) -> Iterator[Payment]:
        """Settled payments, newest first."""
        hashes = dict.fromkeys(log["transactionHash"] for log in reversed(self._settling_logs()))
        for tx_hash in itertools.islice(hashes, skip, None):
            yield from self.payments_in(tx_hash)

    def payments_in(self, tx_hash: str) -> list[Payment]:
        """The payments that one transaction settled."""
        found = self.transaction(tx_hash)
        if found is None:
            return []
        return [
            Payment(tx_hash=found.hash, block_number=found.block_number, time_s=found.time_s, call=call)
            for call in found.payments
        ]

    def _settling_logs(self) -> list[dict[str, Any]]:
        settled = [contract("UptoProxy").topic(name) for name in ("Settled", "SettledWithPermit")]
        logs = self._logs(_PROXIES, [settled]) + self._logs([OPG], [contract("OPG").topic("AuthorizationUsed")])
        return sorted(logs, key=_position)

    # Data settlements.

    def data_records(self) -> list[DataRecord]:
        """Everything that the settlement relay has recorded, newest first."""
        records = []
        for log in reversed(self._logs([RELAY], [])):
            decoded = contract("Relay").decode_log(log)
            kind = decoded.pop("event")
            number = int(log["blockNumber"], 16)
            records.append(
                DataRecord(
                    tx_hash=log["transactionHash"],
                    block_number=number,
                    time_s=self._time_s(log, number),
                    kind="batch" if kind == "BatchSettlement" else "individual",
                    arguments=decoded,
                )
            )
        return records

    def _time_s(self, log: dict[str, Any], number: int) -> int:
        if log.get("blockTimestamp"):
            return int(log["blockTimestamp"], 16)
        block = self.block(number)
        return 0 if block is None else block.time_s

    # Accounts.

    def opg_atomic(self, address: str) -> int:
        return self._chain.token_balance(address)

    def native_wei(self, address: str) -> int:
        return self._chain.balance(address)

    def allowance_atomic(self, address: str) -> int:
        """What Permit2 may move of an account's OPG."""
        data = contract("OPG").encode("allowance", address, PERMIT2)
        return int.from_bytes(self._chain.call(to=OPG, data=data), "big")

    def is_contract(self, address: str) -> bool:
        return bool(self._chain.code(address))

    def transactions_of(self, address: str) -> list[str]:
        """Hashes of transactions in which an account took part, newest first.

        Sent and received ones of the scanned blocks, and all that moved or concerned its OPG.
        """
        word = "0x" + address[2:].lower().rjust(64, "0")
        logs = [log for topics in ([None, word], [None, None, word]) for log in self._logs([], topics)]
        found = {log["transactionHash"]: _position(log)[0] for log in logs}
        parties = {address.lower()}
        for block in self.busy_blocks(newest=self.head_number()):
            for transaction in block.transactions:
                if parties & {transaction["from"].lower(), (transaction["to"] or "").lower()}:
                    found[transaction["hash"]] = block.number
        return sorted(found, key=found.__getitem__, reverse=True)

    def _logs(self, addresses: list[str], topics: list[Any]) -> list[dict[str, Any]]:
        query = {"fromBlock": "0x0", "toBlock": "latest", "address": addresses, "topics": topics}
        if not addresses:
            del query["address"]
        logs: list[dict[str, Any]] = self._chain.rpc("eth_getLogs", [query])
        return logs


def _block(found: dict[str, Any]) -> Block:
    return Block(
        number=int(found["number"], 16),
        hash=found["hash"],
        parent_hash=found["parentHash"],
        time_s=int(found["timestamp"], 16),
        gas_used=int(found["gasUsed"], 16),
        base_fee_wei=int(found.get("baseFeePerGas") or "0x0", 16),
        transactions=tuple(found["transactions"]),
    )


def _position(log: dict[str, Any]) -> tuple[int, int]:
    return int(log["blockNumber"], 16), int(log["logIndex"], 16)
