"""Whether the evidence shows that a call's data were settled as its mode promises. Pure.

Batch: the blob rebuilt into a tree, the call's leaf under the root that the relay's event announces. Individual: the
event's hashes, time, signature and payer, and the blob. What the gateway named (`data_tx_hash`, `data_blob_id`) is a
claim and is compared, not believed. Does not know where events and blobs come from (`data_settlement`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.chain.contracts import BatchSettlement, IndividualSettlement
from opengradient_x402.chain.questions import Log
from opengradient_x402.chain.sources import Document
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.proofs.attestation import TeeProof
from opengradient_x402.proofs.findings import Finding, Standing, not_proven, overall, proven, refuted
from opengradient_x402.proofs.merkle import MerkleTree, leaf_hash, root_from_proof
from opengradient_x402.settlement_mode import SettlementMode

DATA_SETTLED: Final = "the call's data were settled on chain"
NOTHING_TO_SETTLE: Final = "nothing about the call's data was to be written on chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettlement:
    """What is known of one call's data settlement: findings, and the evidence that they rest on.

    `leaf` and `proof` (hex) lead to `merkle_root`; `log` is the relay's event, `blob` the blob as it was read.
    """

    call_id: str
    mode: SettlementMode
    findings: tuple[Finding, ...]
    log: Log | None = None
    blob_id: str | None = None
    blob: bytes | None = field(default=None, repr=False)
    merkle_root: str | None = None
    leaf: str | None = None
    proof: tuple[str, ...] = ()

    @property
    def standing(self) -> Standing:
        """The weakest of the findings."""
        return overall(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Strings, ints and lists."""
        known: dict[str, Any] = {
            "blob_id": self.blob_id,
            "merkle_root": self.merkle_root,
            "leaf": self.leaf,
            "proof": list(self.proof) if self.leaf is not None else None,
            "tx_hash": None if self.log is None else self.log.tx_hash,
            "block_number": None if self.log is None else self.log.block_number,
        }
        return {
            "call_id": self.call_id,
            "mode": self.mode.value,
            "standing": self.standing.value,
            "findings": [finding.to_json() for finding in self.findings],
        } | {name: value for name, value in known.items() if value is not None}


def private_finding(call_id: str) -> Finding:
    """That private mode has nothing to show."""
    why = "the call was made in private mode; only the payment is on chain"
    return proven(NOTHING_TO_SETTLE, about=call_id, why=why)


def batch_findings(call_id: str, proof: TeeProof, event: BatchSettlement, blob: bytes) -> DataSettlement:
    """Whether a batch that was written on chain holds this call: the tree is rebuilt from the blob. Pure."""
    leaf = leaf_hash(proof)
    evidence: dict[str, Any] = {
        "call_id": call_id,
        "mode": SettlementMode.BATCH,
        "log": event.log,
        "blob_id": event.blob_id,
        "blob": blob,
        "merkle_root": "0x" + event.merkle_root.hex(),
    }
    try:
        tree = tree_of(event, blob)
        siblings = tree.proof(leaf)
    except ValueError as exc:
        return DataSettlement(
            findings=(refuted(DATA_SETTLED, about=call_id, why=f"{named(event)}: {exc}"),), **evidence
        )
    if root_from_proof(leaf, siblings) != event.merkle_root:
        why = f"{named(event)}: the inclusion proof leads to another root"
        return DataSettlement(findings=(refuted(DATA_SETTLED, about=call_id, why=why),), **evidence)
    why = f"its leaf is one of {event.batch_size} under the root in {named(event)}"
    return DataSettlement(
        findings=(proven(DATA_SETTLED, about=call_id, why=why),),
        leaf="0x" + leaf.hex(),
        proof=tuple("0x" + sibling.hex() for sibling in siblings),
        **evidence,
    )


def individual_findings(
    receipt: SettlementReceipt, proof: TeeProof, event: IndividualSettlement, blob: Document
) -> DataSettlement:
    """Whether an event on chain is the settlement of this call, and what the gateway claimed of it. Pure."""
    about, where = receipt.call_id, f"transaction {event.log.tx_hash}"
    differing = [name for name, on_chain, expected in _compared(receipt, proof, event) if on_chain != expected]
    if differing:
        why = f"the event in {where} has another {', another '.join(differing)} than the receipt"
        findings = [refuted(DATA_SETTLED, about=about, why=why)]
    else:
        why = f"the event in {where} holds its hashes, time, signature and payer"
        findings = [proven(DATA_SETTLED, about=about, why=why)]
        findings += _claims(receipt, event)
        findings.append(_blob_finding(about, event, blob))
    return DataSettlement(
        call_id=about,
        mode=SettlementMode.INDIVIDUAL,
        findings=tuple(findings),
        log=event.log,
        blob_id=event.blob_id,
        blob=blob.content or None,
    )


def tree_of(event: BatchSettlement, blob: bytes) -> MerkleTree:
    """The tree in a blob. Raises ValueError when it is not the one whose root is on chain."""
    tree = MerkleTree.from_dump(strict_json.loads(blob))
    if tree.root != event.merkle_root or len(tree.leaves) != event.batch_size:
        raise ValueError("the blob's tree has another root or size than the chain")
    return tree


def named(event: BatchSettlement) -> str:
    """The batch, for people."""
    return f"transaction {event.log.tx_hash} (blob {event.blob_id[:64]})"


def _compared(
    receipt: SettlementReceipt, proof: TeeProof, event: IndividualSettlement
) -> list[tuple[str, object, object]]:
    return [
        ("enclave", event.tee_id.lower(), proof.tee_id.lower()),
        ("payer", event.payer, receipt.payer),
        ("request hash", event.input_hash, proof.request_hash),
        ("output hash", event.output_hash, proof.output_hash),
        ("time", event.timestamp_s, proof.timestamp_s),
        ("signature", event.signature, proof.signature),
    ]


def is_settlement_of(receipt: SettlementReceipt, proof: TeeProof, event: IndividualSettlement) -> bool:
    """Whether an event is about this call, in every respect."""
    return all(on_chain == expected for _, on_chain, expected in _compared(receipt, proof, event))


def _claims(receipt: SettlementReceipt, event: IndividualSettlement) -> list[Finding]:
    about, findings = receipt.call_id, []
    for what, claimed, fact in (
        ("transaction", receipt.data_tx_hash, event.log.tx_hash),
        ("blob", receipt.data_blob_id, event.blob_id),
    ):
        if claimed is None:
            continue
        statement = f"the gateway named the right {what} for the data settlement"
        if claimed.lower() == fact.lower() if what == "transaction" else claimed == fact:
            findings.append(proven(statement, about=about, why=f"it named {fact}"))
        else:
            findings.append(refuted(statement, about=about, why=f"it named {claimed}; the chain shows {fact}"))
    return findings


def _blob_finding(about: str, event: IndividualSettlement, blob: Document) -> Finding:
    statement = "the blob is the record of this call"
    if blob.problem is not None:
        return not_proven(statement, about=about, why=f"the blob {event.blob_id[:64]} was not read: {blob.problem}")
    try:
        record = strict_json.loads(blob.content)
        proof = TeeProof.from_fields(record)
    except (ValueError, AttributeError) as exc:
        return refuted(statement, about=about, why=f"the blob {event.blob_id[:64]} cannot be read: {exc}")
    if proof is None or (proof.request_hash, proof.output_hash) != (event.input_hash, event.output_hash):
        return refuted(statement, about=about, why=f"the blob {event.blob_id[:64]} holds other hashes than the event")
    return proven(statement, about=about, why=f"the blob {event.blob_id} holds the hashes of the event")
