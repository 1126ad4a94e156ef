"""A ledger that does not answer, or a budget that is spent, holds no call longer than its time limit."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest

from opengradient_devnet.faults import NeverSettle, SettleAtCap
from opengradient_x402.chain.views import MULTICALL3
from opengradient_x402.errors import BudgetExceeded, LedgerUnavailable
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement import readings
from opengradient_x402.settlement.readings import read_together
from support.node import serving
from support.payers import PROMPT, async_client_for, client_for, network_of, opg_balance


def _held(path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return closing(other)


def test_a_locked_ledger_holds_no_call_longer_than_its_time_limit_and_nothing_is_signed(
    net, account, payments, tmp_path
):
    before = opg_balance(net, account.address)
    payments.ledger.flush()
    payments.ledger.noted("open it").result()
    with client_for(payments, timeout_s=2) as client:
        with _held(tmp_path / "payments.sqlite"):
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable, match=r"did not answer within the 2 s.*Nothing was signed"):
                client.chat(PROMPT)
            assert time.monotonic() - began < 8
        assert payments.ledger.authorizations(status="signed").result() == []
        client.chat(PROMPT)
    assert len(payments.ledger.authorizations(status="signed").result()) == 1
    assert opg_balance(net, account.address) <= before


async def test_a_locked_ledger_holds_no_coroutine_longer_than_its_time_limit(payments, tmp_path):
    payments.ledger.noted("open it").result()
    client = async_client_for(payments, timeout_s=2)
    with _held(tmp_path / "payments.sqlite"):
        began = time.monotonic()
        results = await asyncio.gather(*(client.chat(PROMPT) for _ in range(5)), return_exceptions=True)
        assert time.monotonic() - began < 10
    assert any(isinstance(result, LedgerUnavailable) for result in results)
    assert all(isinstance(result, Exception) and "Nothing was signed" in str(result) for result in results)
    await client.aclose()


def test_a_call_in_a_session_does_not_wait_for_a_locked_ledger_at_all(payments, tmp_path):
    with client_for(payments, timeout_s=20) as client:
        client.chat(PROMPT)
        with _held(tmp_path / "payments.sqlite"):
            receipt = client.chat(PROMPT).receipt
        assert receipt is not None
        payments.ledger.flush()
        (kept,) = payments.ledger.receipts(call_ids=[receipt.call_id]).result()
        assert kept.outcome == "ok"


def test_calls_that_the_budget_refuses_ask_the_chain_once_a_minute(net, account, tmp_path):
    with serving(net.chain) as node:
        network = replace(network_of(net), rpc_url=node.url)
        policy = SpendPolicy(max_per_day="0.15")
        payments = Payments.open(
            network=network, private_key=account.private_key, policy=policy, ledger=tmp_path / "spent.sqlite"
        )
        with client_for(payments) as client:
            client.chat(PROMPT)
            net.faults.inject(NeverSettle(), times=None)
            net.close_sessions(wait_s=0)
            with pytest.raises(BudgetExceeded):
                client.chat(PROMPT)
            asked = len(node.requests)
            assert asked

            def refused(_):
                with pytest.raises(BudgetExceeded):
                    client.chat(PROMPT)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(refused, range(24)))
            assert len(node.requests) == asked
        payments.close()


def test_processes_that_a_budget_refuses_at_once_read_the_chain_together(net, account, tmp_path):
    """Each has a connection of its own to the one database, as processes have."""
    policy, path = SpendPolicy(max_per_day="0.15"), tmp_path / "spent.sqlite"
    with serving(net.chain) as node, ExitStack() as stack:
        network, signer = replace(network_of(net), rpc_url=node.url), LocalSigner(account.private_key)
        clients = []
        for _ in range(6):
            ledger = stack.enter_context(closing(Ledger(path)))
            payments = Payments(network=network, signer=signer, policy=policy, ledger=ledger)
            clients.append(stack.enter_context(client_for(payments)))
        clients[0].chat(PROMPT)
        net.faults.inject(NeverSettle(), times=None)
        net.close_sessions(wait_s=0)

        def refused(client):
            with pytest.raises(BudgetExceeded):
                client.chat(PROMPT)

        def looked_at_nonces():
            return sum(method == "eth_call" and asked[0]["to"] == MULTICALL3 for method, asked in node.requests)

        before = looked_at_nonces()
        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(refused, clients))
        assert looked_at_nonces() == before + 1


@contextmanager
def _reading_by(one, two):
    """The first ledger reads the chain until the block ends; the second one's wish to read, and what was read."""
    done, may_go_on = [], threading.Event()

    def slow():
        may_go_on.wait(30)
        done.append("slow")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read_together, one, "wallet", slow)
        while not str(two.noted("chain wallet").result()).startswith("reading"):
            time.sleep(0.01)
        second = pool.submit(read_together, two, "wallet", lambda: done.append("again"))
        try:
            yield second, done
        finally:
            may_go_on.set()
        first.result(10)
        second.result(10)


