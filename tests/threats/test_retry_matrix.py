"""Every layer that repeats a call, over every fault that comes after a payment: what the chain takes, what is said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from llama_index.core.llms import ChatMessage

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_devnet.faults import AnswerStatus, HangUp, SettleAndRefuse, TruncateStream
from opengradient_x402.errors import MoneyOutcome, OpenGradientError
from opengradient_x402.payment.payments import Payments
from support.payers import opg_balance, payments_for, settled_receipts

ATTEMPTS = 3
TEXT = "Say hello"

FAULTS: dict[str, Any] = {
    "time-out": HangUp(after_s=3.0),
    "500": AnswerStatus(status=500),
    "502 with HTML": AnswerStatus(status=502, body="<html>bad gateway</html>", content_type="text/html"),
    "429": AnswerStatus(status=429),
    "hang up": HangUp(),
    "cut stream": TruncateStream(cut_connection=True),
    "402 again": SettleAndRefuse(challenge="good"),
    "402 with PAYMENT-RESPONSE": SettleAndRefuse(challenge="good", receipt="failed"),
}

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "retries.md"


def promised() -> dict[tuple[str, str, bool], int]:
    """How many payments the documentation's table names, by layer and fault, with and without sessions."""
    (head, _, *rows) = (line.strip("| ").split("|") for line in PAGE.read_text().splitlines() if line.startswith("|"))
    return {
        (layer.strip(), fault.strip(), has_sessions): int(payments)
        for layer, *cells in rows
        for fault, cell in zip(head, cells, strict=True)
        for has_sessions, payments in zip((True, False), cell.split("/"), strict=True)
    }


PROMISED = promised()

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]


def chat(payments: Payments, timeout_s: float) -> ChatOpenGradient:
    return ChatOpenGradient(model="openai/gpt-5", payments=payments, timeout=timeout_s, max_tokens=20)


def layers(payments: Payments, timeout_s: float) -> dict[str, tuple[Call, AsyncCall]]:
    """Each layer's way to make one call, sync and async."""
    model, other = chat(payments, timeout_s), chat(payments, timeout_s)
    retried = model.with_retry(stop_after_attempt=ATTEMPTS, wait_exponential_jitter=False)
    fallback = model.with_fallbacks([other])
    retrying = create_agent(
        model, [], middleware=[ModelRetryMiddleware(max_retries=ATTEMPTS - 1, initial_delay=0.0, on_failure="error")]
    )
    falling = create_agent(model, [], middleware=[ModelFallbackMiddleware(other)])
    asked = {"messages": [("user", TEXT)]}
    llm = OpenGradient(model="openai/gpt-5", payments=payments, timeout=timeout_s, max_tokens=20)
    message = [ChatMessage(role="user", content=TEXT)]

    async def streamed() -> list[Any]:
        return [chunk async for chunk in model.astream(TEXT)]

    async def streamed_llama() -> list[Any]:
        return [chunk async for chunk in await llm.astream_chat(message)]

    return {
        "invoke": (lambda: model.invoke(TEXT), lambda: model.ainvoke(TEXT)),
        "stream": (lambda: list(model.stream(TEXT)), streamed),
        "batch": (lambda: model.batch([TEXT]), lambda: model.abatch([TEXT])),
        "with_retry": (lambda: retried.invoke(TEXT), lambda: retried.ainvoke(TEXT)),
        "with_fallbacks": (lambda: fallback.invoke(TEXT), lambda: fallback.ainvoke(TEXT)),
        "ModelRetryMiddleware": (lambda: retrying.invoke(asked), lambda: retrying.ainvoke(asked)),
        "ModelFallbackMiddleware": (lambda: falling.invoke(asked), lambda: falling.ainvoke(asked)),
        "LlamaIndex chat": (lambda: llm.chat(message), lambda: llm.achat(message)),
        "LlamaIndex complete": (lambda: llm.complete(TEXT), lambda: llm.acomplete(TEXT)),
        "LlamaIndex stream": (lambda: list(llm.stream_chat(message)), streamed_llama),
    }


LAYERS = (
    "invoke",
    "stream",
    "batch",
    "with_retry",
    "with_fallbacks",
    "ModelRetryMiddleware",
    "ModelFallbackMiddleware",
    "LlamaIndex chat",
    "LlamaIndex complete",
    "LlamaIndex stream",
)


@pytest.mark.matrix
@pytest.mark.parametrize("has_sessions", [True, False], ids=["session", "no session"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layer", LAYERS)
async def test_no_layer_pays_a_call_twice_or_says_that_a_paid_call_was_not(
    devnets, tmp_path: Path, layer: str, fault: str, is_async: bool, has_sessions: bool
):
    net = devnets() if has_sessions else devnets(sessions=False)
    account = net.account(opg="10", approved=True)
    before = opg_balance(net, account.address)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments:
        run, arun = layers(payments, 1.0 if fault == "time-out" else 60.0)[layer]
        net.faults.inject(FAULTS[fault], times=None)
        said: OpenGradientError | None = None
        try:
            await arun() if is_async else run()
        except OpenGradientError as exc:
            said = exc
        finally:
            net.faults.clear()
        authorizations = payments.ledger.authorizations().result()
        settled_receipts(net, payments)
        taken = before - opg_balance(net, account.address)
        counted = payments.ledger.spent(
            payer=payments.payer, asset=payments.network.asset.address, network=payments.network.caip2
        ).result()
    assert taken <= counted
    if said is not None and taken:
        assert said.money is not MoneyOutcome.NOT_PAID
    assert len(authorizations) == PROMISED[layer, fault, has_sessions]
