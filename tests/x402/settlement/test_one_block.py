"""What belongs together is read at one block: nodes behind one URL may be behind each other."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.contracts import MULTICALL3
from opengradient_x402.chain.readers import ChainReader
from opengradient_x402.errors import ChainUnavailable, PaymentOutcomeUnknown
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.settlement.search import EXPIRY_MARGIN_S, NotSettled, find_settlements
from support.ledger_rows import served
from support.node import behind, serving, without_multicall
from support.node_faults import failing_node
from support.settling import new_payer, settle


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def spent(ledger, payer) -> int:
    network = payer.network
    return ledger.spent(payer=payer.account.address, asset=network.asset.address, network=network.caip2).result()


def block_of(net, tx_hash) -> int:
    return int(net.chain.rpc("eth_getTransactionReceipt", [tx_hash])["blockNumber"], 16)


@pytest.mark.parametrize(("misbehave", "most"), [(lambda *_: None, 4), (without_multicall, 43)])
def test_forty_open_authorizations_take_few_requests(net, misbehave, most):
    payer, facilitator = new_payer(net), net.account(opg="0")
    terms = [payer.sign(facilitator=facilitator.address).authorization for _ in range(40)]
    with serving(net.chain) as node, ChainReader(node.url, payer.network.chain_id) as chain:
        node.misbehave = misbehave
        outcomes = chain.ask(find_settlements(terms, network=payer.network))
        assert len(node.requests) <= most
    assert set(outcomes.values()) == {NotSettled(is_expired=False)}


@pytest.mark.parametrize("has_multicall", [True, False])
def test_two_nodes_of_which_one_is_behind_expire_no_settled_payment(net, has_multicall):
    """Every request may be answered by the other one."""
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address)
    before = net.chain.rpc("eth_getBlockByNumber", ["latest", False])
    time.sleep(1.2)
    settled = settle(net, facilitator, signed, 5)
    mined = net.chain.rpc("eth_getBlockByNumber", [hex(block_of(net, settled)), False])
    lagging = behind(net.chain, int(before["number"], 16))
    # With the margin it is over when it settles. Only a reader that takes the time from one node and the nonce from the
    # other can then see an authorization that is over and unused.
    late = replace(signed.authorization.terms, deadline=int(mined["timestamp"], 16) - EXPIRY_MARGIN_S - 1)
    for first in (0, 1):
        entry = replace(signed.authorization, signed=(late,))

        def one_of_two(method, params, number, first=first):
            answer = lagging(method, params, number) if (number + first) % 2 else None
            return answer or (None if has_multicall else without_multicall(method, params, number))

        with serving(net.chain) as node, ChainReader(node.url, payer.network.chain_id) as chain:
            node.misbehave = one_of_two
            try:
                found = chain.ask(find_settlements([entry], network=payer.network))[entry]
            except ChainUnavailable:
                continue  # the two could not be made to agree: nothing is concluded
        assert found != NotSettled(is_expired=True)


def test_an_expired_authorization_that_was_settled_is_found_when_it_is_looked_at_once_more(net, ledger):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address)
    entry = signed.authorization
    ledger.authorize(entry).result()
    settled = settle(net, facilitator, signed, 5 * 10**9)
    ledger.record_call(served(entry, entry.call_id, claimed_payment_tx_hash=settled)).result()
    expired = replace(entry, status="expired", confirmations=0, confirmations_needed=0)
    ledger.record_settlement(replace(expired, recheck_at=int(time.time()) + 1000)).result()
    reconciler = Reconciler(payer.network, ledger)
    assert reconciler.reconcile().asked == 0
    assert spent(ledger, payer) == 0
    ledger.record_settlement(replace(expired, recheck_at=int(time.time()) - 1)).result()
    report = reconciler.reconcile()
    assert (report.rechecked, report.settled) == (1, 1)
    (receipt,) = report.changed
    assert (receipt.status, receipt.payment_tx_hash, receipt.dispute) == ("settled", settled, None)
    assert spent(ledger, payer) == 5 * 10**9
    assert reconciler.reconcile().asked == 0


def test_an_expired_authorization_is_looked_at_once_more_and_then_never(net, ledger):
    payer, facilitator = new_payer(net), net.account(opg="0")
    entry = payer.sign(facilitator=facilitator.address, ago_s=1000).authorization
    ledger.authorize(entry).result()
    reconciler = Reconciler(payer.network, ledger)
    assert reconciler.reconcile().expired == 1
    (expired,) = ledger.authorizations().result()
    assert expired.recheck_at >= time.time() + 86_000
    ledger.record_settlement(replace(expired, recheck_at=1)).result()
    report = reconciler.reconcile()
    assert (report.rechecked, report.expired, report.changed) == (1, 0, ())
    assert ledger.authorizations().result() == [replace(expired, recheck_at=None)]
    assert reconciler.reconcile().asked == 0


def test_a_node_that_is_ahead_of_the_world_frees_nothing_that_can_still_be_taken(tmp_path):
    """Only a chain for development may set its clock: of others, a block from tomorrow frees no budget."""
    with Devnet(chain_id=8453, unsafe_live_chain_id=True) as net, closing(Ledger(tmp_path / "l.sqlite")) as ledger:
        payer, facilitator = new_payer(net), net.account(opg="0")
        signed = payer.sign(facilitator=facilitator.address)
        ledger.authorize(signed.authorization).result()
        reconciler = Reconciler(payer.network, ledger)
        with serving(net.chain) as node:
            node.misbehave = a_day_ahead(net)
            ahead = Reconciler(replace(payer.network, rpc_url=node.url), ledger)
            report = ahead.reconcile()
        assert (report.expired, report.open) == (0, 1)
        assert spent(ledger, payer) == signed.authorization.amount_atomic
        settle(net, facilitator, signed, 5)
        reconciler.reconcile()
        (found,) = ledger.authorizations().result()
        assert (found.status, found.settled_atomic) == ("settled", 5)


def a_day_ahead(net):
    """Multicall3's answers, with the time of their block a day later."""

    def misbehave(method, params, number):
        if method != "eth_call" or params[0].get("to") != MULTICALL3:
            return None
        answer = net.chain.rpc(method, params)
        now_s = int(net.chain.rpc("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)
        near = (f"{at_s:064x}" for at_s in range(now_s - 5, now_s + 30))
        word = next((word for word in near if word in answer), None)
        return None if word is None else (200, {"result": answer.replace(word, f"{now_s + 86_400:064x}")})

    return misbehave


@pytest.mark.parametrize("late", ["expired", "open again", "seen by one block"])
def test_what_another_process_found_and_is_final_is_not_taken_back_by_a_node_on_a_dead_fork(net, ledger, late):
    """The other one read the ledger before, and its node shows another branch."""
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address)
    ledger.authorize(signed.authorization).result()
    (read_before,) = ledger.unfinished(network=payer.network.caip2).result()
    settle(net, facilitator, signed, 5)
    Reconciler(payer.network, ledger).reconcile()
    found = ledger.authorizations().result()
    assert (found[0].status, found[0].settled_atomic) == ("settled", 5)
    writes = {
        "expired": replace(read_before, status="expired", confirmations=0, confirmations_needed=0, recheck_at=1),
        "open again": read_before,
        "seen by one block": replace(found[0], block_hash="0x" + "1" * 64, confirmations=1, confirmations_needed=3),
    }
    assert ledger.record_settlement(writes[late]).result() is False
    assert ledger.authorizations().result() == found
    assert spent(ledger, payer) == 5


def test_a_node_without_old_events_holds_up_nothing_newer(tmp_path, caplog):
    with Devnet() as net, closing(Ledger(tmp_path / "l.sqlite")) as ledger:
        payer, facilitator = new_payer(net), net.account(opg="0")
        old = payer.sign(facilitator=facilitator.address)
        pruned = block_of(net, settle(net, facilitator, old, 5))
        for _ in range(150):
            net.chain.rpc("evm_mine", [])
        net.chain.advance(5_000)
        newer = [payer.sign(facilitator=facilitator.address, ago_s=-5_000) for _ in range(2)]
        over = payer.sign(facilitator=facilitator.address)
        for one in (*newer, old, over):
            ledger.authorize(one.authorization).result()
        settle(net, facilitator, newer[0], 7)

        def misbehave(method, params, number):
            is_old = method == "eth_getLogs" and int(params[0]["fromBlock"], 16) <= pruned
            return (200, {"error": {"code": -32000, "message": "pruned history unavailable"}}) if is_old else None

        with serving(net.chain) as node:
            node.misbehave = misbehave
            report = Reconciler(replace(payer.network, rpc_url=node.url), ledger).reconcile()
        assert (report.settled, report.expired, report.open, report.unexplained) == (1, 1, 1, 1)
        assert f"(the oldest is {old.authorization.id}) is not known" in caplog.text
        assert "pruned history" in caplog.text
        assert Reconciler(payer.network, ledger).reconcile().settled == 1
        assert spent(ledger, payer) == 5 + 7 + newer[1].authorization.amount_atomic


@pytest.mark.parametrize("fault", ["hangs", "drips headers", "drips a chunk's size", "429, later", "limit"])
async def test_waiting_for_a_settlement_ends_in_time_and_says_how(net, ledger, fault):
    payer, facilitator = new_payer(net), net.account(opg="0")
    entry = payer.sign(facilitator=facilitator.address).authorization
    ledger.authorize(entry).result()
    receipt = served(entry, entry.call_id)
    ledger.record_call(receipt).result()
    with failing_node(fault, net.chain.chain_id) as url:
        reconciler = Reconciler(replace(payer.network, rpc_url=url), ledger)
        receipt.followed_by(reconciler)
        began = time.monotonic()
        for waited in (receipt.wait_settled(0.5), await receipt.await_settled(0.5)):
            assert (waited.status, waited.is_timed_out, waited == receipt) == ("served", True, True)
        with pytest.raises(PaymentOutcomeUnknown, match=r"served and not final after 0\.1 s"):
            receipt.wait_settled(0.1, must_settle=True)
        for ask in (lambda: receipt.refresh(0.1), lambda: reconciler.reconcile(timeout_s=0.1)):
            with pytest.raises(ChainUnavailable):
                ask()
        with pytest.raises(ChainUnavailable):
            await receipt.arefresh(0.1)
        assert time.monotonic() - began < 1.4 + 2


def test_a_thousand_authorizations_are_read_at_a_time(net, ledger):
    payer, facilitator = new_payer(net), net.account(opg="0")
    one = payer.sign(facilitator=facilitator.address, ago_s=1000).authorization
    for number in range(1001):
        ledger.authorize(replace(one, id=f"auth_{number}", call_id=f"call_{number}", nonce=one.nonce + number))
    with serving(net.chain) as node:
        reports = list(Reconciler(replace(payer.network, rpc_url=node.url), ledger).reports())
        assert [report.asked for report in reports] == [1000, 1]
        assert [report.expired for report in reports] == [1000, 1]
        assert len(node.requests) <= 8
