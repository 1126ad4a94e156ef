"""A killed process leaves no call behind that nobody knows: the honest settlement of its gateway is no overcharge."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from opengradient_devnet.faults import SettleAtCap
from opengradient_x402.errors import PolicyRefused
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.recorder import CallUnderWay
from opengradient_x402.settlement.reconciler import Reconciler
from support.ledger_rows import entry, served
from support.payers import PROMPT, client_for, network_of, opg_balance, payments_for

_TESTS = Path(__file__).parents[2]
_BEGIN = f"""
import os, sys, threading
sys.path.insert(0, {str(_TESTS)!r})
from opengradient_x402 import GatewayClient, Payments
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.recorder import CallUnderWay
from support.ledger_rows import entry, served
ASK = {{"model": "openai/gpt-5", "messages": [{{"role": "user", "content": "hi"}}]}}

def tell(text):
    os.write(1, (text + chr(10)).encode())

def in_a_stream(client):
    stream = client.stream(ASK)
    next(iter(stream))
    return stream
"""
_IN_A_SESSION = """
payments = Payments.open(network=sys.argv[1], private_key=sys.argv[2], ledger=sys.argv[3])
client = GatewayClient(payments)
client.chat(ASK)
client.chat(ASK)
"""
_WAIT_FOR_THE_END = "tell('ready')\nthreading.Event().wait()\n"


def _started(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has come to where it waits for its end."""
    text = _BEGIN + textwrap.dedent(program) + _WAIT_FOR_THE_END
    process = subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _killed(program: str, *arguments: str) -> None:
    process = _started(program, *arguments)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def path(tmp_path):
    return tmp_path / "killed.sqlite"


@pytest.fixture
def task(net, account, path):
    return f"{net.gateway_url}/network", account.private_key, str(path)


def _reconciled(net, path):
    net.close_sessions()
    ledger = Ledger(path)
    Reconciler(network_of(net), ledger).reconcile()
    receipts, authorizations = ledger.receipts().result(), ledger.authorizations().result()
    ledger.close()
    assert sum(receipt.settled_atomic for receipt in receipts) == sum(one.settled_atomic for one in authorizations)
    return receipts, sum(one.settled_atomic for one in authorizations)


def _ends(receipts) -> Counter[tuple[str, str]]:
    return Counter((receipt.status.value, receipt.outcome) for receipt in receipts)


def test_a_call_killed_in_a_session_has_a_receipt_and_the_gateway_that_charged_it_is_paid_again(
    net, account, path, task
):
    before = opg_balance(net, account.address)
    _killed(_IN_A_SESSION + "held = in_a_stream(client)\n", *task)

    receipts, settled = _reconciled(net, path)

    assert _ends(receipts) == {("settled", "ok"): 2, ("settled", "unknown"): 1}
    [killed] = [receipt for receipt in receipts if receipt.outcome == "unknown"]
    assert (killed.model, killed.settlement_mode) == (receipts[0].model, receipts[0].settlement_mode)
    assert killed.settled_atomic > 0
    assert settled == before - opg_balance(net, account.address)
    assert [left.name for left in path.parent.glob(".*-*-*")] == []
    with payments_for(net, account, path) as payments, client_for(payments) as client:
        assert client.chat(PROMPT).receipt.outcome == "ok"


def test_calls_of_many_threads_are_known_when_their_process_is_killed(net, path, task):
    program = """
    held = []
    threads = [threading.Thread(target=lambda: held.append(in_a_stream(client))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    """
    _killed(_IN_A_SESSION + textwrap.dedent(program), *task)

    receipts, _ = _reconciled(net, path)

    assert _ends(receipts) == {("settled", "ok"): 2, ("settled", "unknown"): 6}


