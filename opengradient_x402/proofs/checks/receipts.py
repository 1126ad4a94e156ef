"""What receipts, their authorization and its calldata say by themselves, without asking anybody. Pure.

The payer's signature is looked for in the calldata that settled, since a permit's signature is there for all to see.
Everything else in the file is its writer's word: it can be refuted here, and is `Stated` otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, payment_digest
from opengradient_x402.chain.questions import Transaction
from opengradient_x402.keys.signer import SIGNATURE_BYTES, recover_address
from opengradient_x402.ledger.authorizations import Authorization, token_fields
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt, transaction_claim
from opengradient_x402.networks import Network
from opengradient_x402.proofs.attestation import TeeProof, Verdict
from opengradient_x402.proofs.bundle import ABOUT, Case, hex_bytes
from opengradient_x402.proofs.findings import Finding, Proven, Refuted, Stated, Statement, Undecided, utc
from opengradient_x402.settlement.channels import SCHEME
from opengradient_x402.settlement.recognition import SettlementFound

_SHOWN: Final = 5
_CLOCK_MARGIN_S: Final = 3600
"""Seconds. No call takes longer, and no clock that is allowed to sign is wrong by more."""
_STATUSES: Final[Mapping[str, tuple[ReceiptStatus, ...]]] = {
    "signed": (ReceiptStatus.AUTHORIZED, ReceiptStatus.SERVED),
    "settled": (ReceiptStatus.SETTLED,),
    "expired": (ReceiptStatus.EXPIRED,),
    "cancelled": (ReceiptStatus.CANCELLED,),
}
_WORD: Final = 32
_SIGNATURE_LENGTH: Final = SIGNATURE_BYTES.to_bytes(_WORD, "big")
MOST_TRIES: Final = 128
"""So many signatures are tried for one payment: a made-up calldata could hold millions."""


def share_findings(case: Case, network: Network) -> list[Finding]:
    """Whether what the calls are charged is what was settled. How it is shared is the writer's word."""
    if case.entry.settled_atomic is None and all(call.settled_atomic is None for call in case.receipts):
        return []
    settled = case.entry.settled_atomic or 0
    shares = sum(call.settled_atomic or 0 for call in case.receipts)
    why = f"{len(case.receipts)} calls, {network.asset.format(shares)} of {network.asset.format(settled)}"
    make: type[Stated | Refuted] = Stated if shares == settled else Refuted
    return [make(statement=Statement.SHARES, about=case.entry.id, why=why)]


def told_finding(call: SettlementReceipt, made_at: int | None) -> Finding:
    """What only the writer says of a call; refuted where a clock says otherwise: the enclave's, the file's or here."""
    about = call.call_id
    latest = min(int(time.time()), int(time.time()) if made_at is None else made_at)
    if call.created_at > latest + _CLOCK_MARGIN_S:
        why = f"the file dates the call at {utc(call.created_at)}, and it was made, or read, at {utc(latest)}"
        return Refuted(statement=Statement.TOLD, about=about, why=why)
    proof = readable_proof(call)
    if proof is not None and abs(proof.timestamp_s - call.created_at) > _CLOCK_MARGIN_S:
        why = f"the file dates the call at {utc(call.created_at)}, and the enclave's proof at {utc(proof.timestamp_s)}"
        return Refuted(statement=Statement.TOLD, about=about, why=why)
    tokens = f"{call.prompt_tokens} and {call.completion_tokens} tokens"
    why = f"{call.model}, {tokens}, at {utc(call.created_at)}, {call.endpoint}, {call.settlement_mode}, {call.outcome}"
    return Stated(statement=Statement.TOLD, about=about, why=why)


def dispute_findings(case: Case, network: Network) -> list[Finding]:
    """Whether receipts are marked as disputed where the file contradicts the gateway's quotes; else the writer's word.

    Published prices are not looked at: the list of today says nothing about a call of last year.
    """
    findings: list[Finding] = []
    for call in case.receipts:
        hidden = list(_contradictions(case, call, network))
        make: type[Stated | Refuted] = Stated
        if call.status is ReceiptStatus.DISPUTED:
            why = f"the file says that it is disputed: {call.dispute}"
        elif hidden:
            make, why = Refuted, f"it hides this: {'; '.join(hidden)}"
        else:
            why = "the quotes in the file and the settlement do not contradict each other"
        findings.append(make(statement=Statement.DISPUTE, about=call.call_id, why=why))
    return findings


