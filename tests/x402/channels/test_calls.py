"""Calls that are paid by a channel: one deposit, a voucher for each call, and books that agree with the chain."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from opengradient_devnet import Scheme
from opengradient_devnet.faults import AlterTerms, ForgeCorrection, HangUp, InflateCost, LieAboutCharge, SettleAtCap
from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.events import CLAIMED
from opengradient_x402.errors import (
    BudgetExceeded,
    ChallengeInvalid,
    NotPaid,
    PaymentOutcomeUnknown,
    PolicyRefused,
)
from opengradient_x402.payment.channels import calls
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, async_client_for, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
AMOUNT, DEPOSIT = 10**17, 10**18


def channels_of(payments):
    return payments.rides.book.channels(network=payments.network.caip2, payer=payments.payer).result()


def claimed_receipts(net, payments):
    """Has the gateway claim, reconciles, and gives back all receipts."""
    net.claim_channels()
    payments.reconciler.reconcile()
    return payments.ledger.receipts().result()


def spent(payments):
    asset = payments.network.asset.address
    return payments.ledger.spent(payer=payments.payer, asset=asset, network=payments.network.caip2).result()


def charged_at(net, payments):
    """What the gateway has charged to the channels of this wallet."""
    return sum(one.charged for one in net.channels if one.config.payer == payments.payer)


def test_one_deposit_pays_for_twenty_calls_and_the_claims_equal_the_ledger(net, account, payments, client):
    net.claim_channels()  # of the calls before this test
    before = net.chain.token_balance(account.address)
    payee, paid_before = net.network["payees"][0], net.chain.token_balance(net.network["payees"][0])
    served = [client.chat(PROMPT).receipt for _ in range(18)]
    for _ in range(2):
        with client.stream(PROMPT) as stream:
            assert "".join(delta.content for delta in stream)
        served.append(stream.receipt)
    assert {receipt.status for receipt in served} == {"served"}
    assert net.chain.token_balance(account.address) == before - DEPOSIT
    receipts = claimed_receipts(net, payments)
    (channel,) = channels_of(payments)
    assert {(receipt.status, receipt.is_final) for receipt in receipts} == {("settled", True)}
    assert [receipt.settled_atomic for receipt in receipts] == [receipt.cost_atomic for receipt in receipts]
    assert channel.claimed_atomic == sum(receipt.settled_atomic for receipt in receipts)
    assert net.chain.token_balance(payee) - paid_before == channel.claimed_atomic
    assert spent(payments) == channel.claimed_atomic


def test_receipts_name_the_claim_that_they_are_in(net, account, payments, client):
    for number in range(7):
        client.chat(PROMPT)
        if number in (2, 5):
            net.claim_channels()
    receipts = claimed_receipts(net, payments)
    hashes = [receipt.payment_tx_hash for receipt in receipts]
    first, second, third = dict.fromkeys(hashes)
    assert hashes == [first] * 3 + [second] * 3 + [third]
    claimed = 0
    for tx_hash in (first, second, third):
        done = net.chain.rpc("eth_getTransactionReceipt", [tx_hash])
        (log,) = [log for log in done["logs"] if log["topics"][0] == CLAIMED]
        claimed += sum(receipt.settled_atomic for receipt in receipts if receipt.payment_tx_hash == tx_hash)
        assert int(log["data"][66:], 16) == claimed
        places = {(one.block_number, one.block_hash) for one in receipts if one.payment_tx_hash == tx_hash}
        assert places == {(int(done["blockNumber"], 16), done["blockHash"])}


def test_signed_ceilings_are_reserved_and_charges_are_spent(payments, client):
    client.chat(PROMPT)
    assert spent(payments) == AMOUNT
    cost = client.chat(PROMPT).receipt.cost_atomic
    assert spent(payments) == cost + AMOUNT
    (channel,) = channels_of(payments)
    assert channel.signed_atomic == cost + AMOUNT


def test_a_day_s_budget_holds_for_vouchers(net, account, tmp_path):
    policy = SpendPolicy(max_per_day="0.15", max_per_authorization="0.1")
    with (
        payments_for(net, account, tmp_path / "small.sqlite", policy=policy) as payments,
        client_for(payments) as client,
        client.stream(PROMPT) as stream,
    ):
        next(iter(stream))
        with pytest.raises(BudgetExceeded):
            client.chat(PROMPT)


def test_what_claimed_vouchers_still_allow_counts_in_a_day_s_budget(net, account, tmp_path):
    policy = SpendPolicy(max_per_day="0.2", max_per_authorization="0.1", max_channels=2)
    with payments_for(net, account, tmp_path / "two.sqlite", policy=policy) as payments, client_for(payments) as client:
        with client.stream(PROMPT) as stream:
            client.chat(PROMPT)
            list(stream)
        claimed_receipts(net, payments)
        with pytest.raises(BudgetExceeded):
            client.chat(PROMPT)
        for one in net.channels:  # the gateway claims all that it holds a voucher for
            if one.config.payer == payments.payer:
                one.charged = one.signed
        net.claim_channels()
        assert sum(channel.claimed_atomic for channel in payments.channels.list()) == 2 * AMOUNT


def test_a_voucher_that_was_signed_anew_for_less_counts_with_all_that_it_ever_allowed(net, account, tmp_path):
    policy = SpendPolicy(max_per_day="0.2", max_per_authorization="0.1", max_channels=3)
    with payments_for(net, account, tmp_path / "anew", policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.faults.inject(AlterTerms(amount=str(AMOUNT // 2)), times=None)
        client.chat(PROMPT)  # its first voucher allows twice as much, and was refused
        claimed_receipts(net, payments)
        with client.stream(PROMPT) as one, client.stream(PROMPT) as other:
            with pytest.raises(BudgetExceeded):
                client.chat(PROMPT)
            list(one), list(other)
        net.faults.inject(SettleAtCap())  # it takes all that it was ever sent a voucher for
        net.claim_channels()
        claimed = [channel.claimed_atomic for channel in payments.channels.list()]
        assert 3 * AMOUNT // 2 < sum(claimed) <= 2 * AMOUNT


def test_calls_side_by_side_have_channels_of_their_own_and_none_is_told_that_one_is_busy(net, payments, client):
    with ThreadPoolExecutor(12) as threads:
        receipts = list(threads.map(lambda _: client.chat(PROMPT).receipt, range(24)))
    assert {receipt.status for receipt in receipts} == {"served"}
    channels = channels_of(payments)
    assert 1 < len(channels) <= 4
    assert sum(receipt.cost_atomic for receipt in receipts) == charged_at(net, payments)
    assert {receipt.status for receipt in claimed_receipts(net, payments)} == {"settled"}


def test_a_thread_does_not_wait_for_itself(net, account, tmp_path):
    policy = SpendPolicy(max_channels=1)
    with payments_for(net, account, tmp_path / "one.sqlite", policy=policy) as payments, client_for(payments) as client:
        with client.stream(PROMPT) as stream:
            next(iter(stream))
            with pytest.raises(PolicyRefused, match="wait for itself"):
                client.chat(PROMPT)
        assert client.chat(PROMPT).receipt.status == "served"


def test_an_empty_channel_is_filled_up(net, account, payments, client):
    net.faults.inject(InflateCost(factor=1000), times=None)
    for _ in range(10):
        client.chat(PROMPT)
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == DEPOSIT
    assert client.chat(PROMPT).receipt.status == "served"
    assert net.chain.token_balance(account.address) == 10 * 10**18 - 2 * DEPOSIT
    assert len(channels_of(payments)) == 1


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (LieAboutCharge(charge=str(AMOUNT)), "were allowed for this call"),
        (LieAboutCharge(cumulative="1"), "is another sum"),
    ],
)
def test_a_lie_about_a_charge_changes_nothing_and_is_disputed(net, payments, client, lie, words):
    client.chat(PROMPT)
    (before,) = channels_of(payments)
    net.faults.inject(lie)
    answer = client.chat(PROMPT)
    assert answer.content
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == before.charged_atomic
    (receipt,) = payments.ledger.receipts(call_ids=[answer.receipt.call_id]).result()
    assert receipt.status == "disputed"
    assert words in receipt.dispute
    with pytest.raises(PolicyRefused, match="disputed"):
        client.chat(PROMPT)


@pytest.mark.parametrize("how", ["signature", "charge", "below"])
def test_a_correction_that_cannot_be_believed_is_not_followed(net, payments, client, how):
    client.chat(PROMPT)
    if how == "below":
        net.claim_channels()
    (before,) = channels_of(payments)
    net.faults.inject(ForgeCorrection(how=how))
    with pytest.raises(PaymentOutcomeUnknown, match="sum of this channel's charges"):
        client.chat(PROMPT)
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == before.charged_atomic
    assert channel.signed_atomic == before.charged_atomic + AMOUNT
    assert client.chat(PROMPT).receipt.status == "served"


def test_a_claim_above_what_was_charged_is_disputed_with_the_numbers(net, payments, client):
    receipts = [client.chat(PROMPT).receipt for _ in range(3)]
    net.faults.inject(SettleAtCap())
    *others, last = claimed_receipts(net, payments)
    assert [receipt.status for receipt in others] == ["settled", "settled"]
    assert last.status == "disputed"
    assert last.settled_atomic == AMOUNT
    excess = payments.network.asset.format(AMOUNT - receipts[-1].cost_atomic)
    assert f"{excess} too much" in last.dispute
    (channel,) = channels_of(payments)
    assert channel.claimed_atomic == sum(receipt.settled_atomic for receipt in [*others, last])
    with pytest.raises(PolicyRefused, match="disputed"):
        client.chat(PROMPT)


@pytest.mark.parametrize("is_charged", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_lost_answer_costs_what_the_gateway_charged_and_the_next_call_goes_on(
    net, payments, client, is_charged, is_first
):
    if not is_first:
        client.chat(PROMPT)
    net.faults.inject(HangUp(charge=is_charged))
    with pytest.raises(PaymentOutcomeUnknown):
        client.chat(PROMPT)
    assert client.chat(PROMPT).receipt.status == "served"
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == charged_at(net, payments)
    receipts = claimed_receipts(net, payments)
    assert {receipt.status for receipt in receipts} == {"settled"}
    assert sum(receipt.settled_atomic for receipt in receipts) == charged_at(net, payments)
    assert [receipt.settled_atomic > 0 for receipt in receipts][-2:] == [is_charged, True]


SCRIPT = textwrap.dedent("""
    import os, signal, sys
    from opengradient_x402.payment.channels import calls
    from opengradient_x402.gateway.client import GatewayClient
    from opengradient_x402.payment.payments import Payments

    payments = Payments.open(network=sys.argv[1], private_key=sys.argv[2], ledger=sys.argv[3])
    prompt = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "hi"}]}
    GatewayClient(payments).chat(prompt)
    calls.payment_response = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    GatewayClient(payments).chat(prompt)
