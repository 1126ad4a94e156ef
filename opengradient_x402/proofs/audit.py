"""Re-checking receipts against evidence: which of their statements hold, on what they rest, and which do not.

The same checks run live against nodes, or on the evidence in a bundle: that depends on the sources. What rests on a
chain is `Read` from it here; `verification` takes that back where no chain was asked, or the contracts are not the
reader's own. What was asked and answered is in no receipt, so nothing is said about it.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from opengradient_x402.chain.contracts import RegisteredTee, batch_settlement, individual_settlement, registered_tee
from opengradient_x402.chain.questions import (
    Question,
    Transaction,
    TransactionReceipt,
    block,
    receipt,
    transaction,
)
from opengradient_x402.chain.sources import Document, Source, Sources
from opengradient_x402.channels.shown import ShownChannel
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.attestation import TeeProof, is_signed_by, tee_id
from opengradient_x402.proofs.bundle import Attested, Case, Contents, DataPlace
from opengradient_x402.proofs.checks.channels import channel_audit
from opengradient_x402.proofs.checks.channels import contradiction as channel_contradiction
from opengradient_x402.proofs.checks.completeness import Claim
from opengradient_x402.proofs.checks.decisions import decision_finding
from opengradient_x402.proofs.checks.network import description_of
from opengradient_x402.proofs.checks.receipts import (
    differences,
    dispute_findings,
    foreign,
    is_disowned,
    mismatch,
    once_finding,
    readable_proof,
    share_findings,
    signature_finding,
    told_finding,
)
from opengradient_x402.proofs.checks.unpaid import cancellation_finding, expiry_findings
from opengradient_x402.proofs.data_settlement import (
    Batch,
    batch_findings,
    individual_findings,
    private_finding,
    read_blob,
)
from opengradient_x402.proofs.findings import Finding, Proven, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.proofs.nitro import DocumentCheck, DocumentVerdict, check_document
from opengradient_x402.settlement.recognition import (
    SettlementFound,
    diverted_settlement,
    permit_settlements,
    transfer_settlements,
)
from opengradient_x402.settlement_mode import SettlementMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit found out, and which transfers and events of channels the file explains.

    `unexplained` is what was claimed from channels beyond the calls in the file, in atomic units.
    """

    findings: list[Finding]
    claims: dict[Claim, str] = field(default_factory=dict)
    unexplained: dict[str, int] = field(default_factory=dict)


def audit(contents: Contents, *, network: Network, sources: Sources, pcr_hashes: Collection[str] = ()) -> Steps[Audit]:
    """Everything that can be found out about these receipts.

    `pcr_hashes` are the images that the reader knows: a key that such an enclave attests needs no registry.
    """
    auditor = _Auditor(contents, network, sources, pcr_hashes)
    findings = yield from auditor.findings()
    return Audit(findings=findings, claims=auditor.claims, unexplained=auditor.unexplained)


