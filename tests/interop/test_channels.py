"""Our client pays by payment channels what others wrote: both middlewares, each behind the official facilitator."""

from __future__ import annotations

import time

import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, client_for, gateway_task, opg_balance, payments_for

OPG = 10**18
CAP = OPG // 20
COST = 123_456_789_012_345
DEPOSIT = 10 * CAP
GATEWAYS = {"official": "official_gateway.py", "newer_fork": "fork_gateway.py"}
"""Environments, and the gateways that run in them. x402's own for FastAPI streams no charge, so it is not streamed."""


@pytest.mark.parametrize("calls", [12, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("method", "approved"), [("permit2", True), ("eip3009", False)])
@pytest.mark.parametrize("gateway", GATEWAYS)
def test_one_deposit_pays_and_the_claims_equal_the_ledger_to_the_unit(
    request, scripts, net, official_facilitator, tmp_path, gateway, method, approved, calls
):
    account, payee = net.account(opg="1", approved=approved), new_account().address
    told = {"scheme": "batch-settlement", "method": method, "sessions": False}
    task = gateway_task(net, payee, cap_atomic=CAP, cost_atomic=COST, **told)
    task["facilitator_url"] = official_facilitator["url"]
    venv, policy = request.getfixturevalue(gateway), SpendPolicy(payees=[payee])
    with payments_for(net, account, tmp_path / "ledger.sqlite", policy=policy) as payments:
        with (
            venv.serve(scripts / GATEWAYS[gateway], task) as served,
            client_for(payments, base_url=served["url"]) as client,
        ):
            began = time.monotonic()
            for number in range(calls):
                if gateway == "newer_fork" and number % 3 == 2:
                    with client.stream(PROMPT) as stream:
                        assert "".join(delta.content for delta in stream) == "Paid by our client."
                    assert stream.receipt.cost_atomic == COST
                else:
                    assert client.chat(PROMPT).receipt.cost_atomic == COST
            took_s = time.monotonic() - began
        (channel,) = payments.channels.list()  # ending the gateway claimed
        payments.reconciler.reconcile()
        receipts = payments.ledger.receipts().result()
        asset, network = payments.network.asset.address, payments.network.caip2
        spent = payments.ledger.spent(payer=payments.payer, asset=asset, network=network).result()
    print(f"{gateway}, {method}: {calls} calls in {took_s:.1f} s; claimed {channel.claimed_atomic}, ledger {spent}")
    assert len(receipts) == calls
    assert {(one.status, one.is_final, one.dispute) for one in receipts} == {("settled", True, None)}
    assert {one.settled_atomic for one in receipts} == {COST}
    assert channel.claimed_atomic == spent == opg_balance(net, payee) == calls * COST
    assert opg_balance(net, account.address) == OPG - DEPOSIT
