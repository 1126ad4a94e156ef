"""og-x402's own middleware, as the live gateways run it, is paid by our client; the devnet is its facilitator."""

from __future__ import annotations

import httpx
import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_devnet.contracts import RELAY
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from support.payers import PROMPT, client_for, opg_balance, payments_for

OPG = 10**18
CAP = OPG // 20
COST = 1_234_567_890_123_457
ANSWER = "Paid with a session."


class Recorder(httpx.HTTPTransport):
    """Notes how each request was paid, and what came back."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_request(self, request):
        response = super().handle_request(request)
        paid_by = [name for name in ("PAYMENT-SIGNATURE", "X-Upto-Session") if name in request.headers]
        self.seen.append((paid_by, response.status_code))
        return response


@pytest.fixture
def payee():
    return new_account().address


@pytest.fixture
def task(net, payee):
    return {
        "facilitator_url": net.network["facilitator_url"],
        "network": net.network["network"],
        "asset": net.network["asset"]["address"],
        "pay_to": payee,
        "cap_atomic": str(CAP),
        "cost_atomic": str(COST),
    }


@pytest.fixture
def account(net):
    return net.account(opg="1", approved=True)


@pytest.fixture
def payments(net, account, payee, tmp_path):
    policy = SpendPolicy(payees=[payee])
    with payments_for(net, account, tmp_path / "ledger.sqlite", policy=policy) as opened:
        yield opened


def test_our_client_pays_the_forks_middleware_with_one_session(sdk, scripts, net, task, account, payee, payments):
    with (
        sdk.serve(scripts / "fork_gateway.py", task) as gateway,
        Recorder() as recorder,
        client_for(payments, base_url=gateway["url"], http_transport=recorder) as client,
    ):
        assert [client.chat(PROMPT).content for _ in range(2)] == [ANSWER] * 2
        with client.stream(PROMPT) as stream:
            assert [delta.content for delta in stream if delta.content] == ["Paid ", "with ", "a session."]
    session, signature = (["X-Upto-Session"], 200), (["PAYMENT-SIGNATURE"], 200)
    assert recorder.seen == [([], 402), signature, session, session]
    # Ending the gateway settled the session: one transaction for three calls.
    assert opg_balance(net, payee) == 3 * COST
    assert opg_balance(net, account.address) == OPG - 3 * COST
    Reconciler(payments.network, payments.ledger).reconcile()
    receipts = payments.ledger.receipts().result()
    assert {receipt.status for receipt in receipts} == {ReceiptStatus.SETTLED}
    assert len(receipts) == 3
    assert sum(receipt.settled_atomic for receipt in receipts) == 3 * COST
    (tx_hash,) = {receipt.payment_tx_hash for receipt in receipts}
    assert net.chain.rpc("eth_getTransactionReceipt", [tx_hash])["status"] == "0x1"


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_individual_call_through_the_fork_is_written_to_the_relay(sdk, scripts, net, task, payments, is_stream):
    with (
        sdk.serve(scripts / "fork_gateway.py", task) as gateway,
        client_for(payments, base_url=gateway["url"], settlement_mode="individual") as client,
    ):
        if is_stream:
            with client.stream(PROMPT) as stream:
                assert "".join(delta.content for delta in stream) == ANSWER
            receipt = stream.receipt
        else:
            receipt = client.chat(PROMPT).receipt
    written = net.chain.rpc("eth_getTransactionReceipt", [receipt.data_tx_hash])
    (log,) = written["logs"]
    assert (written["status"], log["address"].lower()) == ("0x1", RELAY.lower())
    assert "0x" + "11" * 32 in log["topics"]


def test_our_client_pays_the_forks_newer_middleware_call_by_call(
    newer_fork, scripts, net, task, account, payee, payments
):
    with (
        newer_fork.serve(scripts / "newer_fork_gateway.py", task) as gateway,
        Recorder() as recorder,
        client_for(payments, base_url=gateway["url"], http_transport=recorder) as client,
    ):
        first = client.chat(PROMPT)
        with client.stream(PROMPT) as stream:
            assert "".join(delta.content for delta in stream) == first.content == "Paid call by call."
        # There is no session to reuse: the second call pays with a signature of its own, unasked.
        assert recorder.seen == [([], 402), (["PAYMENT-SIGNATURE"], 200), (["PAYMENT-SIGNATURE"], 200)]
        assert opg_balance(net, payee) == 2 * COST
        assert opg_balance(net, account.address) == OPG - 2 * COST
    Reconciler(payments.network, payments.ledger).reconcile()
    receipts = payments.ledger.receipts().result()
    assert [(receipt.status, receipt.settled_atomic) for receipt in receipts] == [(ReceiptStatus.SETTLED, COST)] * 2
    claimed = {first.receipt.claimed_payment_tx_hash, stream.receipt.claimed_payment_tx_hash}
    assert claimed == {receipt.payment_tx_hash for receipt in receipts}