class _Auditor:
    """One audit: what it is about, and what was already looked up."""

    def __init__(self, contents: Contents, network: Network, sources: Sources, pcr_hashes: Collection[str]) -> None:
        self._contents = contents
        self._pcr_hashes = pcr_hashes
        self._attested = {shown.tee_id: shown for shown in contents.attestations}
        self._documents: dict[str, tuple[DocumentCheck, bytes]] = {}
        self._network = network
        self._sources = sources
        self._authorizations = [case.entry for case in contents.cases]
        self._places = {place.call_id: place for place in contents.data_places}
        self._enclaves: dict[str, RegisteredTee | None] = {}
        self._mined: dict[tuple[int, str], TransactionReceipt | None] = {}
        self._blobs: dict[str, Document] = {}
        self._batches: dict[tuple[str, int], Batch] = {}
        self._channels = {channel.id: channel for channel in contents.channels}
        self._paid: dict[str, str] = {}
        self.claims: dict[Claim, str] = {}
        self.unexplained: dict[str, int] = {}

    def findings(self) -> Steps[list[Finding]]:
        findings = [once_finding(self._contents.cases)]
        for case in self._contents.cases:
            findings += yield from self._of_payment(case)
            findings += yield from self._of_parties(case)
            findings += share_findings(case, self._network)
            findings += dispute_findings(case, self._network)
            for call in case.receipts:
                findings.append(told_finding(call, self._contents.made_at))
                findings += yield from self._of_enclave(call)
                findings += yield from self._of_data(call)
        findings += [decision_finding(decision, self._network) for decision in self._contents.decisions]
        for channel in self._contents.channels:
            findings += yield from self._of_channel(channel)
        return findings

    # -- payments

    def _of_channel(self, channel: ShownChannel) -> Steps[list[Finding]]:
        cases = [case for case in self._contents.cases if case.channel_id == channel.id]
        seen = yield from channel_audit(channel, cases, network=self._network, sources=self._sources)
        self.claims |= dict.fromkeys(seen.moves, channel.id)
        if seen.unexplained_atomic:
            self.unexplained[channel.id] = seen.unexplained_atomic
        return seen.findings

    def _of_payment(self, case: Case) -> Steps[list[Finding]]:
        entry = case.entry
        statement = Statement.NOTHING_TAKEN if entry.status in ("expired", "cancelled") else Statement.PAID
        contradiction = foreign(entry, self._network) or mismatch(case, self._network)
        channel = self._channels.get(case.channel_id or "")
        if contradiction is None and channel is not None:
            contradiction = channel_contradiction(case, channel, self._network)
        if contradiction is not None:
            return [Refuted(statement=Statement.PAID, about=entry.id, why=contradiction)]
        if channel is not None and entry.status == "settled":
            return []  # a claim settles calls together: what is read is about the channel
        try:
            source = yield from self._sources.source(self._network)
            match entry.status:
                case "settled":
                    return (yield from self._of_settlement(case, source))
                case "expired":
                    return (yield from self._sources.ask(self._network, expiry_findings(case, self._network, source)))
                case "cancelled":
                    asked = cancellation_finding(entry, self._network, source)
                    return [(yield from self._sources.ask(self._network, asked))]
                case _:
                    why = "it is not settled yet: nothing is on chain that could show it"
                    return [Undecided(statement=statement, about=entry.id, why=why)]
        except ChainUnavailable as exc:
            return [Undecided(statement=statement, about=entry.id, why=exc.message)]

    def _of_settlement(self, case: Case, source: Source) -> Steps[list[Finding]]:
        entry = case.entry
        about, tx_hash = entry.id, entry.tx_hash or ""
        done, mined = yield from self._sources.ask(self._network, _transaction_of(tx_hash))
        if done is None or mined is None:
            why = f"transaction {tx_hash} is not on the chain"
            return [Refuted(statement=Statement.PAID, about=about, why=why)]
        if {done.tx_hash, mined.tx_hash} != {tx_hash}:
            why = f"what was shown as transaction {tx_hash} is another one"
            return [Undecided(statement=Statement.PAID, about=about, why=why)]
        signed = signature_finding(case, mined, self._network)
        found = self._settlement_in(entry, done, mined)
        if found is not None:
            self._paid[about] = found.payee
        wrong = (
            ["no settlement of this authorization"] if found is None else list(differences(case, found, self._network))
        )
        if found is None or wrong:
            why = f"transaction {tx_hash} shows {', '.join(wrong)}"
            return [signed, Refuted(statement=Statement.PAID, about=about, why=why)]
        return [signed, self._claimed(entry, found, signed, source), (yield from self._of_block(entry, source))]

    def _claimed(self, entry: Authorization, found: SettlementFound, signed: Finding, source: Source) -> Finding:
        """A transfer belongs to one authorization: to that whose nonce the payer's signature or the token names."""
        statement, about = Statement.PAID, entry.id
        what = f"{self._network.asset.format(found.amount_atomic)} from {found.payer} to {found.payee}"
        if entry.transfer_method == "permit2" and not isinstance(signed, Proven):
            why = f"transaction {found.tx_hash} moved {what}, and no signature ties that to this authorization"
            return Undecided(statement=statement, about=about, why=why)
        claim = (found.tx_hash, found.log_index)
        if (first := self.claims.setdefault(claim, about)) != about:
            why = f"log {found.log_index} of transaction {found.tx_hash} is the settlement of {first} already"
            return Refuted(statement=statement, about=about, why=why)
        why = f"{what} in transaction {found.tx_hash}, log {found.log_index}"
        return Read(statement=statement, about=about, why=why, source=source)

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

    def _of_block(self, entry: Authorization, source: Source) -> Steps[Finding]:
        statement, about, number = Statement.CONFIRMED, entry.id, entry.block_number or 0
        head, at_height = yield from self._sources.ask(self._network, _block_and_head(number))
        if at_height != entry.block_hash:
            why = f"block {number} is {at_height} and not {entry.block_hash}: the chain was reorganised"
            return Refuted(statement=statement, about=about, why=why)
        confirmations = head - number + 1
        why = f"block {number} has {confirmations} confirmations; {self._network.confirmations} make it final"
        if confirmations < self._network.confirmations:
            return Undecided(statement=statement, about=about, why=why)
        return Read(statement=statement, about=about, why=why, source=source)

    # -- who is paid

    def _of_parties(self, case: Case) -> Steps[list[Finding]]:
        """All payees of all signatures must be known, and the one that was paid: not the last one alone."""
        entry, paid = case.entry, self._paid.get(case.entry.id)
        payees = sorted(entry.payees | ({paid} if paid is not None else set()))
        found = [(yield from self._of_payees(case, payees))]
        if facilitators := sorted({terms.facilitator for terms in entry.signed if terms.facilitator is not None}):
            unknown = [address for address in facilitators if address not in self._network.facilitators]
            found.append(self._known(Statement.FACILITATOR, entry.id, facilitators, unknown))
        return found

    def _of_payees(self, case: Case, payees: Sequence[str]) -> Steps[Finding]:
        statement, about = Statement.PAYEE, case.entry.id
        unknown = [payee for payee in payees if payee not in self._network.payees]
        registry = self._network.registry
        if not unknown or registry is None:
            return self._known(statement, about, payees, unknown)
        registered: dict[str, str] = {}
        try:
            for proof in filter(None, map(readable_proof, case.receipts)):
                enclave = yield from self._enclave(proof.tee_id, registry)
                if enclave is not None:
                    registered[enclave.payment_address] = enclave.id
                if registered.keys() >= set(unknown):
                    named = ", ".join(f"{payee} paid for enclave {registered[payee]}" for payee in unknown)
                    source = yield from self._sources.source(registry)
                    why = f"the registry {registry.address} has {named}"
                    return Read(statement=statement, about=about, why=why, source=source)
        except ChainUnavailable as exc:
            why = f"the registry was not read: {exc.message}"
            return Undecided(statement=statement, about=about, why=why)
        return self._known(statement, about, payees, [payee for payee in unknown if payee not in registered])

    def _known(self, statement: Statement, about: str, addresses: Sequence[str], unknown: Sequence[str]) -> Finding:
        if unknown:
            why = f"nobody but the file says who {' and '.join(unknown)} is; it may be the payer's own"
            return Stated(statement=statement, about=about, why=why)
        why = f"{' and '.join(addresses)} is one of the network's"
        return Read(statement=statement, about=about, why=why, source=description_of(self._network))

    # -- enclaves

    def _of_enclave(self, call: SettlementReceipt) -> Steps[list[Finding]]:
        statement, about = Statement.ENCLAVE, call.call_id
        try:
            proof = TeeProof.from_fields(call.to_json())
        except ValueError as exc:
            return [Refuted(statement=statement, about=about, why=str(exc))]
        if proof is None or is_disowned(call):
            why = "no enclave signature" if proof is None else "a proof that had come with another call before"
            return [Undecided(statement=statement, about=about, why=f"the answer carried {why}")]
        attested, key = self._of_attestation(call, proof)
        return attested + (yield from self._of_key(call, proof, key))

    def _of_attestation(self, call: SettlementReceipt, proof: TeeProof) -> tuple[list[Finding], bytes | None]:
        """What the enclave's document shows; and its key, if the reader knows the image that runs there."""
        shown, statement, about = self._attested.get(proof.tee_id), Statement.ATTESTED, call.call_id
        if shown is None:
            return [], None
        check, key = self._checked(shown)
        if check.verdict is DocumentVerdict.WRONG_ROOT:
            return [Undecided(statement=statement, about=about, why=check.why)], None
        if check.document is None or not check.is_valid or tee_id(key) != proof.tee_id:
            return [Refuted(statement=statement, about=about, why=check.why)], None
        image, root = check.document.pcr_hash, self._network.attestation_root_sha256
        why = f"at {check.document.timestamp_s} an enclave with the image {image} named {proof.tee_id} as its key"
        found = Proven(statement=statement, about=about, why=why, key=f"the root {root}")
        return [found], key if image in self._pcr_hashes else None

    def _checked(self, shown: Attested) -> tuple[DocumentCheck, bytes]:
        """An enclave's document, checked once for all of its calls, and the key that it is to name."""
        if shown.tee_id not in self._documents:
            key = base64.b64decode(shown.public_key_base64)
            content, root = base64.b64decode(shown.document_base64), self._network.attestation_root_sha256
            self._documents[shown.tee_id] = check_document(content, root_sha256=root, public_key_der=key), key
        return self._documents[shown.tee_id]

    def _of_key(self, call: SettlementReceipt, proof: TeeProof, attested: bytes | None) -> Steps[list[Finding]]:
        statement, about = Statement.ENCLAVE, call.call_id
        if attested is not None:
            source = Source(name="the enclave's attestation, and the images that the reader knows", is_chain=False)
            return [_signed_by_key(call, proof, attested, source)]
        registry = self._network.registry
        if registry is None:
            why = "the network names no registry to get the key from"
            return [Undecided(statement=statement, about=about, why=why)]
        try:
            enclave = yield from self._enclave(proof.tee_id, registry)
            source = yield from self._sources.source(registry)
        except ChainUnavailable as exc:
            why = f"the registry was not read: {exc.message}"
            return [Undecided(statement=statement, about=about, why=why)]
        if enclave is None or enclave.id != proof.tee_id:
            return [
                Undecided(statement=statement, about=about, why=f"the registry has no enclave {proof.tee_id}"),
            ]
        signed = _signed_by_key(call, proof, enclave.public_key_der, source)
        if isinstance(signed, Refuted):
            return [signed]
        state = "enabled" if enclave.is_enabled else "not enabled any more"
        registered = f"the registry {registry.address} lists {proof.tee_id}: {state}, image {enclave.pcr_hash}"
        return [signed, Read(statement=Statement.REGISTERED, about=about, why=registered, source=source)]

    def _enclave(self, tee_id: str, registry: ChainContract) -> Steps[RegisteredTee | None]:
        if tee_id not in self._enclaves:
            self._enclaves[tee_id] = yield from self._sources.ask(registry, registered_tee(registry.address, tee_id))
        return self._enclaves[tee_id]

    # -- data settlements

    def _of_data(self, call: SettlementReceipt) -> Steps[list[Finding]]:
        statement, about = Statement.DATA, call.call_id
        mode, proof = SettlementMode.parse(call.settlement_mode), readable_proof(call)
        if mode is SettlementMode.PRIVATE:
            return [private_finding(about), *_ownership(about, proof)]
        place, relay = self._places.get(about), self._network.relay
        if place is None or relay is None or proof is None:
            why = "no event of the settlement relay was found for it when the bundle was made"
            return [Undecided(statement=statement, about=about, why=why), *_ownership(about, proof)]
        try:
            found = yield from self._of_event(call, proof, mode, place, relay)
        except ChainUnavailable as exc:
            why = f"the relay's chain was not read: {exc.message}"
            found = [Undecided(statement=statement, about=about, why=why)]
        is_named = any(item.statement is Statement.OWN_CALL for item in found)
        return found if is_named else found + _ownership(about, proof)

    def _of_event(
        self, call: SettlementReceipt, proof: TeeProof, mode: SettlementMode, place: DataPlace, relay: ChainContract
    ) -> Steps[list[Finding]]:
        source = yield from self._sources.source(relay)
        done = yield from self._receipt(place.tx_hash, relay)
        logs = () if done is None or not done.is_success else done.logs
        log = next((log for log in logs if log.log_index == place.log_index and log.address == relay.address), None)
        if log is None:
            why = f"transaction {place.tx_hash} holds no event of the relay at that place"
            return [Refuted(statement=Statement.DATA, about=call.call_id, why=why)]
        batch, single = batch_settlement(log), individual_settlement(log)
        if mode is SettlementMode.BATCH and batch is not None:
            blob = yield from self._blob(batch.blob_id)
            if blob.problem is not None:
                why = f"the blob was not read: {blob.problem}"
                return [Undecided(statement=Statement.DATA, about=call.call_id, why=why)]
            if (at := (place.tx_hash, place.log_index)) not in self._batches:
                self._batches[at] = Batch.read(batch, blob)
            return list(batch_findings(call.call_id, proof, self._batches[at], source).findings)
        if mode is SettlementMode.INDIVIDUAL and single is not None:
            blob = yield from self._blob(single.blob_id)
            findings = list(individual_findings(call, proof, single, blob, source).findings)
            if isinstance(findings[0], Read):
                why = f"the relay's event in transaction {place.tx_hash} names {single.payer}"
                findings.append(Read(statement=Statement.OWN_CALL, about=call.call_id, why=why, source=source))
            return findings
        why = f"transaction {place.tx_hash} holds no {mode} settlement"
        return [Refuted(statement=Statement.DATA, about=call.call_id, why=why)]

    def _receipt(self, tx_hash: str, relay: ChainContract) -> Steps[TransactionReceipt | None]:
        key = (relay.chain_id, tx_hash)
        if key not in self._mined:
            self._mined[key] = yield from self._sources.ask(relay, receipt(tx_hash))
        return self._mined[key]

    def _blob(self, blob_id: str) -> Steps[Document]:
        if blob_id not in self._blobs:
            self._blobs[blob_id] = yield from read_blob(blob_id, self._network, self._sources)
        return self._blobs[blob_id]


def _signed_by_key(call: SettlementReceipt, proof: TeeProof, key: bytes, source: Source) -> Finding:
    statement, about = Statement.ENCLAVE, call.call_id
    if not is_signed_by(proof, key):
        why = f"the signature is not that of {proof.tee_id} over these hashes and this time"
        return Refuted(statement=statement, about=about, why=why)
    why = f"key {proof.tee_id} signed request hash, output hash and time {proof.timestamp_s}"
    return Proven(statement=statement, about=about, why=why, key=proof.tee_id, owner=source)


def _ownership(about: str, proof: TeeProof | None) -> list[Finding]:
    """An enclave's proof does not name payer, payment or model: it can be copied from a public batch."""
    if proof is None:
        return []
    why = "the proof names no payer and no payment; that it belongs to this call is the file's word"
    return [Stated(statement=Statement.OWN_CALL, about=about, why=why)]


# -- questions


def _transaction_of(tx_hash: str) -> Question[tuple[TransactionReceipt | None, Transaction | None]]:
    done = yield from receipt(tx_hash)
    return done, (yield from transaction(tx_hash))


def _block_and_head(number: int) -> Question[tuple[int, str]]:
    head = yield from block()
    return head.number, (yield from block(number)).hash
