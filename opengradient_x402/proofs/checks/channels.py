"""What the chain shows of a payment channel, against what a bundle says of its calls.

The calls of a channel are settled together: a claim takes a sum, and how it is made up of the calls' charges is the
writer's word. So what is read is about the channel: its deposits, claims and refunds, and that the calls in the file
come to what was claimed. What the payer signed is a voucher in the calldata of the last claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from opengradient_x402.chain.eip712 import channel_id, voucher_digest
from opengradient_x402.chain.questions import Question, TransactionReceipt, block, receipt, transaction
from opengradient_x402.chain.sources import Source, Sources
from opengradient_x402.channels.channel import Voucher
from opengradient_x402.channels.events import ChannelMove, ceilings_in, move_of
from opengradient_x402.channels.shown import ShownChannel
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.keys.signer import recover_address
from opengradient_x402.networks import Network
from opengradient_x402.proofs.bundle import Case
from opengradient_x402.proofs.checks.completeness import Claim
from opengradient_x402.proofs.checks.receipts import MOST_TRIES, signatures_in
from opengradient_x402.proofs.findings import Finding, Proven, Read, Refuted, Statement, Undecided


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelAudit:
    """What was found out about a channel, its events that the file explains, and what no call in the file explains."""

    findings: list[Finding]
    moves: list[Claim] = field(default_factory=list)
    unexplained_atomic: int = 0


class _Contradicted(Exception):
    """The chain contradicts the file."""


def contradiction(case: Case, channel: ShownChannel, network: Network) -> str | None:
    """Where a call contradicts its channel. No node is asked."""
    entry, terms = case.entry, case.entry.terms
    pairs = {
        "payer": (entry.payer, channel.payer),
        "payee": (terms.payee, channel.receiver),
        "token": (terms.asset, channel.asset),
        "claimer": (terms.facilitator, channel.receiver_authorizer),
    }
    for what, (said, known) in pairs.items():
        if said != known:
            return f"it has the {what} {said}; its payment channel has {known}"
    if entry.status not in ("signed", "settled"):
        return f"it is {entry.status}, and a voucher ends by a claim alone"
    if entry.tx_hash is not None and entry.tx_hash not in {place.tx_hash for place in channel.events}:
        return f"it names transaction {entry.tx_hash}, which has no event of its payment channel"
    if (other := _other_channel(channel, network)) is not None:
        return other
    return None


def _other_channel(channel: ShownChannel, network: Network) -> str | None:
    named = "0x" + channel_id(channel, chain_id=network.chain_id).hex()
    return None if named == channel.id else f"the parameters of its payment channel are those of {named}"


def channel_audit(
    channel: ShownChannel, cases: Sequence[Case], *, network: Network, sources: Sources
) -> Steps[ChannelAudit]:
    """What the chain shows of one channel; `cases` are its calls in the file."""
    about = channel.id
    if (why := _other_channel(channel, network)) is not None:
        return ChannelAudit(findings=[Refuted(statement=Statement.CHANNEL, about=about, why=why)])
    try:
        source = yield from sources.source(network)
        try:
            moves = yield from sources.ask(network, _moves(channel))
            _check_order(moves)
            _check_amounts(channel, moves, network)
        except _Contradicted as exc:
            return ChannelAudit(findings=[Refuted(statement=Statement.CHANNEL, about=about, why=str(exc))])
        findings: list[Finding] = [
            Read(statement=Statement.CHANNEL, about=about, why=_shown(channel, moves, network), source=source)
        ]
        claims = [move for move in moves if move.kind == "claim"]
        if claims:
            findings.append((yield from sources.ask(network, _signed(channel, claims[-1], cases, network))))
        findings.append(_paid(channel, moves, cases, network, source))
        findings += yield from sources.ask(network, _confirmed(channel, claims, cases, network, source))
    except ChainUnavailable as exc:
        return ChannelAudit(findings=[Undecided(statement=Statement.CHANNEL, about=about, why=exc.message)])
    known = sum(_charged(case) for case in cases)
    return ChannelAudit(
        findings=findings,
        moves=[(move.log.tx_hash, move.log.log_index) for move in moves],
        unexplained_atomic=max(0, sum(move.amount_atomic for move in claims) - known),
    )


# -- the events


def _moves(channel: ShownChannel) -> Question[list[ChannelMove]]:
    found: list[ChannelMove] = []
    done: dict[str, TransactionReceipt | None] = {}
    for place in channel.events:
        if place.tx_hash not in done:
            done[place.tx_hash] = yield from receipt(place.tx_hash)
        mined = done[place.tx_hash]
        logs = () if mined is None or not mined.is_success or mined.tx_hash != place.tx_hash else mined.logs
        log = next((log for log in logs if log.log_index == place.log_index), None)
        move = None if log is None else move_of(log)
        if move is None or move.channel_id != channel.id:
            raise _Contradicted(f"log {place.log_index} of transaction {place.tx_hash} is no event of this channel")
        found.append(move)
    return sorted(found, key=lambda move: (move.log.block_number, move.log.log_index))


def _check_order(moves: Sequence[ChannelMove]) -> None:
    """Every deposit and claim states the sum before it, so a missing event between two of them is noticed."""
    totals: dict[str, int] = {}
    for move in moves:
        before = move.total_atomic - move.amount_atomic
        if move.kind == "return":
            if "deposit" in totals:
                totals["deposit"] -= move.amount_atomic
            continue
        if totals.setdefault(move.kind, before) != before:
            tx_hash = move.log.tx_hash
            raise _Contradicted(f"a deposit, a claim or a refund is missing before the {move.kind} in {tx_hash}")
        totals[move.kind] = move.total_atomic
        if move.kind == "deposit" and before == 0:
            totals.setdefault("claim", 0)  # the channel begins here
    if totals.get("claim", 0) > totals.get("deposit", totals.get("claim", 0)):
        raise _Contradicted("more was claimed than the deposits in the file, and a deposit is missing")


def _sum(moves: Sequence[ChannelMove], kind: str) -> int:
    return sum(move.amount_atomic for move in moves if move.kind == kind)


def _check_amounts(channel: ShownChannel, moves: Sequence[ChannelMove], network: Network) -> None:
    for kind, verb, said in (
        ("deposit", "deposited", channel.deposited_atomic),
        ("claim", "claimed", channel.claimed_atomic),
        ("return", "given back", channel.returned_atomic),
    ):
        if (found := _sum(moves, kind)) != said:
            show = network.asset.format
            raise _Contradicted(f"{show(found)} was {verb}, and the file says {show(said)}")


def _shown(channel: ShownChannel, moves: Sequence[ChannelMove], network: Network) -> str:
    show = network.asset.format
    return (
        f"{show(channel.deposited_atomic)} was deposited, {show(channel.claimed_atomic)} claimed "
        f"for {channel.receiver}, and {show(channel.returned_atomic)} given back, in {len(moves)} events"
    )


# -- what was signed


def _signed(channel: ShownChannel, claim: ChannelMove, cases: Sequence[Case], network: Network) -> Question[Finding]:
    """The voucher in the last claim's calldata: it includes all before it."""
    about, tx_hash, show = channel.id, claim.log.tx_hash, network.asset.format
    mined = yield from transaction(tx_hash)
    calldata = b"" if mined is None or mined.tx_hash != tx_hash else mined.input
    known = {sum_atomic for case in cases for sum_atomic in _sums(case.voucher)}
    unknown: int | None = None
    pairs = (
        (most, signature) for most, at in ceilings_in(calldata, channel) for signature in signatures_in(calldata, at)
    )
    for most, signature in islice(pairs, MOST_TRIES):
        digest = voucher_digest(bytes.fromhex(channel.id[2:]), most, chain_id=network.chain_id)
        if most < claim.total_atomic or channel.payer_authorizer != channel.payer:
            continue
        if recover_address(digest, signature) != channel.payer:
            continue
        if most in known:
            why = f"their voucher in {tx_hash} allows at most {show(most)} to {channel.receiver}, all in all"
            return Proven(statement=Statement.SIGNED, about=about, why=why, key=channel.payer)
        unknown = most
    why = f"there is no voucher of {channel.payer} for {show(claim.total_atomic)} in {tx_hash}"
    if unknown is not None:
        why = f"their voucher in {tx_hash} allows {show(unknown)}, and no call in the file has that one"
    return Undecided(statement=Statement.SIGNED, about=about, why=why)


