"""What receipts, their authorization and its calldata say by themselves, without asking anybody. Pure.

The payer's signature is looked for in the calldata that settled, since a permit's signature is there for all to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from opengradient_x402.chain.eip712 import payment_digest
from opengradient_x402.chain.questions import Transaction
from opengradient_x402.ledger.authorizations import Authorization, token_fields
from opengradient_x402.ledger.disputes import dispute_of
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.money import amount_in
from opengradient_x402.networks import Network
from opengradient_x402.proofs.bundle import Case
from opengradient_x402.proofs.findings import Finding, not_proven, proven, refuted
from opengradient_x402.settlement.recognition import SettlementFound
from opengradient_x402.signer import SIGNATURE_BYTES, recover_address

SIGNED: Final = "the payer signed for this payment"
SHARES: Final = "the calls' shares add up to the settlement"
OPEN_TO_DISPUTE: Final = "claims and facts agree, or the receipt says that they do not"
ONCE: Final = "no payment and no proof is claimed twice"
_SHOWN: Final = 5
_STATUSES: Final[Mapping[str, tuple[ReceiptStatus, ...]]] = {
    "signed": (ReceiptStatus.AUTHORIZED, ReceiptStatus.SERVED),
    "settled": (ReceiptStatus.SETTLED,),
    "expired": (ReceiptStatus.EXPIRED,),
    "cancelled": (ReceiptStatus.CANCELLED,),
}
_SIGNATURE_LENGTH: Final = SIGNATURE_BYTES.to_bytes(32, "big")


def share_findings(case: Case) -> list[Finding]:
    """Whether what the calls are charged is what was settled."""
    if case.entry.settled_atomic is None and all(call.settled_atomic is None for call in case.receipts):
        return []
    settled = case.entry.settled_atomic or 0
    shares = sum(call.settled_atomic or 0 for call in case.receipts)
    why = f"{len(case.receipts)} calls, {amount_in(case.entry, shares)} of {amount_in(case.entry, settled)}"
    make = proven if shares == settled else refuted
    return [make(SHARES, about=case.entry.id, why=why)]


def dispute_findings(case: Case) -> list[Finding]:
    """Whether receipts own up to the contradictions that the evidence shows."""
    findings = []
    for call in case.receipts:
        follows = dispute_of(call, authorization=case.entry, siblings=case.receipts)
        if follows is not None and call.status is not ReceiptStatus.DISPUTED:
            findings.append(refuted(OPEN_TO_DISPUTE, about=call.call_id, why=f"it hides this: {follows}"))
        elif call.status is not ReceiptStatus.DISPUTED:
            findings.append(proven(OPEN_TO_DISPUTE, about=call.call_id, why="no contradiction"))
        elif follows is not None:
            findings.append(proven(OPEN_TO_DISPUTE, about=call.call_id, why=f"it is disputed: {follows}"))
        else:
            why = f"it is disputed for a reason that is not in the evidence: {call.dispute}"
            findings.append(not_proven(OPEN_TO_DISPUTE, about=call.call_id, why=why))
    return findings


def once_finding(cases: Sequence[Case]) -> Finding:
    """Whether each payment, and each enclave's signature, is claimed once: a nonce can be used once, a proof too."""
    claimed: dict[tuple[str, ...], str] = {}
    claims: list[tuple[tuple[str, ...], str]]
    twice: list[str] = []
    for case in cases:
        entry = case.entry
        claims = [(("nonce", entry.payer, entry.asset, entry.transfer_method, str(entry.nonce)), entry.id)]
        claims += [(("proof", call.tee_signature), call.call_id) for call in case.receipts if call.tee_signature]
        for claim, name in claims:
            if claimed.setdefault(claim, name) != name:
                twice.append(f"{claimed[claim]} and {name} have the same {claim[0]}")
    if twice:
        return refuted(ONCE, about="bundle", why="; ".join(twice[:_SHOWN]))
    return proven(ONCE, about="bundle", why=f"{len(claimed)} nonces and enclave signatures, all different")


def foreign(entry: Authorization, network: Network) -> str | None:
    """What about an authorization is not of this network: another token could be worth nothing."""
    spenders = {
        ("permit2", "upto"): network.upto_proxy,
        ("permit2", "exact"): network.exact_proxy,
        ("eip3009", "exact"): network.asset.address,
    }
    if entry.network != network.caip2:
        return f"it is on {entry.network}, and the bundle is about {network.caip2}"
    for terms in entry.signed:
        if terms.asset != network.asset.address:
            return f"it pays in the token {terms.asset}, and the network's is {network.asset.address}"
        if entry.asset_decimals not in (None, network.asset.decimals):
            return f"it counts in {entry.asset_decimals} decimals, and the network's token has {network.asset.decimals}"
        if terms.spender != spenders.get((terms.transfer_method, terms.scheme)):
            return f"it allows {terms.spender} to take the payment, and no contract of the network"
    return None


def mismatch(case: Case) -> str | None:
    """Where a receipt tells another story than its authorization."""
    entry = case.entry
    if entry.status != "settled" and entry.settled_atomic is not None:
        return f"the authorization is {entry.status}, and has {amount_in(entry, entry.settled_atomic)} settled"
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


def differences(entry: Authorization, found: SettlementFound) -> Iterator[str]:
    """Where the chain tells another story than the authorization's entry."""
    if found.amount_atomic != entry.settled_atomic:
        yield f"{amount_in(entry, found.amount_atomic)} and not {amount_in(entry, entry.settled_atomic or 0)}"
    if found.payee not in entry.payees and entry.dispute is None:
        yield f"a payment to {found.payee} and not to {entry.terms.payee}"
    if (found.block_number, found.block_hash) != (entry.block_number, entry.block_hash):
        yield f"block {found.block_number} ({found.block_hash}) and not {entry.block_number} ({entry.block_hash})"


def signature_finding(entry: Authorization, mined: Transaction, network: Network) -> Finding:
    """The payer's signature over exactly these terms, found in the calldata that settled them."""
    for terms in entry.signed:
        if terms.scheme == "upto" and terms.facilitator is None:
            continue
        digest = payment_digest(terms, payer=entry.payer, nonce=entry.nonce, network=network)
        for signature in _signatures_in(mined.input):
            if recover_address(digest, signature) == entry.payer:
                most = amount_in(entry, terms.amount_atomic)
                why = f"their signature in {mined.tx_hash} allows at most {most} to {terms.payee}"
                return proven(SIGNED, about=entry.id, why=why)
    why = (
        f"transaction {mined.tx_hash} holds no signature of {entry.payer} over these terms (contract wallets have none)"
    )
    return not_proven(SIGNED, about=entry.id, why=why)


def _signatures_in(calldata: bytes) -> Iterable[bytes]:
    """Whatever is ABI-encoded as 65 bytes, wherever a contract has wrapped it."""
    start = calldata.find(_SIGNATURE_LENGTH)
    while start >= 0:
        first = start + len(_SIGNATURE_LENGTH)
        yield calldata[first : first + SIGNATURE_BYTES]
        start = calldata.find(_SIGNATURE_LENGTH, start + 1)
