"""How a call's receipt gets into the ledger before its caller has the whole answer.

With SQLite, the caller's thread writes it: one statement, without a flush to disk, takes a tenth of what handing it
to the writer's thread takes. The connection is the writer's: opened and closed with its own, so that nothing of a
database is inherited by a fork. When it is not open, or somebody else is writing, the receipt goes into the journal,
and the writer's thread takes it from there.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from opengradient_x402.ledger.receipts import SettlementReceipt

CHECKPOINT_EVERY: Final = 256
"""So many records, and a commit of the writer's thread moves what is written into the main file."""

ENDED: Final = frozenset({"settled", "expired", "cancelled"})
"""Of an authorization: a receipt that comes later changes how its settlement is shared."""
MOST_PROOFS: Final = 65_536
"""So many proofs are remembered in memory, besides those in the database."""

_COLUMNS = ("authorization_id", "created_at", "receipt", "payer", "status", "answered_as")
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_INTO: Final = f"INSERT INTO calls (call_id, {', '.join(_COLUMNS)}) VALUES "  # noqa: S608  (names of columns)
_AGAIN: Final = f" ON CONFLICT (call_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)} "
WRITE: Final = (
    f"{_INTO}{_ROW}{_AGAIN}"  # noqa: S608  (as above)
    "RETURNING (SELECT status FROM authorizations WHERE id = ?)"  # a column in place of `?` would use no index
)
_STATUSES: Final = "SELECT id, status FROM authorizations WHERE id IN "
Record = tuple[SettlementReceipt, str]
"""A receipt and its JSON."""
USE_PROOF: Final = (
    "INSERT INTO proofs (id, call_id, used_at) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET id = excluded.id "
    "RETURNING call_id"
)


class Written(NamedTuple):
    """What the database says when a receipt is written: its authorization's status, and whose proof it has."""

    status: str
    proof_of: str | None


def identity_of(file: Path) -> tuple[int, int]:
    """What tells a file from another one under its name; nothing for one that is gone or empty."""
    try:
        found = os.stat(file)  # noqa: PTH116  (a call pays for it: it is faster than Path's)
    except OSError:
        return 0, 0
    return (found.st_dev, found.st_ino) if found.st_size else (0, 0)


class Recorder:
    """Writes receipts in the caller's thread, while there is a connection. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._conn: sqlite3.Connection | None = None
        self._file = Path()
        self._identity = (0, 0)
        self._is_writing = False
        self._proofs: dict[str, str] = {}
        self.written = 0
        self._seen = 0

    def open(self, file: Path) -> None:
        """From now on receipts are written to this file, whose tables are there, as long as it is this file."""
        conn = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
        conn.execute("PRAGMA synchronous=NORMAL")
        conn.execute("PRAGMA wal_autocheckpoint=0")  # it flushes to disk: that is the writer's work
        with self._lock:
            self._conn, self._file, self._identity = conn, file, identity_of(file)

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            conn, self._conn = self._conn, None
            if conn is not None:
                with suppress(sqlite3.Error):
                    conn.close()

    def was_used(self) -> bool:
        """Whether anything was written since this was last asked."""
        seen, self._seen = self._seen, self.written
        return seen != self.written

    def renew(self) -> None:
        """In a forked child, where nobody holds the lock; the parent closed the connection before."""
        self._lock, self._is_writing, self._conn = threading.RLock(), False, None

    def first_call_of(self, proof_id: str, call_id: str) -> str:
        """The call that a proof came for first, of those that were asked about here."""
        with self._lock:
            if len(self._proofs) >= MOST_PROOFS:
                del self._proofs[next(iter(self._proofs))]
            return self._proofs.setdefault(proof_id, call_id)

    def write(self, receipt: SettlementReceipt, text: str) -> Written | None:
        """Commits the receipt; None when it could not be written now.

        `text` is its JSON.
        """
        with self._lock:
            if self._conn is None or self._is_writing or identity_of(self._file) != self._identity:
                return None
            self._is_writing = True
            try:
                row = (*_row(receipt, text), receipt.authorization_id)
                return self._commit(self._conn, row, receipt)
            except sqlite3.Error:  # e.g. locked: the writer's thread waits for it, and reports what is wrong
                return None
            finally:
                self._is_writing = False

    def write_all(self, records: Sequence[Record]) -> dict[str, Written]:
        """Commits the receipts together; by call what the database says, empty when it could not be written now.

        Each statement gives up the interpreter lock, and gets it back from a busy event loop after milliseconds only.
        """
        if len(records) == 1:
            written = self.write(*records[0])
            return {} if written is None else {records[0][0].call_id: written}
        with self._lock:
            if self._conn is None or self._is_writing or identity_of(self._file) != self._identity:
                return {}
            self._is_writing = True
            try:
                return self._commit_all(self._conn, records)
            except sqlite3.Error:
                return {}
            finally:
                self._is_writing = False

    def _commit_all(self, conn: sqlite3.Connection, records: Sequence[Record]) -> dict[str, Written]:
        rows = {receipt.call_id: _row(receipt, text) for receipt, text in records}
        paid_by = list({receipt.authorization_id for receipt, _ in records})
        proofs: dict[str, str] = {}
        conn.execute("BEGIN IMMEDIATE")
        try:
            values = [value for row in rows.values() for value in row]
            conn.execute(_INTO + ", ".join([_ROW] * len(rows)) + _AGAIN, values)
            found = dict(conn.execute(f"{_STATUSES}({', '.join('?' * len(paid_by))})", paid_by).fetchall())
            for receipt, _ in records:
                if (proof_id := receipt.proof_id) is not None:
                    used = (proof_id, receipt.call_id, receipt.created_at)
                    [(proofs[receipt.call_id],)] = conn.execute(USE_PROOF, used).fetchall()
            conn.execute("COMMIT")
        except BaseException:
            conn.rollback()
            raise
        self.written += len(records)
        return {
            receipt.call_id: Written(found.get(receipt.authorization_id, "unknown"), proofs.get(receipt.call_id))
            for receipt, _ in records
        }

    def _commit(self, conn: sqlite3.Connection, row: tuple[object, ...], receipt: SettlementReceipt) -> Written:
        """One commit, also where a proof is noted with the receipt."""
        proof_id, proof_of = receipt.proof_id, None
        if proof_id is None:
            [(status,)] = conn.execute(WRITE, row).fetchall()
        else:
            conn.execute("BEGIN IMMEDIATE")
            try:
                [(status,)] = conn.execute(WRITE, row).fetchall()
                used = (proof_id, receipt.call_id, receipt.created_at)
                [(proof_of,)] = conn.execute(USE_PROOF, used).fetchall()
                conn.execute("COMMIT")
            except BaseException:
                conn.rollback()
                raise
        self.written += 1
        return Written(status or "unknown", proof_of)


def _row(receipt: SettlementReceipt, text: str) -> tuple[str | int, ...]:
    return (
        receipt.call_id,
        receipt.authorization_id,
        receipt.created_at,
        text,
        receipt.payer,
        receipt.status.value,
        receipt.status.value,
    )
