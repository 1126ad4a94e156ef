"""The JSON-RPC methods of the embedded chain: parameters in, plain JSON out.

`parameters` parses, `evm` executes, `blocks` writes the JSON. HTTP, batches and ids are in `rpc`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_utils.address import to_canonical_address
from eth_utils.crypto import keccak

from opengradient_devnet.chain.blocks import MinedBlock, base_fee_wei, hex_data
from opengradient_devnet.chain.calls import ExecutionFailed
from opengradient_devnet.chain.chain import RpcError
from opengradient_devnet.chain.evm import Evm, TransactionRefused
from opengradient_devnet.chain.logs import LogQuery
from opengradient_devnet.chain.parameters import address, data, invalid, mapping, parse_call, parse_topics, quantity
from opengradient_devnet.contracts import revert_reason

METHOD_NOT_FOUND = -32601
SERVER_ERROR = -32000
EXECUTION_REVERTED = 3  # geth's code: `data` holds what the contract said

PRIORITY_FEE_WEI = 10**6
CLIENT_VERSION = "opengradient-devnet/py-evm"
_HEAD_TAGS = ("latest", "safe", "finalized", "pending")
_MAX_FEE_HISTORY = 1024
_MAX_PERCENTILES = 100
MAX_LOGS = 10_000  # as with public nodes, which then want a shorter range
LIMIT_EXCEEDED = -32005  # EIP-1474


def find_block(evm: Evm, tag: Any) -> MinedBlock | None:
    """A block by tag, number or EIP-1898 object; None when there is none (yet)."""
    if tag is None or tag in _HEAD_TAGS:
        return evm.blocks.head
    if tag == "earliest":
        return evm.blocks.by_number(0)
    if isinstance(tag, dict):
        if "blockHash" in tag:
            return evm.blocks.by_hash(hex_data(data(tag["blockHash"], what="blockHash", size=32)))
        return find_block(evm, tag.get("blockNumber"))
    return evm.blocks.by_number(quantity(tag, what="block"))


def _block(evm: Evm, tag: Any) -> MinedBlock:
    found = find_block(evm, tag)
    if found is None:
        raise RpcError(SERVER_ERROR, "header not found")
    return found


def _parse_log_query(evm: Evm, value: Any) -> LogQuery | None:
    """None when the block that is asked for does not exist."""
    fields = mapping(value, what="filter")
    addresses = fields.get("address") or []
    addresses = addresses if isinstance(addresses, list) else [addresses]
    if fields.get("blockHash") is not None:
        if "fromBlock" in fields or "toBlock" in fields:
            raise invalid("a filter has either blockHash or a block range")
        block = _block(evm, {"blockHash": fields["blockHash"]})
        first = last = block.number
    else:
        first = _range_end(evm, fields.get("fromBlock"))
        last = _range_end(evm, fields.get("toBlock"))
    if first > last:
        return None
    return LogQuery(
        first_block=first,
        last_block=last,
        addresses=frozenset(hex_data(address(item)) for item in addresses),
        topics=parse_topics(fields.get("topics") or []),
    )


def _range_end(evm: Evm, tag: Any) -> int:
    # A range may reach beyond the head: a reader that polls must not fail because it was early.
    if tag is None or tag in _HEAD_TAGS or tag == "earliest":
        return _block(evm, tag).number
    return quantity(tag, what="block")


def _reverted(failure: ExecutionFailed) -> RpcError:
    if failure.output is None:
        return RpcError(SERVER_ERROR, str(failure))
    reason = revert_reason(failure.output)
    message = f"{failure}: {reason}" if failure.output else str(failure)
    return RpcError(EXECUTION_REVERTED, message, data=hex_data(failure.output))


def _call(evm: Evm, transaction: Any, tag: Any = "latest", overrides: Any = None) -> str:
    head = tag is None or tag in _HEAD_TAGS
    at = None if head else _block(evm, tag)
    try:
        return hex_data(evm.execute(parse_call(transaction, overrides), at=at))
    except ExecutionFailed as failure:
        raise _reverted(failure) from failure


def _estimate_gas(evm: Evm, transaction: Any, _tag: Any = "latest", overrides: Any = None) -> str:
    try:
        return hex(evm.estimate_gas(parse_call(transaction, overrides)))
    except ExecutionFailed as failure:
        raise _reverted(failure) from failure


def _send_raw(evm: Evm, raw: Any) -> str:
    try:
        return evm.submit(data(raw, what="raw transaction"))
    except TransactionRefused as exc:
        raise RpcError(SERVER_ERROR, str(exc)) from exc


def _get_logs(evm: Evm, query: Any) -> list[dict[str, Any]]:
    parsed = _parse_log_query(evm, query)
    found = [] if parsed is None else evm.logs.find(parsed)
    if len(found) > MAX_LOGS:
        raise RpcError(LIMIT_EXCEEDED, f"query returned more than {MAX_LOGS} results")
    return found


def _transaction_count(evm: Evm, account: Any, tag: Any = "latest") -> str:
    who = address(account)
    if tag == "pending":
        return hex(evm.pending_nonce(who))
    return hex(evm.state(_block(evm, tag)).get_nonce(to_canonical_address(who)))


def _storage_at(evm: Evm, account: Any, slot: Any, tag: Any = "latest") -> str:
    where = quantity(slot, what="slot")
    return f"0x{evm.state(_block(evm, tag)).get_storage(to_canonical_address(address(account)), where):064x}"


def _fee_history(evm: Evm, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
    head = _block(evm, newest)
    blocks = evm.blocks.last(min(quantity(count, what="blockCount"), _MAX_FEE_HISTORY), newest=head.number)
    fees = [base_fee_wei(block.header) for block in blocks]
    after = evm.blocks.by_number(head.number + 1)
    fees.append(evm.base_fee_wei if after is None else base_fee_wei(after.header))
    answer: dict[str, Any] = {
        "oldestBlock": hex(blocks[0].number if blocks else head.number),
        "baseFeePerGas": [hex(fee) for fee in fees],
        "gasUsedRatio": [block.header.gas_used / block.header.gas_limit for block in blocks],
    }
    if percentiles:
        if not isinstance(percentiles, list) or len(percentiles) > _MAX_PERCENTILES:
            raise invalid(f"percentiles are a list of at most {_MAX_PERCENTILES}")
        answer["reward"] = [[hex(PRIORITY_FEE_WEI)] * len(percentiles) for _ in blocks]
    return answer


def _block_receipts(evm: Evm, tag: Any) -> list[dict[str, Any] | None] | None:
    block = find_block(evm, tag)
    return None if block is None else [evm.blocks.receipt(tx_hash) for tx_hash in block.tx_hashes]


def _block_by_hash(evm: Evm, block_hash: Any, full: Any = False) -> dict[str, Any] | None:  # noqa: FBT002  # JSON-RPC
    found = evm.blocks.by_hash(hex_data(data(block_hash, what="block hash", size=32)))
    return evm.blocks.shown(found, full=bool(full))


def _block_by_number(evm: Evm, tag: Any, full: Any = False) -> dict[str, Any] | None:  # noqa: FBT002  # JSON-RPC
    evm.keep_up()
    return evm.blocks.shown(find_block(evm, tag), full=bool(full))


def _block_number(evm: Evm) -> str:
    evm.keep_up()
    return hex(evm.blocks.head.number)


def _mine(evm: Evm) -> str:
    evm.mine_empty()
    return "0x0"


def _raw_transaction(evm: Evm, tx_hash: Any) -> str | None:
    raw = evm.blocks.raw_transaction(_hash(tx_hash))
    return None if raw is None else hex_data(raw)


def _hash(value: Any) -> str:
    return hex_data(data(value, what="transaction hash", size=32))


METHODS: dict[str, Callable[..., Any]] = {
    "eth_accounts": lambda _evm: [],
    "eth_blockNumber": _block_number,
    "eth_call": _call,
    "eth_chainId": lambda evm: hex(evm.chain_id),
    "eth_estimateGas": _estimate_gas,
    "eth_feeHistory": _fee_history,
    # Twice the base fee: it must still be enough a few full blocks later.
    "eth_gasPrice": lambda evm: hex(2 * evm.base_fee_wei + PRIORITY_FEE_WEI),
    "eth_getBalance": lambda evm, who, tag="latest": hex(
        evm.state(_block(evm, tag)).get_balance(to_canonical_address(address(who)))
    ),
    "eth_getBlockByHash": _block_by_hash,
    "eth_getBlockByNumber": _block_by_number,
    "eth_getBlockReceipts": _block_receipts,
    "eth_getCode": lambda evm, who, tag="latest": hex_data(
        evm.state(_block(evm, tag)).get_code(to_canonical_address(address(who)))
    ),
    "eth_getLogs": _get_logs,
    "eth_getRawTransactionByHash": _raw_transaction,
    "eth_getStorageAt": _storage_at,
    "eth_getTransactionByHash": lambda evm, tx_hash: evm.blocks.transaction(_hash(tx_hash)),
    "eth_getTransactionCount": _transaction_count,
    "eth_getTransactionReceipt": lambda evm, tx_hash: evm.blocks.receipt(_hash(tx_hash)),
    "eth_maxPriorityFeePerGas": lambda _evm: hex(PRIORITY_FEE_WEI),
    "eth_sendRawTransaction": _send_raw,
    "eth_syncing": lambda _evm: False,
    "evm_mine": _mine,
    "net_listening": lambda _evm: True,
    "net_version": lambda evm: str(evm.chain_id),
    "web3_clientVersion": lambda _evm: CLIENT_VERSION,
    "web3_sha3": lambda _evm, value: hex_data(keccak(data(value))),
}


def answer(evm: Evm, method: str, params: list[Any]) -> Any:
    """The result of one call; raises `RpcError` with the code that JSON-RPC has for what is wrong."""
    function = METHODS.get(method)
    if function is None:
        raise RpcError(METHOD_NOT_FOUND, f"the method {method} does not exist/is not available")
    _check_count(function, method, params)
    return function(evm, *params)


def _check_count(function: Callable[..., Any], method: str, params: list[Any]) -> None:
    most = function.__code__.co_argcount - 1
    least = most - len(function.__defaults__ or ())
    if not least <= len(params) <= most:
        wanted = str(most) if least == most else f"{least} to {most}"
        raise invalid(f"{method} takes {wanted} parameters, got {len(params)}")
