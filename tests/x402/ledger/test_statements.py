"""What the ledger executes: which values a statement takes, how durable a commit is, and for whom a reading waits."""

from __future__ import annotations

import random
import sqlite3
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from opengradient_x402.errors import BudgetExceeded, LedgerUnavailable
from opengradient_x402.ledger import schema, statements, tables
from opengradient_x402.ledger.authorizations import Budget
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.ledger.upkeep import check, known_of
from support.ledger_rows import NOW, OPG, entry, served

OTHER = "0x8C2e0718822cE47cA8c74107e66cb0E4B2B3f4D5"


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        yield ledger


@contextmanager
def locked(path):
    """Another program writes to the database, and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# -- values


def test_a_value_that_a_caller_forgets_is_an_error_and_no_null(ledger):
    ledger.authorize(entry(1)).result()

    def forgetful(_book, conn):
        row = tables.row_of_call(served(entry(1), "call_2")) | {"call_id": "call_2"}
        del row["run"]
        statements._INSERT_CALL.change(conn, row)

    with pytest.raises(LedgerUnavailable, match="run"):
        ledger.submit(forgetful).result()
    assert [one.call_id for one in ledger.receipts().result()] == ["call_1"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 700])
def test_receipts_are_found_by_any_number_of_ids_in_the_order_in_which_they_began(tmp_path, count):
    order = list(range(700))
    random.Random(7).shuffle(order)
    with closing(tables.connect(f"sqlite:///{tmp_path}/ledger.sqlite")) as conn:
        schema.create(conn)
        with conn.begin():
            for at, number in enumerate(order):
                one = entry(number, payer=OTHER if number % 2 else entry(0).payer)
                receipt = served(one, f"call_{number}", created_at=NOW + at // 350)
                row = tables.row_of_call(receipt) | {"call_id": receipt.call_id, "answered_as": "served"}
                conn.execute(tables.calls.insert().values(row))
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        wanted = [f"call_{number}" for number in range(count)]
        for payer, since in ((None, 0), (OTHER, 0), (None, NOW + 1), (OTHER, NOW + 1)):
            expected = [
                f"call_{number}"
                for at, number in enumerate(order)
                if number < count and (payer is None or number % 2) and (not since or at >= 350)
            ]
            by_call = ledger.receipts(call_ids=wanted + wanted[:2], payer=payer, since=since).result()
            assert [one.call_id for one in by_call] == expected
            ids = [one.replace("call", "auth") for one in wanted]
            by_both = ledger.receipts(call_ids=wanted, authorization_ids=ids, payer=payer, since=since).result()
            assert [one.call_id for one in by_both] == expected


def test_a_status_counts_as_its_text_and_a_number_that_no_column_holds_is_the_fault_of_its_job_alone(ledger):
    ledger.authorize(entry(1)).result()
    ledger.record_settlement(entry(1, status=ReceiptStatus.EXPIRED)).result()
    assert [one.id for one in ledger.authorizations(status=ReceiptStatus.EXPIRED).result()] == ["auth_1"]
    jobs = [ledger.authorize(entry(number, deadline=2**70 if number == 3 else NOW)) for number in range(2, 6)]
    with pytest.raises(LedgerUnavailable, match="OverflowError"):
        jobs[1].result()
    assert [job.result().id for at, job in enumerate(jobs) if at != 1] == ["auth_2", "auth_4", "auth_5"]
    assert len(ledger.authorizations().result()) == 4


def test_ledgers_of_many_threads_share_a_statement_that_nobody_has_built_yet(tmp_path):
    found, interval = [], sys.getswitchinterval()
    query = sa.select(tables.pins.c.value).where(tables.pins.c.key == sa.bindparam("wanted"), tables.pins.c.value != "")
    for _ in range(20):
        shared, ready = tables.Prepared(query), threading.Barrier(4)

        def work(number, shared=shared, ready=ready):
            with closing(Ledger(tmp_path / f"{number}.sqlite")) as ledger:
                ledger.note("a", str(number)).result()
                ready.wait()
                value = ledger.read(lambda _, conn: shared.value(conn, {"wanted": "a"})).result()
                found.append(value == str(number))

        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert found == [True] * 80


# -- commits


FULL, NORMAL = 2, 1


@pytest.fixture
def levels():
    """`PRAGMA synchronous` at each commit of a writer's connection (sqlite.org/pragma.html#pragma_synchronous)."""
    found: list[int] = []

    @sa.event.listens_for(Engine, "connect")
    def listen(connection, record):
        def note(statement):
            if statement == "COMMIT":
                found.append(connection.execute("PRAGMA synchronous").fetchone()[0])

        connection.set_trace_callback(note)

    yield found
    sa.event.remove(Engine, "connect", listen)


