"""Paid calls over real sockets: who pays, how often, and what the chain says afterwards."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx
import pytest

from opengradient_devnet import faults
from opengradient_x402.errors import (
    GatewayError,
    GatewayUnreachable,
    PaidButFailed,
    PaymentOutcomeUnknown,
    PolicyRefused,
    ResponseInvalid,
    StreamInterrupted,
    UnknownModel,
)
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.models import find_model
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.payment.transport import AsyncX402Transport, X402Transport
from support.payers import (
    PROMPT,
    async_client_for,
    client_for,
    network_of,
    opg_balance,
    payments_for,
    settled_receipts,
)

pytestmark = pytest.mark.devnet(pace_s=0.002)

EXACT = {"exact-permit2": "permit2", "exact-eip3009": "eip3009"}
BEARER = {"authorization": "Bearer x"}
CHEAP = {**PROMPT, "model": "openai/gpt-5-nano"}  # a hundred calls stay below the cap of one session


@pytest.fixture
def heard():
    return []


def authorizations(payments):
    return payments.ledger.authorizations().result()


def count_requests(payments, client):
    """Wraps the client's wire, so that a test can see what really was sent."""
    sent = []
    wire = client._wire
    original = wire.handle_request

    def record(request):
        sent.append(request)
        return original(request)

    wire.handle_request = record
    return sent


def test_a_call_is_paid_answered_settled_and_explained_to_the_unit(net, account, payments, client, heard):
    before = opg_balance(net, account.address)
    completion = client.chat(PROMPT, on_receipt=heard.append)
    assert "What is x402?" in completion.content
    assert completion.usage.total_tokens > 0
    (receipt,) = settled_receipts(net, payments)
    assert heard == [completion.receipt]
    assert receipt.status is ReceiptStatus.SETTLED
    assert receipt.settled_atomic == completion.receipt.cost_atomic == before - opg_balance(net, account.address) > 0
    assert net.chain.rpc("eth_getTransactionReceipt", [receipt.payment_tx_hash])["status"] == "0x1"
    assert receipt.block_number == int(
        net.chain.rpc("eth_getTransactionReceipt", [receipt.payment_tx_hash])["blockNumber"], 16
    )


def test_a_stream_shows_its_first_token_while_the_rest_is_not_yet_made(net, payments, heard):
    net.faults.inject(faults.SlowDrip(pace_s=0.1))
    with client_for(payments) as client, client.stream(PROMPT, on_receipt=heard.append) as stream:
        first = next(stream)
        assert first.content
        assert heard == []
        rest = list(stream)
    assert len(rest) > 3
    assert stream.completion.content == first.content + "".join(delta.content for delta in rest)
    assert heard == [stream.completion.receipt]


def test_steady_state_is_one_request_a_call(payments, client):
    sent = count_requests(payments, client)
    client.chat(PROMPT)
    assert [("PAYMENT-SIGNATURE" in r.headers, "X-Upto-Session" in r.headers) for r in sent] == [
        (False, False),
        (True, False),
    ]
    sent.clear()
    for _ in range(5):
        client.chat(PROMPT)
    assert [("PAYMENT-SIGNATURE" in r.headers, "X-Upto-Session" in r.headers) for r in sent] == [(False, True)] * 5
    assert len(authorizations(payments)) == 1


def test_a_dead_session_is_replaced_by_a_preemptive_payment(net, payments, client):
    client.chat(PROMPT)
    sent = count_requests(payments, client)
    net.faults.inject(faults.KillSession())
    client.chat(PROMPT)
    assert [("PAYMENT-SIGNATURE" in r.headers, "X-Upto-Session" in r.headers) for r in sent] == [
        (False, True),
        (True, False),
    ]
    assert len(authorizations(payments)) == 2
    receipts = settled_receipts(net, payments)
    assert {r.status for r in receipts} == {ReceiptStatus.SETTLED}


def test_a_changed_price_is_signed_anew_under_the_same_nonce(net, account, payments, client):
    client.chat(PROMPT)
    net.close_sessions()
    net.faults.inject(faults.AlterTerms(amount=str(15 * 10**16)), times=None)
    client.chat(PROMPT)
    rows = authorizations(payments)
    assert [row.amount_atomic for row in rows] == [10**17, 15 * 10**16]
    assert len({row.nonce for row in rows}) == 2
    net.faults.clear()


