"""Finds and judges what was written about calls' data: the relay's events and the blobs.

Batch: the blob is rebuilt into a tree, and the call's leaf must be under the root that the relay's event announces.
Individual: the event's hashes, time, signature and payer must be the call's. What the gateway named (`data_tx_hash`,
`data_blob_id`) is a claim: it is compared, not believed. Private mode writes nothing on chain, and no more can be said
of it. The enclave's signature is checked in `attestation`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.chain.contracts import (
    BATCH_SETTLEMENT,
    INDIVIDUAL_SETTLEMENT,
    BatchSettlement,
    IndividualSettlement,
    batch_settlement,
    individual_settlement,
)
from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.questions import Log, Question, block, block_before, logs
from opengradient_x402.chain.questions import receipt as transaction_receipt
from opengradient_x402.chain.sources import Document, Source, Sources
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.errors import RpcError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt, transaction_claim
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.attestation import TeeProof
from opengradient_x402.proofs.blobs import MerkleTree, differences, leaf_hash, root_from_proof
from opengradient_x402.proofs.findings import Finding, Read, Refuted, Stated, Statement, Undecided, totals
from opengradient_x402.settlement.recognition import address_topic
from opengradient_x402.settlement_mode import SettlementMode
from opengradient_x402.telemetry import events

CLOCK_MARGIN_S: Final = 900
SEARCH_S: Final = 86_400
"""A batch is looked for during a day after its calls: gateways write them within minutes."""
PATIENCE_S: Final = 600
"""A transaction that a gateway named and no node knows after this time was never sent."""
_BLOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class DataSettlements:
    """Proves the data settlements of one network, from its relay and blob store.

    With a `ledger`, a receipt whose data settlement is refuted becomes disputed there. Raises ChainUnavailable when
    the relay's node does not answer.
    """

    def __init__(self, network: Network, ledger: Ledger | None = None) -> None:
        self._network = network
        self._ledger = ledger

    def prove(self, receipts: Sequence[SettlementReceipt]) -> list[DataSettlement]:
        """What is known of each receipt's data settlement, in order."""
        return look_up(self._proving(receipts))

    async def aprove(self, receipts: Sequence[SettlementReceipt]) -> list[DataSettlement]:
        """As `prove`, for coroutines."""
        return await alook_up(self._proving(receipts))

    def _proving(self, receipts: Sequence[SettlementReceipt]) -> Steps[list[DataSettlement]]:
        found = yield from find_data_settlements(receipts, network=self._network, sources=Sources())
        for receipt, settlement in zip(receipts, found, strict=True):
            wrong = [finding for finding in settlement.findings if isinstance(finding, Refuted)]
            if wrong and self._ledger is not None:
                dispute = " ".join(f"Not true that {finding.statement}: {finding.why}." for finding in wrong)
                yield Wait(self._ledger.record_dispute(settlement.call_id, dispute))
                events.report(events.Disputed.of(receipt, dispute=dispute))
        return found


def find_data_settlements(
    receipts: Sequence[SettlementReceipt], *, network: Network, sources: Sources
) -> Steps[list[DataSettlement]]:
    """What is known of each receipt's data settlement, in order; batches are read once for all."""
    found: dict[str, DataSettlement] = {}
    batched: dict[str, TeeProof] = {}
    for receipt in receipts:
        mode = SettlementMode.parse(receipt.settlement_mode)
        proof, problem = _proof_of(receipt)
        if mode is SettlementMode.PRIVATE:
            found[receipt.call_id] = _private(receipt)
        elif network.relay is None:
            found[receipt.call_id] = _unknown(receipt, mode, f"the network {network.name} names no settlement relay")
        elif proof is None:
            found[receipt.call_id] = _unknown(receipt, mode, problem)
        elif mode is SettlementMode.BATCH:
            batched[receipt.call_id] = proof
        else:
            found[receipt.call_id] = yield from _individual(receipt, proof, network, network.relay, sources)
    if batched and network.relay is not None:
        times_s = [receipt.created_at for receipt in receipts if receipt.call_id in batched]
        found |= yield from _batched(batched, times_s, network, network.relay, sources)
    return [found[receipt.call_id] for receipt in receipts]


def _private(receipt: SettlementReceipt) -> DataSettlement:
    finding = private_finding(receipt.call_id)
    return DataSettlement(call_id=receipt.call_id, mode=SettlementMode.PRIVATE, findings=(finding,))


def _unknown(receipt: SettlementReceipt, mode: SettlementMode, why: str) -> DataSettlement:
    finding = Undecided(statement=Statement.DATA, about=receipt.call_id, why=why)
    return DataSettlement(call_id=receipt.call_id, mode=mode, findings=(finding,))


def _proof_of(receipt: SettlementReceipt) -> tuple[TeeProof | None, str]:
    try:
        proof = TeeProof.from_fields(receipt.to_json())
    except ValueError as exc:
        return None, str(exc)
    return proof, "the call has no enclave proof, so there are no hashes to look for"


# -- batches


