"""What one node shows at one block: its time, its ancestors, and which nonces are used, all read together.

Two requests may be answered by two nodes, and one of them may be behind. So what belongs together is read in one
request, through Multicall3 (multicall3.com, one address on every chain). A chain without it gets requests that are
pinned to one block hash (EIP-1898), and blocks that are linked by their parents' hashes. Every function is a
`Question`. What a used nonce means is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from opengradient_x402.addresses import address_word
from opengradient_x402.chain.node import Question, RpcRequest
from opengradient_x402.chain.questions import Block, block, quantity
from opengradient_x402.effects import Sleep
from opengradient_x402.errors import ChainUnavailable, RpcError

T = TypeVar("T")

MULTICALL3: Final = "0xcA11bde05977b3631167028862bE2a173976CA11"
_TRY_BLOCK_AND_AGGREGATE: Final = bytes.fromhex("399542e9")  # tryBlockAndAggregate(bool,(address,bytes)[])
_CURRENT_TIME: Final = bytes.fromhex("0f28c97d")  # getCurrentBlockTimestamp()
_BLOCK_HASH: Final = bytes.fromhex("ee82ac5e")  # getBlockHash(uint256)
_NONCE_BITMAP: Final = bytes.fromhex("4fe02b44")  # nonceBitmap(address,uint256), Permit2 SignatureTransfer
_AUTHORIZATION_STATE: Final = bytes.fromhex("e94a0102")  # authorizationState(address,bytes32), EIP-3009
_WORD: Final = 32
_MOST_READS: Final = 256
"""In one request: nodes bound its gas and its size."""
_REPEATS: Final = 3
_REPEAT_PAUSE_S: Final = 0.3
_MOST_LINKS: Final = 64


class Nonce(NamedTuple):
    """A nonce that a contract keeps: Permit2, or the token itself for EIP-3009."""

    keeper: str
    payer: str
    number: int
    is_bitmap: bool
    """Permit2 keeps 256 nonces in a word; a token keeps each by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which of some nonces are used at one block, and the time of that block in Unix seconds."""

    timestamp_s: int
    used: Mapping[Nonce, bool]


class Place(NamedTuple):
    """A block that something was found in."""

    number: int
    hash: str


def nonces_at_one_block(nonces: Sequence[Nonce]) -> Question[list[View]]:
    """Which nonces are used, in views of at most some hundred nonces, each of one block of its own.

    Raises ChainUnavailable (RpcError) when the node does not answer.
    """
    views: list[View] = []
    for some in _batches(list(dict.fromkeys(nonces)), _MOST_READS - 1):
        view = yield from _nonces_together(some)
        views.append(view)
    return views


def confirmations(places: Iterable[Place], *, needed: int) -> Question[dict[Place, int | None]]:
    """How many blocks stand on each place, its own included; 0 where the chain has another block by now.

    None where the node that was asked is behind, and cannot know. More than `needed` need not be counted.
    """
    wanted = list(dict.fromkeys(places))
    found: dict[Place, int | None] = {}
    for some in _batches(wanted, _MOST_READS):
        found |= yield from _confirmed_together(some, needed)
    return found


# -- in one request


def _nonces_together(nonces: Sequence[Nonce]) -> Question[View]:
    reads = [(MULTICALL3, _CURRENT_TIME), *map(_read_of, nonces)]
    together = yield from _aggregated(reads)
    if together is None:
        return (yield from _nonces_pinned(nonces))
    _, (now, *words) = together
    return View(timestamp_s=now, used={nonce: _is_used(nonce, word) for nonce, word in zip(nonces, words, strict=True)})


def _confirmed_together(places: Sequence[Place], needed: int) -> Question[dict[Place, int | None]]:
    reads = [(MULTICALL3, _BLOCK_HASH + place.number.to_bytes(_WORD, "big")) for place in places]
    together = yield from _aggregated(reads)
    if together is None:
        return (yield from _confirmed_by_links(places, needed))
    number, hashes = together
    found: dict[Place, int | None] = {}
    for place, seen in zip(places, hashes, strict=True):
        if seen:
            # Nodes give this call the number of their last block, or of the next one: at least this many stand on it.
            found[place] = number - place.number if f"0x{seen:064x}" == place.hash else 0
        elif place.number > number:
            found[place] = None
        else:  # the last block itself, or one older than the EVM remembers (256): it stands alone, or deep enough
            now = yield from _hash_at(place.number)
            standing = max(1, number - place.number)
            found[place] = None if now is None else standing if now == place.hash else 0
    return found


def _aggregated(reads: Sequence[tuple[str, bytes]]) -> Question[tuple[int, list[int]] | None]:
    """The number of the block, and the word that each read gives there. None on a chain without Multicall3.

    Raises RpcError when a read fails, which those of an existing contract do not.
    """
    call = {"to": MULTICALL3, "data": "0x" + (_TRY_BLOCK_AND_AGGREGATE + _encoded(reads)).hex()}
    try:
        answer = yield RpcRequest("eth_call", (call, "latest"))
    except RpcError as exc:
        if exc.code is None:
            raise  # no answer in time, or none that can be read: nothing is known of the contract
        return None
    if answer == "0x":
        return None
    try:
        return _decoded(bytes.fromhex(answer.removeprefix("0x")), len(reads))
    except (AttributeError, TypeError, ValueError) as exc:
        raise RpcError(
            f"The node's answer is not that of Multicall3 ({type(exc).__name__}). The chain was not changed by asking. "
            "Check `rpc_url`, or ask another node."
        ) from exc


def _encoded(reads: Sequence[tuple[str, bytes]]) -> bytes:
    """The arguments (bool requireSuccess, (address target, bytes callData)[] calls) in ABI form."""
    entries = []
    for target, data in reads:
        padded = data + bytes(-len(data) % _WORD)
        entries.append(address_word(target) + _word(2 * _WORD) + _word(len(data)) + padded)
    offsets, at = [], len(entries) * _WORD
    for entry in entries:
        offsets.append(_word(at))
        at += len(entry)
    return _word(0) + _word(2 * _WORD) + _word(len(entries)) + b"".join(offsets) + b"".join(entries)


def _decoded(answer: bytes, count: int) -> tuple[int, list[int]]:
    """Block number and words out of (uint256, bytes32, (bool success, bytes returnData)[]). Raises ValueError."""
    listed = _int_at(answer, 2 * _WORD)
    if _int_at(answer, listed) != count:
        raise ValueError("another number of answers")
    words, first = [], listed + _WORD
    for index in range(count):
        entry = first + _int_at(answer, first + index * _WORD)
        data = entry + _int_at(answer, entry + _WORD)
        if _int_at(answer, entry) != 1 or _int_at(answer, data) != _WORD:
            raise ValueError("a read failed")
        words.append(_int_at(answer, data + _WORD))
    return _int_at(answer, 0), words


def _int_at(answer: bytes, offset: int) -> int:
    word = answer[offset : offset + _WORD]
    if len(word) != _WORD:
        raise ValueError("cut short")
    return int.from_bytes(word, "big")


def _word(value: int) -> bytes:
    return value.to_bytes(_WORD, "big")


# -- on a chain without Multicall3


def at_one_block(read: Callable[[Block], Question[T]], *, confirmations: int = 1) -> Question[T]:
    """What `read` finds at the last block, or at one on which so many stand, its own included.

    It asks by the block's hash. A node that does not have the block is asked about another.
    """
    problem: ChainUnavailable | None = None
    for attempt in range(_REPEATS):
        if attempt:
            yield Sleep(_REPEAT_PAUSE_S)
        head = yield from block()
        try:
            if confirmations > 1:
                head = yield from block(max(0, head.number - confirmations + 1))
            return (yield from read(head))
        except RpcError as exc:
            problem = exc
    raise problem or AssertionError("unreachable")


def pinned_call(to: str, data: bytes, at: Block) -> RpcRequest:
    """A call of a contract at exactly this block."""
    pinned = {"blockHash": at.hash, "requireCanonical": True}
    return RpcRequest("eth_call", ({"to": to, "data": "0x" + data.hex()}, pinned))


def used_at(nonce: Nonce, at: Block) -> Question[bool]:
    """Whether the nonce is used at exactly this block."""
    return _is_used(nonce, quantity((yield pinned_call(*_read_of(nonce), at))))


def _nonces_pinned(nonces: Sequence[Nonce]) -> Question[View]:
    def read(head: Block) -> Question[View]:
        used: dict[Nonce, bool] = {}
        for nonce in nonces:
            used[nonce] = yield from used_at(nonce, head)
        return View(timestamp_s=head.timestamp_s, used=used)

    return at_one_block(read)


def _confirmed_by_links(places: Sequence[Place], needed: int) -> Question[dict[Place, int | None]]:
    """Counts blocks of which each names the one below as its parent: one chain, also from several nodes."""
    head = yield from block()
    known: dict[int, Block | None] = {head.number: head}
    found: dict[Place, int | None] = {}
    for place in places:
        at_height = yield from _known_block(place.number, known, head)
        if at_height is None:
            found[place] = None
        elif at_height.hash != place.hash:
            found[place] = 0
        else:
            found[place] = yield from _links_on(at_height, known, head, min(needed, _MOST_LINKS))
    return found


def _links_on(first: Block, known: dict[int, Block | None], head: Block, most: int) -> Question[int]:
    below, count = first, 1
    while count < most:
        above = yield from _known_block(below.number + 1, known, head)
        if above is None or above.parent_hash != below.hash:
            break
        below, count = above, count + 1
    # All that were wanted are linked: older than that, the number of the last block counts them.
    return max(count, head.number - first.number + 1) if count == most else count


def _known_block(number: int, known: dict[int, Block | None], head: Block) -> Question[Block | None]:
    if number > head.number:
        return None
    if number not in known:
        try:
            known[number] = yield from block(number)
        except RpcError:
            known[number] = None
    return known[number]


def _hash_at(number: int) -> Question[str | None]:
    try:
        return (yield from block(number)).hash
    except RpcError:
        return None


# -- nonces


def _read_of(nonce: Nonce) -> tuple[str, bytes]:
    if nonce.is_bitmap:
        return nonce.keeper, _NONCE_BITMAP + address_word(nonce.payer) + _word(nonce.number >> 8)
    return nonce.keeper, _AUTHORIZATION_STATE + address_word(nonce.payer) + _word(nonce.number)


def _is_used(nonce: Nonce, word: int) -> bool:
    return bool(word >> (nonce.number & 255) & 1) if nonce.is_bitmap else bool(word)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
