"""What is on record of a call before its caller has the whole answer: that it is under way, and its receipt.

With SQLite, the caller's thread writes it: one statement, without a flush to disk, takes a tenth of what handing it
to the writer's thread takes. The connection is the writer's: opened and closed with its own, so that nothing of a
database is inherited by a fork. When it is not open, or somebody else is writing, the receipt goes into the journal,
and the writer's thread takes it from there.

A call that another call's authorization pays (it is in a session) is not in the database before it ends. It stands in a
file of its process from before it is sent until it is recorded, so that the calls of a killed process are known.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from opengradient_x402.ledger.journal import CAN_TELL_WHO_LIVES, UNDER_WAY, begun
from opengradient_x402.ledger.receipts import SettlementReceipt

_log = logging.getLogger(__name__)
CHECKPOINT_EVERY: Final = 128
"""After this many records the writer's thread moves what is written into the main file."""

_ENDED: Final = "status IN ('settled', 'expired', 'cancelled')"
"""Of an authorization: a receipt that comes later changes how its settlement is shared, in one transaction with it."""
_MOST_TOGETHER: Final = 256
"""At most this many receipts are committed together."""
MOST_PROOFS: Final = 65_536
"""How many proofs are remembered in memory, besides those in the database."""

_COLUMNS = ("authorization_id", "created_at", "receipt", "payer", "status", "run", "answered_as")
_VALUES: Final = ", ".join("?" * (1 + len(_COLUMNS)))
_ROW: Final = f"({_VALUES})"
_INTO: Final = f"INSERT INTO calls (call_id, {', '.join(_COLUMNS)}) VALUES "  # noqa: S608  (names of columns)
_AGAIN: Final = f" ON CONFLICT (call_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)} "
WRITE: Final = (
    f"INSERT INTO calls (call_id, {', '.join(_COLUMNS)}) SELECT {_VALUES} "  # noqa: S608  (as above)
    f"WHERE NOT EXISTS (SELECT 1 FROM authorizations WHERE id = ? AND {_ENDED}){_AGAIN}RETURNING 1"
)
_ENDED_OF: Final = f"SELECT id FROM authorizations WHERE {_ENDED} AND id IN "  # noqa: S608  (as above)
Record = tuple[SettlementReceipt, str]
"""A receipt and its JSON."""
USE_PROOF: Final = (
    "INSERT INTO proofs (id, call_id, used_at) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET id = excluded.id "
    "RETURNING call_id"
)


class Written(NamedTuple):
    """What the database answers when a receipt is written: the call that its proof came for first."""

    proof_of: str | None


def identity_of(file: Path) -> tuple[int, int]:
    """Device and inode of a file, which another file of the same name has not; zeros for one that is gone or empty."""
    try:
        found = os.stat(file)  # noqa: PTH116  (a call pays for it: it is faster than Path's)
    except OSError:
        return 0, 0
    return (found.st_dev, found.st_ino) if found.st_size else (0, 0)


class _Slip:
    """A receipt that a thread has to write, and the result."""

    __slots__ = ("is_done", "receipt", "text", "written")

    def __init__(self, receipt: SettlementReceipt, text: str) -> None:
        self.receipt, self.text = receipt, text
        self.written: Written | None = None
        self.is_done = False


