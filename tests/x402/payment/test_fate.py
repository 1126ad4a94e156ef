"""A payment in doubt was offered again, and is refused: whatever fails then, it does not count as not paid.

The chain is asked what became of the payment. The node may hang, or turn out to be one of another chain; the ledger may
be locked; the caller may give up. The call ends in its time, and the next one offers the same payment.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import pytest

from opengradient_devnet.faults import OmitDate, RefusePayment
from opengradient_x402.errors import ChainUnavailable, PaymentOutcomeUnknown, PolicyRefused
from opengradient_x402.ledger.authorizations import unanswered
from opengradient_x402.payment.doubts import Fate
from opengradient_x402.payment.payments import Payments
from opengradient_x402.telemetry.kept_receipts import KeptReceipts, update_kept
from support.node import serving
from support.payers import PROMPT, async_client_for, client_for, network_of, opg_balance, settled_receipts

LIMIT_S = 2.0


@pytest.fixture
def node(net):
    with serving(net.chain) as started:
        yield started


@pytest.fixture
def payments(net, account, node, tmp_path):
    network = replace(network_of(net), rpc_url=node.url)
    with closing(
        Payments.open(network=network, private_key=account.private_key, ledger=tmp_path / "payments.sqlite")
    ) as opened:
        yield opened


def hanging(method, params, number):
    time.sleep(2 * LIMIT_S)


def of_another_chain(method, params, number):
    return 200, {"result": "0x1"}


def limiting(method, params, number):
    return 429, {}


@pytest.mark.parametrize("fails", [hanging, of_another_chain, limiting, "ledger"])
def test_a_refused_payment_stays_in_doubt_when_its_fate_cannot_be_found_out(
    net, account, payments, node, tmp_path, fails
):
    before = opg_balance(net, account.address)
    net.faults.inject(RefusePayment(), times=2)
    with client_for(payments) as client, pytest.raises(PaymentOutcomeUnknown):
        client.chat(PROMPT)
    other = sqlite3.connect(tmp_path / "payments.sqlite", isolation_level=None)
    with closing(other), client_for(payments, timeout_s=LIMIT_S) as client:
        if fails == "ledger":
            other.execute("BEGIN IMMEDIATE")
        else:
            node.misbehave = fails
        began = time.monotonic()
        with pytest.raises(PaymentOutcomeUnknown, match="offers the same payment again") as unknown:
            client.chat(PROMPT)
        assert time.monotonic() - began < LIMIT_S + 2.0
        assert unknown.value.money == "unknown"
    node.misbehave = lambda *_: None
    with client_for(payments) as client:
        client.chat(PROMPT)
    assert len(payments.ledger.authorizations().result()) == 1
    settled = [receipt.settled_atomic for receipt in settled_receipts(net, payments)]
    assert sum(amount or 0 for amount in settled) == before - opg_balance(net, account.address) > 0


async def test_a_caller_that_gives_up_while_the_fate_is_asked_for_leaves_the_payment_to_the_next_call(
    net, payments, node
):
    client = async_client_for(payments)
    net.faults.inject(RefusePayment(), times=2)
    with pytest.raises(PaymentOutcomeUnknown):
        await client.chat(PROMPT)
    node.misbehave = hanging
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.chat(PROMPT), 0.5)
    node.misbehave = lambda *_: None
    await client.chat(PROMPT)
    await client.aclose()
    assert len(payments.ledger.authorizations().result()) == 1


def test_the_clock_is_asked_for_no_longer_than_the_call_may_take(net, account, payments, node):
    before = opg_balance(net, account.address)
    net.faults.inject(OmitDate(), times=None)
    node.misbehave = hanging
    began = time.monotonic()
    with client_for(payments, timeout_s=1) as client, pytest.raises(ChainUnavailable, match=r"clock.*Nothing was sig"):
        client.chat(PROMPT)
    assert time.monotonic() - began < 3.0
    assert payments.ledger.authorizations(status="signed").result() == []
    assert opg_balance(net, account.address) == before


def test_a_clock_that_the_chain_contradicts_is_compared_with_the_chains_by_name(net, payments, node):
    """A node that is an hour behind looks like a clock that is ahead: who disagrees must be told."""
    net.faults.inject(OmitDate(), times=None)
    an_hour_ago = f"0x{int(time.time()) - 3600:064x}"
    node.misbehave = lambda method, params, number: (
        (200, {"result": an_hour_ago}) if method == "eth_call" and "to" not in params[0] else None
    )
    with client_for(payments) as client, pytest.raises(PolicyRefused, match=r"s ahead of the chain's.*Nothing was sig"):
        client.chat(PROMPT)
    assert payments.ledger.authorizations(status="signed").result() == []


def test_what_was_read_while_a_call_went_on_does_not_replace_how_it_ended(payments, net):
    """Another call asks for the fate of its payment, and reads the ledger a moment before the call ends."""
    net.faults.inject(RefusePayment())
    with client_for(payments) as client, pytest.raises(PaymentOutcomeUnknown) as failed:
        client.chat(PROMPT)
    (authorization,) = payments.ledger.authorizations().result()
    news = []
    kept = KeptReceipts(on_news=news.append)
    kept.add(failed.value.receipt)
    update_kept([unanswered(authorization)])
    assert kept.latest() == (failed.value.receipt,)
    assert news == []
    assert payments.doubts.fate(authorization).result(10) is Fate.OPEN
    assert [receipt.outcome for receipt in kept.latest()] == ["failed"]
    assert news == []
