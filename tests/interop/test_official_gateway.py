"""A service behind the official x402 middleware is paid by our client; the devnet is its facilitator."""

from __future__ import annotations

import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import PROMPT, client_for, gateway_task, opg_balance, payments_for

OPG = 10**18
CAP = OPG // 20
COST = 1_234_567_890_123_457


@pytest.mark.parametrize(
    ("scheme", "method", "approved", "taken"),
    [
        ("upto", "permit2", True, COST),
        ("exact", "permit2", True, CAP),
        ("exact", "eip3009", False, CAP),
    ],
)
def test_our_client_pays_the_official_middleware_call_by_call(
    official, scripts, net, tmp_path, scheme, method, approved, taken
):
    account, payee = net.account(opg="1", approved=approved), new_account().address
    task = gateway_task(net, payee, cap_atomic=CAP, cost_atomic=COST, scheme=scheme, method=method)
    with (
        official.serve(scripts / "official_gateway.py", task) as gateway,
        payments_for(net, account, tmp_path / "ledger.sqlite", policy=SpendPolicy(payees=[payee])) as payments,
        client_for(payments, base_url=gateway["url"]) as client,
    ):
        completions = [client.chat(PROMPT) for _ in range(2)]
        assert [completion.content for completion in completions] == ["Paid."] * 2
        assert opg_balance(net, payee) == 2 * taken
        assert opg_balance(net, account.address) == OPG - 2 * taken
        Reconciler(payments.network, payments.ledger).reconcile()
        receipts = payments.ledger.receipts().result()
    assert [receipt.settled_atomic for receipt in receipts] == [taken] * 2
    assert {receipt.status for receipt in receipts} == {ReceiptStatus.SETTLED}
    # What the middleware said about the payment is what the chain says.
    claimed = {completion.receipt.claimed_payment_tx_hash for completion in completions}
    assert claimed == {receipt.payment_tx_hash for receipt in receipts}
    assert len(claimed) == 2


@pytest.mark.parametrize(("method", "approved"), [("permit2", True), ("eip3009", False)])
def test_our_client_pays_the_official_middleware_by_a_channel(official, scripts, net, tmp_path, method, approved):
    account, payee = net.account(opg="1", approved=approved), new_account().address
    task = gateway_task(net, payee, cap_atomic=CAP, cost_atomic=COST, scheme="batch-settlement", method=method)
    with (
        official.serve(scripts / "official_gateway.py", task) as gateway,
        payments_for(net, account, tmp_path / "ledger.sqlite", policy=SpendPolicy(payees=[payee])) as payments,
        client_for(payments, base_url=gateway["url"]) as client,
    ):
        receipts = [client.chat(PROMPT).receipt for _ in range(4)]
        (channel,) = payments.rides.book.channels(network=payments.network.caip2).result()
    assert [receipt.cost_atomic for receipt in receipts] == [COST] * 4
    assert channel.charged_atomic == 4 * COST
    assert opg_balance(net, account.address) == OPG - 10 * CAP  # one deposit
    assert opg_balance(net, payee) == 4 * COST  # claimed when the gateway ended