def _sums(voucher: Voucher | None) -> Iterator[int]:
    """The sums that a voucher of the payer can be for: a call's most, and (to ask for a refund) what was charged."""
    if voucher is not None:
        yield from (voucher.base_atomic, voucher.end_atomic, voucher.max_atomic)


# -- what was taken


def _charged(case: Case) -> int:
    """What a call cost, or can have cost: what was settled, else its charge, else its most."""
    if case.voucher is None:
        return 0
    if case.entry.status == "settled":
        return case.entry.settled_atomic or 0
    return max(0, case.voucher.end_atomic - case.voucher.base_atomic)


def _paid(
    channel: ShownChannel, moves: Sequence[ChannelMove], cases: Sequence[Case], network: Network, source: Source
) -> Finding:
    statement, about, show = Statement.PAID, channel.id, network.asset.format
    claims = [move for move in moves if move.kind == "claim"]
    settled = [case for case in cases if case.entry.status == "settled"]
    if not claims and not settled:
        return Undecided(statement=statement, about=about, why="nothing was claimed from it yet")
    taken, said = _sum(moves, "claim"), sum(case.entry.settled_atomic or 0 for case in settled)
    why = _too_early(settled, moves, network)
    start = min((move.total_atomic - move.amount_atomic for move in claims), default=0)
    known, others = sum(map(_charged, cases)), _between(cases, start)
    if said > taken:
        why = f"{show(taken)} was claimed, and the calls say {show(said)}"
    elif taken > known + others:
        why = f"{show(taken)} was claimed, and the calls in the file were charged {show(known)}"
    if why is not None:
        return Refuted(statement=statement, about=about, why=why)
    why = f"{show(taken)} was claimed for {channel.receiver}; {len(settled)} calls come to {show(said)} of it"
    return Read(statement=statement, about=about, why=why, source=source)


