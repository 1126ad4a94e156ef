"""The durable record of every authorization and every call: SQLite by default, PostgreSQL by URL.

An authorization is on disk, and its amount reserved in the budget, before its signature leaves the process.
One writer thread owns the connection: it batches what waits into one transaction (so a hundred parallel
calls cost one flush), keeps event loops free of disk I/O, and flushes to disk only where money needs it.
Everything is a `Future`: sync code takes `.result()`, async code awaits it.

The tables are in `ledger_tables`. This module does not know HTTP, chains, or who decides what may be spent.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opengradient_x402.errors import BudgetExceeded, LedgerUnavailable, OpenGradientError
from opengradient_x402.money import format_amount
from opengradient_x402.receipts import SettlementReceipt

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from opengradient_x402.ledger_tables import Book

T = TypeVar("T")
_CLOSED = object()
_MAX_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationEntry:
    """What the ledger keeps of one authorization. Amounts are atomic units, times Unix seconds."""

    id: str
    call_id: str
    network: str
    scheme: str
    transfer_method: str
    asset: str
    payer: str
    payee: str
    facilitator: str | None
    spender: str
    nonce: str
    amount_atomic: int
    signed_at: int
    deadline: int
    endpoint: str
    model: str
    settlement_mode: str
    status: str = "signed"
    """`signed`, `settled`, `expired`, `cancelled` or `unsent` (the signature provably never left)."""
    settled_atomic: int | None = None
    tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    confirmations: int | None = None
    confirmations_needed: int | None = None
    dispute: str | None = None
    """What the chain shows and the signed terms do not allow, in words with the numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit that holds over a sliding window, for one payer, asset and network, in atomic units."""

    limit_atomic: int
    window_s: int = 86_400


class Ledger:
    """Authorizations, calls and receipts of one database. Thread-safe; safe to share between processes.

    `url` is a path to a SQLite file, or any SQLAlchemy URL. Nothing is opened before first use. Raises
    LedgerUnavailable from its futures when the database cannot be read or written: nothing is signed then.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _as_url(url)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._pid = 0
        self._closed = False

    # -- writing

    def authorize(self, entry: AuthorizationEntry, *, budget: Budget | None = None) -> Future[None]:
        """Reserves the amount and records the authorization, flushed to disk, in one atomic step.

        Raises BudgetExceeded (and records nothing) when reservations and settlements of the window, with this
        one, would go over the budget. A second entry with the same id replaces the first (same nonce, new
        terms): the larger amount stays reserved, since the chain accepts either one, never both.
        """
        return self._submit(lambda book, conn: book.authorize(conn, entry, budget), durable=True)

    def mark_unsent(self, authorization_id: str) -> Future[None]:
        """Releases a reservation whose signature provably never left this process."""
        return self._submit(lambda book, conn: book.mark_unsent(conn, authorization_id))

    def record_call(self, receipt: SettlementReceipt) -> Future[None]:
        """Records how a call ended. Not flushed for every call: the authorization is what money needs."""
        return self._submit(lambda book, conn: book.record_call(conn, receipt))

    def record_settlement(
        self,
        authorization_id: str,
        *,
        status: str,
        settled_atomic: int | None = None,
        tx_hash: str | None = None,
        block_number: int | None = None,
        block_hash: str | None = None,
        confirmations: int | None = None,
        confirmations_needed: int | None = None,
        dispute: str | None = None,
    ) -> Future[None]:
        """Records what the chain says: frees or fixes the reservation, and shares the amount among the calls.

        `status="signed"` opens the authorization again (its block is gone). With fewer `confirmations` than
        needed the whole amount stays reserved: the block may still go.
        """
        return self._submit(
            lambda book, conn: book.record_settlement(
                conn,
                authorization_id,
                {
                    "status": status,
                    "settled_atomic": None if settled_atomic is None else str(settled_atomic),
                    "tx_hash": tx_hash,
                    "block_number": block_number,
                    "block_hash": block_hash,
                    "confirmations": confirmations,
                    "confirmations_needed": confirmations_needed,
                    "dispute": dispute,
                },
            ),
            durable=True,
        )

    def record_dispute(self, call_id: str, dispute: str) -> Future[None]:
        """Marks one call's receipt as disputed: a claim about it was refuted. The money's state is untouched."""
        return self._submit(lambda book, conn: book.record_dispute(conn, call_id, dispute), durable=True)

    def pin(self, key: str, value: str) -> Future[str]:
        """Remembers the first value ever seen under `key`, and returns that first value."""
        return self._submit(lambda book, conn: book.pin(conn, key, value), durable=True)

    # -- reading (ordered behind earlier writes)

    def receipts(
        self,
        *,
        since: int = 0,
        call_ids: list[str] | None = None,
        authorization_ids: list[str] | None = None,
        payer: str | None = None,
    ) -> Future[list[SettlementReceipt]]:
        """Receipts, oldest first; calls that were authorized and never came back included."""
        return self._submit(
            lambda book, conn: book.receipts(
                conn, since=since, call_ids=call_ids, authorization_ids=authorization_ids, payer=payer
            )
        )

    def unfinished(self, *, network: str, payer: str | None = None) -> Future[list[AuthorizationEntry]]:
        """Authorizations about which the chain may still say something new: open ones, and unconfirmed ones."""
        return self._submit(lambda book, conn: book.unfinished(conn, network=network, payer=payer))

    def authorizations(
        self, *, status: str | None = None, payer: str | None = None, network: str | None = None
    ) -> Future[list[AuthorizationEntry]]:
        """Authorizations, oldest first."""
        return self._submit(lambda book, conn: book.authorizations(conn, status=status, payer=payer, network=network))

    def note(self, key: str, value: str) -> Future[None]:
        """Remembers a value under `key`, in place of an earlier one."""
        return self._submit(lambda book, conn: book.note(conn, key, value))

    def noted(self, key: str) -> Future[str | None]:
        """What was last noted (or pinned) under `key`."""
        return self._submit(lambda book, conn: book.noted(conn, key))

    def spent(self, *, payer: str, asset: str, network: str, window_s: int = 86_400) -> Future[int]:
        """Reserved plus settled in the window, in atomic units: what a budget counts."""
        since = int(time.time()) - window_s
        return self._submit(lambda book, conn: book.spent(conn, payer, asset, network, since))

    def flush(self) -> None:
        """Returns when everything submitted so far is in the database."""
        if self._thread is not None and self._pid == os.getpid():
            self._submit(lambda _book, _conn: None, durable=True).result()

    def close(self) -> None:
        """Writes what waits and closes the database. Later use raises LedgerUnavailable."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            is_ours = thread is not None and self._pid == os.getpid()
            if is_ours:
                self._queue.put(_CLOSED)  # under the lock: no job may come to stand behind it
        if thread is not None and is_ours:
            thread.join()
        _open_ledgers.discard(self)

    def __repr__(self) -> str:
        return f"Ledger({_without_password(self.url)!r})"

    # -- the writer

    def _submit(self, work: Callable[[Book, Connection], T], *, durable: bool = False) -> Future[T]:
        future: Future[T] = Future()
        job = _Job(work=work, durable=durable, future=cast("Future[Any]", future))
        if self._pid != os.getpid():
            # After a fork the parent's lock, thread and connection are not ours: start afresh.
            self._lock, self._thread, self._pid = threading.RLock(), None, os.getpid()
        with self._lock:
            if self._closed:
                future.set_exception(
                    LedgerUnavailable(
                        "This ledger was closed; nothing was signed and nothing was paid. Open a new client."
                    )
                )
                return future
            if self._thread is None:
                self._start()
            self._queue.put(job)
        return future

    def _start(self) -> None:
        self._queue = queue.SimpleQueue()
        writer = _Writer(self.url, self._queue)
        self._thread = threading.Thread(target=writer.run, name="opengradient-ledger", daemon=True)
        self._thread.start()
        _open_ledgers.add(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    work: Callable[[Any, Any], Any]
    durable: bool
    future: Future[Any]


class _Writer:
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
            if _CLOSED in batch:
                running = False
                batch = [job for job in batch if job is not _CLOSED]
            # From here on a job cannot be cancelled; one that was cancelled while it waited is left out.
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._perform(batch)
        self._disconnect()

    def _perform(self, batch: list[_Job]) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            book, conn = self._connect(durable=any(job.durable for job in batch))
            with conn.begin():
                answers.extend(self._attempt(job, book, conn) for job in batch)
        except Exception as exc:  # noqa: BLE001  (the thread's boundary: it must live on, and everybody gets an answer)
            self._disconnect()
            problem = self._unavailable(exc)
            answers = [(job.future, None, problem) for job in batch]
        for future, value, error in answers:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _attempt(self, job: _Job, book: Book, conn: Connection) -> tuple[Future[Any], Any, BaseException | None]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with conn.begin_nested():
                return job.future, job.work(book, conn), None
        except (SQLAlchemyError, OSError):  # the database fails: nothing of the batch can be relied on
            raise
        except OpenGradientError as exc:  # e.g. BudgetExceeded: this job is rolled back, the batch goes on
            return job.future, None, exc
        except Exception as exc:  # noqa: BLE001  (e.g. a number that no column holds: the fault of this job alone)
            return job.future, None, self._unavailable(exc)

    def _unavailable(self, exc: Exception) -> LedgerUnavailable:
        problem = LedgerUnavailable(
            f"The ledger at {_without_password(self._url)} cannot be written ({type(exc).__name__}: "
            f"{_first_line(exc)}). Nothing was signed and nothing was paid. Free disk space, check the "
            "permissions, or set OG_LEDGER_URL to another place.",
            is_retryable=False,
        )
        problem.__cause__ = exc
        return problem

    def _connect(self, *, durable: bool) -> tuple[Book, Connection]:
        from opengradient_x402 import ledger_tables

        if self._engine is None:
            self._engine = ledger_tables.open_engine(self._url)
        if self._conn is None:
            self._conn = self._engine.connect()
            ledger_tables.create(self._conn)
        book = ledger_tables.Book(self._conn.dialect.name)
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


_open_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


@atexit.register
def _close_open_ledgers() -> None:
    # The writer is a daemon thread, so that a forgotten close() cannot hang the interpreter's exit.
    for ledger in list(_open_ledgers):
        ledger.close()


def budget_exceeded(*, spent_atomic: int, entry: AuthorizationEntry, budget: Budget) -> BudgetExceeded:
    """The error for a reservation that does not fit, with the numbers."""
    hours = budget.window_s // 3600
    return BudgetExceeded(
        f"Authorizing {format_amount(entry.amount_atomic)} OPG would exceed the budget: "
        f"{format_amount(spent_atomic)} OPG of {format_amount(budget.limit_atomic)} OPG are spent or reserved in "
        f"the last {hours} h. Nothing was signed and nothing was paid. Wait for open authorizations to settle or "
        "expire (`opengradient-x402 receipts reconcile`), or raise `max_per_day` of the SpendPolicy.",
        call_id=entry.call_id,
    )


def _as_url(url: str | Path) -> str:
    text = str(url)
    return text if "://" in text else f"sqlite:///{text}"


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _first_line(exc: BaseException) -> str:
    return (str(getattr(exc, "orig", None) or exc).splitlines() or [""])[0]
