"""The durable record of every authorization and every call: SQLite by default, PostgreSQL by URL.

An authorization is on disk, and its amount reserved in the budget, before its signature leaves the process.
One writer thread owns the connection: it batches what waits into one transaction (so a hundred parallel
calls cost one flush), keeps event loops free of disk I/O, and flushes to disk only where money needs it.
Everything is a `Future`: sync code takes `.result()`, async code awaits it.

The thread is in `writer`, the statements are in `statements`. This module does not know HTTP, chains, or who
decides what may be spent.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import ConfigurationError, LedgerUnavailable
from opengradient_x402.ledger.authorizations import Authorization, Budget
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.writer import CLOSED, Job, Rest, Writer, is_in_memory, without_password
from opengradient_x402.process import Ending, Resident, belongs

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book

_log = logging.getLogger(__name__)
T = TypeVar("T")

CLOSING_WAIT_S = 60.0
"""The longest that closing waits for the database: twice what SQLite waits for another process."""


class Ledger(Resident):
    """Authorizations, calls and receipts of one database. Thread-safe; safe to share between processes.

    `url` is a path to a SQLite file, or any SQLAlchemy URL. Nothing is opened before first use; a forked child
    opens anew. Raises LedgerUnavailable from its futures when the database cannot be read or written: nothing is
    signed then.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _as_url(url)
        self._location = location(url)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._resting: Rest | None = None
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._closed = False
        belongs(self, Ending.LEDGERS)

    # -- writing

    def authorize(self, authorization: Authorization, *, budget: Budget | None = None) -> Future[Authorization]:
        """Reserves the amount and records the authorization, flushed to disk, in one atomic step.

        One that is there already (the same nonce, new terms) gets the further signature: its largest amount stays
        reserved until its latest deadline, since the chain accepts either signature, never both. The result has
        all of them. Raises BudgetExceeded (and records nothing) when reservations and settlements of the window,
        with this one, would exceed the budget.
        """
        return self._submit(lambda book, conn: book.authorize(conn, authorization, budget), durable=True)

    def mark_unsent(self, authorization_id: str) -> Future[None]:
        """Releases a reservation whose signature provably never left this process."""
        return self._submit(lambda book, conn: book.mark_unsent(conn, authorization_id))

    def record_call(self, receipt: SettlementReceipt) -> Future[None]:
        """Records how a call ended. Not flushed for every call: the authorization is what money needs."""
        return self._submit(
            lambda book, conn: book.record_call(conn, receipt),
            otherwise="Only this receipt is missing: the call was made, and its authorization was recorded before.",
        )

    def record_settlement(self, authorization: Authorization) -> Future[None]:
        """Records what the chain says: frees or fixes the reservation, and shares the amount among the calls.

        `status="signed"` opens the authorization again (its block is gone). With fewer `confirmations` than
        needed the whole amount stays reserved: the block may still go.
        """
        return self._submit(lambda book, conn: book.record_settlement(conn, authorization), durable=True)

    def record_dispute(self, call_id: str, dispute: str) -> Future[None]:
        """Marks one call's receipt as disputed: a claim about it was refuted. The money's state is untouched."""
        return self._submit(lambda book, conn: book.record_dispute(conn, call_id, dispute), durable=True)

    def open_dispute(self, *, network: str, origin: str) -> Future[str | None]:
        """The id of an authorization at this gateway that is disputed, and was not cleared; None for none."""
        return self._submit(lambda book, conn: book.open_dispute(conn, network, origin))

    def clear_disputes(self, *, network: str, origin: str) -> Future[int]:
        """Clears the disputes with a gateway, so that it is paid again; how many. Receipts keep what is disputed."""
        return self._submit(lambda book, conn: book.clear_disputes(conn, network, origin), durable=True)

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
        payer = _wallet(payer)
        return self._submit(
            lambda book, conn: book.receipts(
                conn, since=since, call_ids=call_ids, authorization_ids=authorization_ids, payer=payer
            )
        )

    def unfinished(self, *, network: str, payer: str | None = None) -> Future[list[Authorization]]:
        """Authorizations about which the chain may still say something new: open ones, and unconfirmed ones."""
        payer = _wallet(payer)
        return self._submit(lambda book, conn: book.unfinished(conn, network=network, payer=payer))

    def authorizations(
        self, *, status: str | None = None, payer: str | None = None, network: str | None = None
    ) -> Future[list[Authorization]]:
        """Authorizations, oldest first."""
        payer = _wallet(payer)
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
        owner, token = _spelled(payer), _spelled(asset)
        return self._submit(lambda book, conn: book.spent(conn, owner, token, network, since))

    def flush(self) -> None:
        """Returns when everything submitted so far is in the database."""
        if self._thread is not None:
            self._submit(lambda _book, _conn: None, durable=True).result()

    def rest(self) -> None:
        """Writes what waits, and ends thread and connection; the next use begins them again."""
        if not is_in_memory(self.url):
            self._stop(CLOSING_WAIT_S)

    def close(self) -> None:
        """Writes what waits and closes the database. Later use raises LedgerUnavailable."""
        self._closed = True
        self._stop(CLOSING_WAIT_S)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed for good."""
        return self._closed

    def _stop(self, timeout_s: float) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._ending = thread
                self._queue.put(CLOSED)  # under the lock: no job may come to stand behind it
                if self._finalizer is not None:
                    self._finalizer.detach()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
            if thread.is_alive():
                _log.error(
                    "%r did not finish writing within %.0f s: receipts of the last calls may be missing from it. "
                    "Every authorization was recorded before its signature left.",
                    self,
                    timeout_s,
                )

    def _may_end(self) -> bool:
        """Asked by a writer that has nothing to do: True, and the next job begins another one."""
        with self._lock:
            if self._thread is not threading.current_thread() or not self._queue.empty() or is_in_memory(self.url):
                return False
            self._ending, self._thread = self._thread, None
            if self._finalizer is not None:
                self._finalizer.detach()
            return True

    # -- the process: fork and exit

    def _come_to_rest(self) -> Callable[[float], object] | None:
        """Has the writer close its connection before a fork, so that the child inherits none."""
        if not self._lock.acquire(timeout=1.0):
            return None
        try:
            if self._thread is None:
                return None
            self._resting = rest = Rest()
            self._queue.put(rest)
        finally:
            self._lock.release()
        return rest.is_resting.wait

    def _go_on(self) -> None:
        """The parent's writer opens its connection again at the next job."""
        rest, self._resting = self._resting, None
        if rest is not None:
            rest.may_go_on.set()

    def _renew(self) -> None:
        """A child has neither the thread nor what waits for it: the parent writes that."""
        self._lock = threading.RLock()
        self._queue = queue.SimpleQueue()
        self._thread = self._ending = self._resting = None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def _end(self, timeout_s: float, /) -> None:
        """At the end of the process: writes what waits."""
        self._closed = True
        self._stop(timeout_s)

    def __repr__(self) -> str:
        return f"Ledger({without_password(self.url)!r})"

    # -- the writer

    def _submit(
        self,
        work: Callable[[Book, Connection], T],
        *,
        durable: bool = False,
        otherwise: str = "Nothing was signed and nothing was paid.",
    ) -> Future[T]:
        """`otherwise` says what it means for the money when this is not done."""
        future: Future[T] = Future()
        job = Job(work=work, durable=durable, future=cast("Future[Any]", future), otherwise=otherwise)
        with self._lock:
            if self._closed:
                future.set_exception(LedgerUnavailable(f"{self!r} was closed. {otherwise} Open a new client."))
                return future
            if self._thread is None:
                self._start()
            self._queue.put(job)
        return future

    def _start(self) -> None:
        # The thread is a daemon, so that a forgotten close() cannot hang the end of the process.
        self._queue = queue.SimpleQueue()
        may_end = weakref.WeakMethod(self._may_end)  # the thread must not keep a ledger that was forgotten
        writer = Writer(
            self._location,
            self._queue,
            may_end=lambda: (ask := may_end()) is not None and ask(),
            after=self._ending,
        )
        self._thread = threading.Thread(target=writer.run, name="opengradient-ledger", daemon=True)
        self._thread.start()
        self._ending = None
        # Forgotten without close(): its thread ends with it. At exit the process ends it, in its turn.
        self._finalizer = weakref.finalize(self, self._queue.put, CLOSED)
        self._finalizer.atexit = False


def location(url: str | Path) -> str:
    """The one URL of a database: a relative path means the working directory of now, also after it was changed."""
    text = _as_url(url)
    if not text.startswith("sqlite:///") or is_in_memory(text):
        return text
    path, mark, query = text.removeprefix("sqlite:///").partition("?")
    return f"sqlite:///{Path(path).absolute()}{mark}{query}" if path and not path.startswith("file:") else text


def _wallet(payer: str | None) -> str | None:
    return None if payer is None else _spelled(payer)


def _spelled(address: str) -> str:
    try:
        return checksum_address(address)
    except ValueError as exc:
        raise ConfigurationError(f"{exc} Nothing was read. Give the whole address.") from exc


def _as_url(url: str | Path) -> str:
    text = str(url)
    return text if "://" in text else f"sqlite:///{text}"
