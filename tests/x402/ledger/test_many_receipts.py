"""A ledger with very many receipts: no command loads them all, and a call is as fast as on an empty one."""

from __future__ import annotations

import json
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from opengradient_x402.ledger.authorizations import Budget
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.ledger.recorder import WRITE
from support.ledger_rows import NOW, OPG, entry, served

_COMMAND = """
import sys, time
from pathlib import Path
from opengradient_x402.cli.main import main
began = time.perf_counter()
try:
    main()
finally:
    took = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()  # getrusage has the most of the parent too
    print(took, int(status.partition("VmHWM:")[2].split()[0]) // 1024, file=sys.stderr)
"""
_MOST_MB = 150
SIZES = [20_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])]


def _filled(path: Path, size: int, **settlement: object) -> Path:
    """A ledger of so many settled calls, each with an authorization of its own, signed within the last day."""
    now = int(time.time())
    ledger = Ledger(path)
    for number in (0, 1):
        ledger.authorize(entry(number, signed_at=now - 40_000, deadline=now + 40_000)).result()
    settled = replace(entry(1), status="settled", settled_atomic=7, tx_hash="0x1", block_number=1, block_hash="0x2")
    ledger.record_settlement(replace(settled, **settlement)).result()
    ledger.close()
    with closing(sqlite3.connect(path)) as conn, conn:
        for table, of in (("authorizations", "id"), ("signatures", "authorization_id"), ("calls", "call_id")):
            names = [row[1] for row in conn.execute(f"PRAGMA table_info({table})") if row[1] != "sequence"]
            known = "call_1" if table == "calls" else "auth_1"
            [row] = conn.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {of} = ?", (known,)).fetchall()

            def varied(number: int, row=row) -> list[object]:
                return [
                    value.replace("auth_1", f"auth_{number}").replace("call_1", f"call_{number}")
                    if isinstance(value, str)
                    else value
                    for value in row
                ]

            conn.executemany(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                (varied(number) for number in range(2, size)),
            )
    return path


