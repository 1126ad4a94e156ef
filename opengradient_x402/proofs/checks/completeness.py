"""Whether a file has every settlement of a wallet: the chain is read between two blocks, and compared with the file.

A settlement is what moves the network's token out of the payer's wallet through an x402 proxy, or by an EIP-3009
authorization. So is a deposit into a payment channel, and what is claimed from it; of channels that were filled before
the period, those in the file are looked at. Other payments of the payer are no settlements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from opengradient_x402.chain.questions import Log, Question, block, logs, receipt
from opengradient_x402.chain.sources import Sources
from opengradient_x402.channels.events import CLAIMED, ChannelMove, moves_of
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.networks import Network
from opengradient_x402.proofs.findings import Finding, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.settlement.outgoing import deposits_in, settled_in
from opengradient_x402.settlement.recognition import TRANSFER, address_topic

_SHOWN: Final = 5
Claim = tuple[str, int]
"""A transfer on chain: its transaction, and the index of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From one block to another, both included."""

    from_block: int
    to_block: int


def stated_completeness(payers: Sequence[str], period: Period | None) -> list[Finding]:
    """What the file alone says of itself."""
    if period is None:
        why = "the file names no period"
        return [Undecided(statement=Statement.COMPLETE, about=payer, why=why) for payer in payers]
    why = f"the file says so for blocks {period.from_block} to {period.to_block}; no chain was asked"
    return [Stated(statement=Statement.COMPLETE, about=payer, why=why) for payer in payers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What a file explains: transfers and events by their place, and what of a channel's claims it does not explain.

    `channels` are the ids of the payer's channels in the file.
    """

    claims: Collection[Claim]
    channels: Sequence[str] = ()
    unexplained: Mapping[str, int] = field(default_factory=dict)


def completeness(
    payer: str, period: Period, explained: Explained, *, network: Network, sources: Sources
) -> Steps[Finding]:
    """Whether what was settled, deposited and claimed of this payer in the period is what the file explains."""
    statement, show = Statement.COMPLETE, network.asset.format
    try:
        source = yield from sources.source(network)
        found = yield from sources.ask(network, outgoings_of(payer, period, network, explained.channels))
    except ChainUnavailable as exc:
        return Undecided(statement=statement, about=payer, why=exc.message)
    absent = [one for one in found.all if one.place not in explained.claims]
    between = f"between blocks {period.from_block} and {period.to_block}"
    if absent:
        amounts = [f"{show(one.amount_atomic)} in {one.place[0]}" for one in absent[:_SHOWN]]
        more = f", and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        why = f"{len(absent)} of {found.words} {between} are not in this file: {', '.join(amounts)}{more}"
        return Refuted(statement=statement, about=payer, why=why)
    if explained.unexplained:
        amounts = [f"{show(amount)} from {name}" for name, amount in list(explained.unexplained.items())[:_SHOWN]]
        why = f"claims from payment channels are of no call in this file: {', '.join(amounts)}"
        return Refuted(statement=statement, about=payer, why=why)
    if found.until < period.to_block:
        why = f"all {found.words} up to block {found.until} are in this file, and the node has no later block yet"
        return Undecided(statement=statement, about=payer, why=why)
    why = f"all {found.words} of this wallet {between} are in this file; only {network.asset.symbol} was looked for"
    return Read(statement=statement, about=payer, why=why, source=source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What left a wallet, or was claimed from its channel: where that is on the chain, and how much."""

    place: Claim
    amount_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoings:
    """Settlements, deposits into channels, and claims from channels, each in order; `until` is the last block read."""

    settlements: list[Outgoing]
    deposits: list[Outgoing]
    claims: list[Outgoing]
    until: int

    @property
    def all(self) -> list[Outgoing]:
        """Everything."""
        return [*self.settlements, *self.deposits, *self.claims]

    @property
    def words(self) -> str:
        """How many there are of each; channels are named where there are any."""
        words = f"{len(self.settlements)} settlements"
        if self.deposits or self.claims:
            words += f", {len(self.deposits)} deposits into payment channels and {len(self.claims)} claims from them"
        return words


def outgoings_of(payer: str, period: Period, network: Network, channels: Sequence[str]) -> Question[Outgoings]:
    """What the chain shows of a wallet's payments; `channels` are known to be its own. Raises ChainUnavailable."""
    head = yield from block()
    end = min(period.to_block, head.number)
    span = {"from_block": period.from_block, "to_block": end}
    outgoing = yield from logs(network.asset.address, [TRANSFER, address_topic(payer)], **span)
    settlements: list[Log] = []
    deposits: list[ChannelMove] = []
    for tx_hash in dict.fromkeys(log.tx_hash for log in outgoing):
        done = yield from receipt(tx_hash)
        if done is None or not done.is_success:
            continue
        paid_in, found = deposits_in(done, payer, network)
        deposits += found
        settled = settled_in(done, payer, network)
        settlements += [log for log in settled if log not in paid_in]
    own = list(dict.fromkeys([*channels, *(move.channel_id for move in deposits)]))
    claims = yield from moves_of(own, events=(CLAIMED,), **span)
    return Outgoings(
        settlements=[
            Outgoing(place=(log.tx_hash, log.log_index), amount_atomic=int.from_bytes(log.data, "big"))
            for log in settlements
        ],
        deposits=list(map(_outgoing, deposits)),
        claims=list(map(_outgoing, claims)),
        until=end,
    )


def _outgoing(move: ChannelMove) -> Outgoing:
    return Outgoing(place=(move.log.tx_hash, move.log.log_index), amount_atomic=move.amount_atomic)
