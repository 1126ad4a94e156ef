"""An operator reads one line for each event, a program gets an object, and neither can harm a payment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from opengradient_devnet.faults import SettleAtCap
from opengradient_x402.errors import PolicyRefused
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.telemetry import events
from support.payers import PROMPT, async_client_for, client_for, network_of, payments_for, settled_receipts
from support.settling import new_payer


class Heard(list):
    """A listener that keeps what it hears, and can wait for it: events come in a thread of their own."""

    def __call__(self, event: events.Event) -> None:
        self.append(event)

    def until(self, kind: type[events.Event], *, count: int = 1) -> list[events.Event]:
        ends = time.monotonic() + 10
        while len(found := [event for event in self if type(event) is kind]) < count:
            assert time.monotonic() < ends, f"{count} {kind.__name__} were not heard of: {self}"
            time.sleep(0.01)
        return found


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def listening(net, account, tmp_path, heard):
    payments = Payments.open(
        network=network_of(net), private_key=account.private_key, ledger=tmp_path / "l.sqlite", on_event=heard
    )
    yield payments
    payments.close()


@pytest.fixture
def lines(caplog):
    """The lines of the events, by what happened."""
    caplog.set_level(logging.INFO, logger="opengradient_x402.events")

    def read() -> dict[str, logging.LogRecord]:
        return {record.event: record for record in caplog.records if record.name == "opengradient_x402.events"}

    return read


def test_a_paid_session_is_told_from_its_signature_to_its_settlement(net, listening, heard, lines):
    with client_for(listening) as client:
        receipts = [client.chat(PROMPT).receipt for _ in range(3)]
    settled_receipts(net, listening)
    (settled,) = heard.until(events.Settled)
    assert [type(event) for event in heard] == [
        events.Signed,
        events.SessionOpened,
        *[events.CallEnded] * 3,
        events.Settled,
    ]
    signed, opened = heard[:2]
    assert {event.payer for event in heard} == {listening.payer}
    assert (signed.call_id, signed.amount_atomic) == (receipts[0].call_id, receipts[0].authorized_atomic)
    assert opened.authorization_id == settled.authorization_id == receipts[0].authorization_id
    assert [event.receipt for event in heard[2:5]] == receipts
    assert settled.amount_atomic == sum(receipt.cost_atomic for receipt in receipts)
    assert 0 <= settled.lag_s < 60
    # One line for each, and none for a call that was served.
    assert list(lines()) == ["signed", "session_opened", "settled"]


def test_the_fields_of_an_event_are_fields_of_its_line(client, lines):
    receipt = client.chat(PROMPT).receipt
    line = lines()["signed"]
    assert (line.levelname, line.call_id, line.payer, line.model) == (
        "INFO",
        receipt.call_id,
        receipt.payer,
        receipt.model,
    )
    assert line.amount_atomic == str(receipt.authorized_atomic)  # a log's database has 64 bits at most
    assert receipt.call_id in line.getMessage()


async def test_a_refused_call_says_what_it_means_for_the_money(net, account, tmp_path, lines):
    with payments_for(net, account, tmp_path / "l.sqlite", policy=SpendPolicy(max_per_day="0.000001")) as payments:
        with client_for(payments) as client, pytest.raises(PolicyRefused) as of_sync:
            client.chat(PROMPT)
        said = lines()["refused"]
        async with async_client_for(payments) as client:
            with pytest.raises(PolicyRefused):
                await client.chat(PROMPT)
    assert (said.error, said.kind, said.money) == ("PolicyRefused", "policy", "not_paid")
    assert (said.call_id, said.error_message) == (of_sync.value.call_id, of_sync.value.message)
    assert lines()["refused"].call_id != said.call_id
    assert list(lines()) == ["refused"]


def test_a_session_that_the_gateway_ended_is_retired_and_another_one_opened(net, listening, heard):
    with client_for(listening) as client:
        client.chat(PROMPT)
        net.close_sessions()
        client.chat(PROMPT)
    first, second = heard.until(events.SessionOpened, count=2)
    (retired,) = heard.until(events.SessionRetired)
    assert (retired.authorization_id, retired.reason) == (first.authorization_id, "gateway")
    assert first.authorization_id != second.authorization_id
    assert 0 < retired.spent_atomic < first.amount_atomic


@pytest.fixture
def told():
    """Hears of every payer of the process."""
    told = Heard()
    stop = events.listen(told)
    yield told
    stop()


def test_what_expired_and_what_is_disputed_is_reported_once(net, listening, heard, told, lines):
    late = new_payer(net)
    unused = late.sign(facilitator=net.account(opg="0").address, ago_s=7200).authorization
    listening.ledger.authorize(unused).result()
    with client_for(listening) as client:
        client.chat(PROMPT)
        net.faults.inject(SettleAtCap(), times=None)  # sessions of other tests may be open
        settled_receipts(net, listening)
        Reconciler(listening.network, listening.ledger).reconcile()
    (expired,) = told.until(events.Expired)
    (disputed,) = told.until(events.Disputed)
    assert (expired.authorization_id, expired.payer, expired.is_cancelled) == (unused.id, late.account.address, False)
    assert "too much" in disputed.dispute
    assert {"expired", "disputed"} <= set(lines())
    # Who listens for one payer hears of no other one.
    heard.until(events.Disputed)
    assert {event.payer for event in heard} == {listening.payer}


def test_of_two_processes_that_find_a_settlement_one_reports_it(net, account, tmp_path, heard):
    stop = events.listen(heard, payer=account.address)
    with (
        payments_for(net, account, tmp_path / "l.sqlite") as payments,
        payments_for(net, account, tmp_path / "other" / ".." / "l.sqlite") as others,
        client_for(payments) as client,
    ):
        client.chat(PROMPT)
        net.close_sessions()
        working = [threading.Thread(target=each.reconciler.reconcile) for each in (payments, others)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
    heard.until(events.Settled)
    stop()
    time.sleep(0.1)
    assert Counter(type(event) for event in heard)[events.Settled] == 1


def test_a_listener_that_fails_or_hangs_harms_no_payment(net, account, tmp_path, caplog):
    may_go_on = threading.Event()

    def hang(event):
        may_go_on.wait(20)
        raise ValueError("a fault of the listener")

    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        stop = events.listen(hang, payer=payments.payer)
        began = time.monotonic()
        receipts = [client.chat(PROMPT).receipt for _ in range(5)]
        assert time.monotonic() - began < 10
        assert payments.ledger.receipts().result() == receipts
        may_go_on.set()
        stop()
    ends = time.monotonic() + 10
    while "a fault of the listener" not in caplog.text and time.monotonic() < ends:
        time.sleep(0.01)
    assert "A listener failed for the event 'signed'" in caplog.text


def test_nobody_listens_and_there_is_no_event_of_a_served_call(payments, client, monkeypatch):
    reported = []
    monkeypatch.setattr(events, "report", reported.append)
    client.chat(PROMPT)
    assert [type(event) for event in reported] == [events.Signed, events.SessionOpened]
    assert not events.is_heard(payments.payer)


def test_after_close_no_event_is_given_out_any_more(net, account, tmp_path, heard):
    payments = Payments.open(
        network=network_of(net), private_key=account.private_key, ledger=tmp_path / "l.sqlite", on_event=heard
    )
    assert events.is_heard(payments.payer)
    payments.close()
    assert not events.is_heard(payments.payer)


def test_a_forked_worker_reports_to_the_listener_it_inherited(net, listening, heard, tmp_path):
    with client_for(listening) as client:
        client.chat(PROMPT)
        heard.until(events.CallEnded)
        seen = tmp_path / "seen"
        if (child := os.fork()) == 0:
            try:
                heard.clear()
                client.chat(PROMPT)
                heard.until(events.CallEnded)
                seen.write_text(" ".join(event.name for event in heard))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert seen.read_text() == "signed session_opened ended"


LEAVES = """
import sys
from opengradient_x402 import GatewayClient, Payments, listen
network, key, ledger = sys.stdin.read().split()
listen(lambda event: print(event.name, flush=True))
client = GatewayClient(Payments.open(network=network, private_key=key, ledger=ledger))
stream = client.stream({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Count to 50."}]})
next(stream)
"""


def test_a_process_that_leaves_in_the_middle_of_a_stream_has_told_of_its_end(net, account, tmp_path):
    """Streams end before the events' thread does, whatever the order of imports."""
    task = f"{net.gateway_url}/network {account.private_key} {tmp_path / 'l.sqlite'}"
    done = subprocess.run([sys.executable, "-c", LEAVES], input=task, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["signed", "session_opened", "ended"], done.stderr