def _command(path: Path, *arguments: str) -> tuple[str, float, int]:
    """What the command prints, how long it took without its imports, and the most memory that it had, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments, "--ledger", str(path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    took, memory = done.stderr.split()[-2:]
    return done.stdout, float(took), int(memory)


@pytest.fixture(scope="module", params=SIZES)
def many(request, tmp_path_factory):
    size = request.param
    return _filled(tmp_path_factory.mktemp("many") / "many.sqlite", size), size


@pytest.fixture
def empty(tmp_path):
    return _filled(tmp_path / "empty.sqlite", 2)


def test_listing_reads_the_newest_receipts_only(many, empty):
    path, size = many
    shown, took, memory = _command(path, "receipts", "list", "--json")
    _, took_empty, _ = _command(empty, "receipts", "list", "--json")
    assert [row["call_id"] for row in json.loads(shown)] == [f"call_{number}" for number in range(size - 50, size)]
    assert took - took_empty < 1
    assert memory < _MOST_MB


@pytest.mark.parametrize(
    "options", [["--status", "disputed"], ["--payer", entry().terms.payee], ["--since", str(2 * NOW)]]
)
def test_listing_what_there_is_none_of_does_not_read_the_others(many, options):
    shown, took, memory = _command(many[0], "receipts", "list", "--json", *options)
    assert json.loads(shown) == []
    assert took < 10
    assert memory < _MOST_MB


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_export_streams(many, tmp_path, form):
    path, size = many
    target = tmp_path / "export"
    _, took, memory = _command(path, "receipts", "export", "--format", form, "--output", str(target))
    print(f"{form}: {took:.1f} s, {memory} MB")
    with target.open("rb") as lines:
        assert sum(1 for _ in lines) == size + (form == "csv")
    assert memory < _MOST_MB


@pytest.mark.parametrize(
    ("size", "changing"),
    [(2_100, 2_100), pytest.param(1_000_000, 100_000, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])],
)
def test_reconciling_many_reads_and_writes_them_page_by_page(net, tmp_path, size, changing):
    """Settlements that were seen in a block and are final now: all of them change, and all are printed."""
    block = net.chain.rpc("eth_getBlockByNumber", ["latest", False])
    seen = {"block_number": int(block["number"], 16), "block_hash": block["hash"]}
    path = _filled(tmp_path / "many.sqlite", size, confirmations=0, confirmations_needed=1, **seen)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "UPDATE authorizations SET network = ?, is_open = sequence <= ? WHERE status = 'settled'",
            (net.network["network"], changing),
        )
    shown, took, memory = _command(path, "receipts", "reconcile", "--json", "--network", f"{net.gateway_url}/network")
    print(f"{changing} of {size} reconciled: {took:.1f} s, {memory} MB")
    report = json.loads(shown)
    assert [row["call_id"] for row in report["changed"]] == [f"call_{number}" for number in range(1, changing)]
    assert {row["status"] for row in report["changed"]} == {"settled"}
    assert memory < _MOST_MB


def test_one_receipt_is_found_by_the_beginning_of_its_id(many):
    path, size = many
    shown, took, _ = _command(path, "receipts", "show", f"call_{size - 1}", "--json")
    assert json.loads(shown)["call_id"] == f"call_{size - 1}"
    assert took < 10


def test_a_call_takes_as_long_as_on_an_empty_ledger(many, empty):
    ledgers, budget, now = (Ledger(many[0]), Ledger(empty)), Budget(limit_atomic=OPG * 10**9), int(time.time())

    def call(ledger: Ledger, number: int) -> float:
        one = entry(number, signed_at=now, deadline=now + 300, nonce=-number)
        began = time.process_time()
        ledger.authorize(one, budget=budget).result()
        ledger.record_call(served(one, f"call_{number}", cost_atomic=5)).result()
        return time.process_time() - began

    try:
        # By turns: whatever else the machine does, it does to both.
        rounds = [[call(ledger, number) for ledger in ledgers] for number in range(-1, -301, -1)]
    finally:
        for ledger in ledgers:
            ledger.close()
    full, bare = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"a call on {many[1]} receipts takes {full / bare:.2f} times as long as on an empty ledger")
    assert full / bare < 1.2


def test_no_statement_of_a_call_or_of_a_settlement_reads_a_whole_table(tmp_path):
    seen: set[str] = set()

    @sa.event.listens_for(Engine, "connect")
    def listen(connection, record):
        connection.set_trace_callback(seen.add)

    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    try:
        one, budget = entry(1), Budget(limit_atomic=OPG)
        ledger.noted("begin").result()
        seen.clear()
        ledger.noted("x").result()
        ledger.pin("pin", "1").result()
        ledger.authorize(one, budget=budget).result()
        ledger.authorize(replace(one, signed=(replace(one.terms, deadline=NOW + 400),)), budget=budget).result()
        ledger.record_call(served(one, "call_1", cost_atomic=5)).result()
        ledger.objections(network=one.network, payer=one.payer, origin="http://127.0.0.1").result()
        ledger.unfinished(network=one.network, most=100, after="auth_0").result()
        ledger.unfinished(network=one.network, authorization_id="auth_1").result()
        ledger.record_settlement(replace(one, status="settled", settled_atomic=5)).result()
        ledger.receipts(call_ids=["call_1"]).result()
        ledger.receipts(authorization_ids=["auth_1"]).result()
        ledger.newest_receipts(50, payer=one.payer).result()
        ledger.newest_receipts(50, status=ReceiptStatus.DISPUTED).result()
        ledger.receipts_beginning("call_").result()
        ledger.authorizations(authorization_id="auth_1").result()
        ledger.mark_unsent("auth_1").result()
    finally:
        sa.event.remove(Engine, "connect", listen)
        ledger.close()
    statements = {each: () for each in seen if each.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT")}
    assert not any("?" in each for each in statements)  # values stand in them
    statements[WRITE] = ("call_1", "auth_1", 1, "{}", "payer", "served", "run", "served", "auth_1")
    plans = []
    with closing(sqlite3.connect(path)) as conn:
        for statement, values in statements.items():
            plans += [(row[3], statement) for row in conn.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert len(plans) > 15
    of_one_row = ("SCAN CONSTANT ROW", "SCAN schema")
    assert [plan for plan in plans if "SCAN" in plan[0] and not plan[0].startswith(of_one_row)] == []
