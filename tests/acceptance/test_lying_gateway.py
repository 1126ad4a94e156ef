"""Every lie of a gateway is caught, with the right status and a message that says what was wrong."""

from __future__ import annotations

import pytest

from opengradient_devnet.faults import ForgeProof, SettleAtCap, SettleForSomebodyElse, WrongTransaction
from opengradient_x402.errors import ProofRejected
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import PROMPT, client_for, opg_balance, payments_for

pytestmark = pytest.mark.devnet(sessions=False)


def reconciled(payments):
    Reconciler(payments.network, payments.ledger).reconcile()
    (receipt,) = payments.ledger.receipts().result()
    return receipt


def test_a_wrong_transaction_hash_is_disputed_and_the_real_settlement_is_found_all_the_same(net, account, payments):
    before = opg_balance(net, account.address)
    net.faults.inject(WrongTransaction())
    with client_for(payments) as client:
        client.chat(PROMPT)
    receipt = reconciled(payments)
    assert receipt.status is ReceiptStatus.DISPUTED
    assert receipt.claimed_payment_tx_hash in receipt.dispute
    assert receipt.payment_tx_hash != receipt.claimed_payment_tx_hash
    assert receipt.settled_atomic == before - opg_balance(net, account.address)


def test_another_payers_transaction_is_not_taken_for_ours(net, account, payments):
    before = opg_balance(net, account.address)
    net.faults.inject(SettleForSomebodyElse())
    with client_for(payments) as client:
        client.chat(PROMPT)
    receipt = reconciled(payments)
    assert receipt.status is ReceiptStatus.DISPUTED
    assert receipt.claimed_payment_tx_hash in receipt.dispute
    assert (receipt.payment_tx_hash, receipt.settled_atomic) == (None, None)
    assert opg_balance(net, account.address) == before


def test_an_inflated_settlement_is_disputed_with_both_amounts(devnets, tmp_path):
    session_net = devnets()
    session_net.close_sessions()  # the fault strikes once
    account = session_net.account(opg="10", approved=True)
    with payments_for(session_net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        cost = client.chat(PROMPT).receipt.cost_atomic
        session_net.faults.inject(SettleAtCap())
        session_net.close_sessions()
        receipt = reconciled(payments)
    assert receipt.status is ReceiptStatus.DISPUTED
    assert receipt.settled_atomic == receipt.authorized_atomic > cost
    assert "too much" in receipt.dispute


PROOF_LIES = {
    "reused_signature": "came with another call before",
    "replayed": "came with another call before",
    "key": "signature does not fit",
    "stale": "another time",
    "request_hash": "another request",
    "output_hash": "another answer",
}


@pytest.mark.parametrize("lie", PROOF_LIES)
@pytest.mark.parametrize("how", ["chat", "stream"])
def test_a_false_proof_withholds_the_answer_and_stays_on_the_receipt(net, payments, lie, how):
    other = {**PROMPT, "messages": [{"role": "user", "content": "A question asked before"}]}
    with client_for(payments, verify_tee="require") as client:
        client.chat(other)
        net.faults.inject(ForgeProof(part=lie))
        with pytest.raises(ProofRejected, match=PROOF_LIES[lie]) as caught:
            client.chat(PROMPT) if how == "chat" else list(client.stream(PROMPT))
    kept = payments.ledger.receipts(call_ids=[caught.value.call_id]).result()
    assert [receipt.tee_verified.split(" ")[0] for receipt in kept] == [caught.value.receipt.tee_verified.split(" ")[0]]
    assert not kept[0].tee_verified.startswith("verified")