def test_a_forked_child_that_is_killed_takes_nothing_of_its_parent_and_loses_no_call(net, path, task):
    program = """
    held = in_a_stream(client)
    child = os.fork()
    if child == 0:
        client.chat(ASK)
        own = in_a_stream(client)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    tell("in the parent")
    sys.stdin.readline()
    for delta in held:
        pass
    client.close()
    payments.close()
    """
    text = _BEGIN + _IN_A_SESSION + textwrap.dedent(program)
    parent = subprocess.Popen(
        [sys.executable, "-c", text, *task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout.readline() == "in the parent\n"
        ledger = Ledger(path)  # takes up what the child left, and nothing of its parent, which lives
        assert Counter(receipt.outcome for receipt in ledger.receipts().result()) == {"ok": 3, "unknown": 1}
        ledger.close()
        parent.communicate("go\n", timeout=120)
    finally:
        parent.kill()
        parent.wait()
    assert parent.returncode == 0

    receipts, _ = _reconciled(net, path)

    assert _ends(receipts) == {("settled", "ok"): 4, ("settled", "unknown"): 1}
    assert [left.name for left in path.parent.glob(".*-*-*")] == []


def test_an_overcharge_is_disputed_when_the_process_was_killed_after_its_calls(net, account, path, task):
    net.faults.inject(SettleAtCap(), times=None)
    _killed(_IN_A_SESSION, *task)

    receipts, _ = _reconciled(net, path)

    assert _ends(receipts) == {("disputed", "ok"): 2}
    net.faults.clear()
    with (
        payments_for(net, account, path) as payments,
        GatewayClient(payments) as client,
        pytest.raises(PolicyRefused, match="clear-dispute"),
    ):
        client.chat(PROMPT)


class TestNoPlaceForNotes:
    """SQLite's own URIs name no place beside the file: the database says who knows the calls of an authorization."""

    @pytest.fixture
    def url(self, path):
        return f"sqlite:///file:{path}?uri=true"

    def test_what_a_killed_process_may_have_cost_is_no_overcharge(self, net, account, path, url, caplog):
        _killed(_IN_A_SESSION + "held = in_a_stream(client)\n", f"{net.gateway_url}/network", account.private_key, url)

        receipts, _ = _reconciled(net, url)

        assert _ends(receipts) == {("settled", "ok"): 2}
        assert "or was killed and left nothing: calls may be missing here" in caplog.text
        with payments_for(net, account, url) as payments, client_for(payments) as client:
            assert client.chat(PROMPT).receipt.outcome == "ok"

    def test_an_overcharge_is_disputed_once_the_process_that_paid_says_that_its_calls_are_all_there(
        self, net, account, path, url
    ):
        net.faults.inject(SettleAtCap(), times=None)
        with payments_for(net, account, url) as payments, client_for(payments) as client:
            client.chat(PROMPT)
            seen_by_others, _ = _reconciled(net, url)
            assert _ends(seen_by_others) == {("settled", "ok"): 1}
        ledger = Ledger(url)
        [receipt] = ledger.receipts().result()
        ledger.close()
        assert (receipt.status, receipt.outcome) == ("disputed", "ok")

    def test_an_overcharge_is_disputed_by_the_process_that_paid(self, net, account, path, url):
        net.faults.inject(SettleAtCap(), times=None)
        with payments_for(net, account, url) as payments, client_for(payments) as client:
            client.chat(PROMPT)
            net.close_sessions()
            Reconciler(payments.network, payments.ledger).reconcile()
            [receipt] = payments.ledger.receipts().result()
        assert receipt.status == "disputed"


def test_a_note_of_a_call_never_replaces_its_receipt(tmp_path):
    program = """
    ledger = Ledger(sys.argv[1])
    ledger.authorize(entry(1)).result()
    for name in ("recorded", "under_way"):
        ledger.under_way.begin(CallUnderWay(name, "auth_1", 1_700_000_000, "private", "a model of mine"))
    ledger.record_call(served(entry(1), "recorded", cost_atomic=5)).result()
    ledger.under_way.begin(CallUnderWay("recorded", "auth_1", 1_700_000_000, "private", "m"))
    """
    path = tmp_path / "ledger.sqlite"
    _killed(program, str(path))

    ledger = Ledger(path)
    known = {receipt.call_id: receipt for receipt in ledger.receipts().result()}
    ledger.close()

    assert {name: known[name].outcome for name in ("recorded", "under_way")} == {
        "recorded": "ok",
        "under_way": "unknown",
    }
    late = known["under_way"]
    assert (late.model, late.settlement_mode, late.created_at) == ("a model of mine", "private", 1_700_000_000)
    assert late.authorized_atomic == known["recorded"].authorized_atomic


@pytest.mark.parametrize(("end", "is_disputed"), [("sync", False), ("async", False), ("cheap", True), ("unsent", True)])
def test_a_settlement_that_pays_for_a_call_under_way_is_judged_when_that_call_ends(tmp_path, end, is_disputed):
    path = tmp_path / "ledger.sqlite"
    ledger, other = Ledger(path), Ledger(path)
    paid = ledger.authorize(entry(1)).result()
    ledger.record_call(served(entry(1), "call_1", cost_atomic=500)).result()
    ledger.under_way.begin(CallUnderWay("call_2", "auth_1", 1_700_000_000, "private", "m"))
    tx_hash = "0x" + "1" * 64
    found = replace(paid, status="settled", settled_atomic=1000, tx_hash=tx_hash, block_number=1, confirmations=5)
    other.record_settlement(replace(found, confirmations_needed=1)).result()
    gateway = {"network": paid.network, "payer": paid.payer, "origin": "http://127.0.0.1"}
    assert other.objections(**gateway).result().dispute is None
    if end == "unsent":
        ledger.not_sent("call_2", "auth_1")
    else:
        late = served(entry(1), "call_2", cost_atomic=5 if end == "cheap" else 500)
        ledger.record_call(late, at_once=end != "async").result()
    ledger.flush()
    assert (other.objections(**gateway).result().dispute is not None) is is_disputed
    ledger.close()
    other.close()


def test_a_call_that_was_noted_twice_and_never_sent_leaves_no_note(tmp_path):
    program = """
    ledger = Ledger(sys.argv[1])
    ledger.authorize(entry(1)).result()
    for _ in range(2):
        ledger.under_way.begin(CallUnderWay("never_sent", "auth_1", 1_700_000_000, "private", "m"))
    ledger.under_way.end("never_sent")
    """
    path = tmp_path / "ledger.sqlite"
    _killed(program, str(path))

    ledger = Ledger(path)
    assert "never_sent" not in {receipt.call_id for receipt in ledger.receipts().result()}
    ledger.close()


def test_a_note_that_nobody_can_read_does_not_close_the_ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.authorize(entry(1)).result()
    ledger.close()
    whole = b"\1" + b"call_2 auth_1 1700000000 private m".ljust(255, b"\0")
    for number, text in enumerate([b"of another version", b"call auth when private m", b"\xff" * 255]):
        (tmp_path / f".ledger.sqlite.under-way-1-{number}").write_bytes(b"\1" + text.ljust(255, b"\0") + whole)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert [receipt.call_id for receipt in ledger.receipts().result()] == ["call_1", "call_2"]
    ledger.close()


def test_notes_have_room_for_any_number_of_calls_and_their_file_goes_with_them(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.authorize(entry(1)).result()
    [file] = tmp_path.glob(".*.under-way-*")
    names = [f"call_{number}" for number in range(600)]
    for name in names:
        ledger.under_way.begin(CallUnderWay(name, "auth_1", 1, "private", "m" * 1000))
    at_most = file.stat().st_size
    for name in names:
        ledger.under_way.end(name)
    for name in names:
        ledger.under_way.begin(CallUnderWay(name, "auth_1", 1, "private", "m"))
        ledger.under_way.end(name)
    assert file.stat().st_size == at_most < 600 * 512
    ledger.close()
    assert not file.exists()
