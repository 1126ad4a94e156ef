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
from contextlib import suppress
from pathlib import Path
from typing import Final

from opengradient_x402.ledger.receipts import SettlementReceipt

CHECKPOINT_EVERY: Final = 256
"""So many records, and a commit of the writer's thread moves what is written into the main file."""

_COLUMNS = ("authorization_id", "created_at", "receipt", "payer", "status", "answered_as")
WRITE: Final = (
    f"INSERT INTO calls (call_id, {', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?) "  # noqa: S608  (names of columns)
    f"ON CONFLICT (call_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)} "
    "RETURNING (SELECT status FROM authorizations WHERE id = ?)"  # a column in place of `?` would use no index
)


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

    def write(self, receipt: SettlementReceipt, text: str) -> str | None:
        """Commits the receipt, and returns its authorization's status; None when it could not be written now.

        `text` is its JSON.
        """
        with self._lock:
            if self._conn is None or self._is_writing or identity_of(self._file) != self._identity:
                return None
            self._is_writing = True
            try:
                row = (
                    receipt.call_id,
                    receipt.authorization_id,
                    receipt.created_at,
                    text,
                    receipt.payer,
                    receipt.status.value,
                    receipt.status.value,
                    receipt.authorization_id,
                )
                [(status,)] = self._conn.execute(WRITE, row).fetchall()
            except sqlite3.Error:  # e.g. locked: the writer's thread waits for it, and reports what is wrong
                return None
            finally:
                self._is_writing = False
            self.written += 1
            return status or "unknown"
