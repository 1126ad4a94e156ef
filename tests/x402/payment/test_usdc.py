"""A gateway that is paid in USDC, a token with six decimals: every amount holds to the unit."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from langchain_opengradient import ChatOpenGradient, SpendGuard, get_settlement_callback
from llama_index_opengradient import OpenGradient
from llama_index_opengradient import SpendGuard as LlamaIndexSpendGuard
from opengradient_devnet.gateway.payment.challenge import Scheme
from opengradient_x402.errors import AllowanceMissing, BudgetExceeded, PolicyRefused
from opengradient_x402.money import format_amount
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.wallet import Wallet
from support.payers import PROMPT, client_for, opg_balance, payments_for, settled_receipts

CHEAP = {**PROMPT, "model": "openai/gpt-5-nano"}
WAYS = {
    "exact by EIP-3009": {"schemes": (Scheme.EXACT_EIP3009,)},
    "exact by Permit2": {"schemes": (Scheme.EXACT_PERMIT2,)},
    "upto in a session": {"schemes": (Scheme.UPTO,)},
    "upto call by call": {"schemes": (Scheme.UPTO,), "sessions": False, "session_cap_opg": "0.0005"},
    "a channel filled by EIP-3009": {"schemes": (Scheme.BATCH_SETTLEMENT_EIP3009,), "session_cap_opg": "0.0005"},
    "a channel filled by Permit2": {"schemes": (Scheme.BATCH_SETTLEMENT,), "session_cap_opg": "0.0005"},
}


@pytest.fixture
def usdc(devnets):
    """The devnet that is paid in USDC, in one of the ways."""

    def running(way: str = "exact by EIP-3009"):
        return devnets(asset="USDC", **WAYS[way])

    yield running
    devnets.forget_sessions()


@contextmanager
def sponsored(net, account, tmp_path):
    """Payments, client and wallet of somebody who approved nothing, and lets facilitators send approvals."""
    policy = SpendPolicy(sponsored_approval="0.1")
    with (
        payments_for(net, account, tmp_path / "usdc.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        yield payments, client, Wallet(payments.network, payments.signer)


@pytest.mark.parametrize("calls", [5, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("way", WAYS)
def test_calls_in_usdc_add_up_to_the_unit_on_chain_in_the_ledger_and_in_the_receipts(usdc, way, calls, tmp_path):
    net = usdc(way)
    account = net.account(opg="10", approved=True)
    policy = SpendPolicy(max_per_day="0.6", max_price_increase_percent=0)
    with (
        payments_for(net, account, tmp_path / "usdc.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        for _ in range(calls):
            client.chat(CHEAP)
        net.claim_channels()
        receipts = settled_receipts(net, payments)
        kept = payments.channels.list()
        taken = 10 * 10**6 - opg_balance(net, account.address) - sum(one.free_atomic for one in kept)
        asset = payments.network.asset
        spent = payments.ledger.spent(payer=payments.payer, asset=asset.address, network=payments.network.caip2)
        assert len(receipts) == calls
        assert {(one.asset_symbol, one.asset_decimals, one.dispute) for one in receipts} == {("USDC", 6, None)}
        assert sum(one.settled_atomic for one in receipts) == taken == spent.result()
    assert taken == calls * 10_000 if way.startswith("exact") else 0 < taken < calls * 100


def test_a_day_budget_in_usdc_is_used_up_to_the_last_unit(usdc, tmp_path):
    net = usdc()
    policy = SpendPolicy(max_per_day="0.039999", max_per_authorization="0.01")
    account = net.account(opg="1")
    with (
        payments_for(net, account, tmp_path / "usdc.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        for _ in range(3):
            client.chat(CHEAP)
        with pytest.raises(
            BudgetExceeded, match=r"Authorizing 0\.01 USDC would exceed the budget: 0\.03 USDC of 0\.039999 "
        ):
            client.chat(CHEAP)
    assert opg_balance(net, account.address) == 10**6 - 3 * 10_000


def test_guards_of_both_faces_stop_before_the_call_that_does_not_fit(usdc, tmp_path):
    net = usdc()
    guard, other = SpendGuard("0.029999"), LlamaIndexSpendGuard("0.02")
    with payments_for(net, net.account(opg="1"), tmp_path / "usdc.sqlite") as payments:
        with ChatOpenGradient(model="openai/gpt-5-nano", payments=payments) as chat, get_settlement_callback() as heard:
            for _ in range(2):
                chat.invoke("hi", {"callbacks": [guard]})
            with pytest.raises(BudgetExceeded, match=r"spent up to 0\.02 USDC; its limit is 0\.029999 USDC"):
                chat.invoke("hi", {"callbacks": [guard]})
            assert guard.spent == heard.spent == "0.02 USDC"
            assert guard.spent_atomic == heard.spent_atomic == 20_000
            with pytest.raises(ValueError, match=r"not paid in OPG alone \(0\.02 USDC\)"):
                _ = heard.spent_opg
        llm = OpenGradient(model="openai/gpt-5-nano", payments=payments)
        with other.listening():
            for _ in range(2):
                llm.complete("hi")
            with pytest.raises(BudgetExceeded, match=r"spent up to 0\.02 USDC; its limit is 0\.02 USDC"):
                llm.complete("hi")
        assert other.spent == "0.02 USDC"


@pytest.mark.parametrize("calls", [4, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("way", [way for way in WAYS if "channel" in way])
def test_budgets_and_guards_hold_to_the_unit_for_calls_on_a_channel_in_usdc(usdc, way, calls, tmp_path):
    net, most = usdc(way), 500
    account = net.account(opg="1", approved=True)
    with payments_for(net, account, tmp_path / "costs.sqlite") as payments, client_for(payments) as client:
        cost = client.chat(CHEAP).receipt.cost_atomic
    limit = (calls - 1) * cost + most
    account = net.account(opg="1", approved=True)
    policy = SpendPolicy(max_per_day=format_amount(limit, decimals=6), max_per_authorization="0.0005")
    with (
        payments_for(net, account, tmp_path / "budget.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        for _ in range(calls):
            assert client.chat(CHEAP).receipt.cost_atomic == cost
        taken, write = calls * cost, payments.network.asset.format
        with pytest.raises(BudgetExceeded, match=f"{write(taken)} of {write(limit)} are spent or reserved"):
            client.chat(CHEAP)
        net.claim_channels()
        payments.reconciler.reconcile()
        (channel,) = payments.channels.list()
        assert channel.claimed_atomic == taken == sum(one.settled_atomic for one in payments.ledger.receipts().result())
    account, guard = net.account(opg="1", approved=True), SpendGuard(format_amount(limit - 1, decimals=6))
    with (
        payments_for(net, account, tmp_path / "guard.sqlite") as payments,
        ChatOpenGradient(model="openai/gpt-5-nano", payments=payments) as chat,
    ):
        for _ in range(calls - 1):
            chat.invoke("What is x402?", {"callbacks": [guard]})
        assert guard.spent_atomic == (calls - 1) * cost
        with pytest.raises(BudgetExceeded, match="its limit is"):
            chat.invoke("What is x402?", {"callbacks": [guard]})
        assert guard.spent_atomic == sum(one.cost_atomic for one in payments.ledger.receipts().result())


def test_what_an_exact_call_cost_is_known_before_it_settles_and_stays_so(usdc, tmp_path):
    net = usdc()
    with (
        payments_for(net, net.account(opg="1"), tmp_path / "usdc.sqlite") as payments,
        ChatOpenGradient(model="openai/gpt-5-nano", payments=payments) as chat,
        get_settlement_callback() as heard,
    ):
        for _ in range(3):
            chat.invoke("hi")
        before = heard.spent_atomic
        final = [receipt.wait_settled(timeout_s=30) for receipt in heard.receipts]
        assert before == heard.spent_atomic == sum(receipt.settled_atomic for receipt in final) == 30_000


def test_a_gateway_of_ones_own_is_paid_in_usdc_when_the_policy_names_its_payee(usdc, tmp_path):
    net = usdc()
    node = {"chain_id": net.chain.chain_id, "rpc_url": net.rpc_url}
    network = replace(load_network("base-usdc"), **node)
    payee = net.network["payees"][0]
    account = net.account(opg="1")
    for policy in (SpendPolicy(payees={payee}), SpendPolicy()):
        payments = Payments.open(
            network=network, private_key=account.private_key, policy=policy, ledger=tmp_path / "usdc.sqlite"
        )
        with client_for(payments, base_url=net.gateway_url) as client:
            if policy.payees:
                assert client.chat(CHEAP).receipt.cost_atomic == 10_000
            else:
                with pytest.raises(PolicyRefused, match=r"not an allowed payee of base-usdc.*`payees`"):
                    client.chat(CHEAP)
        payments.close()
    assert opg_balance(net, account.address) == 10**6 - 10_000


def test_tokens_are_counted_apart_by_a_handler_that_hears_two(usdc, net, account, tmp_path):
    other = usdc()
    guard = SpendGuard("0.015")
    with (
        payments_for(other, other.account(opg="1"), tmp_path / "usdc.sqlite") as usdc_payments,
        payments_for(net, account, tmp_path / "opg.sqlite") as opg_payments,
        ChatOpenGradient(model="openai/gpt-5-nano", payments=usdc_payments) as in_usdc,
        ChatOpenGradient(model="openai/gpt-5-nano", payments=opg_payments, max_tokens=50) as in_opg,
    ):
        in_usdc.invoke("hi", {"callbacks": [guard]})
        cost = int(in_opg.invoke("hi", {"callbacks": [guard]}).response_metadata["opengradient"]["cost_atomic"])
        assert guard.spent == f"0.01 USDC + {opg_payments.network.asset.format(cost)}"
        with pytest.raises(ValueError, match="more than one token"):
            _ = guard.spent_atomic
        with pytest.raises(BudgetExceeded, match=r"spent up to 0\.01 USDC; its limit is 0\.015 USDC"):
            in_usdc.invoke("hi", {"callbacks": [guard]})


@pytest.mark.parametrize("way", ["exact by Permit2", "upto in a session"])
def test_a_wallet_that_approved_nothing_pays_with_a_permit_for_this_payment_alone(usdc, way, tmp_path):
    net = usdc(way)
    account = net.account(opg="1")
    with sponsored(net, account, tmp_path) as (payments, client, wallet):
        client.chat(CHEAP)
        (receipt,) = settled_receipts(net, payments)
        assert receipt.status == "settled"
        assert 10**6 - wallet.balance() == receipt.settled_atomic > 0
        assert wallet.allowance() == receipt.authorized_atomic - receipt.settled_atomic
        assert net.chain.rpc("eth_getTransactionCount", [account.address, "latest"]) == "0x0"


def test_a_channel_is_filled_with_a_permit_for_its_deposit_alone(usdc, tmp_path):
    net = usdc("a channel filled by Permit2")
    account = net.account(opg="1")
    with sponsored(net, account, tmp_path) as (payments, client, wallet):
        cost = sum(client.chat(CHEAP).receipt.cost_atomic for _ in range(3))
        (channel,) = payments.channels.list()
        assert (channel.balance_atomic, channel.charged_atomic) == (5_000, cost)
        assert 10**6 - wallet.balance() == 5_000
        assert wallet.allowance() == 0
        (taken,) = payments.channels.refund()
        assert taken.amount_atomic == 5_000 - cost
        assert wallet.balance() == 10**6 - cost
        assert net.chain.rpc("eth_getTransactionCount", [account.address, "latest"]) == "0x0"


def test_no_permit_is_signed_for_more_than_the_policy_lets_be_approved(usdc, tmp_path):
    net = usdc("exact by Permit2")
    for number, policy in enumerate((SpendPolicy(), SpendPolicy(sponsored_approval="0.009999"))):
        ledger = tmp_path / f"{number}.sqlite"
        with payments_for(net, net.account(opg="1"), ledger, policy=policy) as payments, client_for(payments) as client:
            with pytest.raises(AllowanceMissing, match=r"0 USDC .* authorizes 0\.01 USDC"):
                client.chat(CHEAP)
            assert payments.ledger.authorizations().result() == []
