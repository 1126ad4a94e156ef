"""Stores the blocks, transactions and receipts of a running chain, and writes them as the JSON of eth_ methods.

They come from `evm` as py-evm's objects and stay in memory; only a rewind removes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rlp  # type: ignore[import-untyped]  # rlp has no py.typed
from eth.abc import BlockAPI, BlockHeaderAPI, LogAPI, ReceiptAPI, SignedTransactionAPI
from eth_utils.address import to_checksum_address

_ACCESS_LIST_TYPE = 1  # EIP-2930
_DYNAMIC_FEE_TYPE = 2  # EIP-1559


def hex_data(value: bytes) -> str:
    return "0x" + value.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedBlock:
    block: BlockAPI
    hash: str
    tx_hashes: tuple[str, ...]

    @property
    def header(self) -> BlockHeaderAPI:
        return self.block.header

    @property
    def number(self) -> int:
        return int(self.header.block_number)

    @property
    def place(self) -> dict[str, str]:
        """Where a block's one transaction is, as transactions, receipts and logs all say it."""
        return {"blockHash": self.hash, "blockNumber": hex(self.number), "transactionIndex": "0x0"}


def transaction_json(transaction: SignedTransactionAPI, *, chain_id: int) -> dict[str, Any]:
    """A transaction without its place in a block (geth's fields, by transaction type)."""
    kind: int = getattr(transaction, "type_id", None) or 0
    shown: dict[str, Any] = {
        "hash": hex_data(transaction.hash),
        "type": hex(kind),
        "nonce": hex(transaction.nonce),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "input": hex_data(transaction.data),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "chainId": hex(chain_id),
    }
    if kind == 0:
        return {**shown, "gasPrice": hex(transaction.gas_price), "v": hex(getattr(transaction, "v", 0))}
    shown |= {
        "v": hex(transaction.y_parity),
        "yParity": hex(transaction.y_parity),
        "accessList": [
            {"address": to_checksum_address(address), "storageKeys": [f"0x{key:064x}" for key in keys]}
            for address, keys in transaction.access_list
        ],
    }
    if kind == _ACCESS_LIST_TYPE:
        return {**shown, "gasPrice": hex(transaction.gas_price)}
    return {
        **shown,
        "maxFeePerGas": hex(transaction.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(transaction.max_priority_fee_per_gas),
        "gasPrice": hex(transaction.max_fee_per_gas),
    }


def base_fee_wei(header: BlockHeaderAPI) -> int:
    return int(header.base_fee_per_gas or 0)


def effective_gas_price_wei(transaction: SignedTransactionAPI, base_fee: int) -> int:
    if (getattr(transaction, "type_id", None) or 0) < _DYNAMIC_FEE_TYPE:
        return int(transaction.gas_price)
    return min(transaction.max_fee_per_gas, base_fee + transaction.max_priority_fee_per_gas)


def log_json(log: LogAPI, *, index: int, mined: MinedBlock, tx_hash: str) -> dict[str, Any]:
    return {
        **mined.place,
        "transactionHash": tx_hash,
        "address": to_checksum_address(log.address),
        "topics": [f"0x{topic:064x}" for topic in log.topics],
        "data": hex_data(log.data),
        "logIndex": hex(index),
        "blockTimestamp": hex(mined.header.timestamp),
        "removed": False,
    }


def receipt_json(
    receipt: ReceiptAPI, *, mined: MinedBlock, transaction: dict[str, Any], failed: bool, created: str | None
) -> dict[str, Any]:
    """The receipt of the only transaction of a block."""
    tx_hash = transaction["hash"]
    return {
        **mined.place,
        "transactionHash": tx_hash,
        "type": transaction["type"],
        "from": transaction["from"],
        "to": transaction["to"],
        "contractAddress": created,
        "status": "0x0" if failed else "0x1",
        "gasUsed": hex(receipt.gas_used),
        "cumulativeGasUsed": hex(receipt.gas_used),
        "effectiveGasPrice": transaction["gasPrice"],
        "logs": [log_json(log, index=index, mined=mined, tx_hash=tx_hash) for index, log in enumerate(receipt.logs)],
        "logsBloom": hex_data(receipt.bloom.to_bytes(256, "big")),
    }


def block_json(mined: MinedBlock) -> dict[str, Any]:
    """A block with the hashes of its transactions."""
    header = mined.header
    return {
        "number": hex(header.block_number),
        "hash": mined.hash,
        "parentHash": hex_data(header.parent_hash),
        "timestamp": hex(header.timestamp),
        "miner": to_checksum_address(header.coinbase),
        "stateRoot": hex_data(header.state_root),
        "transactionsRoot": hex_data(header.transaction_root),
        "receiptsRoot": hex_data(header.receipt_root),
        "sha3Uncles": hex_data(header.uncles_hash),
        "logsBloom": hex_data(header.bloom.to_bytes(256, "big")),
        "mixHash": hex_data(header.mix_hash),
        "nonce": hex_data(header.nonce),
        "extraData": hex_data(header.extra_data),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "baseFeePerGas": hex(base_fee_wei(header)),
        "size": hex(len(rlp.encode(mined.block))),
        "withdrawalsRoot": hex_data(header.withdrawals_root or b""),
        "withdrawals": [],
        "blobGasUsed": hex(header.blob_gas_used),
        "excessBlobGas": hex(header.excess_blob_gas),
        "parentBeaconBlockRoot": hex_data(header.parent_beacon_block_root or b""),
        "transactions": list(mined.tx_hashes),
        "uncles": [],
    }


class BlockStore:
    """Everything mined so far, found by number and by hash."""

    def __init__(self) -> None:
        self._blocks: list[MinedBlock] = []
        self._by_hash: dict[str, MinedBlock] = {}
        self._transactions: dict[str, dict[str, Any]] = {}
        self._receipts: dict[str, dict[str, Any]] = {}
        self._raw: dict[str, bytes] = {}

    def add(self, mined: MinedBlock) -> None:
        self._blocks.append(mined)
        self._by_hash[mined.hash] = mined

    def add_transaction(self, transaction: dict[str, Any], receipt: dict[str, Any], *, raw: bytes) -> None:
        self._transactions[transaction["hash"]] = transaction
        self._receipts[transaction["hash"]] = receipt
        self._raw[transaction["hash"]] = raw

    def rewind(self, block_count: int) -> None:
        """Forget the last blocks and their transactions."""
        keep = len(self._blocks) - block_count
        for mined in self._blocks[keep:]:
            del self._by_hash[mined.hash]
            for tx_hash in mined.tx_hashes:
                del self._transactions[tx_hash], self._receipts[tx_hash], self._raw[tx_hash]
        del self._blocks[keep:]

    @property
    def head(self) -> MinedBlock:
        return self._blocks[-1]

    def by_number(self, number: int) -> MinedBlock | None:
        return self._blocks[number] if 0 <= number < len(self._blocks) else None

    def by_hash(self, block_hash: str) -> MinedBlock | None:
        return self._by_hash.get(block_hash.lower())

    def last(self, count: int, *, newest: int) -> list[MinedBlock]:
        return self._blocks[max(0, newest + 1 - count) : newest + 1]

    def transaction(self, tx_hash: str) -> dict[str, Any] | None:
        return self._transactions.get(tx_hash.lower())

    def raw_transaction(self, tx_hash: str) -> bytes | None:
        """A transaction as it was signed and sent."""
        return self._raw.get(tx_hash.lower())

    def receipt(self, tx_hash: str) -> dict[str, Any] | None:
        return self._receipts.get(tx_hash.lower())

    def shown(self, mined: MinedBlock | None, *, full: bool) -> dict[str, Any] | None:
        """A block as JSON; `full` puts whole transactions in place of their hashes."""
        if mined is None:
            return None
        answer = block_json(mined)
        if full:
            answer["transactions"] = [self._transactions[tx_hash] for tx_hash in mined.tx_hashes]
        return answer
