"""The ledger in a real PostgreSQL: shared by processes, and bounded in every wait when the server is not well."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psycopg
import pytest

from opengradient_devnet import Devnet
from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.ledger import place, statements
from opengradient_x402.ledger.authorizations import Budget
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.ledger.upkeep import Known, check, compact, known_of, repair
from support.ledger_rows import OPG, entry, served
from support.payers import PROMPT, opg_balance, payments_for, settled_receipts
from support.postgresql import Server, running_server
from support.venvs import install_wheel, make_venv

_REQUIREMENTS = Path(__file__).parent / "requirements" / "postgresql.txt"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


@pytest.fixture
def database_url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return server.new_database()


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    opened = Ledger(database_url)
    yield opened
    opened.close()


def test_four_processes_open_a_new_ledger_at_once_and_cannot_overdraw_it_together(database_url, wheel, scripts):
    venv = make_venv(_REQUIREMENTS)
    install_wheel(venv, wheel, _REQUIREMENTS)
    tasks = [
        {"url": database_url, "first": 100 * number, "entry": asdict(entry(amount_atomic=OPG // 10))}
        for number in range(1, 5)
    ]
    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = list(pool.map(lambda task: venv.run(scripts / "postgresql_ledger.py", task), tasks))
    assert sum(answer["won"] for answer in answers) == 10
    late = venv.run(scripts / "postgresql_ledger.py", tasks[0] | {"first": 900})
    assert late == {"won": 0, "entries": 10}


def test_processes_that_find_a_new_ledger_in_place_of_a_lost_one_at_once_all_use_it(
    database_url, server, tmp_path, monkeypatch
):
    class Slow:
        """Leaves time for another process to note the same."""

        def change(self, conn, values):
            time.sleep(0.3)
            return insert.change(conn, values)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = Ledger(database_url)
    before.authorize(entry(1)).result()
    before.close()
    server.make_anew(database_url)
    shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(place, "_SEEN_HERE", {})
    insert = statements._INSERT_NOTE
    monkeypatch.setattr(statements, "_INSERT_NOTE", Slow())
    ledgers = [Ledger(database_url) for _ in range(4)]
    found = [one.objections(network="eip155:1", payer="0x1", origin="http://127.0.0.1") for one in ledgers]
    assert [one.result().is_loss for one in found] == [True] * len(ledgers)
    for one in ledgers:
        one.close()


@pytest.mark.parametrize("is_old", [False, True])
def test_an_open_dispute_is_found_in_a_database_in_the_order_of_a_language(database_url, server, is_old):
    url = server.new_database(language="en-US")
    if is_old:  # made before its keys were in the order of their bytes
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as conn:
            conn.execute("CREATE TABLE pins (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    gateway = {"network": "eip155:1", "origin": "http://127.0.0.1:80"}
    ledger = Ledger(url)
    ledger.note("dispute eip155:1 http://127.0.0.1:80 auth_1", "open").result()
    assert ledger.objections(payer="0x1", **gateway).result().dispute == "auth_1"
    assert ledger.clear_disputes(**gateway).result() == 1
    ledger.close()


def test_a_server_that_restarts_between_two_payments_costs_no_payment(server, ledger):
    ledger.authorize(entry(1)).result()
    server.restart()
    ledger.authorize(entry(2)).result()
    assert [one.id for one in ledger.authorizations().result()] == ["auth_1", "auth_2"]


def test_a_connection_that_is_ended_in_a_transaction_is_tried_once_more_and_signs_nothing_twice(server, ledger):
    ledger.authorize(entry(1)).result()
    with psycopg.connect(server.admin, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (ledger.url.rpartition("/")[2],),
        )
    again = ledger.authorize(entry(1)).result()
    assert len(again.signed) == 1
    assert ledger.authorizations().result() == [entry(1)]


def test_a_server_that_is_gone_is_an_error_before_signing_and_of_use_again_when_it_is_back(server, ledger):
    ledger.authorize(entry(1)).result()
    server.stop()
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="Nothing was signed and nothing was paid"):
        ledger.authorize(entry(2)).result()
    assert time.monotonic() - began < 20
    server.start()
    ledger.authorize(entry(2)).result()
    assert len(ledger.authorizations().result()) == 2


def test_a_receipt_that_a_dead_server_cannot_take_is_kept_and_recorded_by_the_next_process(
    server, ledger, database_url, caplog
):
    ledger.authorize(entry(1)).result()
    server.stop()
    lost = ledger.record_call(served(entry(1), "call_1", cost_atomic=7))
    with pytest.raises(LedgerUnavailable, match=r"its receipt is kept in .*: it is recorded when") as caught:
        lost.result()
    assert "nothing was paid" not in str(caught.value).lower()
    ledger.close()
    server.start()
    later = Ledger(database_url)
    (receipt,) = later.receipts().result()
    assert (receipt.status, receipt.cost_atomic) == (ReceiptStatus.SERVED, 7)
    later.close()


def test_another_program_that_holds_the_lock_makes_a_payment_wait_ten_seconds_and_not_longer(server, ledger):
    ledger.authorize(entry(1)).result()
    url = server.admin.rpartition("/")[0] + "/" + ledger.url.rpartition("/")[2]
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(402402)")
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=r"lock timeout.*Another program holds it"):
            ledger.authorize(entry(2)).result()
        assert 8 < time.monotonic() - began < 20
    ledger.authorize(entry(2)).result()


def test_two_processes_that_record_the_same_settlements_in_opposite_orders_do_not_deadlock(database_url):
    books = [Ledger(database_url), Ledger(database_url)]
    for number in range(60):
        books[0].authorize(entry(number)).result()
    found = [
        replace(entry(number), status="settled", settled_atomic=5, tx_hash="0x1", block_number=1)
        for number in range(60)
    ]

    def record(book, settled):
        for future in [book.record_settlement(one) for one in settled]:
            future.result()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(record, books[0], found), pool.submit(record, books[1], found[::-1])]:
            done.result()
    assert {receipt.status for receipt in books[0].receipts().result()} == {ReceiptStatus.SETTLED}
    assert check(database_url) == []
    for book in books:
        book.close()


def test_a_deadlock_with_another_program_is_tried_once_more(server, ledger, caplog):
    ledger.authorize(entry(1)).result()
    ledger.authorize(entry(2)).result()
    url = server.admin.rpartition("/")[0] + "/" + ledger.url.rpartition("/")[2]
    begun, caplog_at = threading.Event(), caplog.at_level(logging.WARNING)

    def foreign():
        """Takes the rows in the other order, and is patient: the ledger is the one that the server breaks off."""
        with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as watching:
            other.execute("SET deadlock_timeout = '30s'")
            other.execute("UPDATE authorizations SET status = status WHERE id = 'auth_2'")
            begun.set()
            # The server looks for a deadlock once, a second after the ledger has begun to wait.
            while watching.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None:
                time.sleep(0.01)
            other.execute("UPDATE authorizations SET status = status WHERE id = 'auth_1'")

    with caplog_at:
        thread = threading.Thread(target=foreign)
        thread.start()
        begun.wait(10)

        def both(book, conn):
            for number in (1, 2):
                book.record_settlement(conn, replace(entry(number), status="settled", settled_atomic=5))

        ledger.submit(both, durable=True).result(30)
        thread.join()
    assert "broke a transaction off; it is tried once more" in caplog.text
    assert [one.status for one in ledger.authorizations().result()] == ["settled", "settled"]


def test_a_server_that_hangs_holds_no_call_longer_than_its_time_limit(server, database_url, tmp_path):
    with Devnet() as net, payments_for(net, net.account(approved=True), database_url) as payments:
        payments.ledger.noted("open it").result()
        client = GatewayClient(payments, timeout_s=3)
        with server.held(database_url):
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable, match="Nothing was signed"):
                client.chat(PROMPT)
            assert time.monotonic() - began < 6
        answer = client.chat(PROMPT)
        assert answer.receipt is not None
        assert len(payments.ledger.receipts().result()) == 1
        client.close()


def test_calls_are_reconciled_from_the_chain_into_postgresql(database_url):
    with Devnet() as net:
        account = net.account(approved=True)
        before = opg_balance(net, account.address)
        with payments_for(net, account, database_url) as payments:
            with GatewayClient(payments) as client:
                for _ in range(5):
                    client.chat(PROMPT)
            receipts = settled_receipts(net, payments)
            assert len(receipts) == 5
            assert {receipt.status for receipt in receipts} == {ReceiptStatus.SETTLED}
            taken = before - opg_balance(net, account.address)
            assert taken == sum(receipt.settled_atomic for receipt in receipts) > 0
            known = payments.ledger.authorizations().result()
            wallet = {
                "payer": payments.payer,
                "network": payments.network.caip2,
                "asset": payments.network.asset.address,
            }
    assert check(database_url) == []
    to_compare = known_of(database_url, **wallet, since=int(time.time()))
    assert to_compare == Known(first_signed_at=known[0].signed_at, authorizations=known, channels=frozenset())
    assert known_of(database_url, **wallet, since=known[0].deadline + 1).authorizations == []


def test_a_postgresql_ledger_that_was_emptied_is_refused_until_it_is_repaired(server, database_url):
    ledger = Ledger(database_url)
    ledger.authorize(entry(1), budget=Budget(limit_atomic=OPG)).result()
    ledger.close()
    url = server.admin.rpartition("/")[0] + "/" + database_url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE")
        admin.execute("CREATE SCHEMA public")
    ledger = Ledger(database_url)
    with pytest.raises(LedgerUnavailable, match="another ledger than the one that was used here before"):
        ledger.authorize(entry(2)).result()
    ledger.close()
    repair(database_url)
    ledger = Ledger(database_url)
    ledger.authorize(entry(2)).result()
    ledger.close()
    assert check(database_url) == []
    compact(database_url)


def test_what_a_ledger_in_use_loses_on_the_server_is_missed_before_the_next_signature(server, ledger, database_url):
    ledger.authorize(entry(1), budget=Budget(limit_atomic=OPG)).result()
    url = server.admin.rpartition("/")[0] + "/" + database_url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("TRUNCATE authorizations, signatures, reserved RESTART IDENTITY")
    for number in (2, 3):
        with pytest.raises(LedgerUnavailable, match="it holds 0 authorizations, and 1 were recorded in it before"):
            ledger.authorize(entry(number), budget=Budget(limit_atomic=OPG)).result()


def test_a_worker_that_leaves_at_once_loses_no_receipt_that_it_gave_out(database_url, tmp_path):
    program = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from opengradient_x402.ledger.ledger import Ledger
from support.ledger_rows import entry, served
ledger = Ledger({database_url!r})
ledger.authorize(entry(1)).result()
for number in range(20):
    ledger.record_call(served(entry(1), f"call_{{number}}", cost_atomic=5))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    ledger = Ledger(database_url)
    assert sum(receipt.outcome == "ok" for receipt in ledger.receipts().result()) == 20
    ledger.close()


@pytest.mark.parametrize(("left", "found"), [(["killed"], "settled"), ([], "disputed")])
def test_what_a_killed_process_left_is_known_on_its_machine_and_decides_there_what_is_an_overcharge(
    database_url, tmp_path, monkeypatch, left, found
):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.recorder import CallUnderWay
from support.ledger_rows import entry, served
ledger = Ledger({database_url!r})
ledger.authorize(entry(1)).result()
ledger.record_call(served(entry(1), "call_1", cost_atomic=5)).result()
for name in {left!r}:
    ledger.under_way.begin(CallUnderWay(name, "auth_1", 1_700_000_000, "batch", "openai/gpt-5"))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    settled = replace(entry(1), status="settled", settled_atomic=1000, tx_hash="0x" + "5e" * 32)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    elsewhere = Ledger(database_url)
    elsewhere.record_settlement(settled).result()
    assert [(one.call_id, one.status) for one in elsewhere.receipts().result()] == [("call_1", "settled")]
    elsewhere.close()

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here = Ledger(database_url)
    receipts = {one.call_id: (one.outcome, one.status, one.settled_atomic) for one in here.receipts().result()}
    here.close()
    assert receipts["call_1"] == ("ok", found, 5 if left else 1000)
    assert [receipts[name] for name in left] == [("unknown", found, 995)] * len(left)
