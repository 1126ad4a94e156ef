"""og-x402's own middleware, as the live gateways run it, is paid by our client; the devnet is its facilitator."""

from __future__ import annotations

import httpx
import pytest

from opengradient_devnet.chain.accounts import new_account
from opengradient_devnet.contracts import RELAY
from opengradient_x402.errors import PaymentOutcomeUnknown
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.settlement_mode import SettlementMode
from support.payers import PROMPT, client_for, gateway_task, opg_balance, payments_for
from support.queueing_facilitator import queueing_in_front_of

OPG = 10**18
CAP = OPG // 20
COST = 1_234_567_890_123_457
ANSWER = "Paid by our client."
TOOL = {"name": "token_price", "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}}}
WITH_TOOLS = PROMPT | {"tools": [{"type": "function", "function": TOOL}]}
FORKS = {"sdk": True, "sessions_fork": True, "newer_fork": False}
"""Environments of releases of the fork (0.0.2.dev2, 0.0.2.dev8, 2.15.0), and whether they have sessions."""


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
    return gateway_task(net, payee, cap_atomic=CAP, cost_atomic=COST, sessions=True)


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
            assert [delta.content for delta in stream if delta.content] == ["Paid ", "by ", "our client."]
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
        newer_fork.serve(scripts / "fork_gateway.py", task | {"sessions": False}) as gateway,
        Recorder() as recorder,
        client_for(payments, base_url=gateway["url"], http_transport=recorder) as client,
    ):
        first = client.chat(PROMPT)
        with client.stream(PROMPT) as stream:
            assert "".join(delta.content for delta in stream) == first.content == ANSWER
        # There is no session to reuse: the second call pays with a signature of its own, unasked.
        assert recorder.seen == [([], 402), (["PAYMENT-SIGNATURE"], 200), (["PAYMENT-SIGNATURE"], 200)]
        assert opg_balance(net, payee) == 2 * COST
        assert opg_balance(net, account.address) == OPG - 2 * COST
    Reconciler(payments.network, payments.ledger).reconcile()
    receipts = payments.ledger.receipts().result()
    assert [(receipt.status, receipt.settled_atomic) for receipt in receipts] == [(ReceiptStatus.SETTLED, COST)] * 2
    claimed = {first.receipt.claimed_payment_tx_hash, stream.receipt.claimed_payment_tx_hash}
    assert claimed == {receipt.payment_tx_hash for receipt in receipts}


def every_kind_in_every_mode(client):
    """Makes calls for text and for tools, whole and streamed, in each settlement mode; how many that were."""
    for mode in SettlementMode:
        for asked, wanted in ((PROMPT, (ANSWER, [])), (WITH_TOOLS, ("", ["token_price"]))):
            whole = client.chat(asked, settlement_mode=mode)
            assert (whole.content, [call.name for call in whole.tool_calls]) == wanted
            with client.stream(asked, settlement_mode=mode) as stream:
                assert "".join(delta.content for delta in stream) == wanted[0]
            assert [call.name for call in stream.completion.tool_calls] == wanted[1]
    return len(SettlementMode) * 4


def assert_every_call_is_settled_to_the_unit(net, payments, payee, calls):
    Reconciler(payments.network, payments.ledger).reconcile()
    receipts = payments.ledger.receipts().result()
    assert len(receipts) == calls
    assert {(receipt.status, receipt.dispute) for receipt in receipts} == {(ReceiptStatus.SETTLED, None)}
    taken = sum(receipt.settled_atomic for receipt in receipts)
    assert taken == opg_balance(net, payee) == OPG - opg_balance(net, payments.payer) == calls * COST
    return receipts


@pytest.mark.parametrize("fork", FORKS)
def test_calls_of_every_kind_through_a_fork_are_settled_by_the_official_facilitator(
    request, scripts, net, official_facilitator, task, account, payee, tmp_path, fork
):
    venv = request.getfixturevalue(fork)
    task |= {"facilitator_url": official_facilitator["url"], "sessions": FORKS[fork]}
    policy = SpendPolicy(payees=[payee], facilitators=[official_facilitator["address"]])
    with payments_for(net, account, tmp_path / "official.sqlite", policy=policy) as payments:
        with (
            venv.serve(scripts / "fork_gateway.py", task) as gateway,
            client_for(payments, base_url=gateway["url"]) as client,
        ):
            calls = every_kind_in_every_mode(client)
        assert_every_call_is_settled_to_the_unit(net, payments, payee, calls)


def test_calls_of_every_kind_are_settled_by_a_facilitator_that_only_promises_jobs(
    sessions_fork, scripts, net, task, payee, payments
):
    with (
        queueing_in_front_of(task["facilitator_url"]) as queue,
        sessions_fork.serve(scripts / "fork_gateway.py", task | {"facilitator_url": queue.url}) as gateway,
        client_for(payments, base_url=gateway["url"]) as client,
    ):
        calls = every_kind_in_every_mode(client)
    receipts = assert_every_call_is_settled_to_the_unit(net, payments, payee, calls)
    assert queue.done.keys() == queue.promised.keys()
    jobs = {receipt.data_settlement_job for receipt in receipts} - {None}
    assert len(jobs) == sum(receipt.settlement_mode == "individual" for receipt in receipts) > 0
    assert jobs == {job for job, type_ in queue.promised.items() if type_ == "individual"}
    assert all(receipt.data_tx_hash is None for receipt in receipts)


def test_a_middleware_that_takes_a_promised_job_for_a_failure_is_paid_once_however_often_it_is_asked(
    newer_fork, scripts, net, task, payee, payments
):
    """It keeps the answer back, and its facilitator settles later all the same: every job holds the same payment."""
    with (
        queueing_in_front_of(task["facilitator_url"]) as queue,
        newer_fork.serve(
            scripts / "fork_gateway.py", task | {"facilitator_url": queue.url, "sessions": False}
        ) as gateway,
        client_for(payments, base_url=gateway["url"]) as client,
    ):
        for _ in range(3):
            with pytest.raises(PaymentOutcomeUnknown):
                client.chat(PROMPT)
    assert len(queue.promised) == 3
    Reconciler(payments.network, payments.ledger).reconcile()
    receipts = payments.ledger.receipts().result()
    assert {(receipt.status, receipt.dispute) for receipt in receipts} == {(ReceiptStatus.SETTLED, None)}
    assert len(payments.ledger.authorizations().result()) == 1
    assert sum(receipt.settled_atomic for receipt in receipts) == opg_balance(net, payee) == COST