def test_hundred_cold_parallel_calls_sign_one_authorization(net, account, payments, client, heard):
    before = opg_balance(net, account.address)
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: client.chat(CHEAP, on_receipt=heard.append), range(100)))
    assert len({answer.receipt.call_id for answer in answers}) == len(heard) == 100
    assert len(authorizations(payments)) == 1
    receipts = settled_receipts(net, payments)
    assert sum(r.settled_atomic for r in receipts) == before - opg_balance(net, account.address)


async def test_hundred_cold_parallel_tasks_sign_one_authorization(payments):
    client = async_client_for(payments)
    answers = await asyncio.gather(*(client.chat(CHEAP) for _ in range(100)))
    assert len(answers) == 100
    assert len(authorizations(payments)) == 1
    await client.aclose()


async def test_a_sync_call_inside_a_running_loop_works_beside_an_opening_task(net, payments, client):
    net.faults.inject(faults.SlowDrip(pace_s=0.05))
    async_client = async_client_for(payments)
    task = asyncio.create_task(async_client.chat(PROMPT))
    await asyncio.sleep(0.02)  # the task is opening the session now, and this loop cannot run while we block
    assert client.chat(PROMPT).content
    assert (await task).content
    await async_client.aclose()


def test_one_async_client_serves_three_loops_one_after_another(payments):
    client = async_client_for(payments)
    for _ in range(3):
        assert asyncio.run(client.chat(PROMPT)).content
    assert len(authorizations(payments)) == 1


def test_an_abandoned_stream_closes_the_connection_and_keeps_the_receipt(net, payments, client, heard):
    net.faults.inject(faults.SlowDrip(pace_s=0.05))
    stream = client.stream(PROMPT, on_receipt=heard.append)
    next(stream)
    stream.close()
    assert [r.outcome for r in heard] == ["abandoned"]
    (receipt,) = settled_receipts(net, payments)
    assert (receipt.status, receipt.outcome) == (ReceiptStatus.SETTLED, "abandoned")
    assert receipt.settled_atomic > 0


def test_a_dropped_stream_keeps_the_receipt_too(payments, client, heard):
    stream = client.stream(PROMPT, on_receipt=heard.append)
    next(stream)
    del stream
    assert [r.outcome for r in heard] == ["abandoned"]


async def test_a_cancelled_call_keeps_its_receipt_and_its_payment_is_used_by_the_next(net, payments, heard):
    client = async_client_for(payments)
    struck = len(net.faults.struck)
    net.faults.inject(faults.HangUp(after_s=4.0))
    task = asyncio.create_task(client.chat(PROMPT, on_receipt=heard.append))
    while len(net.faults.struck) == struck:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(r.outcome, r.status) for r in heard] == [("abandoned", ReceiptStatus.AUTHORIZED)]
    net.faults.clear()
    await client.chat(PROMPT)
    assert len(authorizations(payments)) == 1, "the payment in doubt is used before a new one is signed"
    await client.aclose()


async def test_a_cancelled_stream_closes_the_connection_and_keeps_the_receipt(net, payments, heard):
    client = async_client_for(payments)
    net.faults.inject(faults.SlowDrip(pace_s=0.2))

    begun = asyncio.Event()

    async def read():
        async with await client.stream(PROMPT, on_receipt=heard.append) as stream:
            async for _ in stream:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [r.outcome for r in heard] == ["abandoned"]
    await client.aclose()


def test_a_timeout_after_payment_signs_once_and_says_that_the_outcome_is_unknown(net, payments, heard):
    net.faults.inject(faults.HangUp(after_s=6.0))
    with client_for(payments, timeout_s=2.0) as client:
        with pytest.raises(PaymentOutcomeUnknown, match="timed out after the payment") as caught:
            client.chat(PROMPT, on_receipt=heard.append)
        assert caught.value.receipt == heard[0]
        assert not caught.value.is_retryable
        net.faults.clear()
        client.chat(PROMPT, timeout_s=60)
    assert len(authorizations(payments)) == 1


