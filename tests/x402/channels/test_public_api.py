"""`payments.channels`: what is in channels comes back, for threads and coroutines, and by itself when it is idle."""

from __future__ import annotations

import time

import pytest

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.faults import RefusePayment
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
WALLET, DEPOSIT = 10 * 10**18, 10**18


def balance(net, account):
    return net.chain.token_balance(account.address)


def test_a_refund_from_a_thread(net, account, payments, client):
    cost = client.chat(PROMPT).receipt.cost_atomic
    (channel,) = payments.channels.list()
    assert channel.free_atomic == DEPOSIT - cost
    (taken,) = payments.channels.refund(channel.id[:12])
    assert (taken.is_done, taken.amount_atomic, taken.channel.status) == (True, DEPOSIT - cost, "closed")
    assert balance(net, account) == WALLET - cost
    assert payments.channels.refund() != []


async def test_a_refund_and_a_withdrawal_from_coroutines(tmp_path):
    with Devnet(schemes=[Scheme.BATCH_SETTLEMENT]) as net:  # of its own: its clock is moved
        account = net.account(opg="10", approved=True)
        with payments_for(net, account, tmp_path / "own.sqlite") as payments, client_for(payments) as client:
            cost = client.chat(PROMPT).receipt.cost_atomic
            (listed,) = await payments.channels.alist()
            net.faults.inject(RefusePayment(error="not today"))
            (denied,) = await payments.channels.arefund(listed.id)
            assert not denied.is_done
            assert "not today" in denied.what
            net.claim_channels()
            (begun,) = await payments.channels.awithdraw()
            assert begun.tx_hash
            net.chain.advance(901)
            (done,) = await payments.channels.awithdraw()
            assert done.amount_atomic == DEPOSIT - cost
            assert balance(net, account) == WALLET - cost


def test_a_channel_that_nobody_knows_is_named(payments, client):
    client.chat(PROMPT)
    with pytest.raises(ConfigurationError, match="No payment channel begins with 0xabc"):
        payments.channels.refund("0xabc")


@pytest.mark.parametrize("idle", ["keep", "refund", "withdraw"])
def test_an_idle_channel_is_taken_back_as_the_policy_says(net, account, tmp_path, idle):
    policy = SpendPolicy(idle_channels=idle, channel_idle_s=0)
    with (
        payments_for(net, account, tmp_path / "idle.sqlite", policy=policy) as payments,
        client_for(payments) as client,
    ):
        cost = client.chat(PROMPT).receipt.cost_atomic
        tidied = payments.channels.tidy()
        (channel,) = payments.channels.list()
    assert len(tidied) == (idle != "keep")
    expected = {"keep": "open", "refund": "closed", "withdraw": "closing"}
    assert channel.status == expected[idle]
    assert balance(net, account) == WALLET - (cost if idle == "refund" else DEPOSIT)


def test_calls_by_channel_take_idle_ones_back_by_themselves(net, account, tmp_path):
    path, policy = tmp_path / "idle.sqlite", SpendPolicy(idle_channels="refund", channel_idle_s=1)
    with payments_for(net, account, path) as payments, client_for(payments) as client, client.stream(PROMPT) as stream:
        client.chat(PROMPT)  # a second channel
        list(stream)
    time.sleep(2)
    with payments_for(net, account, path, policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if "closed" in {
                one.status for one in payments.rides.book.channels(network=payments.network.caip2).result()
            }:
                return
            time.sleep(0.05)
    pytest.fail("no idle channel was refunded")


def test_what_cannot_be_meant_is_no_policy():
    with pytest.raises(ConfigurationError, match="idle_channels"):
        SpendPolicy(idle_channels="burn")
