"""The ledger's thread: takes jobs off a queue in order, one database transaction per batch.

It owns the connection, and outlives every fault of a job: every caller that waits gets an answer. When it opens
the database, it checks that it is the one that was used here before, and takes up the receipts that processes left
behind that are gone. A transaction that a server broke off (a deadlock, a restart) is tried once more. It does not
know what the jobs do.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.errors import LedgerUnavailable, OpenGradientError
from opengradient_x402.ledger.journal import Journal, LeftBehind, left_behind, noted
from opengradient_x402.ledger.place import (
    LedgerReplaced,
    Mark,
    beside,
    is_in_memory,
    sqlite_file,
    without_password,
)
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.recorder import CHECKPOINT_EVERY, Record, Recorder, UnderWay, calls_in, identity_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, RootTransaction

    from opengradient_x402.ledger.statements import Book

_log = logging.getLogger(__name__)
CLOSED: Final = object()
"""The end marker of a queue: nothing may come behind it."""
IDLE_S: Final = 20.0
"""Seconds without use after which thread and connection end; the next use begins them again."""
MOVE: Final = object()
"""Wakes the writer, which then moves what was recorded into the main file."""
_IDLE: Final = object()
_MAX_BATCH: Final = 256
_LONGEST_REST_S: Final = 30.0
"""Seconds after which the writer goes on by itself if it is not told that the fork is over."""
_RESTART_S: Final = 5.0
"""Seconds that a server which ended the connection has to come back, before those who wait get an error."""
_RETRY_PAUSE_S: Final = 0.2
_BROKEN_OFF: Final = ("40P01", "40001", "57P01", "57P02", "57P03")
"""PostgreSQL's codes for a deadlock, a serialization failure, and a server that goes down or comes up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """Work on the database; `durable` work is flushed to disk before its future is done.

    `otherwise` says what it means for the money when the work is not done.
    """

    work: Callable[[Any, Any], Any]
    future: Future[Any]
    otherwise: str
    writes: bool = True
    durable: bool = False
    needs_all_calls: bool = False
    """Whether the calls that killed processes left must be in the database before."""
    record: Record | None = None
    """What the recorder can write in its place, unless its authorization has ended."""


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """Asks the writer to close its connection, say so, and wait: nothing of a database may be inherited by a fork.

    SQLite forbids to use, and even to close, in a child what the parent opened (sqlite.org/howtocorrupt, 2.6).
    """

    is_resting: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)


_Reply = tuple[Future[Any], Any, BaseException | None]


class Writer:
    """The thread's side: takes jobs off the queue in order, one database transaction per batch.

    `after` is an earlier writer of the same ledger, which may still be at work. `may_end` is asked when nothing came
    for a while: after True nothing comes any more.
    """

    def __init__(
        self,
        url: str,
        jobs: queue.SimpleQueue[Any],
        *,
        recorder: Recorder,
        journal: Journal,
        under_way: UnderWay,
        may_end: Callable[[], bool],
        after: threading.Thread | None = None,
    ) -> None:
        self._url = url
        self._jobs = jobs
        self._recorder = recorder
        self._journal = journal
        self._under_way = under_way
        self._may_end = may_end
        self._after = after
        self._conn: Connection | None = None
        self._book: Book  # of the connection
        self._is_durable: bool | None = None
        self._place = beside(url)
        self._file = sqlite_file(url)
        self._opened: tuple[int, int] | None = None
        self._mark = Mark(url)

    def run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        running = True
        while running:
            batch, mark = self._take()
            # From here on a job cannot be cancelled; one that was cancelled while it waited is left out.
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._perform(batch)
            if self._recorder.written - self._recorder.moved >= CHECKPOINT_EVERY:
                self._recorder.checkpoint()
            batch = []  # its answers hold receipts, and those may be all that keeps the ledger alive
            if isinstance(mark, Rest):
                if not is_in_memory(self._url):  # such a database would be gone, and no child can reach it
                    self._disconnect()
                mark.is_resting.set()
                mark.may_go_on.wait(_LONGEST_REST_S)
            running = mark is not CLOSED and not (mark is _IDLE and self._may_end())
        self._disconnect()
        self._journal.close()

    def _take(self) -> tuple[list[Job], object | None]:
        """The jobs that wait, up to the next mark; and the mark, if there is one."""
        batch: list[Job] = []
        try:
            item = self._jobs.get(timeout=IDLE_S)
        except queue.Empty:
            return [], _IDLE
        while isinstance(item, Job):
            batch.append(item)
            if len(batch) == _MAX_BATCH or self._jobs.empty():
                return batch, None
            item = self._jobs.get()
        return batch, item

    def _perform(self, batch: list[Job]) -> None:
        batch = self._without_records(batch)
        if not batch:
            return
        try:
            answers = self._tried(batch)
        except Exception as exc:  # noqa: BLE001  (the thread's boundary: it must live on, and everybody gets an answer)
            answers = [(job.future, None, self._unavailable(exc, job)) for job in batch]
        for job, (future, value, error) in zip(batch, answers, strict=True):
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(self._kept(job, error))

    def _without_records(self, batch: list[Job]) -> list[Job]:
        """Has the recorder write what it can; returns the other jobs."""
        records = [job.record for job in batch if job.record is not None]
        if not records:
            return batch
        written, others = self._recorder.write_all(records), []
        for job in batch:
            found = None if job.record is None else written.get(job.record[0].call_id)
            if found is None:
                others.append(job)
            else:
                job.future.set_result(found.proof_of)
        return others

    def _tried(self, batch: list[Job]) -> list[_Reply]:
        """Runs the transaction; once more if the server broke it off, as soon as the server is back."""
        until = None
        while True:
            try:
                return self._transaction(batch)
            except Exception as exc:
                was_connected = self._conn is not None
                self._disconnect()
                if not _is_broken_off(exc, connecting=not was_connected):
                    raise
                if was_connected and until is None:
                    _log.warning("%s broke a transaction off; it is tried once more.", without_password(self._url))
                    until = time.monotonic() + _RESTART_S
                elif was_connected or until is None or time.monotonic() > until:
                    raise
                else:
                    time.sleep(_RETRY_PAUSE_S)

    def _transaction(self, batch: list[Job]) -> list[_Reply]:
        from opengradient_x402.ledger import schema, tables

        is_durable = any(job.durable for job in batch)
        book, conn = self._ready(batch, durable=is_durable)
        seen = None
        writes = any(job.writes for job in batch)
        with tables.begin(conn, writes=writes) as transaction:
            if writes:
                tables.lock(conn, durable=is_durable)
            if is_durable:
                self._mark.check_again(schema.seen_in(conn))
            answers = self._attempted(batch, book, conn, transaction)
            if is_durable and transaction.is_active:
                seen = schema.seen_in(conn)
        if seen is not None:
            self._mark.write(seen)
        return answers

    def _attempted(self, batch: list[Job], book: Book, conn: Connection, transaction: RootTransaction) -> list[_Reply]:
        if len(batch) == 1:  # the common case needs no savepoint: the transaction is its own
            answers = [self._attempt(batch[0], book, conn)]
            if answers[0][2] is not None:
                transaction.rollback()
            return answers
        answers = []
        for job in batch:
            book.begin_part(conn)
            answers.append(self._attempt(job, book, conn))
            if answers[-1][2] is not None:
                book.undo_part(conn)
            book.end_part(conn)
        return answers

    def _attempt(self, job: Job, book: Book, conn: Connection) -> _Reply:
        from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

        try:
            return job.future, job.work(book, conn), None
        except (DataError, IntegrityError, sqlite3.DataError, sqlite3.IntegrityError) as exc:  # the job's own fault
            return job.future, None, self._unavailable(exc, job)
        except (SQLAlchemyError, sqlite3.Error, OSError):  # the database fails: nothing of the batch can be relied on
            raise
        except OpenGradientError as exc:  # e.g. BudgetExceeded: this job is rolled back, the batch goes on
            return job.future, None, exc
        except Exception as exc:  # noqa: BLE001  (e.g. a number that no column holds: the fault of this job alone)
            return job.future, None, self._unavailable(exc, job)

    def _kept(self, job: Job, error: BaseException) -> BaseException:
        """The error, once a receipt that cannot be in the database is in the journal."""
        if job.record is None or not self._journal.keep(job.record[0].call_id, job.record[1]):
            return error
        return self._unavailable(error.__cause__ or error, replace(job, otherwise=self._journal.promise))

    def _unavailable(self, exc: BaseException, job: Job) -> LedgerUnavailable:
        what = f"{type(exc).__name__}: {_first_line(exc)}"
        if isinstance(exc, LedgerReplaced):
            what = str(exc)
        problem = LedgerUnavailable(
            f"The ledger at {without_password(self._url)} cannot be used ({what}). {job.otherwise} {_advice(exc)}",
            is_retryable=False,
        )
        problem.__cause__ = exc
        return problem

    def _ready(self, batch: list[Job], *, durable: bool) -> tuple[Book, Connection]:
        book, conn = self._connect(durable=durable)
        self._check_file()
        if any(job.needs_all_calls for job in batch):
            self._take_up(book, conn)
        return book, conn

    def _connect(self, *, durable: bool) -> tuple[Book, Connection]:
        from opengradient_x402.ledger import schema, statements, tables

        if self._conn is None:
            self._mark.check_file(self._file)
            # Before the database: another process may add to all three meanwhile.
            before, lately = self._mark.read(), self._mark.read_far()
            conn = tables.connect(self._url)
            try:
                schema.create(conn)
                self._book = statements.Book(conn.dialect.name, knows=self._knows, under_way=self._paid_by)
                with conn.begin():
                    tables.lock(conn)  # two processes may note it at once
                    now = schema.seen_in(conn)
                    if self._mark.is_loss(before, lately, now):
                        self._book.note_loss(conn)
                self._mark.write(now)
                self._take_up(self._book, conn)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
            if self._file is not None:
                self._opened = identity_of(self._file)
                self._recorder.open(self._file)
            self._is_durable = None
        if durable != self._is_durable:
            tables.set_durable(self._conn, durable=durable)
            self._is_durable = durable
        return self._book, self._conn

    def _check_file(self) -> None:
        """A file that was deleted or replaced under an open connection takes what is written with it."""
        if self._opened is not None and self._file is not None and identity_of(self._file) != self._opened:
            raise LedgerReplaced("its file was deleted, emptied or replaced while it was in use")

    def _knows(self, process: str) -> bool:
        """Whether the calls under way of this process can be seen here: what dead ones left was taken up before."""
        is_here = self._place is not None and self._place.with_name(process).exists()
        return is_here or process == self._under_way.name

    def _paid_by(self, authorization_id: str) -> set[str]:
        """The calls of this machine's processes that are under way, and that this authorization pays."""
        calls = (call for file in noted(self._place) for call in calls_in(file))
        return {call.call_id for call in calls if call.authorization_id == authorization_id}

    def _take_up(self, book: Book, conn: Connection) -> None:
        """Writes the receipts of processes that are gone, and what is known of their calls under way."""
        from opengradient_x402.ledger import tables

        for left in left_behind(self._place):
            try:
                with conn.begin():
                    tables.lock(conn)
                    if left.is_journal:
                        _take_up_receipts(left, book, conn)
                    else:
                        for call in calls_in(left.file):
                            book.record_killed_call(conn, call)
                        if self._file is None:
                            book.end_process(conn, left.path.name)
            except BaseException:
                left.leave()
                raise
            left.remove()

    def _disconnect(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        self._recorder.close()
        self._mark.close()
        conn, self._conn, self._opened = self._conn, None, None
        with suppress(SQLAlchemyError):  # a connection that broke cannot always be closed in good order
            if conn is not None:
                conn.close()


def _take_up_receipts(journal: LeftBehind, book: Book, conn: Connection) -> None:
    for number, line in enumerate(journal.records(), start=1):
        try:
            receipt = SettlementReceipt.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError):
            _log.warning("Line %d of %s is no receipt; it is left out.", number, journal.path)
        else:
            book.record_missed_call(conn, receipt)


