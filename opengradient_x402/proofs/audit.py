"""Re-checking receipts against evidence: which of their statements hold, which do not, and why.

The same checks run live against nodes, or on the evidence in a bundle: that depends on the sources. On evidence,
everything that rests on signatures and hashes is proven as well as live; that a chain holds it is not, and says so.

Statements per authorization: the payer signed these entry; so much was settled, to whom, in which transaction,
with how many confirmations (or: nothing was and can be); the calls' shares add up; disputes are not hidden. Per
call: the enclave signed its hashes, the key is registered, the data were settled as the mode says. What was asked
and answered is in no receipt, so nothing is said about it here.
"""

from __future__ import annotations

from dataclasses import replace

from opengradient_x402.chain.contracts import RegisteredTee, batch_settlement, individual_settlement, registered_tee
from opengradient_x402.chain.questions import (
    Question,
    Transaction,
    TransactionReceipt,
    authorization_state,
    block,
    chain_time,
    nonce_used,
    receipt,
    transaction,
)
from opengradient_x402.chain.sources import Document, Sources
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import amount_in
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.attestation import TeeProof, is_signed_by
from opengradient_x402.proofs.bundle import Case, Contents, DataPlace
from opengradient_x402.proofs.data_settlement import DATA_SETTLED as _DATA
from opengradient_x402.proofs.data_settlement import (
    NOTHING_TO_SETTLE,
    batch_findings,
    individual_findings,
    private_finding,
    read_blob,
)
from opengradient_x402.proofs.findings import Finding, Standing, not_proven, proven, refuted
from opengradient_x402.proofs.receipt_checks import (
    ONCE,
    OPEN_TO_DISPUTE,
    SHARES,
    SIGNED,
    differences,
    dispute_findings,
    foreign,
    mismatch,
    once_finding,
    share_findings,
    signature_finding,
)
from opengradient_x402.settlement.recognition import (
    SettlementFound,
    diverted_settlement,
    invalidates,
    permit_settlements,
    transfer_settlements,
)
from opengradient_x402.settlement_mode import SettlementMode

_PAID = "the settlement is as the receipt says"
_CONFIRMED = "the settlement is in a block of the chain"
_NOTHING_TAKEN = "nothing was taken"
_ENCLAVE = "the enclave's key signed the call's hashes"
_REGISTERED = "the key is registered as an enclave's"


def audit(contents: Contents, *, network: Network, sources: Sources, is_live: bool) -> Steps[list[Finding]]:
    """Everything that can be found out about these receipts."""
    auditor = _Auditor(contents, network, sources)
    findings = yield from auditor.findings()
    if is_live:
        return findings
    return [_as_recorded(finding) for finding in findings]


_IN_THE_FILE = frozenset({SIGNED, SHARES, OPEN_TO_DISPUTE, ONCE, NOTHING_TO_SETTLE, _ENCLAVE})
"""What signatures, hashes and arithmetic prove. Everything else rests on what a chain is said to hold."""


def _as_recorded(finding: Finding) -> Finding:
    if finding.standing is not Standing.PROVEN or finding.statement in _IN_THE_FILE:
        return finding
    why = f"the bundle's evidence agrees ({finding.why}); the chain itself was not asked"
    return replace(finding, standing=Standing.NOT_PROVEN, why=why)


