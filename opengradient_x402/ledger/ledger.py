"""The durable record of every authorization and every call: SQLite by default, PostgreSQL by URL.

An authorization is on disk, and its amount reserved in the budget, before its signature leaves the process. One writer
thread owns the connection: it batches what waits into one transaction (so a hundred parallel calls cost one flush),
keeps event loops free of disk I/O, and flushes to disk only where money needs it. Everything is a `Future`: sync code
takes `.result()`, async code awaits it. One thing does not wait for the thread: the receipt of a call is in the
database, or in a file beside it, when `record_call` returns.

The thread is in `writer`, the statements are in `statements` and `queries`, the short way of a receipt is in
`recorder`. This module does not know HTTP, chains, or who decides what may be spent.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opengradient_x402.effects import when_done
from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.ledger import place
from opengradient_x402.ledger.authorizations import Authorization, Budget, Objections, payer_named, spelled
from opengradient_x402.ledger.journal import Journal
from opengradient_x402.ledger.place import as_url, beside, is_in_memory, location, sqlite_file, without_password
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.recorder import CHECKPOINT_EVERY, CallUnderWay, Recorder, UnderWay
from opengradient_x402.ledger.writer import CLOSED, MOVE, Job, Rest, Writer
from opengradient_x402.process import Ending, Resident, belongs

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book
    from opengradient_x402.ledger.upkeep import History

_log = logging.getLogger(__name__)
T = TypeVar("T")
CLOSING_WAIT_S = 60.0
"""The longest that closing waits for the database: twice what SQLite waits for another process."""
_ONLY_THIS = "Only this receipt is missing: the call was made, and its authorization was recorded before."
_NOT_PAID = "Nothing was signed and nothing was paid."
_AS_BEFORE = (
    "The ledger is as it was before; what was paid is on the chain. `opengradient-x402 receipts reconcile` reads it."
)


class Ledger(Resident):
    """Authorizations, calls and receipts of one database. Thread-safe; safe to share between processes.

    `url` is a path to a SQLite file, or any SQLAlchemy URL. Nothing is opened before first use; a forked child opens
    anew. Raises LedgerUnavailable from its futures when the database cannot be read or written: nothing is signed then.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = as_url(url)
        self._location = location(url)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._resting: Rest | None = None
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._closed = False
        self._recorder = Recorder()
        self._journal = Journal(beside(self._location))
        self.under_way = UnderWay(beside(self._location), is_beside_database=sqlite_file(self._location) is not None)
        """The calls that another call's authorization pays, until they are recorded; `record_call` takes them out."""
        self._is_noted = False
        belongs(self, Ending.LEDGERS)

    def open_soon(self) -> None:
        """Begins to open the database, and to load what that needs, in the ledger's thread. Reports nothing."""
        self.read(lambda _book, _conn: None)

    # -- writing

    def authorize(
        self, authorization: Authorization, *, budget: Budget | None = None, is_first: bool = False
    ) -> Future[Authorization]:
        """Reserves the amount and records the authorization, flushed to disk, in one atomic step.

        One that is there already (the same nonce, new terms) gets the further signature: its largest amount stays
        reserved until its latest deadline, since the chain accepts either signature, never both. The result has
        all of them. Raises BudgetExceeded (and records nothing) when reservations and settlements of the window,
        with this one, would exceed the budget; CallKnown when it `is_first` and its call is there already.
        """

        def work(book: Book, conn: Connection) -> Authorization:
            if is_first:
                book.check_unknown(conn, authorization.call_id)
            return self.authorize_in(book, conn, authorization, budget)

        return self.submit(work, durable=True)

    def authorize_in(
        self, book: Book, conn: Connection, authorization: Authorization, budget: Budget | None
    ) -> Authorization:
        """As `authorize`, inside a transaction that does more."""
        place.SCOPE.look(self._location, authorization.payer)
        recorded = book.authorize(conn, authorization, budget)
        if not self.under_way.open():  # here, so that no call of its session has to touch the disk
            self._is_noted = True
            book.note_process(conn, recorded.id, self.under_way.name)
        return recorded

    def mark_unsent(self, authorization_id: str) -> Future[None]:
        """Releases a reservation whose signature provably never left this process."""
        return self.submit(
            lambda book, conn: book.mark_unsent(conn, authorization_id),
            otherwise="The signature never left, and nothing was paid; its amount stays reserved until its deadline.",
        )

    def record_call(self, receipt: SettlementReceipt, *, at_once: bool = True) -> Future[str | None]:
        """Records how a call ended. When this returns, the receipt is kept, however the process ends.

        It is in the database, or in a file beside it which the next opening takes up; the future is done when it is in
        the database. Not flushed to disk for every call: the authorization is what money needs. Without `at_once` this
        thread writes nothing (an event loop must not wait for a disk): the future is done when the receipt is there.
        Its result is the call that the receipt's enclave proof came for first (this one, unless the proof was used
        before); None for a receipt without a proof.
        """
        text, call_id, journal = json.dumps(receipt.to_json()), receipt.call_id, self._journal
        with self._lock:  # nobody closes it between the question and the job
            if not at_once and not self._closed:
                future = self.submit(
                    lambda book, conn: book.record_call(conn, receipt), otherwise=_ONLY_THIS, record=(receipt, text)
                )
                return when_done(future, lambda: self.under_way.end(call_id))
        written = None if self._closed else self._recorder.write(receipt, text)
        if written is None:
            is_kept = journal.keep(call_id, text)
            otherwise = journal.promise if is_kept else _ONLY_THIS
            future = self.submit(lambda book, conn: book.record_call(conn, receipt), otherwise=otherwise)
            if not is_kept:
                return when_done(future, lambda: self.under_way.end(call_id))
            self.under_way.end(call_id)
            return when_done(future, lambda: journal.drop(call_id))
        self.under_way.end(call_id)
        waiting = self._recorder.written - self._recorder.moved
        if waiting >= 2 * CHECKPOINT_EVERY:  # threads that only record would leave the writer's thread no time
            self._recorder.checkpoint()
        elif waiting >= CHECKPOINT_EVERY and self._queue.empty():
            self._queue.put(MOVE)  # behind the queue's end, it may be lost
        future = Future()
        future.set_result(written.proof_of)
        return future

    def begin_call(self, authorization: Authorization, call: CallUnderWay) -> Future[None]:
        """Notes, for all who share the ledger, that this authorization is about to pay for the call.

        Raises CallKnown when the call is there already.
        """
        return self.submit(lambda book, conn: book.begin_call(conn, authorization, call))

    def give_up_call(self, call_id: str, authorization_id: str) -> Future[bool]:
        """Blocks the id of a call that was begun and cost nothing: no process makes the call again under this id.

        False when it is paid in another way now.
        """
        return self._amend(lambda book, conn: book.give_up_call(conn, call_id, authorization_id))

    def not_sent(self, call_id: str, authorization_id: str) -> None:
        """Records that this authorization does not pay for the call: its settlement is shared without the call."""
        self.under_way.end(call_id)
        self.submit(lambda book, conn: book.forget_call(conn, call_id, authorization_id), otherwise=_AS_BEFORE)

    def first_call_of(self, proof_id: str, call_id: str) -> str:
        """The call that this proof came for first, as far as this process knows; `record_call` knows of all others."""
        return self._recorder.first_call_of(proof_id, call_id)

    def record_settlement(self, authorization: Authorization) -> Future[bool]:
        """Records what the chain says: frees or fixes the reservation, and shares the amount among the calls.

        The result says whether the status changed: of several processes that find the same, only one gets True.
        `status="signed"` opens the authorization again (its block is gone). With fewer `confirmations` than
        needed the whole amount stays reserved: the block may still go.
        """
        return self._amend(lambda book, conn: book.record_settlement(conn, authorization), needs_all_calls=True)

    def record_dispute(self, call_id: str, dispute: str) -> Future[None]:
        """Marks one call's receipt as disputed: a claim about it was refuted. The money's state is untouched."""
        return self._amend(lambda book, conn: book.record_dispute(conn, call_id, dispute))

    def objections(self, *, network: str, payer: str, origin: str) -> Future[Objections]:
        """What stands against a new signature of this wallet for this gateway."""
        return self.read(lambda book, conn: book.objections(conn, network, payer, origin))

    def clear_disputes(self, *, network: str, origin: str) -> Future[int]:
        """Clears the disputes with a gateway, so that it is paid again; how many. Receipts keep what is disputed."""
        return self._amend(lambda book, conn: book.clear_disputes(conn, network, origin))

    def pin(self, key: str, value: str) -> Future[str]:
        """Remembers the first value ever seen under `key`, and returns that first value."""
        return self.submit(lambda book, conn: book.pin(conn, key, value), durable=True)

    def extend_history(self, records: Sequence[tuple[str, bytes]]) -> Future[History]:
        """Adds the present version of these records (name, leaf hash) to the history, and returns the whole of it."""
        from opengradient_x402.ledger.upkeep import extend_history

        return self._amend(lambda _, conn: extend_history(conn, records))

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
        payer = payer_named(payer)
        return self.read(
            lambda book, conn: book.receipts(
                conn, since=since, call_ids=call_ids, authorization_ids=authorization_ids, payer=payer
            )
        )

    def newest_receipts(
        self, most: int, *, since: int = 0, payer: str | None = None, status: str | None = None, run: str | None = None
    ) -> Future[list[SettlementReceipt]]:
        """The newest receipts, at most `most` of them, oldest first (`status`: a ReceiptStatus)."""
        payer = payer_named(payer)
        return self.read(
            lambda book, conn: book.newest_receipts(conn, since=since, payer=payer, status=status, run=run, most=most)
        )

    def receipts_beginning(self, call_id: str, *, most: int = 2) -> Future[list[SettlementReceipt]]:
        """Receipts of calls whose ids begin so."""
        return self.read(lambda book, conn: book.receipts_beginning(conn, call_id, most))

    def pages_of_receipts(
        self, *, since: int = 0, payer: str | None = None, most: int = 500
    ) -> Iterator[list[SettlementReceipt]]:
        """All receipts, oldest first, in pages of at most so many: never all of them in memory.

        Waits for the database between pages; what is recorded meanwhile may be included.
        """
        payer, after = payer_named(payer), None

        def page(book: Book, conn: Connection) -> tuple[list[SettlementReceipt], int | None]:
            return book.page_of_receipts(conn, since=since, payer=payer, after=after, most=most)

        while True:
            receipts, after = self.read(page).result()
            if receipts:
                yield receipts
            if after is None:
                return

    def unfinished(
        self,
        *,
        network: str,
        payer: str | None = None,
        authorization_id: str | None = None,
        after: str | None = None,
        most: int | None = None,
    ) -> Future[list[Authorization]]:
        """Authorizations that the chain may still change: open, unconfirmed, or expired and to be checked once more.

        Oldest first; all of them, or at most so many behind the one whose id is `after`.
        """
        payer = payer_named(payer)
        return self.read(
            lambda book, conn: book.unfinished(
                conn, network=network, payer=payer, authorization_id=authorization_id, after=after, most=most
            )
        )

    def authorizations(
        self,
        *,
        status: str | None = None,
        payer: str | None = None,
        network: str | None = None,
        authorization_id: str | None = None,
    ) -> Future[list[Authorization]]:
        """Authorizations, oldest first."""
        payer = payer_named(payer)
        return self.read(
            lambda book, conn: book.authorizations(
                conn, status=status, payer=payer, network=network, authorization_id=authorization_id
            )
        )

    def note(self, key: str, value: str) -> Future[None]:
        """Remembers a value under `key`, in place of an earlier one."""
        return self.submit(lambda book, conn: book.note(conn, key, value), otherwise=_AS_BEFORE)

    def noted(self, key: str) -> Future[str | None]:
        """What was last noted (or pinned) under `key`."""
        return self.read(lambda book, conn: book.noted(conn, key))

    def spent(self, *, payer: str, asset: str, network: str, window_s: int = 86_400) -> Future[int]:
        """Reserved plus settled in the window (atomic units); a budget counts what claimed vouchers still allow too."""
        since = int(time.time()) - window_s
        owner, token = spelled(payer), spelled(asset)
        return self.read(lambda book, conn: book.spent(conn, owner, token, network, since))

    def flush(self) -> None:
        """Returns when everything submitted so far is in the database."""
        if self._thread is not None:
            self._amend(lambda _book, _conn: None).result()

    def rest(self) -> None:
        """Writes what waits, and ends thread and connection; the next use begins them again."""
        if not is_in_memory(self.url):
            self._stop(CLOSING_WAIT_S)

    def close(self) -> None:
        """Writes what waits and closes the database. Later use raises LedgerUnavailable."""
        self._end(CLOSING_WAIT_S)

    @property
    def waiting(self) -> int:
        """How many jobs wait for the writer."""
        return self._queue.qsize()

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
        """Whether a writer that has nothing to do may end. After True the next job begins another one."""
        with self._lock:
            if self._thread is not threading.current_thread() or not self._queue.empty() or is_in_memory(self.url):
                return False
            if self._recorder.was_used():
                return False
            self._ending, self._thread = self._thread, None
            if self._finalizer is not None:
                self._finalizer.detach()
            return True

    # -- the process: fork and exit

    def _come_to_rest(self) -> Callable[[float], object] | None:
        """Makes the writer close its connection before a fork, so that the child inherits none."""
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
        """A child has no writer thread, and forgets the jobs that wait: the parent writes them."""
        self._lock = threading.RLock()
        self._recorder.renew()
        self._journal.renew()
        self.under_way.renew()
        self._is_noted = False
        self._queue = queue.SimpleQueue()
        self._thread = self._ending = self._resting = None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def _end(self, timeout_s: float, /) -> None:
        """At the end of the process: writes what waits."""
        if self._is_noted and self.under_way.is_empty:
            name, self._is_noted = self.under_way.name, False
            self.submit(lambda book, conn: book.end_process(conn, name))
        with self._lock:
            self._closed = True
        self._stop(timeout_s)
        self.under_way.close()

    def __repr__(self) -> str:
        return f"Ledger({without_password(self.url)!r})"

    # -- the writer

    def submit(self, work: Callable[[Book, Connection], T], *, otherwise: str = _NOT_PAID, **kind: Any) -> Future[T]:
        """What `work` returns, once it is in the database. `otherwise` says what a failure means for the money."""
        future: Future[T] = Future()
        job = Job(work=work, future=cast("Future[Any]", future), otherwise=otherwise, **kind)
        with self._lock:
            if self._closed:
                future.set_exception(LedgerUnavailable(f"{self!r} was closed. {otherwise} Open a new client."))
                return future
            if self._thread is None:
                self._start()
            self._queue.put(job)
        return future

    def _amend(self, work: Callable[[Book, Connection], T], **kind: Any) -> Future[T]:
        return self.submit(work, durable=True, otherwise=_AS_BEFORE, **kind)

    def read(self, work: Callable[[Book, Connection], T]) -> Future[T]:
        return self.submit(work, writes=False, otherwise="Nothing was paid by asking.")

    def _start(self) -> None:
        # The thread is a daemon, so that a forgotten close() cannot hang the end of the process.
        self._queue = queue.SimpleQueue()
        may_end = weakref.WeakMethod(self._may_end)  # the thread must not keep a ledger that was forgotten
        writer = Writer(
            self._location,
            self._queue,
            recorder=self._recorder,
            journal=self._journal,
            under_way=self.under_way,
            may_end=lambda: (ask := may_end()) is not None and ask(),
            after=self._ending,
        )
        self._thread = threading.Thread(target=writer.run, name="opengradient-ledger", daemon=True)
        self._thread.start()
        self._ending = None
        # Forgotten without close(): its thread ends with it. At exit the process ends it, in its turn.
        self._finalizer = weakref.finalize(self, self._queue.put, CLOSED)
        self._finalizer.atexit = False