def _advice(exc: BaseException) -> str:
    name, text = type(exc).__name__, _first_line(exc)
    if name == "NewerSchema":
        return (
            "Upgrade this package (`pip install -U opengradient-integrations`), or set OG_LEDGER_URL to another place."
        )
    if name == "LedgerReplaced":
        return (
            "What was reserved in it would not count in your budget. Put the file back, or run `opengradient-x402 "
            "ledger repair`, which accepts the ledger as it is."
        )
    if name in ("ModuleNotFoundError", "ImportError", "NoSuchModuleError"):
        return (
            "The database's driver is missing. For PostgreSQL: `pip install 'opengradient-integrations[postgresql]'`. "
            "A ledger is a SQLite file or a PostgreSQL database."
        )
    if "malformed" in text or "not a database" in text or "corrupt" in text or "no such column" in text:
        return (
            "`opengradient-x402 ledger check` says what is wrong with it; `opengradient-x402 ledger repair` keeps a "
            "copy and restores what can be read."
        )
    if "locked" in text or "lock timeout" in text:
        return "Another program holds it: end that program, or try again later."
    return "Free disk space, check the permissions, or set OG_LEDGER_URL to another place."


def _is_broken_off(exc: Exception, *, connecting: bool) -> bool:
    """Whether a server ended a transaction (or refuses a connection) for reasons that pass."""
    from sqlalchemy.exc import DBAPIError, OperationalError

    if not isinstance(exc, DBAPIError) or type(exc.orig).__module__.startswith("sqlite3"):
        return False
    code = getattr(exc.orig, "sqlstate", None) or getattr(exc.orig, "pgcode", None)
    return exc.connection_invalidated or code in _BROKEN_OFF or (connecting and isinstance(exc, OperationalError))


def _first_line(exc: BaseException) -> str:
    return (str(getattr(exc, "orig", None) or exc).splitlines() or [""])[0]
