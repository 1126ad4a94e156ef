"""What the gateway of April 2026 says about money: jobs in the place of transactions, and no costs."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest

from opengradient_x402.errors import UnknownNetwork
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from support.payers import PROMPT, client_for, payments_for, settled_receipts

APRIL = "gateway-2026-04"
TOKEN_USD = "0.20"  # what the devnet reckons with; its network file does not say so


@pytest.fixture(scope="module")
def net(devnets):
    return devnets(behaves_like=APRIL)


def test_a_job_that_will_settle_is_no_transaction_and_no_reason_for_a_dispute(devnets, tmp_path):
    net = devnets(behaves_like=APRIL, sessions=False)
    account = net.account(opg="1", approved=True)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        receipt = client.chat(PROMPT).receipt
        assert receipt.payment_job.startswith("payment-")
        assert receipt.claimed_payment_tx_hash is receipt.payment_hash is None
        settled = receipt.wait_settled(timeout_s=60)
    assert (settled.status, settled.dispute) == (ReceiptStatus.SETTLED, None)
    assert settled.payment_hash == net.settlements[-1].transaction
    assert settled.payment_job == receipt.payment_job


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_queued_data_settlement_is_kept_as_a_job(payments, client, is_stream):
    if is_stream:
        stream = client.stream(PROMPT, settlement_mode="individual")
        list(stream)
        receipt = stream.receipt
    else:
        receipt = client.chat(PROMPT, settlement_mode="individual").receipt
    assert receipt.data_settlement_job
    assert receipt.data_tx_hash is None
    assert payments.ledger.receipts().result()[-1].data_settlement_job == receipt.data_settlement_job


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_gateway_that_writes_data_at_once_names_its_job_beside_the_transaction(devnets, tmp_path, is_stream):
    """Streams name it in their final event, whole answers in a header."""
    net = devnets()
    account = net.account(opg="1", approved=True)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        if is_stream:
            stream = client.stream(PROMPT, settlement_mode="individual")
            list(stream)
            receipt = stream.receipt
        else:
            receipt = client.chat(PROMPT, settlement_mode="individual").receipt
    assert receipt.data_settlement_job
    assert receipt.data_tx_hash.startswith("0x")


def test_a_claim_of_an_older_ledger_that_is_no_transaction_is_no_claim(net, payments, client):
    receipt = client.chat(PROMPT).receipt
    payments.ledger.record_call(replace(receipt, claimed_payment_tx_hash="payment-0001")).result()
    (settled,) = settled_receipts(net, payments)
    assert (settled.status, settled.dispute) == (ReceiptStatus.SETTLED, None)


def test_costs_that_are_not_quoted_are_not_known_without_a_token_price(client):
    receipt = client.chat(PROMPT).receipt
    assert (receipt.cost_atomic, receipt.estimated_cost_atomic, receipt.opg_usd) == (None, None, None)


def test_costs_are_estimated_by_the_token_price_of_the_network_file(net, account, tmp_path):
    path = tmp_path / "network.json"
    path.write_text(json.dumps({**net.network, "asset_usd": TOKEN_USD}))
    payments = Payments.open(network=str(path), private_key=account.private_key, ledger=tmp_path / "l.sqlite")
    with closing(payments), client_for(payments) as client:
        whole = client.chat(PROMPT).receipt
        stream = client.stream(PROMPT)
        list(stream)
        assert (whole.cost_atomic, whole.status) == (None, ReceiptStatus.SERVED)
        receipts = settled_receipts(net, payments)
    assert sum(receipt.settled_atomic for receipt in receipts) > 0
    shares = [receipt.settled_atomic for receipt in receipts]
    estimates = [whole.estimated_cost_atomic, stream.receipt.estimated_cost_atomic]
    assert all(abs(share - estimate) <= 1 for share, estimate in zip(shares, estimates, strict=True))


def test_costs_are_estimated_by_the_last_quote_that_the_ledger_noted(net, devnets, account, tmp_path):
    """The same wallet, first at a gateway that quotes; later, as in another process, at one that does not."""
    quoting = devnets()
    path = tmp_path / "l.sqlite"
    with payments_for(quoting, quoting.account(approved=True), path) as payments, client_for(payments) as client:
        quoted = client.chat(PROMPT).receipt
        assert (quoted.estimated_cost_atomic, quoted.opg_usd) == (None, "0.2")
    with payments_for(net, account, path) as payments, client_for(payments) as client:
        receipts = (client.chat(PROMPT).receipt for _ in range(50))  # no call waits for what the ledger noted
        later = next(receipt for receipt in receipts if receipt.estimated_cost_atomic is not None)
    assert later.cost_atomic is None
    assert later.estimated_cost_atomic == quoted.cost_atomic


def test_a_token_price_in_a_network_file_must_be_one(net, tmp_path):
    path = tmp_path / "network.json"
    path.write_text(json.dumps({**net.network, "asset_usd": TOKEN_USD}))
    assert load_network(path).asset_usd == TOKEN_USD
    path.write_text(json.dumps({**net.network, "asset_usd": "1e-9"}))
    with pytest.raises(UnknownNetwork, match="asset_usd"):
        load_network(path)