def test_a_gateway_that_hangs_up_after_payment_is_not_paid_again(net, payments, client, heard):
    net.faults.inject(faults.HangUp())
    with pytest.raises(PaymentOutcomeUnknown):
        client.chat(PROMPT, on_receipt=heard.append)
    assert len(heard) == len(authorizations(payments)) == 1


@pytest.mark.parametrize("status", [400, 401, 429, 500, 502, 503, 504])
def test_an_error_after_payment_is_not_retried_and_carries_the_receipt(net, payments, client, heard, status):
    net.faults.inject(faults.AnswerStatus(status=status))
    sent = count_requests(payments, client)
    with pytest.raises(GatewayError, match="injected") as caught:
        client.chat(PROMPT, on_receipt=heard.append)
    assert len(sent) == 2
    assert caught.value.status_code == status
    assert caught.value.receipt == heard[0]
    assert not caught.value.is_retryable


def test_errors_in_every_place_of_a_stream_carry_the_receipt(net, payments, client, heard):
    for fault, error in (
        (faults.ErrorEvent(), GatewayError),
        (faults.TruncateStream(), StreamInterrupted),
        (faults.TruncateStream(cut_connection=True), StreamInterrupted),
        (faults.OmitDone(), StreamInterrupted),
        (faults.EmptyStream(), StreamInterrupted),
        (faults.EmptyStream(send_done=True), StreamInterrupted),
        (faults.RawEvent(text="data: {not json}\n\n"), ResponseInvalid),
        (faults.AnswerStatus(status=503), GatewayError),
    ):
        heard.clear()
        net.faults.inject(fault)
        with pytest.raises(error) as caught:
            list(client.stream(PROMPT, on_receipt=heard.append))
        assert [caught.value.receipt] == heard, fault
        assert isinstance(caught.value, PaidButFailed)


def test_a_garbled_body_is_an_error_with_the_receipt(net, payments, client, heard):
    net.faults.inject(faults.GarbleBody())
    with pytest.raises(ResponseInvalid) as caught:
        client.chat(PROMPT, on_receipt=heard.append)
    assert caught.value.receipt == heard[0]


def test_a_redirect_after_payment_is_not_followed(net, payments, client):
    net.faults.inject(faults.Redirect(location="http://127.0.0.1:9/steal"))
    sent = count_requests(payments, client)
    with pytest.raises(PaidButFailed, match="redirect"):
        client.chat(PROMPT)
    assert {r.url.host for r in sent} == {"127.0.0.1"}
    assert all(r.url.port != 9 for r in sent)


def test_redirect_loops_under_a_plain_httpx_client_pay_once(net, payments):
    net.faults.inject(faults.Redirect(location=f"{net.gateway_url}/v1/chat/completions"), times=None)
    transport = X402Transport(payments)
    with httpx.Client(transport=transport, follow_redirects=True) as plain, pytest.raises(PaidButFailed):
        plain.post(f"{net.gateway_url}/v1/chat/completions", json=PROMPT, headers=BEARER)
    assert len(authorizations(payments)) == 1


def test_a_402_for_ever_ends_after_one_authorization_and_opens_the_breaker(net, payments, client):
    net.faults.inject(faults.RefusePayment(error="nope"), times=None)
    for _ in range(3):
        with pytest.raises(PaymentOutcomeUnknown, match="nope"):
            client.chat(PROMPT)
    sent = count_requests(payments, client)
    with pytest.raises(Exception, match="refused 3 payments in a row"):
        client.chat(PROMPT)
    assert sent == []


def test_a_hostile_402_body_is_not_read(net, payments, client):
    net.faults.inject(faults.HugeChallenge(pace_s=0.05))
    assert client.chat(PROMPT).content