class Recorder:
    """Writes receipts in the caller's thread, while there is a connection. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._conn: sqlite3.Connection | None = None
        self._file = Path()
        self._identity = (0, 0)
        self._is_writing = False
        self._slips: deque[_Slip] = deque()
        self._proofs: dict[str, str] = {}
        self.written = 0
        self._seen = 0
        self.moved = 0
        """How many of those that were written are in the main file."""

    def open(self, file: Path) -> None:
        """From now on receipts are written to this file, whose tables are there, as long as it is this file."""
        conn = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
        conn.execute("PRAGMA synchronous=NORMAL")
        conn.execute("PRAGMA wal_autocheckpoint=0")  # `checkpoint` does it, and rarely: it flushes to disk
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

    def checkpoint(self) -> None:
        """Moves what was written into the main file, and flushes that to disk: it takes milliseconds.

        Nothing is written here meanwhile, or SQLite's log would grow without end.
        """
        with self._lock:
            self.moved = self.written
            if self._conn is not None and not self._is_writing:
                with suppress(sqlite3.Error):  # another process does it now, and the next checkpoint comes soon
                    self._conn.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def renew(self) -> None:
        """In a forked child, where nobody holds the lock; the parent closed the connection before."""
        self._lock, self._is_writing, self._conn = threading.RLock(), False, None
        self._slips = deque()

    def first_call_of(self, proof_id: str, call_id: str) -> str:
        """The call that a proof came for first, of those that were asked about here."""
        with self._lock:
            if len(self._proofs) >= MOST_PROOFS:
                del self._proofs[next(iter(self._proofs))]
            return self._proofs.setdefault(proof_id, call_id)

    def write(self, receipt: SettlementReceipt, text: str) -> Written | None:
        """Commits the receipt; None when it could not be written now, or when its authorization has ended.

        `text` is its JSON. Receipts that other threads bring while one thread writes are committed together.
        """
        slip = _Slip(receipt, text)
        self._slips.append(slip)
        with self._lock:
            if self._is_writing:  # by this thread: the garbage collector ended a stream meanwhile
                self._slips.remove(slip)
                return None
            if not slip.is_done:
                slips = [slip]
                with suppress(IndexError):
                    while len(slips) < _MOST_TOGETHER:
                        other = self._slips.popleft()
                        if other is not slip and not other.is_done:
                            slips.append(other)
                written = self.write_all([(each.receipt, each.text) for each in slips])
                for each in slips:
                    each.written, each.is_done = written.get(each.receipt.call_id), True
            return slip.written

    def write_all(self, records: Sequence[Record]) -> dict[str, Written]:
        """Commits the receipts together; the database's answers, by call, without those that `write` leaves out.

        One statement for all: each one gives up the interpreter lock, which a busy event loop returns only after
        milliseconds.
        """
        with self._lock:
            if self._conn is None or self._is_writing or identity_of(self._file) != self._identity:
                return {}
            self._is_writing = True
            try:
                if len(records) == 1:
                    written = self._commit(self._conn, *records[0])
                    return {} if written is None else {records[0][0].call_id: written}
                return self._commit_all(self._conn, records)
            except sqlite3.Error:  # e.g. locked: the writer's thread waits for it, and reports what is wrong
                return {}
            finally:
                self._is_writing = False

    def _commit_all(self, conn: sqlite3.Connection, records: Sequence[Record]) -> dict[str, Written]:
        paid_by = list({receipt.authorization_id for receipt, _ in records})
        proofs: dict[str, str] = {}
        conn.execute("BEGIN IMMEDIATE")
        try:
            ended = {name for (name,) in conn.execute(f"{_ENDED_OF}({', '.join('?' * len(paid_by))})", paid_by)}
            records = [record for record in records if record[0].authorization_id not in ended]
            # A receipt that is recorded twice counts as it was recorded last.
            rows = {receipt.call_id: _row(receipt, text) for receipt, text in records}
            values = [value for row in rows.values() for value in row]
            if rows:
                conn.execute(_INTO + ", ".join([_ROW] * len(rows)) + _AGAIN, values)
            for receipt, _ in records:
                if (proof_id := receipt.proof_id) is not None:
                    used = (proof_id, receipt.call_id, receipt.created_at)
                    [(proofs[receipt.call_id],)] = conn.execute(USE_PROOF, used).fetchall()
            conn.execute("COMMIT")
        except BaseException:
            conn.rollback()
            raise
        self.written += len(records)
        return {receipt.call_id: Written(proofs.get(receipt.call_id)) for receipt, _ in records}

    def _commit(self, conn: sqlite3.Connection, receipt: SettlementReceipt, text: str) -> Written | None:
        """One commit, also where a proof is noted with the receipt."""
        row = (*_row(receipt, text), receipt.authorization_id)
        proof_id, proof_of = receipt.proof_id, None
        if proof_id is None:
            is_written = bool(conn.execute(WRITE, row).fetchall())
        else:
            conn.execute("BEGIN IMMEDIATE")
            try:
                is_written = bool(conn.execute(WRITE, row).fetchall())
                if is_written:
                    used = (proof_id, receipt.call_id, receipt.created_at)
                    [(proof_of,)] = conn.execute(USE_PROOF, used).fetchall()
                conn.execute("COMMIT")
            except BaseException:
                conn.rollback()
                raise
        self.written += is_written
        return Written(proof_of) if is_written else None


def _row(receipt: SettlementReceipt, text: str) -> tuple[str | int | None, ...]:
    return (
        receipt.call_id,
        receipt.authorization_id,
        receipt.created_at,
        text,
        receipt.payer,
        receipt.status.value,
        receipt.run,
        receipt.status.value,
    )


_SLOT: Final = 256
"""Bytes of one call: whether it is under way, then its text."""
_PART: Final = 65_536
"""Bytes by which the file grows: a multiple of the pages of every system."""


class CallUnderWay(NamedTuple):
    """What is noted of a call before it is sent."""

    call_id: str
    authorization_id: str
    created_at: int
    settlement_mode: str
    model: str


class UnderWay:
    """The calls of this process that are paid and not recorded yet, in a file that outlives it. Thread-safe.

    The file is mapped into memory: to note a call is to copy 100 bytes, and a killed process loses none of them. It is
    written before it is mapped, so that a full disk raises OSError here, and sends no signal at a later call.
    """

    def __init__(self, place: Path | None, *, is_beside_database: bool) -> None:
        self._place = place if CAN_TELL_WHO_LIVES else None
        self._is_beside_database = is_beside_database
        self._token = ""
        self._lock = threading.RLock()
        self._path: Path | None = None
        self._parts: list[mmap.mmap] = []  # each of them holds the file open, and the lock with it
        self._free: list[tuple[mmap.mmap, int]] = []
        self._used: dict[str, tuple[mmap.mmap, int]] = {}

    def renew(self) -> None:
        """In a forked child, which notes its own calls: the file, and the lock on it, are the parent's."""
        for part in {*self._parts, *(part for part, _ in self._used.values())}:
            part.close()
        self._lock = threading.RLock()
        self._path, self._parts, self._free, self._used, self._token = None, [], [], {}, ""

    def open(self) -> bool:
        """Begins the file, if there is none. True when everybody who opens the database finds it. Touches the disk."""
        if not self._parts:
            self._grow()
        return bool(self._parts) and self._is_beside_database

    @property
    def name(self) -> str:
        """The name of this process in the database: that of its file, or a random one without a file."""
        if self._path is not None:
            return self._path.name
        self._token = self._token or secrets.token_hex(8)
        return self._token

    @property
    def is_empty(self) -> bool:
        """Whether no call is under way."""
        return not self._used

    def begin(self, call: CallUnderWay) -> None:
        """Notes the call, and replaces its earlier note. A call that cannot be noted is still made."""
        self.end(call.call_id)
        while True:
            try:
                part, start = self._free.pop()
                break
            except IndexError:
                if not self._grow():
                    return
        text = " ".join(map(str, call)).encode(errors="replace")[: _SLOT - 2] + b"\0"
        part[start + 1 : start + 1 + len(text)] = text
        part[start] = 1  # last: what is marked as under way is whole
        self._used[call.call_id] = part, start

    def end(self, call_id: str) -> None:
        """Removes the note of a call that is recorded, or was never sent."""
        if (slot := self._used.pop(call_id, None)) is not None:
            part, start = slot
            part[start] = 0
            self._free.append(slot)

    def close(self) -> None:
        """Ends the file; calls that are still under way stay in it, for the next opening."""
        with self._lock:
            if self._path is not None and not self._used:
                self._path.unlink(missing_ok=True)
            # Not closed here: the calls under way have their parts, and the lock ends with the last of them.
            self._path, self._parts, self._free = None, [], []

    def _grow(self) -> bool:
        with self._lock:
            if self._free or self._place is None:
                return bool(self._free)
            try:
                if self._path is None:
                    self._path, file = begun(self._place, UNDER_WAY)
                else:
                    file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    start = len(self._parts) * _PART
                    os.pwrite(file, bytes(_PART), start)
                    part = mmap.mmap(file, _PART, offset=start)
                finally:
                    os.close(file)
            except OSError as exc:
                _log.warning(
                    "Calls under way cannot be noted beside the ledger (%s). Should this process be killed, its last "
                    "calls have no receipts.",
                    exc,
                )
                self._place = None
                return False
            self._parts.append(part)
            self._free += [(part, start) for start in range(0, _PART, _SLOT)]
            return True


def calls_in(file: int) -> Iterator[CallUnderWay]:
    """The calls that were under way when the process of this file ended."""
    with open(file, "rb", closefd=False) as slots:
        while slot := slots.read(_SLOT):
            if slot[0] == 1:
                text = slot[1:].partition(b"\0")[0].decode(errors="replace")
                try:
                    call_id, authorization_id, created_at, mode, model = text.split(" ", 4)
                    call = CallUnderWay(call_id, authorization_id, int(created_at), mode, model)
                except ValueError:  # written by another version, or damaged: no reason to refuse the whole ledger
                    _log.warning("A note of a call under way cannot be read (%.40r); it is left out.", text)
                else:
                    yield call