def test_what_waits_for_another_reading_of_the_chain_shares_it_and_outlives_a_killed_one(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as one, closing(Ledger(path)) as two:
        with _reading_by(one, two) as (second, done):
            time.sleep(0.5)
            assert not second.done()
        assert done == ["slow"]
        read_together(two, "another wallet", lambda: done.append("another"))
        two.note("chain wallet", f"reading {time.time() - 16:.3f}").result()
        read_together(two, "wallet", lambda: done.append("taken over"))
        two.note("chain wallet", f"read {time.time() + 3600:.3f}").result()
        read_together(one, "wallet", lambda: done.append("by a clock that is right"))
    assert done == ["slow", "another", "taken over", "by a clock that is right"]


def test_a_reading_that_takes_long_and_goes_on_is_not_done_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "_SIGN_OF_LIFE_S", 0.1)
    monkeypatch.setitem(readings._VALID_S, readings._State.READING, 1.0)
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as one, closing(Ledger(path)) as two, _reading_by(one, two) as (_, done):
        time.sleep(2.5)
        assert done == []
    assert done == ["slow"]


def test_a_process_whose_node_fails_keeps_the_others_from_reading_for_a_moment_only(net, account, tmp_path):
    policy, path = SpendPolicy(max_per_day="0.15"), tmp_path / "spent.sqlite"
    with serving(net.chain) as broken, serving(net.chain) as sound, ExitStack() as stack:
        clients = []
        for node in (broken, sound):
            payments = Payments(
                network=replace(network_of(net), rpc_url=node.url),
                signer=LocalSigner(account.private_key),
                policy=policy,
                ledger=stack.enter_context(closing(Ledger(path))),
            )
            clients.append(stack.enter_context(client_for(payments)))
        clients[0].chat(PROMPT)
        net.faults.inject(NeverSettle(), times=None)
        net.close_sessions(wait_s=0)
        broken.misbehave = lambda *_: (429, {})
        with pytest.raises(BudgetExceeded):
            clients[0].chat(PROMPT)
        time.sleep(2.1)
        before = len(sound.requests)
        with pytest.raises(BudgetExceeded):
            clients[1].chat(PROMPT)
        assert any(asked[0]["to"] == MULTICALL3 for method, asked in sound.requests[before:] if method == "eth_call")


def test_an_old_copy_that_is_written_over_the_ledger_in_use_gives_no_new_budget(net, account, tmp_path):
    """Each call is charged its whole worst case: what the chain takes shows whether the budget held."""
    path = tmp_path / "budget.sqlite"
    policy, before = SpendPolicy(max_per_day="0.25"), opg_balance(net, account.address)
    opened = Payments.open(network=network_of(net), private_key=account.private_key, policy=policy, ledger=path)
    net.faults.inject(SettleAtCap(), times=None)
    with closing(opened) as payments:
        payments.ledger.noted("open it").result()
        with closing(sqlite3.connect(path)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy = path.read_bytes()
        with client_for(payments) as client:
            for _ in range(2):
                client.chat(PROMPT)
                net.close_sessions()
            with closing(sqlite3.connect(path)) as conn:
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            path.write_bytes(copy)
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match="2 were recorded in it before") as refused:
                    client.chat(PROMPT)
                assert refused.value.money == "not_paid"
                net.close_sessions()
    taken = before - opg_balance(net, account.address)
    assert 0 < taken <= 25 * 10**16
