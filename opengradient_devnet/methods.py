"""The JSON-RPC methods of the embedded chain: parameters in, plain JSON out.

It parses and refuses (-32602) and shows; the work is done by `evm`. It knows no HTTP, batches or ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_utils.address import is_address, to_canonical_address
from eth_utils.crypto import keccak

from opengradient_devnet.blocks import MinedBlock, base_fee_wei, hex_data
from opengradient_devnet.chain import RpcError
from opengradient_devnet.contracts import revert_reason
from opengradient_devnet.evm import CallRequest, Evm, ExecutionFailed, StateOverride, TransactionRefused
from opengradient_devnet.logs import LogQuery, TopicFilter

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
SERVER_ERROR = -32000
EXECUTION_REVERTED = 3  # geth's code: `data` holds what the contract said

PRIORITY_FEE_WEI = 10**6
CLIENT_VERSION = "opengradient-devnet/py-evm"
_HEAD_TAGS = ("latest", "safe", "finalized", "pending")
_MAX_FEE_HISTORY = 1024


def _invalid(what: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"invalid params: {what}")


def quantity(value: Any, *, what: str = "quantity") -> int:
    """0x-hex (or a JSON integer, which some clients send) to int."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 66:
        raise _invalid(f"{what} must be 0x-hex of at most 32 bytes")
    try:
        return int(value, 16)
    except ValueError as exc:
        raise _invalid(f"{what} is not hex") from exc


def data(value: Any, *, what: str = "data", size: int | None = None) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise _invalid(f"{what} must be 0x-hex")
    try:
        decoded = bytes.fromhex(value[2:])
    except ValueError as exc:
        raise _invalid(f"{what} is not hex") from exc
    if size is not None and len(decoded) != size:
        raise _invalid(f"{what} must have {size} bytes, it has {len(decoded)}")
    return decoded


def address(value: Any, *, what: str = "address") -> bytes:
    if not isinstance(value, str) or not is_address(value):
        raise _invalid(f"{what} is not an address")
    return to_canonical_address(value)


def _mapping(value: Any, *, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{what} must be an object")
    return value


def _optional(value: Any, parse: Callable[..., Any], *, what: str) -> Any:
    return None if value is None else parse(value, what=what)


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


def _parse_overrides(value: Any) -> dict[bytes, StateOverride]:
    overrides = {}
    for key, fields in _mapping(value or {}, what="state override").items():
        account = _mapping(fields, what="state override")
        slots = account.get("stateDiff") or account.get("state") or {}
        overrides[address(key)] = StateOverride(
            balance=_optional(account.get("balance"), quantity, what="balance"),
            nonce=_optional(account.get("nonce"), quantity, what="nonce"),
            code=_optional(account.get("code"), data, what="code"),
            slots={quantity(at): quantity(word) for at, word in _mapping(slots, what="stateDiff").items()},
        )
    return overrides


def parse_call(transaction: Any, overrides: Any = None) -> CallRequest:
    fields = _mapping(transaction, what="transaction")
    payload = fields.get("input") or fields.get("data") or "0x"
    gas = _optional(fields.get("gas"), quantity, what="gas")
    return CallRequest(
        sender=_optional(fields.get("from"), address, what="from") or b"\0" * 20,
        to=_optional(fields.get("to") or None, address, what="to") or b"",
        data=data(payload, what="input"),
        value=_optional(fields.get("value"), quantity, what="value") or 0,
        gas=gas or None,
        overrides=_parse_overrides(overrides),
    )


def _parse_topics(value: Any) -> list[TopicFilter]:
    if not isinstance(value, list):
        raise _invalid("topics must be a list")
    topics: list[TopicFilter] = []
    for item in value:
        choices = item if isinstance(item, list) else [item]
        if item is None or not choices or None in choices:
            topics.append(None)
        else:
            topics.append(tuple(hex_data(data(choice, what="topic", size=32)) for choice in choices))
    return topics


def _parse_log_query(evm: Evm, value: Any) -> LogQuery | None:
    """None when the block that is asked for does not exist."""
    fields = _mapping(value, what="filter")
    addresses = fields.get("address") or []
    addresses = addresses if isinstance(addresses, list) else [addresses]
    if fields.get("blockHash") is not None:
        if "fromBlock" in fields or "toBlock" in fields:
            raise _invalid("a filter has either blockHash or a block range")
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
        topics=_parse_topics(fields.get("topics") or []),
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
    return [] if parsed is None else evm.logs.find(parsed)


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
        raise _invalid(f"{method} takes {wanted} parameters, got {len(params)}")
