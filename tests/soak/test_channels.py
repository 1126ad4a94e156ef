"""A pool of channels under load, and very many calls on one deposit. Run by hand: `uv run pytest -m soak`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from opengradient_devnet import Scheme
from support.payers import PROMPT

pytestmark = [pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT], batch_size=1000), pytest.mark.soak]


def charged_at(net, payments):
    return sum(one.charged for one in net.channels if one.config.payer == payments.payer)


def test_a_hundred_calls_at_once_share_four_channels(net, payments, client):
    began = time.monotonic()
    with ThreadPoolExecutor(100) as threads:
        receipts = list(threads.map(lambda _: client.chat(PROMPT).receipt, range(100)))
    print(f"{time.monotonic() - began:.1f} s for 100 calls at once")
    assert {receipt.status for receipt in receipts} == {"served"}
    channels = payments.rides.book.channels(network=payments.network.caip2).result()
    assert len(channels) == 4
    assert sum(receipt.cost_atomic for receipt in receipts) == charged_at(net, payments)
    net.claim_channels()
    payments.reconciler.reconcile()
    settled = payments.ledger.receipts().result()
    assert {receipt.status for receipt in settled} == {"settled"}
    assert sum(receipt.settled_atomic for receipt in settled) == charged_at(net, payments)


def test_a_thousand_calls_on_one_deposit_are_claimed_to_the_unit(net, account, payments, client):
    before = net.chain.token_balance(account.address)
    began = time.monotonic()
    for number in range(1000):
        client.chat({**PROMPT, "max_tokens": 5})
        if number % 100 == 0:
            print(f"{number} calls in {time.monotonic() - began:.1f} s")
            net.claim_channels()
    assert before - net.chain.token_balance(account.address) == 10**18
    net.claim_channels()
    began = time.monotonic()
    payments.reconciler.reconcile()
    print(f"reconciled in {time.monotonic() - began:.1f} s")
    (channel,) = payments.rides.book.channels(network=payments.network.caip2).result()
    settled = payments.ledger.receipts().result()
    assert {receipt.status for receipt in settled} == {"settled"}
    assert channel.claimed_atomic == sum(receipt.settled_atomic for receipt in settled) == charged_at(net, payments)
