"""Wallets that share a ledger share its channels, call by call; and no look at the chain leads to a second deposit."""

from __future__ import annotations

import threading

import pytest

from opengradient_devnet import Scheme
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import PROMPT, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
WALLET, DEPOSIT = 10 * 10**18, 10**18


def test_two_wallet_objects_with_one_channel_take_turns(net, account, tmp_path):
    path, policy = tmp_path / "shared.sqlite", SpendPolicy(max_channels=1)
    with (
        payments_for(net, account, path, policy=policy) as first,
        payments_for(net, account, path, policy=policy) as second,
        client_for(first) as one,
        client_for(second) as other,
    ):
        later = []
        with one.stream(PROMPT) as stream:
            next(iter(stream))
            waiting = threading.Thread(target=lambda: later.append(other.chat(PROMPT).receipt))
            waiting.start()
            waiting.join(1.0)
            assert waiting.is_alive()
            assert later == []
            list(stream)
        waiting.join(60)
        (channel,) = first.channels.list()
        (receipt,) = later
    assert receipt.status == "served"
    assert net.chain.token_balance(account.address) == WALLET - DEPOSIT
    assert channel.charged_atomic == stream.receipt.cost_atomic + receipt.cost_atomic


def test_a_look_at_an_older_block_forgets_no_deposit_and_frees_no_reservation(net, account, payments, client):
    client.chat(PROMPT)
    cost = client.chat(PROMPT).receipt.cost_atomic
    asset, network = payments.network.asset.address, payments.network.caip2
    reserved = payments.ledger.spent(payer=payments.payer, asset=asset, network=network).result()
    Reconciler(payments.network, payments.ledger, confirmations=40).reconcile()  # before there was a channel
    assert payments.ledger.spent(payer=payments.payer, asset=asset, network=network).result() == reserved
    client.chat(PROMPT)
    assert cost > 0
    assert net.chain.token_balance(account.address) == WALLET - DEPOSIT
    assert len(payments.channels.list()) == 1
