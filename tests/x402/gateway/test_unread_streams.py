"""A stream whose reader went away ends: its receipt is in the ledger, whatever becomes of what held the stream."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opengradient_x402.errors import StreamInterrupted
from opengradient_x402.gateway import exchange, unread
from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.payments import Payments
from support.payers import PROMPT

pytestmark = pytest.mark.devnet(pace_s=0.05)


@contextmanager
def a_quiet_server() -> Iterator[None]:
    """As a process in which nothing happens that would start the garbage collector."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def outcomes(payments: Payments) -> list[str]:
    return [receipt.outcome for receipt in payments.ledger.receipts().result()]


def wait_for_the_end(payments: Payments) -> None:
    """Much shorter than the time after which a stream that is held is closed."""
    until = time.monotonic() + 30
    while outcomes(payments) != ["abandoned"] and time.monotonic() < until:
        time.sleep(0.1)


def left_in_a_cycle(pieces: object) -> None:
    """As an exception's traceback holds the frame that it left."""
    cycle: list[object] = [pieces]
    cycle.append(cycle)


def test_the_generator_of_a_reader_who_left_is_found_and_closed(client: GatewayClient, payments: Payments):
    def pieces() -> Iterator[str]:
        with client.stream(PROMPT) as stream:
            for delta in stream:
                yield delta.content

    with a_quiet_server():
        generator = pieces()
        next(generator)
        left_in_a_cycle(generator)
        del generator
        wait_for_the_end(payments)
    assert outcomes(payments) == ["abandoned"]


async def test_so_is_an_async_one(payments: Payments):
    client = AsyncGatewayClient(payments)

    async def pieces():
        async with await client.stream(PROMPT) as stream:
            async for delta in stream:
                yield delta.content

    with a_quiet_server():
        generator = pieces()
        await anext(generator)
        left_in_a_cycle(generator)
        del generator
        await asyncio.to_thread(wait_for_the_end, payments)
    assert outcomes(payments) == ["abandoned"]
    await client.aclose()


def test_a_stream_that_nobody_reads_is_closed_after_the_time_limit_and_says_so(
    client: GatewayClient, payments: Payments, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exchange.Exchange, "unread_limit_s", 1.0)
    stream = client.stream(PROMPT)
    next(stream)
    wait_for_the_end(payments)
    assert outcomes(payments) == ["abandoned"]
    with pytest.raises(StreamInterrupted, match=r"Nobody read this stream for 1 s.*receipt is recorded"):
        list(stream)


async def test_an_async_stream_too(payments: Payments, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange.Exchange, "unread_limit_s", 1.0)
    client = AsyncGatewayClient(payments)
    stream = await client.stream(PROMPT)
    await anext(stream)
    await asyncio.to_thread(wait_for_the_end, payments)
    assert outcomes(payments) == ["abandoned"]
    with pytest.raises(StreamInterrupted, match="Nobody read this stream for 1 s"):
        [delta async for delta in stream]
    await client.aclose()


def test_a_slow_reader_gets_the_whole_answer(client: GatewayClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unread, "COLLECT_AFTER_S", 0.1)
    stream, texts = client.stream({**PROMPT, "max_tokens": 10}), []
    for delta in stream:
        texts.append(delta.content)
        if len(texts) < 3:
            time.sleep(0.7)
    assert stream.completion is not None
    assert "".join(texts) == stream.completion.content


def kept_beside(ledger: Ledger) -> list[str]:
    file = Path(ledger.url.removeprefix("sqlite:///"))
    return [line for kept in file.parent.glob(f".{file.name}.calls-*") for line in kept.read_text().splitlines()]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_call_that_ends_after_its_ledger_is_in_the_ledger_of_the_next_process(
    payments: Payments, client: GatewayClient, is_async: bool, caplog: pytest.LogCaptureFixture
):
    if is_async:
        aclient = AsyncGatewayClient(payments)
        stream = await aclient.stream(PROMPT)
        await anext(stream)
        payments.ledger.close()
        await stream.aclose()
        await aclient.aclose()
    else:
        with client.stream(PROMPT) as sync_stream:
            next(sync_stream)
            payments.ledger.close()
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "is kept in" in line
    [kept] = kept_beside(payments.ledger)
    assert json.loads(kept)["outcome"] == "abandoned"
