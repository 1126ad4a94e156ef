"""What a client asks a chain: balances, allowances, nonces, logs, blocks, transactions. Questions only.

Each function is a `Question` for `ChainReader.ask`. ABI words are put
together by hand: five calls do not need a library that takes 0.7 s to import. Knows nothing of payments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from opengradient_x402.addresses import address_word, checksum_address, uint_word
from opengradient_x402.chain.answers import number_in
from opengradient_x402.chain.node import Question, RpcRequest
from opengradient_x402.chain.readers import ChainReader
from opengradient_x402.errors import RpcError

__all__ = [
    "Block",
    "ChainReader",
    "Log",
    "Question",
    "RpcRequest",
    "Transaction",
    "TransactionReceipt",
    "allowance",
    "authorization_state",
    "balance_of",
    "block",
    "block_before",
    "chain_time",
    "code_of",
    "logs",
    "native_balance",
    "nonce_used",
    "quantity",
    "receipt",
    "transaction",
]

T = TypeVar("T")

_BALANCE_OF: Final = "0x70a08231"  # balanceOf(address), ERC-20
_ALLOWANCE: Final = "0xdd62ed3e"  # allowance(address,address), ERC-20
_PERMIT_NONCES: Final = "0x7ecebe00"  # nonces(address), EIP-2612
_NONCE_BITMAP: Final = "0x4fe02b44"  # nonceBitmap(address,uint256), Permit2 SignatureTransfer
_AUTHORIZATION_STATE: Final = "0xe94a0102"  # authorizationState(address,bytes32), EIP-3009
_RETURN_TIMESTAMP: Final = "0x4260005260206000f3"
"""TIMESTAMP PUSH 0 MSTORE PUSH 32 PUSH 0 RETURN: creation code that returns the time of its block."""

_HASH: Final = re.compile("0x[0-9a-fA-F]{64}", re.ASCII)
_DATA: Final = re.compile("0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_MOST_TOPICS: Final = 4
_BITS_OF_SMALL: Final = 63
FIRST_LOG_WINDOW: Final = 2_000
_LARGEST_LOG_WINDOW: Final = 10_000
_WINDOWS_BEFORE_GROWTH: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's place and time (Unix seconds)."""

    number: int
    hash: str
    timestamp_s: int
    parent_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """An event. Its address is EIP-55, other hex text is lower case."""

    address: str
    topics: tuple[str, ...]
    data: bytes
    block_number: int
    block_hash: str
    tx_hash: str
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A mined transaction's calldata."""

    tx_hash: str
    input: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionReceipt:
    """What a mined transaction did."""

    tx_hash: str
    block_number: int
    block_hash: str
    is_success: bool
    logs: tuple[Log, ...]


def balance_of(token: str, owner: str) -> Question[int]:
    """An owner's tokens, in atomic units."""
    return (yield from _call_word(token, _BALANCE_OF, address_word(owner)))


def allowance(token: str, owner: str, spender: str) -> Question[int]:
    """How much of an owner's tokens a spender may move, in atomic units."""
    return (yield from _call_word(token, _ALLOWANCE, address_word(owner) + address_word(spender)))


def permit_nonce(token: str, owner: str) -> Question[int]:
    """The nonce of an owner's next EIP-2612 permit. Raises RpcError for a token that has none."""
    return (yield from _call_word(token, _PERMIT_NONCES, address_word(owner)))


def native_balance(owner: str) -> Question[int]:
    """An owner's gas coins, in wei."""
    return quantity((yield RpcRequest("eth_getBalance", (owner, "latest"))))


def code_of(owner: str) -> Question[bytes]:
    """The code at an address: none for a wallet that only has a key, a delegation (EIP-7702), or a contract."""
    answer = yield RpcRequest("eth_getCode", (owner, "latest"))
    with _Reading("code"):
        return _bytes(answer)


def nonce_used(permit2: str, owner: str, nonce: int, *, at: int | None = None) -> Question[bool]:
    """Whether a Permit2 nonce is spent: settled or cancelled (bit `nonce & 255` of word `nonce >> 8`).

    `at` is a block, of which not every node has the state (RpcError); the latest when not given.
    """
    word = uint_word(nonce >> 8)
    bitmap = yield from _call_word(permit2, _NONCE_BITMAP, address_word(owner) + word, at=at)
    return bool(bitmap >> (nonce & 255) & 1)


def authorization_state(token: str, authorizer: str, nonce: int) -> Question[bool]:
    """Whether an EIP-3009 nonce is spent: settled or cancelled."""
    arguments = address_word(authorizer) + uint_word(nonce)
    return bool((yield from _call_word(token, _AUTHORIZATION_STATE, arguments)))


def block(number: int | str = "latest") -> Question[Block]:
    """A block by number or tag. Raises RpcError when the node does not have it."""
    tag = hex(number) if isinstance(number, int) else number
    found = yield RpcRequest("eth_getBlockByNumber", (tag, False))
    with _Reading("block"):
        shown = Block(
            number=_small(found["number"]),
            hash=_hash(found["hash"]),
            timestamp_s=_small(found["timestamp"]),
            parent_hash=str(found.get("parentHash", "")).lower(),
        )
        if isinstance(number, int) and shown.number != number:
            raise ValueError(shown.number)
        return shown


def chain_time() -> Question[int]:
    """The chain's own time in Unix seconds: no later block is earlier than this.

    Chains that mine only on demand have an old latest block, so the EVM is asked first.
    """
    try:
        return quantity((yield RpcRequest("eth_call", ({"data": _RETURN_TIMESTAMP}, "latest"))))
    except RpcError:
        return (yield from block()).timestamp_s