def _is_not_flushed(ledger):
    ledger.note("a", "b").result()


def _reads(ledger):
    ledger.noted("a").result()


def _is_refused(ledger):
    with pytest.raises(BudgetExceeded):
        ledger.authorize(entry(90, amount_atomic=OPG), budget=Budget(limit_atomic=1)).result()


def _fails(ledger, *, durable=True):
    def fails(book, conn):
        book.note(conn, "x", "1")
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(LedgerUnavailable):
        ledger.submit(fails, durable=durable).result()


def _fails_without_flush(ledger):
    _fails(ledger, durable=False)


def _is_opened_again(ledger):
    ledger.rest()


BEFORE = (_is_not_flushed, _reads, _is_refused, _fails, _fails_without_flush, _is_opened_again)


@pytest.mark.parametrize("first", BEFORE)
@pytest.mark.parametrize("second", BEFORE)
def test_a_durable_commit_is_flushed_to_disk_whatever_was_before_it(ledger, levels, first, second):
    for number, steps in enumerate([(), (first, second), (first,), (second, first)]):
        for step in steps:
            step(ledger)
        ledger.authorize(entry(number)).result()
        assert levels[-1] == FULL
    _is_not_flushed(ledger)
    assert levels[-1] == NORMAL


def test_a_batch_with_one_durable_job_is_flushed_to_disk(ledger, levels):
    _is_not_flushed(ledger)
    go_on = threading.Event()
    held = ledger.read(lambda _book, _conn: go_on.wait(10))
    jobs = [ledger.note("a", "1"), ledger.authorize(entry(1)), ledger.noted("a"), ledger.note("a", "2")]
    go_on.set()
    assert held.result()
    assert [jobs[2].result(), jobs[1].result().id, jobs[3].result()] == ["1", "auth_1", None]
    assert levels[-1] == FULL


# -- readings


def test_a_reading_waits_for_no_other_program_that_writes(ledger, tmp_path):
    ledger.authorize(entry(1)).result()
    with locked(tmp_path / "ledger.sqlite"):
        began = time.monotonic()
        assert [one.id for one in ledger.authorizations().result(timeout=10)] == ["auth_1"]
        assert len(ledger.receipts(call_ids=["call_1"]).result(timeout=10)) == 1
        assert time.monotonic() - began < 5


def test_what_a_thread_has_recorded_is_in_its_next_reading(ledger):
    ledger.authorize(entry(1)).result()
    for number in range(50):
        ledger.record_call(served(entry(1), f"call_{number}")).result()
        assert ledger.receipts(call_ids=[f"call_{number}"]).result()[0].status is ReceiptStatus.SERVED


def test_a_reading_job_that_writes_is_done_or_refused_and_leaves_no_half(ledger, tmp_path):
    ledger.authorize(entry(1)).result()

    def writes(book, conn):
        book.noted(conn, "a")
        with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other, other:
            other.execute("INSERT INTO pins VALUES ('meanwhile', '1')")
        book.note(conn, "a", "b")

    with pytest.raises(LedgerUnavailable, match="locked"):
        ledger.read(writes).result()
    assert ledger.noted("a").result() is None
    ledger.note("a", "c").result()
    assert ledger.noted("a").result() == "c"


def test_a_check_waits_for_no_other_program_that_writes_and_lets_it_write(ledger, tmp_path):
    ledger.authorize(entry(1)).result()
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    with locked(tmp_path / "ledger.sqlite"):
        began = time.monotonic()
        assert check(url) == []
        one = entry(1)
        known = known_of(url, payer=one.payer, network=one.network, asset=one.asset, since=0)
        assert time.monotonic() - began < 5
    assert known is not None
    assert [found.id for found in known.authorizations] == ["auth_1"]


def test_a_check_that_sqlite_refuses_says_that_the_ledger_cannot_be_read(ledger, tmp_path):
    ledger.authorize(entry(1)).result()
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as conn:
        conn.execute("ALTER TABLE schema DROP COLUMN ledger_id")
    with pytest.raises(LedgerUnavailable, match="no such column"):
        check(f"sqlite:///{tmp_path}/ledger.sqlite")