def test_an_unusable_session_id_is_not_kept(net, payments, client):
    net.faults.inject(faults.ForgeSessionId(value="bad id; x=1"))
    assert client.chat(PROMPT).content
    assert client.chat(PROMPT).content


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(faults.AlterTerms(amount=str(6 * 10**18)), "limit", id="price"),
        pytest.param(faults.AlterTerms(pay_to="0x" + "11" * 20), "payee", id="payee"),
        pytest.param(faults.AlterTerms(asset="0x" + "22" * 20), "asset|token", id="token"),
        pytest.param(faults.AlterTerms(network="eip155:8453"), "pays on eip155:31402", id="network"),
        pytest.param(faults.AlterTerms(facilitator="0x" + "33" * 20), "facilitator", id="facilitator"),
        pytest.param(faults.AlterTerms(max_timeout_s=10**9), "deadline|seconds| s", id="deadline"),
    ],
)
def test_hostile_terms_are_refused_and_nothing_is_signed(net, account, payments, client, fault, reason):
    before = opg_balance(net, account.address)
    net.faults.inject(fault, times=None)
    with pytest.raises(PolicyRefused, match=reason):
        client.chat(PROMPT)
    assert authorizations(payments) == []
    net.close_sessions()
    assert opg_balance(net, account.address) == before


def test_a_facilitator_that_changes_gets_no_signature_where_the_network_names_none(net, account, tmp_path):
    """The first one is kept, also for the processes that come later."""
    network, path = replace(network_of(net), facilitators=frozenset()), tmp_path / "pinned.sqlite"

    def opened():
        return Payments.open(network=network, private_key=account.private_key, policy=SpendPolicy(), ledger=path)

    with closing(opened()) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.close_sessions()
        settled_receipts(net, payments)
    before = opg_balance(net, account.address)
    net.faults.inject(faults.AlterTerms(facilitator="0x" + "33" * 20), times=None)
    with closing(opened()) as payments, client_for(payments) as client:
        with pytest.raises(PolicyRefused, match=r"facilitator.*pinned at first use"):
            client.chat(PROMPT)
        assert [one.status for one in authorizations(payments)] == ["settled"]
    net.close_sessions()
    assert opg_balance(net, account.address) == before


def test_an_unknown_model_is_refused_before_anything_is_paid(payments, client):
    with pytest.raises(UnknownModel, match="does not serve a model 'nobody/nothing'"):
        client.chat({**PROMPT, "model": "nobody/nothing"})
    assert authorizations(payments) == []


def test_an_unreachable_gateway_is_retried_and_nothing_is_paid(payments):
    with (
        client_for(payments, base_url="http://127.0.0.1:9", max_retries=1) as client,
        pytest.raises(GatewayUnreachable, match="Nothing was signed") as caught,
    ):
        client.chat(PROMPT)
    assert caught.value.is_retryable
    assert authorizations(payments) == []


def test_a_budget_that_is_reserved_by_expired_authorizations_is_reclaimed(net, account, tmp_path):
    policy = SpendPolicy(max_per_day="0.15")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.close_sessions()
        client.chat(PROMPT)  # 0.1 + 0.1 would exceed 0.15; the first one settled for far less
        assert [row.status for row in authorizations(payments)] == ["settled", "signed"]


def test_sessions_are_shared_by_sync_and_async_clients_of_one_payer(payments, client):
    client.chat(PROMPT)
    async_client = async_client_for(payments)
    asyncio.run(async_client.chat(PROMPT))
    assert len(authorizations(payments)) == 1


def test_the_transport_pays_under_a_plain_httpx_client(net, payments):
    url = f"{net.gateway_url}/v1/chat/completions"
    body = {**PROMPT, "model": "gpt-5"}
    with httpx.Client(transport=X402Transport(payments), headers=BEARER) as plain:
        assert plain.post(url, json=body).json()["choices"][0]["message"]["content"]
        with plain.stream("POST", url, json={**body, "stream": True}) as response:
            assert b"[DONE]" in response.read()

    async def go():
        async with httpx.AsyncClient(transport=AsyncX402Transport(payments), headers=BEARER) as c:
            return (await c.post(url, json=body)).json()

    assert asyncio.run(go())["choices"]
    receipts = settled_receipts(net, payments)
    assert [r.outcome for r in receipts] == ["ok"] * 3
    assert {r.status for r in receipts} == {ReceiptStatus.SETTLED}