def block_before(time_s: int, *, head: Block) -> Question[int]:
    """The number of a block that is older than `time_s`, and close to it where the distance matters."""
    step, newer, older = 64, head.number, head.number
    while older > 0:
        older = max(0, head.number - step)
        if (yield from block(older)).timestamp_s < time_s:
            break
        newer, step = older, step * 4
    while newer - older > 64:
        middle = (newer + older) // 2
        if (yield from block(middle)).timestamp_s < time_s:
            older = middle
        else:
            newer = middle
    return older


def logs(
    address: str,
    topics: Sequence[str | Sequence[str] | None],
    *,
    from_block: int,
    to_block: int,
    window: int = FIRST_LOG_WINDOW,
) -> Question[list[Log]]:
    """Every event of a range, in windows: halved when the node refuses one, doubled after a few that it took."""
    found: list[Log] = []
    start, taken = from_block, 0
    while start <= to_block:
        end = min(to_block, start + window - 1)
        query = {
            "address": address,
            "topics": [list(topic) if isinstance(topic, tuple) else topic for topic in topics],
            "fromBlock": hex(start),
            "toBlock": hex(end),
        }
        try:
            answer = yield RpcRequest("eth_getLogs", (query,))
        except RpcError:
            if window == 1:
                raise
            window, taken = max(1, (end - start + 1) // 2), 0
            continue
        with _Reading("list of logs that were asked for"):
            found.extend(_wanted(_log(entry), address, query["topics"], start, end) for entry in answer)
        start, taken = end + 1, taken + 1
        if taken % _WINDOWS_BEFORE_GROWTH == 0:
            window = min(window * 2, _LARGEST_LOG_WINDOW)
    return found


def transaction(tx_hash: str) -> Question[Transaction | None]:
    """A transaction; None when the node does not know it."""
    found = yield RpcRequest("eth_getTransactionByHash", (tx_hash,))
    if found is None:
        return None
    with _Reading("transaction of this hash"):
        return Transaction(tx_hash=_same(_hash(found["hash"]), tx_hash.lower()), input=_bytes(found["input"]))


def receipt(tx_hash: str) -> Question[TransactionReceipt | None]:
    """What a transaction did; None while it is not mined."""
    found = yield RpcRequest("eth_getTransactionReceipt", (tx_hash,))
    if found is None:
        return None
    with _Reading("receipt of this transaction"):
        done = TransactionReceipt(
            tx_hash=_same(_hash(found["transactionHash"]), tx_hash.lower()),
            block_number=_small(found["blockNumber"]),
            block_hash=_hash(found["blockHash"]),
            is_success=quantity(found["status"]) == 1,
            logs=tuple(_log(entry) for entry in found["logs"]),
        )
        for log in done.logs:
            _same((log.tx_hash, log.block_number, log.block_hash), (done.tx_hash, done.block_number, done.block_hash))
        return done


def _call_word(contract: str, selector: str, arguments: bytes, *, at: int | None = None) -> Question[int]:
    call = {"to": contract, "data": selector + arguments.hex()}
    return quantity((yield RpcRequest("eth_call", (call, "latest" if at is None else hex(at)))))


def quantity(value: Any) -> int:
    """A number of JSON-RPC, which is 0x-hex text. Raises RpcError for anything else."""
    with _Reading("number"):
        return number_in(value)


def _small(value: Any) -> int:
    """A height, a time or a position: at most 63 bits, as databases have it. Raises ValueError, TypeError."""
    if (number := number_in(value)) >> _BITS_OF_SMALL:
        raise ValueError(value)
    return number


def _bytes(value: Any) -> bytes:
    if _DATA.fullmatch(value) is None:
        raise ValueError(value[:80])
    return bytes.fromhex(value[2:])


def _log(entry: dict[str, Any]) -> Log:
    topics = tuple(_hash(topic) for topic in entry["topics"])
    if len(topics) > _MOST_TOPICS:
        raise ValueError(len(topics))
    return Log(
        address=checksum_address(entry["address"]),
        topics=topics,
        data=_bytes(entry["data"]),
        block_number=_small(entry["blockNumber"]),
        block_hash=_hash(entry["blockHash"]),
        tx_hash=_hash(entry["transactionHash"]),
        log_index=_small(entry["logIndex"]),
    )


def _wanted(log: Log, address: str, topics: Sequence[Any], start: int, end: int) -> Log:
    """The event, when it is one of those that were asked for: others prove nothing. Raises ValueError."""
    _same(log.address, checksum_address(address))
    for at, wanted in enumerate(topics):
        allowed = [wanted] if isinstance(wanted, str) else wanted
        if allowed is not None and (len(log.topics) <= at or log.topics[at] not in [one.lower() for one in allowed]):
            raise ValueError(log.topics)
    if not start <= log.block_number <= end:
        raise ValueError(log.block_number)
    return log


def _same(found: T, wanted: T) -> T:
    """What was found, when it is what was asked for: nodes and caches mix answers up. Raises ValueError."""
    if found != wanted:
        raise ValueError(found)
    return found


def _hash(value: Any) -> str:
    if _HASH.fullmatch(value) is None:
        raise ValueError(value)
    return str(value).lower()


class _Reading:
    """Turns every error in the shape of an answer into an RpcError that says what was read."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, TypeError | ValueError | KeyError | AttributeError):
            raise RpcError(
                f"The node's answer is not a {self._what} ({type(exc).__name__}). The chain was not changed by "
                "asking. Check `rpc_url`, or ask another node."
            ) from exc
