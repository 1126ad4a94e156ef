"""What the contract of payment channels writes about a channel: deposits, claims, and what went back to the payer.

Pure readings of logs and of a claim's calldata, and one question that finds the events of channels. The events are
those of x402's contract (docs/wire.md, "Channels").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from opengradient_x402.addresses import address_word
from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, ERC3009_COLLECTOR, PERMIT2_COLLECTOR, ChannelConfig
from opengradient_x402.chain.questions import Log, Question, logs

DEPOSITED: Final = "0x6c2a09353b5e75e70d0b9778b80a413809bb235d46c211811c474b3346791d89"
"""keccak256("Deposited(bytes32,address,uint128,uint128)"): amount, and the balance after it."""
CLAIMED: Final = "0x36bd546bb573e8921fdbfd934bbed62d872796b01792cd240cce27f79dd3eddd"
"""keccak256("Claimed(bytes32,address,uint128,uint128)"): amount, and all that was claimed so far."""
REFUNDED: Final = "0xa84286cf8ebc7903a663c77c8d99aa92b600d4c2fcca872a5d4a663db4eb394b"
"""keccak256("Refunded(bytes32,address,uint128)")."""
WITHDRAWN: Final = "0x546ce1e2242cd930c196bd08b894443562d709b4fffe4f028a75a6d233efc6e3"
"""keccak256("WithdrawFinalized(bytes32,address,uint128)")."""
COLLECTORS: Final = (BATCH_SETTLEMENT, ERC3009_COLLECTOR, PERMIT2_COLLECTOR)
"""Where a deposit goes first: Permit2 moves it to the contract itself, EIP-3009 to its collector."""

Kind = Literal["deposit", "claim", "return"]
_KINDS: Final[dict[str, tuple[Kind, int]]] = {
    DEPOSITED: ("deposit", 2),
    CLAIMED: ("claim", 2),
    REFUNDED: ("return", 1),
    WITHDRAWN: ("return", 1),
}
"""What an event says, and how many words its data have."""
_WORD: Final = 32
_IDS_PER_QUERY: Final = 100
_TOPICS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMove:
    """One event of a channel. `total_atomic` is the balance after a deposit, or all that was claimed; else 0."""

    kind: Kind
    channel_id: str
    amount_atomic: int
    total_atomic: int
    log: Log


def move_of(log: Log) -> ChannelMove | None:
    """What an event says of a channel; None for any other event."""
    kind, words = _KINDS.get(log.topics[0] if log.topics else "", ("return", -1))
    if log.address != BATCH_SETTLEMENT or len(log.topics) != _TOPICS or len(log.data) != words * _WORD:
        return None
    return ChannelMove(
        kind=kind,
        channel_id=log.topics[1],
        amount_atomic=int.from_bytes(log.data[:_WORD], "big"),
        total_atomic=int.from_bytes(log.data[_WORD:], "big"),
        log=log,
    )


def moves_of(
    channel_ids: Sequence[str], *, from_block: int, to_block: int, events: Sequence[str] = tuple(_KINDS)
) -> Question[list[ChannelMove]]:
    """The events of these channels in a range of blocks, in order. Raises ChainUnavailable."""
    found: list[ChannelMove] = []
    for first in range(0, len(channel_ids), _IDS_PER_QUERY):
        topics = [tuple(events), tuple(channel_ids[first : first + _IDS_PER_QUERY])]
        written = yield from logs(BATCH_SETTLEMENT, topics, from_block=from_block, to_block=to_block)
        found += filter(None, map(move_of, written))
    return sorted(found, key=lambda move: (move.log.block_number, move.log.log_index))


def config_words(config: ChannelConfig) -> bytes:
    """A channel's parameters as the contract's functions take them: seven words."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.asset)
    numbers = (config.withdraw_delay_s, config.salt)
    return b"".join(map(address_word, parties)) + b"".join(number.to_bytes(_WORD, "big") for number in numbers)


def ceilings_in(calldata: bytes, config: ChannelConfig) -> Iterator[tuple[int, int]]:
    """The vouchers of this channel in a transaction's calldata: what each allows in total, and its place."""
    words = config_words(config)
    start = calldata.find(words)
    while start >= 0:
        first = start + len(words)
        yield int.from_bytes(calldata[first : first + _WORD], "big"), first
        start = calldata.find(words, start + 1)
