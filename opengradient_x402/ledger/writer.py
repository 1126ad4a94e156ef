"""The ledger's thread: takes jobs off a queue in order, one database transaction per batch.

It owns engine and connection, and outlives every fault of a job: everybody who waits gets an answer. It does not
know what the jobs do.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.errors import LedgerUnavailable, OpenGradientError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from opengradient_x402.ledger.statements import Book

CLOSED: Final = object()
"""The end marker of a queue: nothing may come behind it."""
_MAX_BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work on the database; `durable` work is flushed to disk before its future is done."""

    work: Callable[[Any, Any], Any]
    durable: bool
    future: Future[Any]


class Writer:
    """The thread's side: takes jobs off the queue in order, one database transaction per batch."""

    def __init__(self, url: str, jobs: queue.SimpleQueue[Any]) -> None:
        self._url = url
        self._jobs = jobs
        self._engine: Engine | None = None
        self._conn: Connection | None = None

    def run(self) -> None:
        running = True
        while running:
            batch = [self._jobs.get()]
            while len(batch) < _MAX_BATCH and not self._jobs.empty():
                batch.append(self._jobs.get())
            if CLOSED in batch:
                running = False
                batch = [job for job in batch if job is not CLOSED]
            # From here on a job cannot be cancelled; one that was cancelled while it waited is left out.
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._perform(batch)
            batch = []  # its answers hold receipts, and those may be all that keeps the ledger alive
        self._disconnect()

    def _perform(self, batch: list[Job]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            book, conn = self._connect(durable=any(job.durable for job in batch))
            with conn.begin() as transaction:
                if len(batch) == 1:  # the common case needs no savepoint: the transaction is its own
                    answers.append(self._attempt(batch[0], book, conn))
                    if answers[0][2] is not None:
                        transaction.rollback()
                else:
                    for job in batch:
                        savepoint = conn.begin_nested()
                        answers.append(self._attempt(job, book, conn))
                        if answers[-1][2] is None:
                            savepoint.commit()
                        else:
                            savepoint.rollback()
        except Exception as exc:  # noqa: BLE001  (the thread's boundary: it must live on, and everybody gets an answer)
            self._disconnect()
            problem = self._unavailable(exc)
            answers = [(job.future, None, problem) for job in batch]
        for future, value, error in answers:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _attempt(self, job: Job, book: Book, conn: Connection) -> tuple[Future[Any], Any, BaseException | None]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return job.future, job.work(book, conn), None
        except (SQLAlchemyError, OSError):  # the database fails: nothing of the batch can be relied on
            raise
        except OpenGradientError as exc:  # e.g. BudgetExceeded: this job is rolled back, the batch goes on
            return job.future, None, exc
        except Exception as exc:  # noqa: BLE001  (e.g. a number that no column holds: the fault of this job alone)
            return job.future, None, self._unavailable(exc)

    def _unavailable(self, exc: Exception) -> LedgerUnavailable:
        problem = LedgerUnavailable(
            f"The ledger at {without_password(self._url)} cannot be written ({type(exc).__name__}: "
            f"{_first_line(exc)}). Nothing was signed and nothing was paid. Free disk space, check the "
            "permissions, or set OG_LEDGER_URL to another place.",
            is_retryable=False,
        )
        problem.__cause__ = exc
        return problem

    def _connect(self, *, durable: bool) -> tuple[Book, Connection]:
        from opengradient_x402.ledger import statements, tables

        if self._engine is None:
            self._engine = tables.open_engine(self._url)
        if self._conn is None:
            self._conn = self._engine.connect()
            tables.create(self._conn)
        book = statements.Book(self._conn.dialect.name)
        book.set_durable(self._conn, durable)
        return book, self._conn

    def _disconnect(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        conn, engine = self._conn, self._engine
        self._conn = self._engine = None
        with suppress(SQLAlchemyError):  # a connection that broke cannot always be closed in good order
            if conn is not None:
                conn.close()
        if engine is not None:
            engine.dispose()


def without_password(url: str) -> str:
    """The URL, fit to be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _first_line(exc: BaseException) -> str:
    return (str(getattr(exc, "orig", None) or exc).splitlines() or [""])[0]