""")


def test_kill_9_between_voucher_and_answer_is_made_good_by_one_correction(net, account, tmp_path):
    path = tmp_path / "ledger.sqlite"
    died = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"{net.gateway_url}/network", account.private_key, str(path)],
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    with payments_for(net, account, path) as payments, client_for(payments) as client:
        assert client.chat(PROMPT).receipt.status == "served"
        receipts = claimed_receipts(net, payments)
        (channel,) = channels_of(payments)
        assert len(receipts) == 3
        assert {receipt.status for receipt in receipts} == {"settled"}
        assert (
            sum(receipt.settled_atomic for receipt in receipts) == channel.claimed_atomic == charged_at(net, payments)
        )


def test_a_lost_ledger_finds_its_channel_on_the_chain(net, account, tmp_path):
    with payments_for(net, account, tmp_path / "lost.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        (lost,) = channels_of(payments)
    net.claim_channels()
    balance = net.chain.token_balance(account.address)
    with payments_for(net, account, tmp_path / "new.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        (found,) = channels_of(payments)
    assert found.id == lost.id
    assert net.chain.token_balance(account.address) == balance  # no second deposit


def test_a_gateway_that_lost_its_records_takes_the_next_voucher(net, payments, client):
    first = client.chat(PROMPT).receipt
    net.claim_channels()
    net.forget_channels()
    second = client.chat(PROMPT).receipt
    assert charged_at(net, payments) == first.cost_atomic + second.cost_atomic


def test_nobody_is_accused_of_a_claim_for_a_lost_call_that_the_gateway_forgot_since(net, payments, client):
    cost = client.chat(PROMPT).receipt.cost_atomic
    net.faults.inject(InflateCost(factor=3))
    net.faults.inject(HangUp(charge=True))
    with pytest.raises(PaymentOutcomeUnknown):
        client.chat(PROMPT)
    net.claim_channels()
    net.forget_channels()  # from now on it takes the wallet's word for what was charged
    assert client.chat(PROMPT).receipt.cost_atomic == cost
    assert spent(payments) == cost + 2 * AMOUNT
    receipts = claimed_receipts(net, payments)
    (channel,) = channels_of(payments)
    assert channel.claimed_atomic == cost + 3 * cost
    assert {receipt.status for receipt in receipts} == {"settled"}
    assert [receipt.settled_atomic for receipt in receipts] == [cost, 2 * cost, cost]
    assert spent(payments) == channel.claimed_atomic


def test_charges_that_a_gateway_forgot_and_counts_again_are_not_booked_as_an_overcharge(devnets, tmp_path, monkeypatch):
    """As when it restarts while a claim is under way: it counts from the older block, and from the claim afterwards."""
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT], opg_usd="0.0036")
    monkeypatch.setattr(calls, "_FRESH_S", 0)
    account = net.account(opg="10", approved=True)
    with payments_for(net, account, tmp_path / "again.sqlite") as payments, client_for(payments) as client:
        cost = client.chat(PROMPT).receipt.cost_atomic
        assert [client.chat(PROMPT).receipt.cost_atomic for _ in range(2)] == [cost, cost]
        assert 2 * cost > AMOUNT > cost
        (record,) = [one for one in net.channels if one.config.payer == payments.payer]
        claim = (record.charged, record.signed, record.signature)
        record.charged = cost
        net.faults.inject(HangUp())
        with pytest.raises(PaymentOutcomeUnknown):
            client.chat(PROMPT)
        record.charged, record.signed, record.signature = claim
        net.claim_channels()
        for _ in range(2):
            assert client.chat(PROMPT).receipt.cost_atomic == cost
        receipts = claimed_receipts(net, payments)
        assert {receipt.status for receipt in receipts} == {"settled"}
        assert [receipt.settled_atomic for receipt in receipts] == [cost, cost, cost, 0, cost, cost]
        (channel,) = channels_of(payments)
        assert spent(payments) == channel.claimed_atomic == 5 * cost


def test_what_was_taken_too_early_frees_no_reservation_when_a_lost_call_is_made_good(devnets, tmp_path, monkeypatch):
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT], opg_usd="0.0036")
    account, look = net.account(opg="10", approved=True), ChannelBook.to_judge
    with payments_for(net, account, tmp_path / "early.sqlite") as payments, client_for(payments) as client:

        def look_and_call(book, channel_id):
            found = look(book, channel_id)
            if len(found.result()[0]) == 1:  # its charge was claimed together with that of the first call
                client.chat(PROMPT | {"max_tokens": 2})
            return found

        client.chat(PROMPT)
        net.faults.inject(SettleAtCap())
        net.claim_channels()
        monkeypatch.setattr(ChannelBook, "to_judge", look_and_call)
        payments.reconciler.reconcile()
        assert payments.ledger.clear_disputes(network=payments.network.caip2, origin=net.gateway_url).result() == 1
        client.chat(PROMPT)
        net.faults.inject(HangUp(charge=True))
        with pytest.raises(PaymentOutcomeUnknown):
            client.chat(PROMPT)
        for _ in range(2):
            client.chat(PROMPT)
        payments.reconciler.reconcile()
        (channel,) = channels_of(payments)
        assert spent(payments) >= channel.signed_atomic > charged_at(net, payments)
        receipts = claimed_receipts(net, payments)
        assert [receipt.settled_atomic for receipt in receipts][:2] == [AMOUNT, 0]
        assert sum(receipt.settled_atomic for receipt in receipts) == charged_at(net, payments)


def test_what_a_gateway_gave_back_unasked_is_seen_before_the_next_call(net, account, payments, client, monkeypatch):
    cost = sum(client.chat(PROMPT).receipt.cost_atomic for _ in range(3))
    net.refund_channels()
    assert net.chain.token_balance(account.address) == 10 * DEPOSIT - cost
    monkeypatch.setattr(calls, "_FRESH_S", 0)
    for _ in range(2):
        assert client.chat(PROMPT).receipt.status == "served"
    assert [one.status for one in channels_of(payments)] == ["closed", "open"]
    receipts = claimed_receipts(net, payments)
    assert len(receipts) == 5
    assert {receipt.status for receipt in receipts} == {"settled"}


def test_after_a_channel_was_emptied_under_a_call_the_next_one_opens_another(net, account, payments, client):
    cost = sum(client.chat(PROMPT).receipt.cost_atomic for _ in range(3))
    net.refund_channels()
    with pytest.raises(PaymentOutcomeUnknown, match="nothing in its channel any more"):
        client.chat(PROMPT)
    cost += sum(client.chat(PROMPT).receipt.cost_atomic for _ in range(2))
    receipts = claimed_receipts(net, payments)
    assert [receipt.settled_atomic for receipt in receipts][3] == 0
    assert {receipt.status for receipt in receipts} == {"settled"}
    assert spent(payments) == sum(receipt.settled_atomic for receipt in receipts) == cost
    assert net.chain.token_balance(account.address) == 10 * DEPOSIT - cost - payments.channels.list()[1].free_atomic


def test_a_deposit_above_the_policy_is_refused_before_anything_is_signed(net, account, tmp_path):
    for policy, words in (
        (SpendPolicy(max_deposit="0.9"), "max_deposit"),
        (SpendPolicy(max_withdraw_delay_s=899), "max_withdraw_delay_s"),
        (SpendPolicy(schemes=["upto", "exact"]), "schemes"),
    ):
        with payments_for(net, account, tmp_path / "no.sqlite", policy=policy) as payments:
            with client_for(payments) as client, pytest.raises((PolicyRefused, ChallengeInvalid), match=words):
                client.chat(PROMPT)
            assert channels_of(payments) == []
            assert spent(payments) == 0


def test_a_deposit_without_an_approval_goes_by_the_tokens_own_authorization(devnets, tmp_path):
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT_EIP3009])
    account = net.account(opg="3")
    with payments_for(net, account, tmp_path / "token.sqlite") as payments, client_for(payments) as client:
        assert client.chat(PROMPT).receipt.status == "served"
        assert net.chain.token_balance(account.address) == 3 * 10**18 - DEPOSIT


async def test_coroutines_pay_by_channels_too(net, payments):
    client = async_client_for(payments)
    answers = await asyncio.gather(*(client.chat(PROMPT) for _ in range(6)))
    assert {answer.receipt.status for answer in answers} == {"served"}
    assert sum(answer.receipt.cost_atomic for answer in answers) == charged_at(net, payments)


def test_a_changed_price_is_signed_anew_on_the_same_channel(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(AlterTerms(amount=str(AMOUNT // 2)), times=None)
    answer = client.chat(PROMPT)
    assert answer.receipt.status == "served"
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == charged_at(net, payments)


def test_a_sum_above_all_that_the_calls_can_have_cost_is_not_followed(net, payments, client):
    cost = client.chat(PROMPT).receipt.cost_atomic
    (record,) = [one for one in net.channels if one.config.payer == payments.payer]
    record.charged = AMOUNT - 1  # below what was signed, and above what the call was charged
    with pytest.raises(PaymentOutcomeUnknown, match="can have cost"):
        client.chat(PROMPT)
    (channel,) = channels_of(payments)
    assert channel.charged_atomic == cost
    record.charged = cost
    assert client.chat(PROMPT).receipt.status == "served"


def test_a_claim_too_high_is_not_forgotten_when_the_channel_is_looked_at_before(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    net.claim_channels()
    client.chat(PROMPT)
    payments.reconciler.reconcile()
    assert "disputed" in {receipt.status for receipt in payments.ledger.receipts().result()}


def test_what_was_claimed_above_all_charges_counts_in_a_day_s_budget(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    net.claim_channels()
    (record,) = [one for one in net.channels if one.config.payer == payments.payer]
    record.charged = AMOUNT  # it counts what it took as charged
    cost = client.chat(PROMPT).receipt.cost_atomic
    client.chat(PROMPT)
    (channel,) = channels_of(payments)
    assert (channel.claimed_atomic, channel.charged_atomic) == (AMOUNT, AMOUNT + 2 * cost)
    assert spent(payments) == AMOUNT + cost + AMOUNT  # taken, charged, and allowed to the last call
    receipts = claimed_receipts(net, payments)
    assert "disputed" in {receipt.status for receipt in receipts}
    assert sum(receipt.settled_atomic for receipt in receipts) == AMOUNT + 2 * cost


def test_a_person_is_asked_before_a_large_deposit(net, account, tmp_path):
    asked = []
    policy = SpendPolicy(approve_above="0.5", approval=lambda request: asked.append(request.amount_atomic))
    with payments_for(net, account, tmp_path / "ask.sqlite", policy=policy) as payments, client_for(payments) as client:
        with pytest.raises(NotPaid):
            client.chat(PROMPT)
        assert asked == [DEPOSIT]
        assert spent(payments) == 0
