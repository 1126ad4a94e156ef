"""What worker processes pay for reaches the handler of the process that started them, through the ledger."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
import time
from collections.abc import Callable

import pytest
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher

from llama_index_opengradient import OpenGradient, SettlementLedgerHandler, SpendGuard
from opengradient_devnet import Account, Devnet
from opengradient_x402.ledger.ledger import Ledger


def pickled_by_a_pool(llm: OpenGradient) -> bytes:
    """As the task thread of a pool does it, which runs in an empty context."""
    dumped: list[bytes] = []
    thread = threading.Thread(target=lambda: dumped.append(pickle.dumps(llm)))
    thread.start()
    thread.join()
    return dumped[0]


def ask_in_a_worker(dumped: bytes, *questions: str) -> None:
    """As a worker does: where nothing of the parent's context is."""

    def work() -> None:
        llm = pickle.loads(dumped)
        for question in questions:
            llm.complete(question)
        llm.close()

    contextvars.Context().run(work)


@pytest.fixture
def llm(make_llm: Callable[..., OpenGradient], account: Account, monkeypatch: pytest.MonkeyPatch) -> OpenGradient:
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    return make_llm()


def test_the_only_block_that_listens_finds_the_calls_of_workers(llm: OpenGradient):
    with SettlementLedgerHandler().listening() as outer, SettlementLedgerHandler().listening() as heard:
        llm.complete("Here.")
        ask_in_a_worker(pickled_by_a_pool(llm), "There.", "And there.")
    llm.complete("Nobody listens.")
    assert len(heard.receipts) == len(outer.receipts) == 3
    assert {receipt.outcome for receipt in heard.receipts} == {"ok"}


def test_a_handler_of_the_whole_process_finds_them_too(llm: OpenGradient):
    heard = SettlementLedgerHandler()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(heard)
    try:
        ask_in_a_worker(pickled_by_a_pool(llm), "There.")
    finally:
        dispatcher.event_handlers.remove(heard)
    assert len(heard.receipts) >= 1
    assert heard.receipts[-1].call_id.startswith(f"call_{heard.group}")


def test_blocks_that_listen_at_the_same_time_do_not_hear_each_others_workers(llm: OpenGradient):
    mine, theirs = SettlementLedgerHandler(), SettlementLedgerHandler()

    def in_another_request() -> None:
        with theirs.listening():
            ask_in_a_worker(pickle.dumps(llm), "Theirs.")

    with mine.listening():
        contextvars.Context().run(in_another_request)
        ask_in_a_worker(pickle.dumps(llm), "Mine.", "Mine too.")
    assert (len(mine.receipts), len(theirs.receipts)) == (2, 1)


async def test_a_coroutine_waits_for_what_workers_recorded(llm: OpenGradient):
    with SettlementLedgerHandler().listening() as heard:
        dumped = pickled_by_a_pool(llm)
        await asyncio.to_thread(ask_in_a_worker, dumped, "There.", "And there.")
        await heard.arefresh()
        assert len(heard.receipts) == 2


def test_a_guard_counts_what_workers_spent(llm: OpenGradient):
    with SpendGuard("1").listening() as guard:
        ask_in_a_worker(pickled_by_a_pool(llm), "There.")
    deadline = time.monotonic() + 30  # one look waits for a ledger that is busy, but not for long
    while not guard.receipts and time.monotonic() < deadline:
        time.sleep(0.05)
    assert guard.spent_atomic == sum(int(receipt.cost_atomic or 0) for receipt in guard.receipts) > 0


@pytest.mark.soak
def test_an_ingestion_pipeline_with_workers_is_heard(llm: OpenGradient, net: Devnet, tmp_path):
    path = tmp_path / "ledger.sqlite"
    llm.ledger = str(path)
    nodes = [TextNode(text=f"Text number {number}.") for number in range(6)]
    with SettlementLedgerHandler().listening() as heard:
        pipeline = IngestionPipeline(transformations=[SummaryExtractor(llm=llm)])
        pipeline.run(nodes=nodes, num_workers=2)
    ledger = Ledger(path)
    recorded = {receipt.call_id for receipt in ledger.receipts().result()}
    ledger.close()
    assert len(recorded) == 6
    assert {receipt.call_id for receipt in heard.receipts} == recorded
