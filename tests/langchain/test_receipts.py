"""Whatever the surface and the mode: every receipt is heard, once, and their sum is what the wallet lost."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from contextvars import copy_context

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, messages_from_dict, messages_to_dict
from langchain_core.runnables import RunnableLambda
from langgraph.types import StreamMode
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from langchain_opengradient import SettlementCallbackHandler, SpendGuard, get_settlement_callback, receipt_of
from opengradient_devnet import Devnet
from opengradient_devnet.faults import SlowDrip
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.telemetry.runs import named_run
from support.matrix import one_in

from .conftest import BETA, HAS_V3, Payer
from .surfaces import SURFACES, agent, bare, configurable, retried, with_tools

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


@pytest.mark.parametrize("mode", one_in(3, MODES))
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


def test_a_block_in_a_generator_that_a_web_server_reads_hears_the_calls_of_all_steps(payer: Payer):
    model, heard, ears = payer.model(), [], Ears()

    def pieces() -> Iterator[str]:
        with get_settlement_callback() as active:
            yield "Here it comes. "
            for question in ("Hello", "And now?"):
                yield from (chunk.text for chunk in model.stream(question, ears.config))
            heard.append(active)

    app = Starlette(routes=[Route("/", lambda _: StreamingResponse(pieces()))])
    with TestClient(app) as client:
        assert client.get("/").text.startswith("Here it comes. ")
    assert_complete(payer, ears, heard[0], calls=2)
    with get_settlement_callback() as later:
        model.invoke("Hello")
    assert (heard[0].calls, later.calls) == (2, 1)


@pytest.mark.parametrize("way", ["closed", "collected"])
async def test_a_block_in_a_generator_that_is_dropped_ends_quietly_and_hears_nothing_more(payer: Payer, way: str):
    model, blocks, faults = payer.model(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

    async def pieces() -> AsyncIterator[str]:
        with get_settlement_callback() as active:
            blocks.append(active)
            async for chunk in model.astream("Hello"):
                yield chunk.text

    stream = pieces()
    if way == "closed":
        await asyncio.create_task(anext(stream))
        await stream.aclose()
    else:
        await anext(stream)
        del stream
        gc.collect()
    await asyncio.sleep(0.1)
    await model.ainvoke("Somebody else's.")
    await model.aclose()
    assert ([one.outcome for one in blocks[0].receipts], faults) == (["abandoned"], [])
    assert len(payer.receipts()) == 2


def test_blocks_of_two_generators_that_take_turns_hear_nothing_after_their_end(payer: Payer):
    model = payer.model()

    def asking(handlers: list[SettlementCallbackHandler]) -> Iterator[None]:
        with get_settlement_callback() as active:
            handlers.append(active)
            yield
            model.invoke("Hello")
            yield

    first: list[SettlementCallbackHandler] = []
    second: list[SettlementCallbackHandler] = []
    one, other = asking(first), asking(second)
    for generator in (one, other, one, other):
        next(generator)
    assert list(one) == []
    calls = first[0].calls
    model.invoke("Between the ends.")
    assert list(other) == []
    model.invoke("After both.")
    assert (first[0].calls, second[0].calls) == (calls, 3)
    assert len(payer.receipts()) == 4


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
        assert len(json.dumps(receipt)) < 300


def test_the_whole_receipt_is_one_call_away_and_no_older_than_the_ledger(payer: Payer):
    message = payer.model().invoke("Hello")
    assert receipt_of(message) == payer.receipts()[message.response_metadata["opengradient"]["call_id"]]
    payer.settle()
    kept = messages_from_dict(json.loads(json.dumps(messages_to_dict([message]))))[0]  # as a checkpoint keeps it
    assert kept.response_metadata["opengradient"]["status"] == "served"
    assert receipt_of(kept).status is ReceiptStatus.SETTLED
    restored = SettlementReceipt.from_json(kept.response_metadata["opengradient"])
    assert restored.refresh().status is ReceiptStatus.SETTLED


def test_a_restored_message_refreshes_in_another_process_by_the_settings(payer: Payer, net: Devnet, monkeypatch):
    carried = payer.model().invoke("Hello").response_metadata["opengradient"]
    payer.close()
    monkeypatch.setenv("OG_LEDGER_URL", payer.ledger.url)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    receipt = SettlementReceipt.from_json(carried)
    assert (receipt.payer, receipt.status) == (payer.account.address, ReceiptStatus.SERVED)
    net.close_sessions()
    assert receipt.refresh().status is ReceiptStatus.SETTLED


def test_a_message_that_no_call_made_and_a_call_that_no_ledger_knows_are_said_to_be_so(payer: Payer):
    with pytest.raises(ConfigurationError, match="carries no receipt"):
        receipt_of(AIMessage("by hand"))
    with pytest.raises(ConfigurationError, match=r"call_none is not in .*Set OG_LEDGER_URL"):
        receipt_of(AIMessage("", response_metadata={"opengradient": {"call_id": "call_none"}}))


async def test_a_switch_puts_the_whole_receipt_into_messages(payer: Payer):
    model = payer.model(whole_receipts=True)
    messages = [model.invoke("Hello"), list(model.stream("Hello"))[-1], await model.ainvoke("Hello")]
    messages += [[chunk async for chunk in model.astream("Hello")][-1]]
    ledger = payer.receipts()
    for message in messages:
        receipt = message.response_metadata["opengradient"]
        assert receipt == ledger[receipt["call_id"]].to_json()


def test_a_handler_shows_what_the_ledger_knows_now(payer: Payer, net: Devnet):
    net.faults.inject(SlowDrip(pace_s=0.05))  # or the whole answer may be there with its first piece
    with get_settlement_callback() as settlements:
        stream = payer.model().stream("Hello")
        next(stream)
        stream.close()
    assert settlements.spent_atomic == settlements.receipts[0].authorized_atomic  # it may still be taken
    lost_atomic = payer.settle()
    assert settlements.spent_atomic == lost_atomic < settlements.receipts[0].authorized_atomic
    assert settlements.receipts[0].status is ReceiptStatus.SETTLED


def test_a_handler_shows_what_another_process_recorded(payer: Payer, net: Devnet):
    with get_settlement_callback() as settlements:
        payer.model().invoke("Hello")
    net.close_sessions()
    elsewhere = (
        "from opengradient_x402 import Ledger, Reconciler, load_network; import sys;"
        "Reconciler(load_network(sys.argv[1]), Ledger(sys.argv[2])).reconcile()"
    )
    command = [sys.executable, "-c", elsewhere, f"{net.gateway_url}/network", payer.ledger.url]
    subprocess.run(command, check=True)
    assert settlements.receipts[0].status is ReceiptStatus.SETTLED


async def test_a_guard_s_upper_bound_comes_down_in_an_event_loop_too(payer: Payer, net: Devnet):
    net.faults.inject(SlowDrip(pace_s=0.05))  # or the whole answer may be there with its first piece
    guard = SpendGuard("1")
    async with aclosing(payer.model().astream("Hello", {"callbacks": [guard]})) as stream:
        await anext(stream)
    held_atomic = guard.spent_atomic
    lost_atomic = await asyncio.to_thread(payer.settle)
    assert guard.spent_atomic == lost_atomic < held_atomic


def test_a_lasting_handler_keeps_the_newest_receipts_and_all_of_the_cost(payer: Payer):
    handler = SettlementCallbackHandler(most=3)
    payer.model().batch(["Hello"] * 8, {"callbacks": [handler]})
    assert (len(handler.receipts), handler.calls, handler.authorizations) == (3, 8, 1)
    assert handler.spent_atomic == sum(int(receipt.cost_atomic or 0) for receipt in payer.receipts().values())
    handler.clear()
    assert (handler.receipts, handler.calls, handler.spent_atomic) == ((), 0, 0)


def test_a_call_that_is_reported_again_after_it_was_left_out_counts_once(payer: Payer):
    with get_settlement_callback() as settlements:
        payer.model().batch(["Hello"] * 8)
    handler = SettlementCallbackHandler(most=3)
    for receipt in (*settlements.receipts, *settlements.receipts):
        handler.receive(receipt)
    assert (len(handler.receipts), handler.calls) == (3, 8)
    assert handler.spent_atomic == settlements.spent_atomic


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


# -- which run a call belongs to


@pytest.mark.parametrize("mode", one_in(3, MODES))
@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.__name__)
async def test_every_call_of_a_run_is_recorded_under_its_outermost_run(payer: Payer, surface, mode: str):
    runnable, given = surface(payer.model())
    started = Roots()
    await run(runnable, given, mode, {"callbacks": [started]})
    if surface in (bare, with_tools, configurable) or (surface is retried and mode.endswith("stream")):
        assert started.ids == []  # the model itself is called, and no chain
    else:
        assert len(started.ids) == 1
    assert {receipt.run for receipt in payer.receipts().values()} == set(started.ids or [None])


async def test_a_name_that_the_user_gives_counts_more_and_a_call_alone_is_no_run(payer: Payer):
    model = payer.model()
    chain = RunnableLambda(lambda text: model.invoke(text)) | RunnableLambda(lambda answer: model.invoke(answer.text))
    model.invoke("Alone.")
    with named_run("outer"):
        model.invoke("Named.")
        with named_run("inner"):
            chain.invoke("Both.")
        await model.ainvoke("Named too.")
        await model.aclose()
    runs = [receipt.run for receipt in payer.ledger.receipts().result()]
    assert Counter(runs) == {None: 1, "outer": 2, "inner": 2}


def test_a_run_in_a_thread_without_a_context_is_known_by_its_config(payer: Payer):
    model, started = payer.model(), Roots()

    def ask(text: str, config: dict) -> AIMessage:
        answers: list[AIMessage] = []
        thread = threading.Thread(target=lambda: answers.append(RunnableLambda(model.invoke).invoke(text, config)))
        thread.start()
        thread.join()
        return answers[0]

    RunnableLambda(ask).invoke("Hello", {"callbacks": [started]})
    assert [receipt.run for receipt in payer.receipts().values()] == started.ids


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "x" * 129])
def test_a_name_that_cannot_be_shown_is_refused(name: str):
    with pytest.raises(ConfigurationError, match="cannot name a run"), named_run(name):
        pytest.fail("the block began")


class Roots(BaseCallbackHandler):
    """The ids of the runs that began without a parent."""

    run_inline = True

    def __init__(self) -> None:
        self.ids: list[str] = []

    def on_chain_start(self, *_, run_id, parent_run_id=None, **__) -> None:
        if parent_run_id is None:
            self.ids.append(str(run_id))
