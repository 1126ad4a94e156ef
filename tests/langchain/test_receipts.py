"""Whatever the surface and the mode: every receipt is heard, once, and their sum is what the wallet lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from contextlib import aclosing
from contextvars import copy_context

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage
from langgraph.types import StreamMode

from langchain_opengradient import SettlementCallbackHandler, get_settlement_callback

from .conftest import BETA, HAS_V3, Payer
from .surfaces import SURFACES, agent

pytestmark = pytest.mark.filterwarnings(BETA)

MODES = ("invoke", "stream", "ainvoke", "astream")


async def run(runnable, given, mode: str, config: dict) -> None:
    if mode == "invoke":
        runnable.invoke(given, config)
    elif mode == "stream":
        list(runnable.stream(given, config))
    elif mode == "ainvoke":
        await runnable.ainvoke(given, config)
    else:
        [chunk async for chunk in runnable.astream(given, config)]


class Ears:
    """An explicit handler that counts how often it was told of each call."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.handler = SettlementCallbackHandler(on_receipt=lambda receipt: self.told.update([receipt.call_id]))

    @property
    def config(self) -> dict:
        return {"callbacks": [self.handler]}


def assert_complete(payer: Payer, ears: Ears, active: SettlementCallbackHandler, *, calls: int = 1) -> None:
    ledger = payer.receipts()
    assert len(ledger) == calls
    assert ears.told == Counter(ledger.keys())
    assert [receipt.call_id for receipt in active.receipts] == list(dict.fromkeys(r.call_id for r in active.receipts))
    assert {receipt.call_id for receipt in active.receipts} == set(ledger)
    lost_atomic = payer.settle()
    settled = payer.receipts()
    assert lost_atomic == sum(receipt.settled_atomic or 0 for receipt in settled.values())
    assert lost_atomic > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__)
async def test_every_surface_and_mode_hears_exactly_the_ledgers_receipts(payer: Payer, surface, mode: str):
    runnable, given = surface(payer.model())
    ears = Ears()
    with get_settlement_callback() as active:
        await run(runnable, given, mode, ears.config)
    assert_complete(payer, ears, active, calls=SURFACES[surface])


@pytest.mark.parametrize("stream_mode", ["messages", "updates", "values", "custom"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_langgraph_hears_them_in_every_stream_mode(payer: Payer, stream_mode: StreamMode, is_async: bool):
    runnable, given = agent(payer.model())
    ears = Ears()
    with get_settlement_callback() as active:
        if is_async:
            [_ async for _ in runnable.astream(given, ears.config, stream_mode=stream_mode)]
        else:
            list(runnable.stream(given, ears.config, stream_mode=stream_mode))
    assert_complete(payer, ears, active, calls=2)


async def test_event_streams_of_version_2_hear_them(payer: Payer):
    ears = Ears()
    with get_settlement_callback() as active:
        [_ async for _ in payer.model().astream_events("Hello", ears.config, version="v2")]
    assert_complete(payer, ears, active)


if HAS_V3:

    async def test_event_streams_of_version_3_hear_them(payer: Payer):
        model, ears = payer.model(), Ears()
        with get_settlement_callback() as active:
            list(model.stream_events("Hello", ears.config, version="v3"))
            [_ async for _ in await model.astream_events("Hello", ears.config, version="v3")]
        assert_complete(payer, ears, active, calls=2)

    async def test_a_dropped_version_3_stream_keeps_its_receipt(payer: Payer):
        ears = Ears()
        with get_settlement_callback() as active:
            stream = payer.model().stream_events("Hello", ears.config, version="v3")
            next(iter(stream))
            del stream
            gc.collect()  # core's stream object refers to itself
        assert_complete(payer, ears, active)


async def test_a_dropped_stream_keeps_its_receipt(payer: Payer):
    ears = Ears()
    with get_settlement_callback() as active:
        stream = payer.model().stream("Hello", ears.config)
        next(stream)
        stream.close()
        del stream
    assert_complete(payer, ears, active)
    assert [receipt.outcome for receipt in active.receipts] == ["abandoned"]


async def test_a_dropped_async_stream_keeps_its_receipt(payer: Payer):
    ears = Ears()
    with get_settlement_callback() as active:
        async with aclosing(payer.model().astream("Hello", ears.config)) as stream:
            async for _ in stream:
                break
    await asyncio.sleep(0.05)
    assert_complete(payer, ears, active)
    assert [receipt.outcome for receipt in active.receipts] == ["abandoned"]


async def test_an_async_stream_dropped_in_the_middle_of_a_chain_keeps_its_receipt(payer: Payer):
    ears = Ears()
    chain = payer.model() | (lambda message: message)
    with get_settlement_callback() as active:
        async for _ in chain.astream("Hello", ears.config):
            break
    await asyncio.sleep(0.05)
    assert_complete(payer, ears, active)


def test_a_plain_thread_needs_the_context_or_an_explicit_handler(payer: Payer):
    model, ears = payer.model(), Ears()
    with get_settlement_callback() as active:
        context = copy_context()
        thread = threading.Thread(target=lambda: context.run(model.invoke, "Hello", ears.config))
        thread.start()
        thread.join()
    assert_complete(payer, ears, active)


def test_an_answer_out_of_the_cache_is_not_paid_and_not_counted(payer: Payer):
    model = payer.model(cache=InMemoryCache())
    with get_settlement_callback() as first:
        model.invoke("Hello")
    with get_settlement_callback() as second:
        again = model.invoke("Hello")
    assert (first.calls, second.calls) == (1, 0)
    assert again.response_metadata["opengradient"]["call_id"] == first.receipts[0].call_id
    assert len(payer.receipts()) == 1


def test_the_outer_block_hears_what_the_inner_one_hears(payer: Payer):
    model = payer.model()
    with get_settlement_callback() as outer:
        model.invoke("one")
        with get_settlement_callback() as inner:
            model.invoke("two")
        model.invoke("three")
    model.invoke("four")
    assert (outer.calls, inner.calls) == (3, 1)
    assert len(payer.receipts()) == 4


def test_several_asyncio_runs_share_one_session(payer: Payer):
    model = payer.model()

    async def ask() -> AIMessage:
        message = await model.ainvoke("Hello")
        [_ async for _ in model.astream("Hello")]
        return message

    messages = [asyncio.run(ask()) for _ in range(3)]
    assert all(message.text for message in messages)
    assert len({receipt.authorization_id for receipt in payer.receipts().values()}) == 1


def test_a_receipt_in_a_message_is_plain_json(payer: Payer):
    for message in (payer.model().invoke("Hello"), *list(payer.model().stream("Hello"))[-1:]):
        receipt = message.response_metadata["opengradient"]
        assert {type(value) for value in receipt.values()} <= {str, int}
        assert receipt["status"] == "served"
        assert int(receipt["cost_atomic"]) > 0


def test_only_one_chunk_of_a_stream_carries_the_receipt(payer: Payer):
    chunks = list(payer.model().stream("Hello"))
    assert ["opengradient" in chunk.response_metadata for chunk in chunks].count(True) == 1
    assert "opengradient" in chunks[-1].response_metadata


def test_totals_speak_of_calls_authorizations_and_opg(payer: Payer):
    with get_settlement_callback() as settlements:
        payer.model().batch(["one", "two"])
    assert (settlements.calls, settlements.authorizations) == (2, 1)
    assert settlements.spent_atomic == payer.settle()
    settled = payer.receipts()
    for receipt in settled.values():
        settlements.update(receipt)
    assert all(receipt.payment_tx_hash for receipt in settlements.receipts)
    assert "calls=2" in repr(settlements)