def _batched(
    waiting: dict[str, TeeProof], times_s: Sequence[int], network: Network, relay: ChainContract, sources: Sources
) -> Steps[dict[str, DataSettlement]]:
    events = yield from sources.ask(relay, _events(relay, [BATCH_SETTLEMENT], times_s))
    source = yield from sources.source(relay)
    leaves = {leaf_hash(proof): call_id for call_id, proof in waiting.items()}
    found: dict[str, DataSettlement] = {}
    unreadable: list[str] = []
    for event in filter(None, map(batch_settlement, events)):
        if len(found) == len(waiting):
            break
        blob = yield from read_blob(event.blob_id, network, sources)
        batch = Batch.read(event, blob)
        if batch.tree is None:
            unreadable.append(f"{named(event)}: {batch.problem}")
            continue
        for leaf in leaves.keys() & set(batch.tree.leaves):
            call_id = leaves[leaf]
            found.setdefault(call_id, batch_findings(call_id, waiting[call_id], batch, source))
    why = f"none of the {len(events)} batches since the call holds it; it may not be written yet"
    if unreadable:
        why += f" (not readable: {'; '.join(unreadable[:3])})"
    for call_id in waiting.keys() - found.keys():
        finding = Undecided(statement=Statement.DATA, about=call_id, why=why)
        found[call_id] = DataSettlement(call_id=call_id, mode=SettlementMode.BATCH, findings=(finding,))
    return found


# -- individual settlements


def _individual(
    receipt: SettlementReceipt, proof: TeeProof, network: Network, relay: ChainContract, sources: Sources
) -> Steps[DataSettlement]:
    claimed = transaction_claim(receipt.data_tx_hash)
    stated = (yield from sources.ask(relay, _logs_of(claimed, relay))) if claimed is not None else None
    topics = [INDIVIDUAL_SETTLEMENT, proof.tee_id, address_topic(receipt.payer)]
    events = list(filter(None, map(individual_settlement, stated or ())))
    if not any(is_settlement_of(receipt, proof, event) for event in events):
        searched = yield from sources.ask(relay, _events(relay, topics, [receipt.created_at]))
        elsewhere = list(filter(None, map(individual_settlement, searched)))
        events = [event for event in elsewhere if is_settlement_of(receipt, proof, event)] or events
    if not events:
        return _missing(receipt, claimed, is_known=stated is not None)
    event = next((event for event in events if is_settlement_of(receipt, proof, event)), events[0])
    blob = yield from read_blob(event.blob_id, network, sources)
    return individual_findings(receipt, proof, event, blob, (yield from sources.source(relay)))


def _missing(receipt: SettlementReceipt, claimed: str | None, *, is_known: bool) -> DataSettlement:
    about = receipt.call_id
    is_old = time.time() - receipt.created_at > PATIENCE_S
    if claimed is not None and (is_known or is_old):
        what = "holds no such event" if is_known else "is not on the chain"
        why = f"the gateway named transaction {claimed}, which {what}"
        finding: Finding = Refuted(statement=Statement.DATA, about=about, why=why)
    else:
        why = "the relay has no event of this call; it may come later"
        finding = Undecided(statement=Statement.DATA, about=about, why=why)
    return DataSettlement(call_id=about, mode=SettlementMode.INDIVIDUAL, findings=(finding,))


# -- reading


def _events(relay: ChainContract, topics: Sequence[str], times_s: Sequence[int]) -> Question[list[Log]]:
    """The relay's events since these calls began: by our clock, since a proof's old time would have all blocks read."""
    head = yield from block()
    start = yield from block_before(min(times_s) - CLOCK_MARGIN_S, head=head)
    end, last_s = head.number, max(times_s) + SEARCH_S
    if last_s < head.timestamp_s:
        end = min(end, (yield from block_before(last_s, head=head)) + 64)
    return (yield from logs(relay.address, topics, from_block=start, to_block=end))


def _logs_of(tx_hash: str, relay: ChainContract) -> Question[list[Log] | None]:
    """The relay's events in a transaction; None when there is no such transaction."""
    try:
        done = yield from transaction_receipt(tx_hash)
    except RpcError:  # not the form of a hash
        return None
    if done is None:
        return None
    return [log for log in done.logs if log.address == relay.address]


def read_blob(blob_id: str, network: Network, sources: Sources) -> Steps[Document]:
    """The content of the network's blob store under an id. The id comes from the event, so it may be anything."""
    if network.blob_url is None:
        return Document(problem=f"the network {network.name} names no blob store")
    if _BLOB_ID.fullmatch(blob_id) is None:
        return Document(problem="the chain's blob id is not one")
    return (yield from sources.blob(network.blob_url, blob_id))


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
            "totals": totals(self.findings),
            "findings": [finding.to_json() for finding in self.findings],
        } | {name: value for name, value in known.items() if value is not None}


