"""Finding what became of calls' data: the relay's events and the blobs, for `data_evidence` to judge.

Private mode writes nothing on chain, and that is all that can be said of it. Does not check the enclave's signature
(`attestation`), and does not know payments.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from opengradient_x402.chain.contracts import (
    BATCH_SETTLEMENT,
    INDIVIDUAL_SETTLEMENT,
    batch_settlement,
    individual_settlement,
)
from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.questions import Log, Question, block, block_before, logs
from opengradient_x402.chain.questions import receipt as transaction_receipt
from opengradient_x402.chain.sources import Document, Sources
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.errors import RpcError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.attestation import TeeProof
from opengradient_x402.proofs.data_evidence import (
    DATA_SETTLED,
    DataSettlement,
    batch_findings,
    individual_findings,
    is_settlement_of,
    named,
    private_finding,
    tree_of,
)
from opengradient_x402.proofs.findings import Standing, not_proven, refuted
from opengradient_x402.proofs.merkle import leaf_hash
from opengradient_x402.settlement.recognition import address_topic
from opengradient_x402.settlement_mode import SettlementMode

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
        for settlement in found:
            wrong = [finding for finding in settlement.findings if finding.standing is Standing.REFUTED]
            if wrong and self._ledger is not None:
                dispute = " ".join(f"Not true that {finding.statement}: {finding.why}." for finding in wrong)
                yield Wait(self._ledger.record_dispute(settlement.call_id, dispute))
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
    finding = not_proven(DATA_SETTLED, about=receipt.call_id, why=why)
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
    leaves = {leaf_hash(proof): call_id for call_id, proof in waiting.items()}
    found: dict[str, DataSettlement] = {}
    unreadable: list[str] = []
    for event in filter(None, map(batch_settlement, events)):
        if len(found) == len(waiting):
            break
        blob = yield from read_blob(event.blob_id, network, sources)
        try:
            tree = tree_of(event, blob.content) if blob.problem is None else None
        except ValueError as exc:
            blob, tree = Document(problem=str(exc)), None
        if tree is None:
            unreadable.append(f"{named(event)}: {blob.problem}")
            continue
        for leaf in leaves.keys() & set(tree.leaves):
            call_id = leaves[leaf]
            found.setdefault(call_id, batch_findings(call_id, waiting[call_id], event, blob.content))
    why = f"none of the {len(events)} batches since the call holds it; it may not be written yet"
    if unreadable:
        why += f" (not readable: {'; '.join(unreadable[:3])})"
    for call_id in waiting.keys() - found.keys():
        finding = not_proven(DATA_SETTLED, about=call_id, why=why)
        found[call_id] = DataSettlement(call_id=call_id, mode=SettlementMode.BATCH, findings=(finding,))
    return found


# -- individual settlements


def _individual(
    receipt: SettlementReceipt, proof: TeeProof, network: Network, relay: ChainContract, sources: Sources
) -> Steps[DataSettlement]:
    claimed = receipt.data_tx_hash
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
    return individual_findings(receipt, proof, event, blob)


def _missing(receipt: SettlementReceipt, claimed: str | None, *, is_known: bool) -> DataSettlement:
    about = receipt.call_id
    is_old = time.time() - receipt.created_at > PATIENCE_S
    if claimed is not None and (is_known or is_old):
        what = "holds no such event" if is_known else "is not on the chain"
        finding = refuted(DATA_SETTLED, about=about, why=f"the gateway named transaction {claimed}, which {what}")
    else:
        finding = not_proven(DATA_SETTLED, about=about, why="the relay has no event of this call; it may come later")
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
    """What the network's blob store has under an id; whoever wrote the event chose the id."""
    if network.blob_url is None:
        return Document(problem=f"the network {network.name} names no blob store")
    if _BLOB_ID.fullmatch(blob_id) is None:
        return Document(problem="the chain's blob id is not one")
    return (yield from sources.document(f"{network.blob_url.rstrip('/')}/{quote(blob_id, safe='')}"))
