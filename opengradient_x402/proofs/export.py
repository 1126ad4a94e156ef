"""Makes an audit bundle from a ledger: its receipts, and the evidence for them.

The audit that a reader makes runs here once, live, and what it asks is written down: so a bundle holds exactly what a
reader's audit needs (`verification`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from opengradient_x402.chain.eip712 import payment_digest, payment_document
from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.questions import Question, block, block_before
from opengradient_x402.chain.sources import Sources
from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Channel, Voucher
from opengradient_x402.channels.events import ChannelMove, moves_of
from opengradient_x402.channels.shown import EventPlace, ShownChannel
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.keys.signer import Signer, sign_typed
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import Network
from opengradient_x402.proofs.anchors import Anchor, anchor_findings, anchors_in
from opengradient_x402.proofs.audit import audit
from opengradient_x402.proofs.bundle import (
    Attested,
    Bundle,
    Case,
    Contents,
    cases_of,
    places_of,
)
from opengradient_x402.proofs.checks.completeness import Period
from opengradient_x402.proofs.checks.decisions import Decision, decisions_in
from opengradient_x402.proofs.checks.network import describe
from opengradient_x402.proofs.checks.receipts import readable_proof
from opengradient_x402.proofs.data_settlement import find_data_settlements
from opengradient_x402.proofs.evidence import Evidence, Recorded
from opengradient_x402.proofs.history import IN_HISTORY, described, leaf_hash, name_of
from opengradient_x402.proofs.nitro import ledger_key
from opengradient_x402.settlement.channels import SCHEME
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.settlement.search import CLOCK_MARGIN_S


def export_bundle(
    ledger: Ledger, *, network: Network, since: int = 0, payer: str | None = None, signer: Signer | None = None
) -> Bundle:
    """The bundle of all receipts of a network since a time, signed when a signer is given.

    A session's calls belong together: those of a session that began earlier are included. So are all calls of a payment
    channel. The ledger is reconciled before: the bundle says that it has all settlements up to now.
    Raises ChainUnavailable, LedgerUnavailable.
    """
    return look_up(_bundled(ledger, network=network, since=since, payer=payer, signer=signer))


async def aexport_bundle(
    ledger: Ledger, *, network: Network, since: int = 0, payer: str | None = None, signer: Signer | None = None
) -> Bundle:
    """As `export_bundle`, for coroutines."""
    return await alook_up(_bundled(ledger, network=network, since=since, payer=payer, signer=signer))


def _bundled(
    ledger: Ledger, *, network: Network, since: int, payer: str | None, signer: Signer | None
) -> Steps[Bundle]:
    # The period ends before the ledger is reconciled: so the ledger knows what was settled until the period's end.
    period = yield from Sources().ask(network, _blocks_since(since, (yield from _entries(ledger, network, payer))))
    yield from Reconciler(network, ledger).reconciling(payer=payer)
    entries = yield from _entries(ledger, network, payer)
    recent: list[SettlementReceipt] = yield Wait(ledger.receipts(since=since, payer=payer))
    everything: list[SettlementReceipt] = yield Wait(ledger.receipts(payer=payer))
    evidence = Evidence()
    wanted = {receipt.authorization_id for receipt in recent}
    if period is not None:  # the file says that it has all settlements of these blocks
        wanted |= {entry.id for entry in entries if (entry.block_number or -1) >= period.from_block}
    used = {_channel_of(entry) for entry in entries if entry.id in wanted} - {None}
    wanted |= {entry.id for entry in entries if _channel_of(entry) in used}
    receipts = [receipt for receipt in everything if receipt.authorization_id in wanted]
    cases = tuple(_with_signature(case, network, signer) for case in cases_of(entries, receipts))
    cases, channels = yield from with_channels(cases, ledger, network)
    included = [receipt for case in cases for receipt in case.receipts]
    places = places_of((yield from find_data_settlements(included, network=network, sources=Sources())))
    decided: list[Decision] = yield Wait(decisions_in(ledger, network=network, payer=payer))
    called = {receipt.call_id for receipt in included}
    contents = Contents(
        cases=cases,
        data_places=places,
        attestations=(yield from _attestations(ledger, included)),
        channels=channels,
        decisions=tuple(one for one in decided if one.asked_at >= since or one.call_id in called),
    )
    yield from audit(contents, network=network, sources=Recorded(evidence))
    records = contents.records()
    kept = [record for record in records if record.kind in IN_HISTORY]
    history = yield Wait(ledger.extend_history([(name_of(record), leaf_hash(record)) for record in kept]))
    anchors: list[Anchor] = yield Wait(anchors_in(ledger, network=network))
    bundle = Bundle(
        created_at=int(time.time()),
        network=describe(network),
        records=tuple(records),
        period=None if period is None else {"from_block": period.from_block, "to_block": period.to_block},
        history=described(history.leaves, history.places, history.sizes, anchors=[asdict(one) for one in anchors]),
    )
    yield from anchor_findings(bundle, network=network, sources=Recorded(evidence))
    bundle = replace(bundle, records=(*records, *evidence.records))
    return bundle if signer is None else bundle.signed(signer)


def _entries(ledger: Ledger, network: Network, payer: str | None) -> Steps[list[Authorization]]:
    known: list[Authorization] = yield Wait(ledger.authorizations(payer=payer, network=network.caip2))
    return [uncharged(entry) for entry in known if entry.asset == network.asset.address]


def uncharged(entry: Authorization) -> Authorization:
    """Without what a gateway says that a voucher was charged: that stands with the voucher."""
    return replace(entry, status="signed", settled_atomic=None) if entry.status == "charged" else entry


def _channel_of(entry: Authorization) -> str | None:
    return f"0x{entry.nonce:064x}" if entry.terms.scheme == SCHEME else None


def with_channels(
    cases: tuple[Case, ...], ledger: Ledger, network: Network
) -> Steps[tuple[tuple[Case, ...], tuple[ShownChannel, ...]]]:
    """The cases with their vouchers, and the channels, with all events since the first call on any of them."""
    ids = list(dict.fromkeys(name for case in cases if (name := _channel_of(case.entry)) is not None))
    if not ids:
        return cases, ()
    book = ChannelBook(ledger)
    vouchers: dict[str, Voucher] = yield Wait(book.vouchers(ids))
    known: list[Channel] = yield Wait(book.channels(network=network.caip2))
    first_s = min(case.entry.signed_at for case in cases if _channel_of(case.entry) is not None)
    moves = yield from Sources().ask(network, _moves_since(first_s - CLOCK_MARGIN_S, ids))
    shown = tuple(_shown(channel, moves) for channel in known if channel.id in ids)
    return tuple(replace(case, voucher=vouchers.get(case.entry.id)) for case in cases), shown


def _moves_since(since_s: int, ids: Sequence[str]) -> Question[list[ChannelMove]]:
    head = yield from block()
    start = yield from block_before(since_s, head=head)
    return (yield from moves_of(ids, from_block=start, to_block=head.number))


def _shown(channel: Channel, moves: Sequence[ChannelMove]) -> ShownChannel:
    own = [move for move in moves if move.channel_id == channel.id]
    sums = {
        kind: sum(move.amount_atomic for move in own if move.kind == kind) for kind in ("deposit", "claim", "return")
    }
    return ShownChannel(
        id=channel.id,
        payer=channel.payer,
        payer_authorizer=channel.payer_authorizer,
        receiver=channel.receiver,
        receiver_authorizer=channel.receiver_authorizer,
        asset=channel.asset,
        withdraw_delay_s=channel.withdraw_delay_s,
        salt=channel.salt,
        deposited_atomic=sums["deposit"],
        claimed_atomic=sums["claim"],
        returned_atomic=sums["return"],
        events=tuple(EventPlace(tx_hash=move.log.tx_hash, log_index=move.log.log_index) for move in own),
    )


def _attestations(ledger: Ledger, receipts: Sequence[SettlementReceipt]) -> Steps[tuple[Attested, ...]]:
    """The last valid attestation document of each enclave that signed a call, where one was asked for."""
    found: list[Attested] = []
    for name in sorted({proof.tee_id for proof in map(readable_proof, receipts) if proof is not None}):
        noted: str | None = yield Wait(ledger.noted(ledger_key(name)))
        if noted is not None:
            kept = json.loads(noted)
            found.append(Attested(tee_id=name, document_base64=kept["document"], public_key_base64=kept["public_key"]))
    return tuple(found)


def _blocks_since(since: int, entries: Sequence[Authorization]) -> Question[Period | None]:
    """The blocks of a bundle's period: from the first in which one of its payments could settle, to the last block."""
    first_s = max(since, min((entry.signed_at for entry in entries), default=since) - CLOCK_MARGIN_S)
    head = yield from block()
    if not entries or head.timestamp_s < first_s:
        return None
    start, end = (yield from block_before(first_s, head=head)), head.number
    while start < end:
        middle = (start + end) // 2
        if (yield from block(middle)).timestamp_s < first_s:
            start = middle + 1
        else:
            end = middle
    return Period(from_block=start, to_block=head.number)


def _with_signature(case: Case, network: Network, signer: Signer | None) -> Case:
    """The case with the payer's signature over what expired, made again: nobody can use it any more."""
    entry = case.entry
    longest = max(entry.signed, key=lambda terms: terms.deadline)
    if (
        signer is None
        or signer.address != entry.payer
        or entry.status != "expired"
        or (longest.scheme == "upto" and longest.facilitator is None)
    ):
        return case
    digest = payment_digest(longest, payer=entry.payer, nonce=entry.nonce, network=network)
    signature = sign_typed(
        signer,
        digest,
        lambda: payment_document(longest, payer=entry.payer, nonce=entry.nonce, network=network),
    )
    return replace(case, signature="0x" + signature.hex())
