"""The ledger's thread: takes jobs off a queue in order, one database transaction per batch.

It owns engine and connection, and outlives every fault of a job: everybody who waits gets an answer. It does not
know what the jobs do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.errors import LedgerUnavailable, OpenGradientError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from opengradient_x402.ledger.statements import Book

CLOSED: Final = object()
"""The end marker of a queue: nothing may come behind it."""
IDLE_S: Final = 20.0
"""A ledger that nobody asks for so long has neither thread nor connection, until it is asked again."""
_IDLE: Final = object()
_MAX_BATCH: Final = 256
_LONGEST_REST_S: Final = 30.0
"""Should nobody say that the fork is over, the writer goes on by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work on the database; `durable` work is flushed to disk before its future is done.

    `otherwise` says what it means for the money when the work is not done.
    """

    work: Callable[[Any, Any], Any]
    durable: bool
    future: Future[Any]
    otherwise: str


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """Asks the writer to close its connection, say so, and wait: nothing of a database may be inherited by a fork.

    SQLite forbids to use, and even to close, in a child what the parent opened (sqlite.org/howtocorrupt, 2.6).
    """

    is_resting: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)


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
        may_end: Callable[[], bool],
        after: threading.Thread | None = None,
    ) -> None:
        self._url = url
        self._jobs = jobs
        self._may_end = may_end
        self._after = after
        self._engine: Engine | None = None
        self._conn: Connection | None = None

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
            batch = []  # its answers hold receipts, and those may be all that keeps the ledger alive
            if isinstance(mark, Rest):
                if not is_in_memory(self._url):  # such a database would be gone, and no child can reach it
                    self._disconnect()
                mark.is_resting.set()
                mark.may_go_on.wait(_LONGEST_REST_S)
            running = mark is not CLOSED and not (mark is _IDLE and self._may_end())
        self._disconnect()

    def _take(self) -> tuple[list[Job], object | None]:
        """What waits, up to the next mark, if one stands behind it."""
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
            answers = [(job.future, None, self._unavailable(exc, job)) for job in batch]
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
            return job.future, None, self._unavailable(exc, job)

    def _unavailable(self, exc: Exception, job: Job) -> LedgerUnavailable:
        problem = LedgerUnavailable(
            f"The ledger at {without_password(self._url)} cannot be written ({type(exc).__name__}: "
            f"{_first_line(exc)}). {job.otherwise} {_advice(exc)}, or set OG_LEDGER_URL to "
            "another place.",
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


def is_in_memory(url: str) -> bool:
    """Whether the database lives in its connection, and ends with it."""
    return url == "sqlite://" or (url.startswith("sqlite") and (":memory:" in url or "mode=memory" in url))


def without_password(url: str) -> str:
    """The URL, fit to be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _advice(exc: BaseException) -> str:
    if type(exc).__name__ == "NewerSchema":
        return "Upgrade this package (`pip install -U opengradient-integrations`)"
    return "Free disk space, check the permissions"


def _first_line(exc: BaseException) -> str:
    return (str(getattr(exc, "orig", None) or exc).splitlines() or [""])[0]
