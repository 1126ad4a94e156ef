"""Data settlement: anchors requests and answers on chain, through the settlement relay.

`individual` writes one call's hashes, and a blob with its full record, in a transaction of its own. `batch` collects
calls and writes the root of a Merkle tree over them; its blob is the tree. `private` writes nothing and never comes
here. Blobs are kept in memory under the id that the chain records.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from opengradient_devnet.facilitator.facilitator import DataSettlement
from opengradient_devnet.gateway.jobs import Jobs
from opengradient_devnet.gateway.proofs.merkle import MerkleTree
from opengradient_devnet.gateway.proofs.tee import Proof

# In this order: teeId, inputHash, outputHash, teeSignature, timestamp.
LEAF_TYPES = ("bytes32", "bytes32", "bytes32", "bytes", "uint256")


class SettlementType(StrEnum):
    """What becomes of a call's data, as named by `X-SETTLEMENT-TYPE`."""

    PRIVATE = "private"
    BATCH = "batch"
    INDIVIDUAL = "individual"

    @classmethod
    def from_header(cls, header: str | None) -> SettlementType:
        """Missing or unknown values mean batch, as on the live gateways."""
        try:
            return cls((header or "").strip().lower())
        except ValueError:
            return cls.BATCH


class Relay(Protocol):
    """The part of a facilitator that writes data settlements."""

    def settle_batch(self, *, merkle_root: bytes, batch_size: int, blob_id: bytes) -> DataSettlement: ...

    def settle_individual(
        self,
        *,
        tee_id: bytes,
        input_hash: bytes,
        output_hash: bytes,
        timestamp: int,
        payer: str,
        blob_id: bytes,
        signature: bytes,
    ) -> DataSettlement: ...


class BlobStore:
    """Content-addressed JSON blobs; ids look like Walrus blob ids (43 characters, base64url)."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, content: Mapping[str, Any]) -> str:
        """Keep `content` and return its id."""
        data = json.dumps(content, separators=(",", ":")).encode()
        blob_id = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        self._blobs[blob_id] = data
        return blob_id

    def get(self, blob_id: str) -> bytes | None:
        """The JSON text of a blob, or None."""
        return self._blobs.get(blob_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch that was written to the relay."""

    merkle_root: bytes
    size: int
    blob_id: str
    transaction: str
    success: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IndividualRecord:
    """One call that was written to the relay on its own."""

    job_id: str
    queue_number: int
    blob_id: str
    transaction: str
    success: bool
    status: str = ""
    """what its headers say of it; empty: whether it succeeded."""

    def naming(self, transaction: str) -> IndividualRecord:
        """This record, but with another transaction."""
        return replace(self, transaction=transaction)

    def headers(self) -> dict[str, str]:
        """The `X-Settlement-*` headers of a response that is not a stream; of a job that waits, what is known."""
        told = {
            "X-Settlement-Job-ID": self.job_id,
            "X-Settlement-Queue": "individual",
            "X-Settlement-Queue-Nonce": str(self.queue_number),
            "X-Settlement-Status": self.status or ("settled" if self.success else "failed"),
            "X-Settlement-Tx-Hash": self.transaction,
            "X-Settlement-Walrus-Blob-ID": self.blob_id,
        }
        return {name: value for name, value in told.items() if value}

    def fields(self) -> dict[str, Any]:
        """The members that a stream's final event gets instead of headers."""
        return {
            "data_settlement_success": self.success,
            "settlement_type": SettlementType.INDIVIDUAL.value,
            "data_settlement_transaction_hash": self.transaction,
            "data_settlement_blob_id": self.blob_id,
            "settlement_job_id": self.job_id,
        }


class DataSettler:
    """Writes data settlements; batches are flushed by size, by age, and by hand. Usable from any thread.

    With `jobs`, single calls are written by a job: what is returned then is the job that waits.
    """

    def __init__(
        self,
        relay: Relay,
        *,
        blobs: BlobStore,
        batch_size: int = 64,
        batch_interval_s: float = 30.0,
        batch_idle_s: float | None = None,
        jobs: Jobs | None = None,
    ) -> None:
        self._relay = relay
        self._batch_idle_s = float("inf") if batch_idle_s is None else batch_idle_s
        self._jobs = jobs
        self._blobs = blobs
        self._batch_size = batch_size
        self._batch_interval_s = batch_interval_s
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: list[Proof] = []
        self._oldest_s = self._newest_s = 0.0
        self._batches: list[BatchRecord] = []
        self._individuals = 0

    @property
    def batches(self) -> list[BatchRecord]:
        """Every batch so far, oldest first."""
        with self._lock:
            return list(self._batches)

    def add(self, proof: Proof) -> bool:
        """Put one call into the next batch; True when that batch is full and wants to be flushed."""
        with self._lock:
            self._newest_s = time.monotonic()
            if not self._waiting:
                self._oldest_s = self._newest_s
            self._waiting.append(proof)
            return len(self._waiting) >= self._batch_size

    def flush_due(self) -> None:
        """Write the waiting batch if it is full or old enough."""
        with self._lock:
            now_s = time.monotonic()
            is_old = now_s - self._oldest_s >= self._batch_interval_s or now_s - self._newest_s >= self._batch_idle_s
            is_due = (is_old and bool(self._waiting)) or len(self._waiting) >= self._batch_size
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write everything that waits, in batches of at most `batch_size`."""
        with self._flushing:
            while True:
                with self._lock:
                    batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
                if not batch:
                    return
                self._write(batch)

    def settle_individual(self, proof: Proof, *, payer: str, record: Mapping[str, Any]) -> IndividualRecord:
        """Write one call, now or by a job; `record` is what its blob says about it."""
        with self._lock:
            self._individuals += 1
            number = self._individuals
        if self._jobs is None:
            return self._write_individual(proof, payer=payer, record=record, number=number)
        write = partial(self._write_individual, proof, payer=payer, record=record, number=number)
        return IndividualRecord(
            job_id=self._jobs.submit("settlement-individual", write),
            queue_number=number,
            blob_id="",
            transaction="",
            success=False,
            status="queued",
        )

    def _write_individual(
        self, proof: Proof, *, payer: str, record: Mapping[str, Any], number: int
    ) -> IndividualRecord:
        blob_id = self._blobs.put(record)
        outcome = self._relay.settle_individual(
            tee_id=proof.tee_id,
            input_hash=proof.request_hash,
            output_hash=proof.output_hash,
            timestamp=proof.timestamp_s,
            payer=payer,
            blob_id=blob_id.encode(),
            signature=proof.signature,
        )
        return IndividualRecord(
            job_id=f"settlement-individual-{number}",
            queue_number=number,
            blob_id=blob_id,
            transaction=outcome.transaction,
            success=outcome.success,
        )

    def _write(self, batch: list[Proof]) -> None:
        tree = MerkleTree(
            [
                (proof.tee_id, proof.request_hash, proof.output_hash, proof.signature, proof.timestamp_s)
                for proof in batch
            ],
            types=LEAF_TYPES,
        )
        blob_id = self._blobs.put(tree.dump())
        outcome = self._relay.settle_batch(merkle_root=tree.root, batch_size=len(batch), blob_id=blob_id.encode())
        written = BatchRecord(
            merkle_root=tree.root,
            size=len(batch),
            blob_id=blob_id,
            transaction=outcome.transaction,
            success=outcome.success,
        )
        with self._lock:
            self._batches.append(written)