def private_finding(call_id: str) -> Finding:
    """That private mode has nothing to show: the mode itself is the payer's word."""
    why = "the file says that the call was made in private mode; only the payment is on chain then"
    return Stated(statement=Statement.NO_DATA, about=call_id, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What was written on chain about many calls: the event, and the tree in its blob, built again once for all calls.

    `problem` says why there is no tree.
    """

    event: BatchSettlement
    blob: bytes = b""
    tree: MerkleTree | None = None
    problem: str | None = None

    @classmethod
    def read(cls, event: BatchSettlement, blob: Document) -> Batch:
        """The batch of an event and its blob."""
        if blob.problem is not None:
            return cls(event=event, problem=blob.problem)
        try:
            return cls(event=event, blob=blob.content, tree=_tree_of(event, blob.content))
        except ValueError as exc:
            return cls(event=event, blob=blob.content, problem=str(exc))


def batch_findings(call_id: str, proof: TeeProof, batch: Batch, source: Source) -> DataSettlement:
    """Whether a batch that was written on chain holds this call. Pure."""
    event, leaf = batch.event, leaf_hash(proof)
    evidence: dict[str, Any] = {
        "call_id": call_id,
        "mode": SettlementMode.BATCH,
        "log": event.log,
        "blob_id": event.blob_id,
        "blob": batch.blob,
        "merkle_root": "0x" + event.merkle_root.hex(),
    }
    try:
        if batch.tree is None:
            raise ValueError(batch.problem)
        siblings = batch.tree.proof(leaf)
    except ValueError as exc:
        why = f"{named(event)}: {exc}"
        return DataSettlement(findings=(Refuted(statement=Statement.DATA, about=call_id, why=why),), **evidence)
    if root_from_proof(leaf, siblings) != event.merkle_root:
        why = f"{named(event)}: the inclusion proof leads to another root"
        return DataSettlement(findings=(Refuted(statement=Statement.DATA, about=call_id, why=why),), **evidence)
    why = f"its leaf is one of {event.batch_size} under the root in {named(event)}"
    return DataSettlement(
        findings=(Read(statement=Statement.DATA, about=call_id, why=why, source=source),),
        leaf="0x" + leaf.hex(),
        proof=tuple("0x" + sibling.hex() for sibling in siblings),
        **evidence,
    )


def individual_findings(
    receipt: SettlementReceipt, proof: TeeProof, event: IndividualSettlement, blob: Document, source: Source
) -> DataSettlement:
    """Whether an event on chain is the settlement of this call, and what the gateway claimed of it. Pure."""
    about, where = receipt.call_id, f"transaction {event.log.tx_hash}"
    differing = [name for name, on_chain, expected in _compared(receipt, proof, event) if on_chain != expected]
    findings: list[Finding] = []
    if differing:
        why = f"the event in {where} has another {', another '.join(differing)} than the receipt"
        findings.append(Refuted(statement=Statement.DATA, about=about, why=why))
    else:
        why = f"the event in {where} holds its hashes, time, signature and payer"
        findings.append(Read(statement=Statement.DATA, about=about, why=why, source=source))
        findings += _claims(receipt, event, source)
        findings.append(_blob_finding(about, event, blob, source))
    return DataSettlement(
        call_id=about,
        mode=SettlementMode.INDIVIDUAL,
        findings=tuple(findings),
        log=event.log,
        blob_id=event.blob_id,
        blob=blob.content or None,
    )


def _tree_of(event: BatchSettlement, blob: bytes) -> MerkleTree:
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


def _claims(receipt: SettlementReceipt, event: IndividualSettlement, source: Source) -> list[Finding]:
    claims = (
        (Statement.NAMED_TRANSACTION, transaction_claim(receipt.data_tx_hash), event.log.tx_hash),
        (Statement.NAMED_BLOB, receipt.data_blob_id, event.blob_id),
    )
    findings: list[Finding] = []
    for statement, claimed, fact in claims:
        if claimed is None:
            continue
        if claimed.lower() == fact if statement is Statement.NAMED_TRANSACTION else claimed == fact:
            why = f"the file says that it named {fact}, and the chain shows that"
            findings.append(Read(statement=statement, about=receipt.call_id, why=why, source=source))
        else:
            why = f"it named {claimed}; the chain shows {fact}"
            findings.append(Refuted(statement=statement, about=receipt.call_id, why=why))
    return findings


def _blob_finding(about: str, event: IndividualSettlement, blob: Document, source: Source) -> Finding:
    statement, name = Statement.BLOB, event.blob_id[:64]
    if blob.problem is not None:
        return Undecided(statement=statement, about=about, why=f"the blob {name} was not read: {blob.problem}")
    try:
        differing = differences(blob.content, event)
    except (ValueError, TypeError) as exc:
        return Refuted(statement=statement, about=about, why=f"the blob {name} cannot be read: {exc}")
    if differing:
        why = f"the blob {name} has another {', another '.join(differing)} than the event"
        return Refuted(statement=statement, about=about, why=why)
    why = f"the blob {name} agrees with the event in all that it holds"
    return Read(statement=statement, about=about, why=why, source=source)
