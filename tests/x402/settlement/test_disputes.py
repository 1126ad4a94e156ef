from __future__ import annotations

from dataclasses import replace

import pytest

from opengradient_devnet.faults import SettleAtCap, WrongTransaction
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.money import format_amount
from opengradient_x402.settlement.reconciler import Reconciler
from support.node import behind, serving
from support.payers import PROMPT, client_for, payments_for, settled_receipts
from support.settling import new_payer, settle


@pytest.fixture(scope="module")
def single_call_net(devnets):
    """A gateway without sessions: it settles each call, and names the transaction."""
    return devnets(sessions=False)


def test_honest_settlements_are_not_disputed(net, tmp_path):
    account = net.account(approved=True)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        for _ in range(3):
            client.chat(PROMPT)
        receipts = settled_receipts(net, payments)
    assert [receipt.status for receipt in receipts] == [ReceiptStatus.SETTLED] * 3
    assert [receipt.settled_atomic for receipt in receipts] == [receipt.cost_atomic for receipt in receipts]
    assert {receipt.opg_usd for receipt in receipts} == {"0.2"}


def test_a_settlement_above_the_quotes_is_disputed_with_the_numbers(net, tmp_path):
    account = net.account(approved=True)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        calls = [client.chat(PROMPT).receipt for _ in range(2)]
        net.faults.inject(SettleAtCap())
        receipts = settled_receipts(net, payments)
    cost = sum(call.cost_atomic for call in calls)
    assert {receipt.status for receipt in receipts} == {ReceiptStatus.DISPUTED}
    assert sum(receipt.settled_atomic for receipt in receipts) == calls[0].authorized_atomic
    for receipt in receipts:
        assert receipt.is_final
        assert format_amount(calls[0].authorized_atomic, decimals=18) in receipt.dispute
        assert format_amount(cost, decimals=18) in receipt.dispute
        assert format_amount(calls[0].authorized_atomic - cost, decimals=18) in receipt.dispute
        assert calls[1].call_id in receipt.dispute


def test_a_call_that_is_recorded_late_clears_a_settlement_that_looked_too_high(tmp_path):
    from support.ledger_rows import entry, served

    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1)).result()
    ledger.record_call(served(entry(1), "call_1", cost_atomic=10)).result()
    ledger.record_settlement(replace(entry(1), status="settled", settled_atomic=30, tx_hash="0x1")).result()
    assert ledger.receipts().result()[0].status is ReceiptStatus.DISPUTED
    ledger.record_call(served(entry(1), "call_2", cost_atomic=20)).result()
    assert {(item.status, item.dispute) for item in ledger.receipts().result()} == {(ReceiptStatus.SETTLED, None)}
    ledger.close()


def test_a_call_without_a_quote_leaves_the_price_unjudged(tmp_path):
    from support.ledger_rows import entry, served

    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1)).result()
    ledger.record_call(served(entry(1), "call_1", cost_atomic=10)).result()
    ledger.record_call(served(entry(1), "call_2", outcome="abandoned")).result()
    ledger.record_settlement(replace(entry(1), status="settled", settled_atomic=3000, tx_hash="0x1")).result()
    assert {item.status for item in ledger.receipts().result()} == {ReceiptStatus.SETTLED}
    ledger.close()


@pytest.mark.parametrize("price", ["1e-999999999", "1e999999999", "-1", "0", "NaN", "sNaN", "Infinity", "a lot", "٣"])
def test_a_token_price_that_cannot_be_reckoned_with_is_no_quote_and_holds_nothing_up(tmp_path, price):
    from support.ledger_rows import entry, served

    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1)).result()
    usage = {"prompt_tokens": 10, "completion_tokens": 10, "opg_usd": price}
    ledger.record_call(served(entry(1), "call_1", **usage)).result()
    ledger.record_settlement(replace(entry(1), status="settled", settled_atomic=30, tx_hash="0x1")).result(timeout=60)
    (receipt,) = ledger.receipts().result()
    assert (receipt.status, receipt.settled_atomic) == (ReceiptStatus.SETTLED, 30)
    ledger.close()