def test_without_sessions_every_call_pays_for_itself_and_names_its_transaction(devnets, tmp_path):
    net = devnets(sessions=False)
    account = net.account(opg="1", approved=True)
    before = opg_balance(net, account.address)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        claims = [client.chat(PROMPT).receipt.claimed_payment_tx_hash for _ in range(3)]
        receipts = settled_receipts(net, payments)
    assert [r.payment_tx_hash for r in receipts] == claims
    assert sum(r.settled_atomic for r in receipts) == before - opg_balance(net, account.address) > 0


@pytest.mark.parametrize("scheme", list(EXACT))
def test_the_exact_scheme_is_paid_to_the_unit(devnets, tmp_path, scheme):
    net = devnets(sessions=False, schemes=(scheme,))
    account = net.account(opg="1", approved=True)
    before = opg_balance(net, account.address)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        (receipt,) = settled_receipts(net, payments)
        assert [row.transfer_method for row in authorizations(payments)] == [EXACT[scheme]]
    assert receipt.scheme == "exact"
    assert receipt.settled_atomic == receipt.authorized_atomic == before - opg_balance(net, account.address)


def test_a_call_that_could_cost_more_than_its_limit_is_refused_before_it_is_sent(net, account, tmp_path):
    policy = SpendPolicy(max_per_call="0.05")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        with pytest.raises(PolicyRefused, match=r"could cost .* OPG; the limit is 0\.05 OPG"):
            client.chat({**PROMPT, "max_tokens": 100_000})
        assert authorizations(payments) == []
        assert client.chat({**PROMPT, "max_tokens": 10}).content
        sent = count_requests(payments, client)
        with pytest.raises(PolicyRefused, match="could cost"):
            client.chat({**PROMPT, "max_tokens": 100_000})
        assert sent == []


def test_a_limit_per_call_trusts_no_price_that_nobody_published(net, account, tmp_path):
    """The devnet invents a price for such a model: the call counts as all that its payment lets the gateway take."""
    unpriced = PROMPT | {"model": "openai/gpt-5.5", "max_tokens": 10}
    assert find_model(unpriced["model"]).price_source is None
    policy = SpendPolicy(max_per_call="0.05")
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT | {"max_tokens": 10})  # now the price of the token is known
        with pytest.raises(PolicyRefused, match=r"could cost 0\.1 OPG; the limit is 0\.05 OPG"):
            client.chat(unpriced)
    with payments_for(net, account, tmp_path / "other.sqlite") as payments, client_for(payments) as client:
        receipt = client.chat(unpriced).receipt
        assert (receipt.cost_atomic > 0, receipt.estimated_cost_atomic) == (True, None)  # what it claims is a claim


def test_a_price_jump_is_refused_after_a_restart_too(net, account, tmp_path):
    for amount, expected in ((10**17, None), (3 * 10**17, PolicyRefused)):
        net.close_sessions()
        net.faults.inject(faults.AlterTerms(amount=str(amount)), times=None)
        with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
            if expected is None:
                client.chat(PROMPT)
            else:
                with pytest.raises(expected, match=r"0\.1 OPG"):
                    client.chat(PROMPT)
        net.faults.clear()


def test_what_was_served_before_an_error_event_is_shown_before_the_error(net, payments, client):
    net.faults.inject(faults.ErrorEvent(after_deltas=4))
    shown = []
    stream = client.stream(PROMPT)
    with pytest.raises(GatewayError):
        shown.extend(iter(stream))
    assert len([delta for delta in shown if delta.content]) >= 2


def test_a_refused_higher_price_does_not_become_the_measure(net, account, tmp_path):
    def offer(amount):
        net.close_sessions()
        net.faults.clear()
        net.faults.inject(faults.AlterTerms(amount=str(amount)), times=None)

    ledger = tmp_path / "l.sqlite"
    with payments_for(net, account, ledger) as payments, client_for(payments) as client:
        offer(10**17)
        client.chat(PROMPT)
        offer(2 * 10**17)
        net.faults.inject(faults.RefusePayment(), times=2)
        with pytest.raises(PaymentOutcomeUnknown):
            client.chat(PROMPT)
    offer(4 * 10**17)
    with (
        payments_for(net, account, ledger) as payments,
        client_for(payments) as client,
        pytest.raises(PolicyRefused, match=r"0\.1 OPG"),
    ):
        client.chat(PROMPT)
