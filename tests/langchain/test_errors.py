"""Errors say what went wrong in LangChain's words and what happened to the money, and they lose no receipt."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from langchain_opengradient import ChatOpenGradient, SettlementCallbackHandler, get_settlement_callback
from langchain_opengradient.errors import as_model_error
from opengradient_devnet import Devnet
from opengradient_devnet.faults import (
    AnswerStatus,
    EmptyStream,
    ErrorEvent,
    ForgeProof,
    GarbleBody,
    HangUp,
    OmitDone,
    RefusePayment,
    SlowDrip,
    TruncateStream,
)
from opengradient_x402.errors import (
    AllowanceMissing,
    GatewayError,
    GatewayUnreachable,
    InsufficientFunds,
    InvalidPrivateKey,
    MoneyOutcome,
    OpenGradientError,
    PaidButFailed,
    PaymentOutcomeUnknown,
    ProofRejected,
    ResponseInvalid,
    StreamInterrupted,
    UnknownNetwork,
)

from .conftest import Payer, core_error


@pytest.fixture
def opened(payer: Payer) -> Payer:
    """A payer whose session is open already, so that faults strike paid calls."""
    payer.model().invoke("Open the session.")
    return payer


async def call(model: ChatOpenGradient, mode: str, config: dict, **kwargs) -> None:
    match mode:
        case "invoke":
            model.invoke("Hello", config, **kwargs)
        case "stream":
            list(model.stream("Hello", config, **kwargs))
        case "ainvoke":
            await model.ainvoke("Hello", config, **kwargs)
        case "astream":
            [_ async for _ in model.astream("Hello", config, **kwargs)]


async def fail(model: ChatOpenGradient, mode: str, config: dict, **kwargs) -> OpenGradientError:
    with pytest.raises(OpenGradientError) as caught:
        await call(model, mode, config, **kwargs)
    return caught.value


MODES = ("invoke", "stream", "ainvoke", "astream")
STREAMS = ("stream", "astream")


async def assert_paid_and_heard(payer: Payer, mode: str, fault: object, **kwargs) -> OpenGradientError:
    """The call fails after it was paid; its receipt is on the error, in the ledger, and heard by everybody once."""
    before = set(payer.receipts())
    payer._net.faults.inject(fault)
    told: list[str] = []
    handler = SettlementCallbackHandler(on_receipt=lambda receipt: told.append(receipt.call_id))
    with get_settlement_callback() as active:
        error = await fail(payer.model(), mode, {"callbacks": [handler]}, **kwargs)
    new = set(payer.receipts()) - before
    assert error.receipt is not None
    assert new == {error.receipt.call_id}
    assert told == [error.receipt.call_id]
    assert [receipt.call_id for receipt in active.receipts] == told
    assert error.settlement["call_id"] == error.receipt.call_id
    assert error.is_retryable is False
    return error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("status", "body", "typed"),
    [
        (400, '{"error": "no such parameter"}', "ModelInvalidRequestError"),
        (400, '{"error": "maximum context length exceeded"}', "ContextOverflowError"),
        (401, '{"error": "no"}', "ModelAuthenticationError"),
        (429, '{"error": "slow down"}', "ModelRateLimitError"),
        (500, '{"error": "oops"}', "ModelAPIError"),
        (504, '{"error": "provider timed out"}', "ModelTimeoutError"),
    ],
)
async def test_a_failure_after_payment_is_typed_and_not_retryable(opened: Payer, mode, status, body, typed):
    error = await assert_paid_and_heard(opened, mode, AnswerStatus(status=status, body=body))
    assert isinstance(error, GatewayError)
    assert isinstance(error, core_error(typed))
    assert error.money is MoneyOutcome.PAID
    assert error.status_code == status


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_a_garbled_answer_was_paid_all_the_same(opened: Payer, mode):
    assert isinstance(await assert_paid_and_heard(opened, mode, GarbleBody()), ResponseInvalid)


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize(
    "fault",
    [TruncateStream(), TruncateStream(cut_connection=True), OmitDone(), EmptyStream(), EmptyStream(send_done=True)],
    ids=repr,
)
async def test_a_stream_without_its_end_is_an_error_and_not_a_short_answer(opened: Payer, mode, fault):
    error = await assert_paid_and_heard(opened, mode, fault)
    assert isinstance(error, StreamInterrupted)
    assert isinstance(error, core_error("ModelConnectionError"))


@pytest.mark.parametrize("mode", STREAMS)
async def test_an_error_inside_a_stream_is_an_error(opened: Payer, mode):
    error = await assert_paid_and_heard(opened, mode, ErrorEvent(message="the provider fell over"))
    assert isinstance(error, GatewayError)
    assert "fell over" in str(error)


@pytest.mark.parametrize("mode", MODES)
async def test_a_time_out_after_payment_keeps_the_receipt(opened: Payer, mode):
    error = await assert_paid_and_heard(opened, mode, HangUp(after_s=4.0), timeout=1.0)
    assert isinstance(error, core_error("ModelTimeoutError"))
    assert error.money is not MoneyOutcome.NOT_PAID


@pytest.mark.parametrize("mode", MODES)
async def test_before_anything_is_signed_an_error_costs_nothing(payer: Payer, mode):
    with get_settlement_callback() as active:
        error = await fail(payer.model(base_url="http://127.0.0.1:9", max_retries=0), mode, {})
    assert isinstance(error, GatewayUnreachable)
    assert isinstance(error, core_error("ModelConnectionError"))
    assert error.is_retryable is True
    assert (error.receipt, active.calls, payer.receipts()) == (None, 0, {})


@pytest.mark.parametrize("mode", MODES)
async def test_a_refused_payment_is_not_tried_again(payer: Payer, mode):
    payer._net.faults.inject(RefusePayment())
    error = await fail(payer.model(), mode, {})
    assert isinstance(error, PaymentOutcomeUnknown)
    assert error.is_retryable is False
    assert payer.settle() == 0


def test_a_bad_key_is_found_on_first_use_and_never_shown(net: Devnet):
    with ChatOpenGradient(model="openai/gpt-5", api_key="not-a-key-5ecret", network=net.gateway_url) as model:
        pass
    model = ChatOpenGradient(model="openai/gpt-5", api_key="not-a-key-5ecret", network=f"{net.gateway_url}/network")
    with pytest.raises(InvalidPrivateKey) as caught:
        model.invoke("Hello")
    assert isinstance(caught.value, core_error("ModelAuthenticationError"))
    assert "5ecret" not in str(caught.value)


def test_an_unknown_network_is_refused():
    with pytest.raises(UnknownNetwork):
        ChatOpenGradient(model="openai/gpt-5", api_key="0x" + "11" * 32, network="atlantis").invoke("Hello")


@pytest.mark.parametrize(
    ("account", "expected"),
    [({"opg": "0", "approved": True}, InsufficientFunds), ({"opg": "10", "approved": False}, AllowanceMissing)],
)
def test_a_wallet_that_cannot_pay_is_told_before_it_signs(net: Devnet, account, expected):
    wallet = net.account(**account)
    network = f"{net.gateway_url}/network"
    with (
        ChatOpenGradient(model="openai/gpt-5", private_key=wallet.private_key, network=network) as model,
        pytest.raises(expected) as caught,
    ):
        model.invoke("Hello")
    assert caught.value.money is MoneyOutcome.NOT_PAID


async def cancel_when(is_time: Callable[[], bool], call: Coroutine[Any, Any, Any]) -> None:
    """Starts the call, and cancels it as soon as `is_time`."""
    task = asyncio.create_task(call)
    while not is_time():
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_call_keeps_its_receipt(opened: Payer):
    faults = opened._net.faults
    faults.inject(HangUp(after_s=4.0))
    handler, before, struck = SettlementCallbackHandler(), set(opened.receipts()), len(faults.struck)
    with get_settlement_callback() as active:
        call = opened.model().ainvoke("Hello", {"callbacks": [handler]})
        await cancel_when(lambda: len(faults.struck) > struck, call)
    [call_id] = set(opened.receipts()) - before
    assert [receipt.call_id for receipt in handler.receipts] == [call_id]
    assert [receipt.call_id for receipt in active.receipts] == [call_id]
    assert active.receipts[0].outcome == "abandoned"


@pytest.mark.parametrize("chunks_first", [0, 1])
async def test_a_cancelled_stream_keeps_its_receipt(opened: Payer, chunks_first):
    faults = opened._net.faults
    faults.inject(SlowDrip(pace_s=0.5) if chunks_first else HangUp(after_s=4.0))
    handler, before, seen, struck = SettlementCallbackHandler(), set(opened.receipts()), [], len(faults.struck)

    async def read() -> None:
        async for chunk in opened.model().astream("Hello", {"callbacks": [handler]}):
            seen.append(chunk)

    with get_settlement_callback() as active:
        await cancel_when(lambda: bool(seen) if chunks_first else len(faults.struck) > struck, read())
    [call_id] = set(opened.receipts()) - before
    assert bool(seen) is bool(chunks_first)
    assert [receipt.call_id for receipt in handler.receipts] == [call_id]
    assert [receipt.call_id for receipt in active.receipts] == [call_id]


def test_a_retry_on_request_is_a_second_call_with_a_second_receipt(opened: Payer):
    opened._net.faults.inject(AnswerStatus(status=500))
    before = set(opened.receipts())
    with get_settlement_callback() as active:
        opened.model().with_retry(wait_exponential_jitter=False, stop_after_attempt=2).invoke("Hello")
    assert {receipt.call_id for receipt in active.receipts} == set(opened.receipts()) - before
    assert sorted(receipt.outcome for receipt in active.receipts) == ["failed", "ok"]


def test_a_fallback_after_payment_has_both_receipts(opened: Payer):
    opened._net.faults.inject(AnswerStatus(status=500))
    chain = opened.model().with_fallbacks([opened.model(model="google/gemini-2.5-flash")])
    with get_settlement_callback() as active:
        chain.invoke("Hello")
    assert [receipt.outcome for receipt in active.receipts] == ["failed", "ok"]
    assert active.receipts[1].model.endswith("gemini-2.5-flash")


def test_an_error_survives_pickle_and_copy_with_all_that_it_carries(opened: Payer):
    opened._net.faults.inject(AnswerStatus(status=429))
    with pytest.raises(core_error("ModelRateLimitError")) as caught:
        opened.model().invoke("Hello")
    for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert isinstance(twin, core_error("ModelRateLimitError"))
        assert isinstance(twin, GatewayError)
        assert twin.receipt == caught.value.receipt
        assert str(twin) == str(caught.value)


@pytest.mark.parametrize("mode", MODES)
async def test_an_answer_without_a_good_proof_is_withheld_when_proofs_are_required(opened: Payer, mode):
    await call(opened.model(verify_tee="require"), mode, {})
    before = set(opened.receipts())
    opened._net.faults.inject(ForgeProof(part="signature"))
    error = await fail(opened.model(verify_tee="require"), mode, {})
    assert isinstance(error, ProofRejected)
    assert set(opened.receipts()) - before == {error.receipt.call_id}


def test_an_error_of_the_users_own_code_passes_through(opened: Payer):
    def explode(_: object) -> None:
        raise ZeroDivisionError

    with get_settlement_callback() as active, pytest.raises(ZeroDivisionError):
        (opened.model() | RunnableLambda(explode)).invoke("Hello")
    assert active.calls == 1


def test_every_kind_of_error_is_a_langchain_error_too():
    for kind in ("policy", "ledger", "chain", "proof", "payment", "configuration", "content_filter"):
        assert isinstance(as_model_error(PaidButFailed("x", kind=kind)), core_error("ModelError"))
