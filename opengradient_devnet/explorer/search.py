"""One search box for everything: finds the page of a hash, a number or an id."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eth_utils.address import to_checksum_address

from opengradient_devnet.explorer.reader import ChainReader, DataRecord
from opengradient_devnet.gateway.payment.served import ServedCall, ServedCalls
from opengradient_devnet.gateway.payment.sessions import SessionBook
from opengradient_devnet.gateway.proofs.batches import BlobStore

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_WORD = re.compile(r"(?:0x)?[0-9a-fA-F]{64}", re.ASCII)
_DECIMAL = re.compile(r"[0-9]{1,78}", re.ASCII)
_MAX_QUERY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A page, and what the searched text is on it."""

    path: str
    meaning: str


class Search:
    """Looks through a chain, its blobs and the open sessions."""

    def __init__(self, reader: ChainReader, *, blobs: BlobStore, sessions: SessionBook, served: ServedCalls) -> None:
        self._reader = reader
        self._served = served
        self._blobs = blobs
        self._sessions = sessions

    def find(self, text: str) -> list[Hit]:
        """The pages of what `text` names: address, block, transaction, nonce, root, hash, call id, blob or session."""
        text = text.strip()
        if not text or len(text) > _MAX_QUERY:
            return []
        if _ADDRESS.fullmatch(text):
            return [Hit(path=f"/address/{to_checksum_address(text)}", meaning="an address")]
        if _WORD.fullmatch(text):
            word = "0x" + text.removeprefix("0x").lower()
            return self._by_word(word) + self._by_nonce(int(word, 16))
        if _DECIMAL.fullmatch(text):
            return self._by_number(int(text)) + self._by_nonce(int(text))
        return self._by_name(text)

    def _by_word(self, word: str) -> list[Hit]:
        hits = []
        if self._reader.transaction(word) is not None:
            hits.append(Hit(path=f"/tx/{word}", meaning="a transaction"))
        block = self._reader.block(word)
        if block is not None:
            hits.append(Hit(path=f"/block/{block.number}", meaning="a block"))
        for record in self._reader.data_records():
            hits += self._in_record(bytes.fromhex(word[2:]), record)
        # Also those of private calls, whose hashes are nowhere on the chain.
        return hits + self._payments_of(self._served.with_hash(bytes.fromhex(word[2:])))

    def _payments_of(self, calls: Sequence[ServedCall]) -> list[Hit]:
        """The transactions that paid for these calls."""
        ids = {call.authorization_id for call in calls}
        ended = [
            record for record in self._sessions.settlements if record.authorization_id in ids and record.transaction
        ]
        return [Hit(path=f"/tx/{record.transaction}", meaning="the payment of a call") for record in ended]

    def _sessions_of(self, calls: Sequence[ServedCall]) -> list[Hit]:
        """The sessions that pay for these calls and are not settled yet."""
        ids = {call.authorization_id for call in calls}
        open_ = [session for session in self._sessions.views if session.authorization_id in ids]
        meaning = "the session {} that pays for a call, and is not settled yet"
        return [Hit(path="/sessions", meaning=meaning.format(session.mark)) for session in open_]

    def data_places(self, signatures: Sequence[bytes]) -> dict[bytes, DataRecord]:
        """Where the data of the calls with these proofs were settled, as far as they were."""
        wanted = set(signatures) - {b""}
        found: dict[bytes, DataRecord] = {}
        for record in self._reader.data_records():
            held = {record.arguments.get("signature")} if record.kind == "individual" else self._signatures(record)
            found |= dict.fromkeys(wanted & held, record)
        return found

    def _signatures(self, record: DataRecord) -> set[bytes]:
        blob = self._blobs.get(record.blob_id)
        leaves = [] if blob is None else json.loads(blob)["values"]
        return {bytes.fromhex(leaf["value"][3].removeprefix("0x")) for leaf in leaves}

    def _in_record(self, word: bytes, record: DataRecord) -> list[Hit]:
        names = {
            "merkleRoot": "the root of a batch",
            "inputHash": "the request hash of a call",
            "outputHash": "the output hash of a call",
            "teeId": "the enclave of a call",
        }
        hits = [
            Hit(path=f"/tx/{record.tx_hash}", meaning=meaning)
            for name, meaning in names.items()
            if record.arguments.get(name) == word
        ]
        if record.kind == "batch" and self._is_leaf_part("0x" + word.hex(), record.blob_id):
            hits.append(Hit(path=f"/blob/{record.blob_id}", meaning="a call in a batch"))
        return hits

    def _is_leaf_part(self, word: str, blob_id: str) -> bool:
        blob = self._blobs.get(blob_id)
        return blob is not None and any(word in leaf["value"] for leaf in json.loads(blob)["values"])

    def _by_number(self, number: int) -> list[Hit]:
        if number > self._reader.head_number():
            return []
        return [Hit(path=f"/block/{number}", meaning="a block")]

    def _by_nonce(self, nonce: int) -> list[Hit]:
        hits = [
            Hit(path=f"/tx/{payment.tx_hash}", meaning="the nonce of a settled payment")
            for payment in self._reader.payments()
            if payment.call.nonce == nonce
        ]
        # EIP-3009 nonces are written as bytes32 in an authorization id, Permit2's in decimal.
        for session in self._sessions.views:
            signed = session.authorization_id.rpartition(":")[2]
            if int(signed, 16 if signed.startswith("0x") else 10) == nonce:
                hits.append(Hit(path="/sessions", meaning=f"the nonce of session {session.mark}, which is not settled"))
        return hits

    def _by_name(self, text: str) -> list[Hit]:
        if self._blobs.get(text) is not None:
            return [Hit(path=f"/blob/{text}", meaning="a blob")]
        if calls := self._served.with_id(text):
            return self._payments_of(calls) + self._sessions_of(calls)
        marks = {session.mark for session in self._sessions.views}
        return [Hit(path="/sessions", meaning="a session")] if text in marks else []
