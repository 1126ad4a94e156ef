from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, LedgerUnavailable
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.settlement.background import BackgroundReconciler
from opengradient_x402.settlement.reconciler import Reconciler
from support.node import serving, without_multicall
from support.payers import PROMPT, async_client_for, client_for, network_of, payments_for
from support.settling import new_payer, settle


@contextmanager
def served_call(net, account, tmp_path):
    """One paid call, not settled yet, and the payments it was made with."""
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments, client_for(payments) as client:
        completion = client.chat(PROMPT)
        assert completion.receipt is not None
        yield payments, completion.receipt


def mine(net: Devnet, blocks: int) -> None:
    account = net.account(opg="0")
    for _ in range(blocks):
        net.chain.send(account, to=account.address, data=b"")


def spent(payments) -> int:
    network = payments.network
    return payments.ledger.spent(payer=payments.payer, asset=network.asset.address, network=network.caip2).result()


def test_a_settlement_is_seen_first_and_final_after_enough_confirmations(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (payments, receipt):
        reconciler = Reconciler(payments.network, payments.ledger, confirmations=3)
        net.close_sessions()
        report = reconciler.reconcile()
        (seen,) = payments.ledger.receipts(call_ids=[receipt.call_id]).result()
        assert (report.settled, [changed.status for changed in report.changed]) == (1, [ReceiptStatus.SETTLED])
        assert (seen.status, seen.is_final, seen.confirmations_needed) == (ReceiptStatus.SETTLED, False, 3)
        # Until it is final, all that was signed for stays reserved.
        assert spent(payments) == receipt.authorized_atomic
        mine(net, 2)
        report = reconciler.reconcile()
        (final,) = report.changed
        assert (final.status, final.is_final) == (ReceiptStatus.SETTLED, True)
        assert final.confirmations >= 3
        assert spent(payments) == pytest.approx(final.settled_atomic, abs=10**9)
        assert reconciler.reconcile().asked == 0


def test_on_the_devnet_one_block_is_final_and_on_live_chains_three(net):
    assert network_of(net).confirmations == 1
    from opengradient_x402.networks import PRESETS

    assert {network.confirmations for network in PRESETS.values()} == {3}


def test_a_settlement_whose_block_vanished_is_open_again_and_found_again(net, account, tmp_path):
    """On a chain without Multicall3, where blocks are asked for one by one."""
    with served_call(net, account, tmp_path) as (payments, receipt), serving(net.chain) as node:
        reconciler = Reconciler(replace(payments.network, rpc_url=node.url), payments.ledger, confirmations=50)
        node.misbehave = without_multicall
        net.close_sessions()
        reconciler.reconcile()
        (seen,) = payments.ledger.receipts(call_ids=[receipt.call_id]).result()
        assert seen.status is ReceiptStatus.SETTLED

        def reorganised(method, params, number):
            if method == "eth_getBlockByNumber" and params[0] == hex(seen.block_number):
                other = net.chain.rpc(method, params) | {"hash": "0x" + "ab" * 32}
                return 200, {"result": other}
            if method == "eth_call" and params[0].get("data", "").startswith("0x4fe02b44"):
                return 200, {"result": "0x" + "0" * 64}  # the nonce is unused on the other branch
            return without_multicall(method, params, number)

        mine(net, 1)
        node.misbehave = reorganised
        report = reconciler.reconcile()
        (gone,) = report.changed
        assert (report.reopened, report.open) == (1, 1)
        assert gone.status is ReceiptStatus.SERVED
        assert (gone.payment_tx_hash, gone.settled_atomic, gone.block_hash) == (None, None, None)
        assert spent(payments) == receipt.authorized_atomic

        node.misbehave = without_multicall
        reconciler.reconcile()
        (again,) = payments.ledger.receipts(call_ids=[receipt.call_id]).result()
        assert (again.status, again.payment_tx_hash) == (ReceiptStatus.SETTLED, seen.payment_tx_hash)


def test_a_node_that_lags_behind_is_no_reorganisation(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (payments, receipt), serving(net.chain) as node:
        reconciler = Reconciler(replace(payments.network, rpc_url=node.url), payments.ledger, confirmations=50)
        net.close_sessions()
        reconciler.reconcile()
        (seen,) = payments.ledger.receipts(call_ids=[receipt.call_id]).result()

        def lagging(method, params, number):
            if method == "eth_getBlockByNumber" and params[0] == "latest":
                return 200, {"result": net.chain.rpc(method, [hex(seen.block_number - 1), False])}
            return without_multicall(method, params, number)

        node.misbehave = lagging
        report = reconciler.reconcile()
        assert (report.reopened, report.changed) == (0, ())
        assert payments.ledger.receipts(call_ids=[receipt.call_id]).result() == [seen]


def test_a_receipt_brings_itself_forward(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (_, receipt):
        assert receipt.refresh().status is ReceiptStatus.SERVED
        assert receipt.wait_settled(timeout_s=0.2).status is ReceiptStatus.SERVED  # the session is open still
        closing = threading.Timer(0.2, net.close_sessions)
        closing.start()
        settled = receipt.wait_settled(timeout_s=60)
        closing.join()
        assert (settled.status, settled.is_final) == (ReceiptStatus.SETTLED, True)
        assert settled.payment_tx_hash in {record.transaction for record in net.settlements}
        assert settled.refresh() == settled


async def test_a_receipt_brings_itself_forward_in_coroutines(net, account, tmp_path):
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:
        client = async_client_for(payments)
        receipt = (await client.chat(PROMPT)).receipt
        await client.aclose()
        assert (await receipt.arefresh()).status is ReceiptStatus.SERVED
        net.close_sessions()
        assert (await receipt.await_settled(timeout_s=60)).status is ReceiptStatus.SETTLED


def test_what_brings_a_receipt_forward_is_no_part_of_its_data(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (_, receipt):
        plain = SettlementReceipt.from_json(receipt.to_json())
        assert plain == receipt
        assert hash(plain) == hash(receipt)
        assert repr(plain) == repr(receipt)
        assert pickle.loads(pickle.dumps(receipt)) == receipt
        assert copy.deepcopy(receipt) == receipt
        assert "follower" not in json.dumps(receipt.to_json()) + repr(receipt)
    with pytest.raises(ConfigurationError, match=r"Set OG_NETWORK.*Reconciler"):
        plain.refresh()


def test_a_receipt_that_was_read_back_finds_the_wallet_that_paid_while_it_lives(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (_, receipt):
        net.close_sessions()
        assert SettlementReceipt.from_json(receipt.to_json()).refresh().status is ReceiptStatus.SETTLED


def test_a_receipt_that_was_read_back_looks_itself_up_by_the_users_settings(net, account, tmp_path, monkeypatch):
    with served_call(net, account, tmp_path) as (payments, receipt):
        monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
        monkeypatch.setenv("OG_LEDGER_URL", payments.ledger.url)
        net.close_sessions()
        plain = SettlementReceipt.from_json(receipt.to_json())
        assert plain.refresh().status is ReceiptStatus.SETTLED


def test_a_node_that_is_away_is_an_error_for_who_asks_and_loses_nothing(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (payments, receipt), serving(net.chain) as node:
        node.misbehave = lambda method, params, number: (400, b"gone")
        away = Reconciler(replace(payments.network, rpc_url=node.url), payments.ledger)
        with pytest.raises(ChainUnavailable):
            away.refresh(receipt)
        net.close_sessions()
        assert receipt.refresh().status is ReceiptStatus.SETTLED


def test_the_background_reconciler_tells_of_changes_and_survives_outages(net, account, tmp_path, caplog):
    told: list[SettlementReceipt] = []
    heard = threading.Event()

    def listen(receipt):
        told.append(receipt)
        heard.set()
        raise RuntimeError("a listener's own fault")

    with served_call(net, account, tmp_path) as (payments, receipt), serving(net.chain) as node:
        net.close_sessions()
        node.misbehave = lambda method, params, number: (400, b"down") if number < 3 else None
        reconciler = Reconciler(replace(payments.network, rpc_url=node.url), payments.ledger)
        with BackgroundReconciler(reconciler, interval_s=0.02, on_change=listen):
            assert heard.wait(60)
        assert [(item.call_id, item.status) for item in told] == [(receipt.call_id, ReceiptStatus.SETTLED)]
        assert not [thread for thread in threading.enumerate() if thread.name == "opengradient-reconciler"]
    assert "could not be looked up" in caplog.text
    assert "a listener's own fault" in caplog.text


def reconciling_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "opengradient-reconciler"]


def test_a_listener_may_stop_the_background_reconciler(net, account, tmp_path, caplog):
    heard = threading.Event()

    def listen(_):
        background.stop()
        heard.set()

    with served_call(net, account, tmp_path) as (payments, _):
        net.close_sessions()
        background = BackgroundReconciler(payments.reconciler, interval_s=0.02, on_change=listen)
        background.start()
        (thread,) = reconciling_threads()
        assert heard.wait(60)
        thread.join(60)
        assert reconciling_threads() == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_threads_that_start_it_at_once_start_it_once_and_it_can_start_again(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (payments, _):
        background = BackgroundReconciler(payments.reconciler, interval_s=5)
        barrier = threading.Barrier(8)

        def start():
            barrier.wait()
            background.start()

        starters = [threading.Thread(target=start) for _ in range(8)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        assert len(reconciling_threads()) == 1
        background.stop()
        assert reconciling_threads() == []
        with background:
            assert len(reconciling_threads()) == 1


def test_the_background_reconciler_outlives_a_failure_that_nobody_thought_of(net, tmp_path, caplog):
    class Broken(Reconciler):
        runs = 0

        def reports(self, *, payer=None):
            self.runs += 1
            raise ZeroDivisionError("a mistake of ours")

    ledger = Ledger(tmp_path / "l.sqlite")
    reconciler = Broken(network_of(net), ledger)
    with BackgroundReconciler(reconciler, interval_s=0.001):
        deadline = time.monotonic() + 60
        while reconciler.runs < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert reconciler.runs >= 3
    assert "a mistake of ours" in caplog.text
    ledger.close()


def test_a_forked_worker_starts_a_background_reconciler_of_its_own(net, account, tmp_path):
    script = (
        "import os, sys, threading\n"
        "from opengradient_x402 import BackgroundReconciler, Ledger, Reconciler, load_network\n"
        "network, path = load_network(sys.argv[1]), sys.argv[2]\n"
        "background = BackgroundReconciler(Reconciler(network, Ledger(path)), interval_s=60)\n"
        "background.start()\n"
        "if os.fork() == 0:\n"
        "    background.start()\n"
        "    alive = [t.name for t in threading.enumerate() if t.is_alive()]\n"
        "    background.stop()\n"
        "    os._exit(0 if alive.count('opengradient-reconciler') == 1 else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"  # with the thread left running
    )
    command = [sys.executable, "-c", script, f"{net.gateway_url}/network", str(tmp_path / "l.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_receipt_of_payments_that_were_closed_says_so(net, account, tmp_path):
    with served_call(net, account, tmp_path) as (_, receipt):
        pass
    with pytest.raises(LedgerUnavailable, match="was closed"):
        receipt.refresh()


def test_hundreds_of_authorizations_are_reconciled_through_rate_limits_and_small_windows(net, tmp_path):
    payer = new_payer(net, opg="100")
    facilitator = net.account(opg="0")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    before = net.chain.token_balance(payer.account.address)
    for number in range(300):
        authorization = payer.sign(facilitator=facilitator.address, ago_s=0 if number % 3 else 2000, timeout_s=300)
        if number % 3 == 1:
            settle(net, facilitator, authorization, 10**12 + number)
        ledger.authorize(authorization.authorization)

    def strict(method, params, number):
        if number % 20 == 0:
            return 429, {}
        if method == "eth_getLogs" and int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) >= 200:
            return 200, {"error": {"code": -32602, "message": "query exceeds max block range"}}
        return None

    with serving(net.chain) as node:
        node.misbehave = strict
        report = Reconciler(replace(payer.network, rpc_url=node.url), ledger).reconcile()
    assert (report.asked, report.settled, report.expired, report.open) == (300, 100, 100, 100)
    entries = ledger.authorizations().result()
    settled = sum(entry.settled_atomic or 0 for entry in entries)
    assert settled == before - net.chain.token_balance(payer.account.address)
    ledger.close()