def _contradictions(case: Case, call: SettlementReceipt, network: Network) -> Iterator[str]:
    entry, show = case.entry, network.asset.format
    taken = entry.settled_atomic or 0
    if taken > entry.amount_atomic:
        yield f"{show(taken)} was settled, and {show(entry.amount_atomic)} signed for"
    quotes = [receipt.cost_atomic for receipt in case.receipts if receipt.cost_atomic is not None]
    # A gateway may round each call up, or their sum.
    excess = taken - sum(quotes)
    if entry.terms.scheme in ("upto", SCHEME) and len(quotes) == len(case.receipts) and excess > len(quotes):
        yield f"{show(taken)} was settled, and the calls were quoted {show(sum(quotes))}: {show(excess)} too much"
    claimed = transaction_claim(call.claimed_payment_tx_hash)
    if claimed is not None and entry.status != "signed" and claimed.lower() != entry.tx_hash:
        yield f"the gateway named transaction {claimed}, and it is {entry.tx_hash or 'none'}"


def once_finding(cases: Sequence[Case]) -> Finding:
    """Whether one nonce, or one proof of an enclave, is claimed for two.

    Proofs are compared as bytes: base64 has several texts for one signature.
    """
    claimed: dict[tuple[object, ...], str] = {}
    claims: list[tuple[tuple[object, ...], str]]
    twice: list[str] = []
    for case in cases:
        entry = case.entry
        claims = [(_authorized(case), entry.id)]
        claims += [
            (("proof", proof.signature), call.call_id)
            for call in case.receipts
            if (proof := readable_proof(call)) is not None
        ]
        for claim, name in claims:
            if claimed.setdefault(claim, name) != name:
                twice.append(f"{claimed[claim]} and {name} have the same {claim[0]}")
    if twice:
        return Refuted(statement=Statement.ONCE, about=ABOUT, why="; ".join(twice[:_SHOWN]))
    why = f"{len(claimed)} nonces and proofs of enclaves are in the file, all different"
    return Stated(statement=Statement.ONCE, about=ABOUT, why=why)


def _authorized(case: Case) -> tuple[object, ...]:
    """What only one authorization can have: a nonce; on a channel, the sums between which it was charged something."""
    entry, voucher = case.entry, case.voucher
    if voucher is None:
        return "nonce", entry.payer, entry.asset, entry.transfer_method, entry.nonce
    has_cost = entry.settled_atomic or voucher.charged_atomic
    return "voucher", voucher.channel_id, voucher.base_atomic, voucher.max_atomic, None if has_cost else entry.id


def is_disowned(call: SettlementReceipt) -> bool:
    """Whether a receipt says itself that its proof came with another call before: the gateway's doing, no claim."""
    return (call.tee_verified or "").startswith(Verdict.REPLAYED)


def readable_proof(call: SettlementReceipt) -> TeeProof | None:
    """The enclave's proof on a receipt; None if it has none, or one that cannot be read or is disowned."""
    if is_disowned(call):
        return None
    try:
        return TeeProof.from_fields(call.to_json())
    except ValueError:
        return None


def foreign(entry: Authorization, network: Network) -> str | None:
    """What about an authorization is not of this network: another token could be worth nothing."""
    spenders = {
        ("permit2", "upto"): network.upto_proxy,
        ("permit2", "exact"): network.exact_proxy,
        ("eip3009", "exact"): network.asset.address,
        ("permit2", SCHEME): BATCH_SETTLEMENT,
        ("eip3009", SCHEME): BATCH_SETTLEMENT,
    }
    if entry.network != network.caip2:
        return f"it is on {entry.network}, and the bundle is about {network.caip2}"
    for terms in entry.signed:
        if terms.asset != network.asset.address:
            return f"it pays in the token {terms.asset}, and the network's is {network.asset.address}"
        if terms.spender != spenders.get((terms.transfer_method, terms.scheme)):
            return f"it allows {terms.spender} to take the payment, and no contract of the network"
    return None