class _Auditor:
    """One audit: what it is about, and what was already looked up."""

    def __init__(self, contents: Contents, network: Network, sources: Sources) -> None:
        self._contents = contents
        self._network = network
        self._sources = sources
        self._authorizations = [case.entry for case in contents.cases]
        self._places = {place.call_id: place for place in contents.data_places}
        self._enclaves: dict[str, RegisteredTee | None] = {}
        self._mined: dict[tuple[int, str], TransactionReceipt | None] = {}
        self._blobs: dict[str, Document] = {}

    def findings(self) -> Steps[list[Finding]]:
        findings = [once_finding(self._contents.cases)]
        for case in self._contents.cases:
            findings += yield from self._of_payment(case)
            findings += share_findings(case)
            findings += dispute_findings(case)
            for call in case.receipts:
                findings += yield from self._of_enclave(call)
                findings += yield from self._of_data(call)
        return findings

    # -- payments

    def _of_payment(self, case: Case) -> Steps[list[Finding]]:
        entry = case.entry
        contradiction = foreign(entry, self._network) or mismatch(case)
        if contradiction is not None:
            return [refuted(_PAID, about=entry.id, why=contradiction)]
        try:
            match entry.status:
                case "settled":
                    return (yield from self._of_settlement(entry))
                case "expired":
                    return [(yield from self._of_expiry(entry))]
                case "cancelled":
                    return [(yield from self._of_cancellation(entry))]
                case _:
                    why = "it is not settled yet: nothing is on chain that could prove it"
                    return [not_proven(_PAID, about=entry.id, why=why)]
        except ChainUnavailable as exc:
            return [not_proven(_PAID, about=entry.id, why=exc.message)]

    def _of_settlement(self, entry: Authorization) -> Steps[list[Finding]]:
        about, tx_hash = entry.id, entry.tx_hash or ""
        done, mined = yield from self._sources.ask(self._network, _transaction_of(tx_hash))
        if done is None or mined is None:
            return [refuted(_PAID, about=about, why=f"transaction {tx_hash} is not on the chain")]
        findings = [signature_finding(entry, mined, self._network)]
        found = self._settlement_in(entry, done, mined)
        wrong = ["no settlement of this authorization"] if found is None else list(differences(entry, found))
        if wrong:
            why = f"transaction {tx_hash} shows {', '.join(wrong)}"
            return [*findings, refuted(_PAID, about=about, why=why)]
        amount, payee = amount_in(entry, entry.settled_atomic or 0), found.payee if found else entry.terms.payee
        paid = f"{amount} from {entry.payer} to {payee}"
        findings.append(proven(_PAID, about=about, why=f"{paid} in transaction {tx_hash}"))
        findings.append((yield from self._of_block(entry)))
        return findings

    def _settlement_in(
        self, entry: Authorization, done: TransactionReceipt, mined: Transaction
    ) -> SettlementFound | None:
        # All authorizations together: a transaction that settles several is told apart by them.
        found = (
            transfer_settlements(done, [item for item in self._authorizations if item.transfer_method == "eip3009"])
            if entry.transfer_method == "eip3009"
            else permit_settlements(
                mined, done, [item for item in self._authorizations if item.transfer_method == "permit2"]
            )
        )
        return found.get(entry) or diverted_settlement(mined, done, entry)

    def _of_block(self, entry: Authorization) -> Steps[Finding]:
        about, number = entry.id, entry.block_number or 0
        head, at_height = yield from self._sources.ask(self._network, _block_and_head(number))
        if at_height != entry.block_hash:
            why = f"block {number} is {at_height} and not {entry.block_hash}: the chain was reorganised"
            return refuted(_CONFIRMED, about=about, why=why)
        confirmations = head - number + 1
        why = f"block {number} has {confirmations} confirmations; {self._network.confirmations} make it final"
        make = proven if confirmations >= self._network.confirmations else not_proven
        return make(_CONFIRMED, about=about, why=why)

    def _of_expiry(self, entry: Authorization) -> Steps[Finding]:
        now_s, is_used = yield from self._sources.ask(self._network, _time_and_use(entry, self._network))
        if is_used:
            return refuted(_NOTHING_TAKEN, about=entry.id, why="its nonce is used on the chain")
        if now_s <= entry.deadline:
            return refuted(_NOTHING_TAKEN, about=entry.id, why="its deadline has not passed yet on the chain")
        return proven(_NOTHING_TAKEN, about=entry.id, why="its nonce is unused and its deadline has passed")

    def _of_cancellation(self, entry: Authorization) -> Steps[Finding]:
        done = yield from self._sources.ask(self._network, receipt(entry.tx_hash or ""))
        source = entry.asset if entry.transfer_method == "eip3009" else self._network.permit2
        if done is None or not any(log.address == source and invalidates(log, entry) for log in done.logs):
            why = f"transaction {entry.tx_hash} does not invalidate its nonce"
            return refuted(_NOTHING_TAKEN, about=entry.id, why=why)
        why = f"the payer invalidated its nonce in transaction {entry.tx_hash}"
        return proven(_NOTHING_TAKEN, about=entry.id, why=why)

    # -- enclaves

    def _of_enclave(self, call: SettlementReceipt) -> Steps[list[Finding]]:
        try:
            proof = TeeProof.from_fields(call.to_json())
        except ValueError as exc:
            return [refuted(_ENCLAVE, about=call.call_id, why=str(exc))]
        if proof is None:
            return [not_proven(_ENCLAVE, about=call.call_id, why="the answer carried no enclave signature")]
        registry = self._network.registry
        if registry is None:
            return [not_proven(_ENCLAVE, about=call.call_id, why="the network names no registry to get the key from")]
        try:
            enclave = yield from self._enclave(proof.tee_id, registry)
        except ChainUnavailable as exc:
            return [not_proven(_ENCLAVE, about=call.call_id, why=f"the registry was not read: {exc.message}")]
        if enclave is None or enclave.id != proof.tee_id:
            why = f"the registry has no enclave {proof.tee_id}"
            return [not_proven(_ENCLAVE, about=call.call_id, why=why)]
        if not is_signed_by(proof, enclave.public_key_der):
            why = f"the signature is not that of {proof.tee_id} over these hashes and this time"
            return [refuted(_ENCLAVE, about=call.call_id, why=why)]
        return [
            proven(_ENCLAVE, about=call.call_id, why=f"key {proof.tee_id} signed them at {proof.timestamp_s}"),
            proven(_REGISTERED, about=call.call_id, why=f"the registry {registry.address} lists {proof.tee_id}"),
        ]

    def _enclave(self, tee_id: str, registry: ChainContract) -> Steps[RegisteredTee | None]:
        if tee_id not in self._enclaves:
            self._enclaves[tee_id] = yield from self._sources.ask(registry, registered_tee(registry.address, tee_id))
        return self._enclaves[tee_id]

    # -- data settlements

    def _of_data(self, call: SettlementReceipt) -> Steps[list[Finding]]:
        mode = SettlementMode.parse(call.settlement_mode)
        if mode is SettlementMode.PRIVATE:
            return [private_finding(call.call_id)]
        place, relay = self._places.get(call.call_id), self._network.relay
        proof = _readable_proof(call)
        if place is None or relay is None or proof is None:
            why = "no event of the settlement relay was found for it when the bundle was made"
            return [not_proven(_DATA, about=call.call_id, why=why)]
        try:
            return (yield from self._of_event(call, proof, mode, place, relay))
        except ChainUnavailable as exc:
            return [not_proven(_DATA, about=call.call_id, why=f"the relay's chain was not read: {exc.message}")]

    def _of_event(
        self, call: SettlementReceipt, proof: TeeProof, mode: SettlementMode, place: DataPlace, relay: ChainContract
    ) -> Steps[list[Finding]]:
        done = yield from self._receipt(place.tx_hash, relay)
        logs = () if done is None else done.logs
        log = next((log for log in logs if log.log_index == place.log_index and log.address == relay.address), None)
        if log is None:
            why = f"transaction {place.tx_hash} holds no event of the relay at that place"
            return [refuted(_DATA, about=call.call_id, why=why)]
        batch, single = batch_settlement(log), individual_settlement(log)
        if mode is SettlementMode.BATCH and batch is not None:
            blob = yield from self._blob(batch.blob_id)
            if blob.problem is not None:
                return [not_proven(_DATA, about=call.call_id, why=f"the blob was not read: {blob.problem}")]
            found = batch_findings(call.call_id, proof, batch, blob.content)
        elif mode is SettlementMode.INDIVIDUAL and single is not None:
            found = individual_findings(call, proof, single, (yield from self._blob(single.blob_id)))
        else:
            return [refuted(_DATA, about=call.call_id, why=f"transaction {place.tx_hash} holds no {mode} settlement")]
        return list(found.findings)

    def _receipt(self, tx_hash: str, relay: ChainContract) -> Steps[TransactionReceipt | None]:
        key = (relay.chain_id, tx_hash)
        if key not in self._mined:
            self._mined[key] = yield from self._sources.ask(relay, receipt(tx_hash))
        return self._mined[key]

    def _blob(self, blob_id: str) -> Steps[Document]:
        if blob_id not in self._blobs:
            self._blobs[blob_id] = yield from read_blob(blob_id, self._network, self._sources)
        return self._blobs[blob_id]


def _readable_proof(call: SettlementReceipt) -> TeeProof | None:
    try:
        return TeeProof.from_fields(call.to_json())
    except ValueError:
        return None


# -- questions


def _transaction_of(tx_hash: str) -> Question[tuple[TransactionReceipt | None, Transaction | None]]:
    done = yield from receipt(tx_hash)
    return done, (yield from transaction(tx_hash))


def _block_and_head(number: int) -> Question[tuple[int, str]]:
    head = yield from block()
    return head.number, (yield from block(number)).hash


def _time_and_use(entry: Authorization, network: Network) -> Question[tuple[int, bool]]:
    now_s = yield from chain_time()
    if entry.transfer_method == "eip3009":
        return now_s, (yield from authorization_state(entry.asset, entry.payer, entry.nonce))
    return now_s, (yield from nonce_used(network.permit2, entry.payer, entry.nonce))