def test_more_than_was_signed_for_is_always_disputed(tmp_path):
    from support.ledger_rows import entry, served

    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1, amount_atomic=100)).result()
    ledger.record_call(served(entry(1), "call_1")).result()
    ledger.record_settlement(replace(entry(1), status="settled", settled_atomic=101, tx_hash="0x1")).result()
    (receipt,) = ledger.receipts().result()
    assert "at most 0.0000000000000001 OPG was authorized" in receipt.dispute
    ledger.close()


@pytest.mark.parametrize("scheme_is_real", [True, False], ids=["another payer's transaction", "no transaction"])
def test_a_forged_payment_transaction_is_disputed(single_call_net, tmp_path, scheme_is_real):
    net = single_call_net
    account, other = net.account(approved=True), net.account(approved=True)
    named = "0x" + "de" * 32
    if scheme_is_real:
        with payments_for(net, other, tmp_path / "other.sqlite") as payments, client_for(payments) as client:
            client.chat(PROMPT)
        named = net.settlements[-1].transaction
    net.faults.inject(WrongTransaction(transaction=named))
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        claimed = client.chat(PROMPT).receipt
        assert claimed.claimed_payment_tx_hash == named
        checked = claimed.refresh()
    assert checked.status is ReceiptStatus.DISPUTED
    assert named in checked.dispute
    assert checked.payment_tx_hash in checked.dispute
    assert checked.payment_tx_hash == net.settlements[-1].transaction != named
    assert checked.settled_atomic == net.settlements[-1].amount_atomic


def test_a_claim_about_an_unsettled_payment_is_disputed_when_its_transaction_is_something_else(net, tmp_path):
    from support.ledger_rows import served

    payer, facilitator = new_payer(net), net.account(opg="0")
    other = settle(net, facilitator, new_payer(net).sign(facilitator=facilitator.address), 5)
    ledger = Ledger(tmp_path / "l.sqlite")
    entry = payer.sign(facilitator=facilitator.address).authorization
    ledger.authorize(entry).result()
    ledger.record_call(served(entry, entry.call_id, claimed_payment_tx_hash=other)).result()
    report = Reconciler(payer.network, ledger).reconcile()
    (receipt,) = report.disputed
    assert other in receipt.dispute
    assert not receipt.is_final  # it can still be settled: the amount stays reserved
    spent = ledger.spent(payer=entry.payer, asset=entry.asset, network=entry.network).result()
    assert spent == entry.amount_atomic
    ledger.close()


def test_a_node_that_lags_behind_a_settlement_makes_no_liar_of_the_gateway(net, tmp_path):
    """Behind one URL there may be many nodes: this one does not know yet that the nonce is used."""
    from support.ledger_rows import served

    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address)
    settled = settle(net, facilitator, signed, 5)
    ledger = Ledger(tmp_path / "l.sqlite")
    entry = signed.authorization
    ledger.authorize(entry).result()
    ledger.record_call(served(entry, entry.call_id, claimed_payment_tx_hash=settled)).result()
    with serving(net.chain) as node:
        mined = net.chain.rpc("eth_getTransactionReceipt", [settled])
        node.misbehave = behind(net.chain, int(mined["blockNumber"], 16) - 1)
        network = replace(payer.network, rpc_url=node.url)
        assert Reconciler(network, ledger).reconcile().changed == ()
    (receipt,) = Reconciler(payer.network, ledger).reconcile().changed
    assert (receipt.status, receipt.dispute) == (ReceiptStatus.SETTLED, None)
    ledger.close()


def test_a_nonce_that_paid_somebody_else_is_disputed_with_payee_and_amount(net, tmp_path):
    payer, facilitator = new_payer(net), net.account(opg="0")
    stranger = net.account(opg="0").address
    diverted = payer.sign(facilitator=facilitator.address, payee=stranger)
    tx_hash = settle(net, facilitator, diverted, 7)
    mine = payer.sign(facilitator=facilitator.address, nonce=diverted.authorization.nonce)
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(mine.authorization).result()
    (receipt,) = Reconciler(payer.network, ledger).reconcile().disputed
    assert stranger in receipt.dispute
    assert tx_hash in receipt.dispute
    assert (receipt.settled_atomic, receipt.payment_tx_hash, receipt.is_final) == (7, tx_hash, True)
    ledger.close()