def mismatch(case: Case, network: Network) -> str | None:
    """Where a receipt contradicts its authorization."""
    entry = case.entry
    if entry.status != "settled" and entry.settled_atomic is not None:
        return f"the authorization is {entry.status}, and has {network.asset.format(entry.settled_atomic)} settled"
    for call in case.receipts:
        if call.status not in (*_STATUSES[entry.status], ReceiptStatus.DISPUTED):
            return f"the receipt of call {call.call_id} is {call.status}; its authorization is {entry.status}"
        pairs: Mapping[str, tuple[object, object]] = {
            "network": (call.network, entry.network),
            "scheme": (call.scheme, entry.terms.scheme),
            "facilitator": (call.facilitator, entry.terms.facilitator),
            "deadline": (call.deadline, entry.deadline),
            "payer": (call.payer, entry.payer),
            "payee": (call.payee, entry.terms.payee),
            "asset": (token_fields(call), token_fields(entry)),
            "nonce": (call.nonce, str(entry.nonce)),
            "authorized amount": (call.authorized_atomic, entry.amount_atomic),
            "settled amount": (call.authorization_settled_atomic, entry.settled_atomic),
            "transaction": (call.payment_tx_hash, entry.tx_hash),
            "block": (call.block_hash, entry.block_hash),
            "block number": (call.block_number, entry.block_number),
        }
        for what, (said, known) in pairs.items():
            if said != known:
                return f"the receipt of call {call.call_id} has the {what} {said}; its authorization has {known}"
    return None


def differences(case: Case, found: SettlementFound, network: Network) -> Iterator[str]:
    """Where the chain contradicts the entry of the authorization."""
    entry, is_disputed = case.entry, all(call.status is ReceiptStatus.DISPUTED for call in case.receipts)
    if found.amount_atomic != entry.settled_atomic:
        yield f"{network.asset.format(found.amount_atomic)} and not {network.asset.format(entry.settled_atomic or 0)}"
    if found.payee not in entry.payees and not (is_disputed and entry.dispute is not None):
        yield f"a payment to {found.payee} and not to {entry.terms.payee}"
    if (found.block_number, found.block_hash) != (entry.block_number, entry.block_hash):
        yield f"block {found.block_number} ({found.block_hash}) and not {entry.block_number} ({entry.block_hash})"


def signature_finding(case: Case, mined: Transaction | None, network: Network) -> Finding:
    """The payer's signature over exactly these terms: in the calldata that settled them, or in the file."""
    entry = case.entry
    if mined is not None:
        start = max(0, mined.input.find(entry.nonce.to_bytes(_WORD, "big")))
        where, candidates, wanted = f"in {mined.tx_hash}", signatures_in(mined.input, start), entry.signed[::-1]
    else:
        # "Expired" speaks of all signatures: the file shows the one that lives longest.
        longest = max(entry.signed, key=lambda terms: terms.deadline)
        where, candidates, wanted = "in the file", iter([hex_bytes(case.signature or "")]), (longest,)
    pairs = ((signature, terms) for signature in candidates for terms in wanted)
    for signature, terms in islice(pairs, MOST_TRIES):
        if terms.scheme == "upto" and terms.facilitator is None:
            continue
        digest = payment_digest(terms, payer=entry.payer, nonce=entry.nonce, network=network)
        if recover_address(digest, signature) == entry.payer:
            why = f"their signature {where} allows at most {network.asset.format(terms.amount_atomic)} to {terms.payee}"
            return Proven(statement=Statement.SIGNED, about=entry.id, why=why, key=entry.payer)
    why = f"there is no signature of {entry.payer} over these terms {where}"
    return Undecided(statement=Statement.SIGNED, about=entry.id, why=why)


def signatures_in(calldata: bytes, start: int) -> Iterator[bytes]:
    """All values that are ABI-encoded as 65 bytes: those behind this place first, then those before it."""
    for first, end in ((start, len(calldata)), (0, start)):
        at = calldata.find(_SIGNATURE_LENGTH, first)
        while 0 <= at < end:
            behind = at + len(_SIGNATURE_LENGTH)
            yield calldata[behind : behind + SIGNATURE_BYTES]
            at = calldata.find(_SIGNATURE_LENGTH, at + 1)