def _between(cases: Sequence[Case], start: int) -> int:
    """What was charged between the calls in the file: calls of a ledger that was lost, or of another user of the key.

    Another statement says that they are missing.
    """
    found, reached = 0, start
    for voucher in sorted(
        (case.voucher for case in cases if case.voucher is not None), key=lambda one: one.base_atomic
    ):
        found += max(0, voucher.base_atomic - reached)
        reached = max(reached, voucher.end_atomic)
    return found


def _too_early(settled: Sequence[Case], moves: Sequence[ChannelMove], network: Network) -> str | None:
    """A call that the file calls settled before enough was claimed, or by a transaction that is no claim of it."""
    show = network.asset.format
    claims = {(move.log.tx_hash, move.log.block_number): move.total_atomic for move in moves if move.kind == "claim"}
    for case in settled:
        total = claims.get((case.entry.tx_hash or "", case.entry.block_number or 0))
        if case.entry.tx_hash is not None and (
            total is None or total < (case.voucher.end_atomic if case.voucher else 0)
        ):
            return f"call {case.entry.call_id} is in no claim in {case.entry.tx_hash}"
    for number in sorted({case.entry.block_number or 0 for case in settled}):
        until = [move for move in moves if move.log.block_number <= number]
        claimed = max((move.total_atomic for move in until if move.kind == "claim"), default=0)
        taken, left = _sum(until, "claim"), _sum(until, "deposit") - _sum(until, "return")
        said = sum(case.entry.settled_atomic or 0 for case in settled if (case.entry.block_number or 0) <= number)
        if said > taken:
            return f"{show(taken)} was claimed up to block {number}, and the calls say {show(said)}"
        for case in settled:
            if case.voucher is None or case.entry.block_number != number or left <= taken:
                continue
            if case.voucher.end_atomic > claimed:
                return f"call {case.entry.call_id} was not claimed at block {number}, and the channel was not empty"
    return None


def _confirmed(
    channel: ShownChannel, claims: Sequence[ChannelMove], cases: Sequence[Case], network: Network, source: Source
) -> Question[list[Finding]]:
    statement, about = Statement.CONFIRMED, channel.id
    settled = [case.entry for case in cases if case.entry.status == "settled"]
    places = {(entry.block_number or 0, entry.block_hash or "no block") for entry in settled}
    places |= {(move.log.block_number, move.log.block_hash) for move in claims[-1:]}
    if not places:
        return []
    head = yield from block()
    for number, block_hash in sorted(places):
        at_height = (yield from block(number)).hash
        if at_height != block_hash:
            why = f"block {number} is {at_height} and not {block_hash}: the chain was reorganised"
            return [Refuted(statement=statement, about=about, why=why)]
    newest = max(number for number, _ in places)
    confirmations = head.number - newest + 1
    why = f"block {newest} has {confirmations} confirmations; {network.confirmations} make it final"
    if confirmations < network.confirmations:
        return [Undecided(statement=statement, about=about, why=why)]
    return [Read(statement=statement, about=about, why=why, source=source)]
