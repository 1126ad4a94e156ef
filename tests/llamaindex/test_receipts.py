"""Receipts across everything that LlamaIndex does: heard = ledger = chain, once each."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.selectors import LLMSingleSelector
from llama_index_instrumentation import get_dispatcher

from llama_index_opengradient import (
    OpenGradient,
    SettlementCallbackHandler,
    SettlementEvent,
    SettlementLedgerHandler,
    SettlementReceipt,
    SettlementUpdateEvent,
    receipt_of,
)
from llamaindex.suite import agents, engines
from llamaindex.suite.events import EventRecorder, recorded
from llamaindex.suite.forms import ALL, STREAMS, ask, is_async, subject
from llamaindex.suite.structured import PROMPT, Car
from opengradient_devnet import Account, Devnet, faults
from opengradient_x402.errors import (
    GatewayError,
    InvalidPrivateKey,
    OpenGradientError,
    PaidButFailed,
    PolicyRefused,
    StreamInterrupted,
)
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.telemetry.runs import named_run
from support.payers import opg_balance, settled_receipts
from support.steps import in_steps

pytestmark = [
    pytest.mark.devnet(pace_s=0.002),
    # llama-index-workflows looks at every attribute of an agent when it is made, deprecated ones of pydantic included
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    # llama-index-core's ReActAgent asks its context whether the workflow is running, which workflows deprecates
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

CHEAP = "openai/gpt-5-nano"
ARITHMETIC = "Multiply 12 by 34."


@pytest.fixture
def llm(payments: Any) -> Iterator[OpenGradient]:
    model = OpenGradient(model=CHEAP, payments=payments)
    yield model
    model.close()


@pytest.fixture
def heard() -> Iterator[SettlementLedgerHandler]:
    with SettlementLedgerHandler().listening() as handler:
        yield handler


def events_per_call(recorder: EventRecorder) -> Counter[str]:
    return Counter(event.receipt.call_id for event in recorder.of(SettlementEvent))


def ids(receipts: Any) -> set[str]:
    return {receipt.call_id for receipt in receipts}


# -- everywhere


async def use_everything(llm: OpenGradient, net: Devnet) -> None:
    """Engines, agents, structured prediction, errors, cancelled calls and abandoned streams, sync and async."""
    for mode in engines.RESPONSE_MODES:
        await engines.query_engine(llm, engines.BRIDGES, mode).aquery(engines.QUESTION)
    streamed: Any = await engines.query_engine(llm, engines.BRIDGES, ResponseMode.COMPACT, streaming=True).aquery("?")
    [_ async for _ in streamed.async_response_gen()]
    await engines.router(llm, LLMSingleSelector.from_defaults(llm=llm)).aquery(
        "How many passengers does the ferry carry?"
    )
    await engines.sub_question_engine(llm, use_async=True).aquery(
        "When did the bridge open, and what is the ferry called?"
    )
    for kind in engines.CHAT_ENGINES:
        await engines.converse_async(engines.chat_engine(llm, kind), "astream_chat", engines.QUESTION, "And where?")
    await agents.run_agent(agents.function_agent(llm), ARITHMETIC)
    await agents.run_agent(agents.react_agent(llm, streaming=False), ARITHMETIC)
    await agents.run_agent(agents.handoff_workflow(llm), "Please multiply the numbers 12 and 34.")
    await llm.astructured_predict(Car, PROMPT, thing="the green car Zoe")
    [_ async for _ in await llm.astream_structured_predict(Car, PROMPT, thing="the green car Zoe")]

    net.faults.inject(faults.AnswerStatus(status=502))
    with pytest.raises(GatewayError):
        await llm.acomplete("This one fails.")
    net.faults.inject(faults.TruncateStream(after_deltas=2))
    with pytest.raises(StreamInterrupted):
        [_ async for _ in await llm.astream_complete("This one is cut in the middle of its answer.")]
    stream = await llm.astream_complete("This one is abandoned after its first chunk.")
    await anext(stream)
    await stream.aclose()
    net.faults.inject(faults.SlowDrip(pace_s=0.2))
    task = asyncio.create_task(_read(await llm.astream_complete("This one is cancelled while somebody waits for it.")))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _read(stream: Any) -> None:
    async for _ in stream:
        pass


def use_everything_in_sync(llm: OpenGradient, net: Devnet) -> None:
    for form in ALL:
        if not form.startswith("a"):
            ask(llm, form, subject(form))
    engines.query_engine(llm, engines.BRIDGES, ResponseMode.TREE_SUMMARIZE).query(engines.QUESTION)
    list(engines.chat_engine(llm, "context").stream_chat(engines.QUESTION).response_gen)
    llm.structured_predict(Car, PROMPT, thing="the green car Zoe")
    list(llm.stream_structured_predict(Car, PROMPT, thing="the green car Zoe"))
    net.faults.inject(faults.ErrorEvent())
    with pytest.raises(PaidButFailed):
        list(llm.stream_complete("This one gets an error event."))
    stream = llm.stream_complete("This one is closed before its end.")
    next(stream)
    stream.close()
    llm.stream_complete("This one is not read at all.")
    gc.collect()


def test_heard_is_ledger_is_chain_across_engines_agents_and_accidents(
    llm: OpenGradient, payments: Any, net: Devnet, account: Account, heard: SettlementLedgerHandler
) -> None:
    before = opg_balance(net, account.address)
    with recorded() as events:
        asyncio.run(use_everything(llm, net))
        use_everything_in_sync(llm, net)

    ledger = settled_receipts(net, payments)
    assert ids(heard.receipts) == ids(ledger)
    assert set(events_per_call(events).values()) == {1}
    assert len(ledger) > 40
    assert {receipt.status for receipt in ledger} == {ReceiptStatus.SETTLED}
    assert Counter(receipt.outcome for receipt in ledger).keys() == {"ok", "failed", "abandoned"}
    assert sum(receipt.settled_atomic or 0 for receipt in ledger) == before - opg_balance(net, account.address) > 0


def test_two_agents_at_once_are_told_apart(llm: OpenGradient, heard: SettlementLedgerHandler) -> None:
    async def both() -> list[str]:
        runs = [agents.function_agent(llm, streaming=on).run(user_msg=ARITHMETIC) for on in (True, False)]
        outputs = await asyncio.gather(*runs)
        assert all("408" in str(output) for output in outputs)
        return [run.run_id for run in runs]

    first, second = asyncio.run(both())
    llm.complete("outside of any run")
    assert first != second
    assert len(heard.receipts_of(first)) == len(heard.receipts_of(second)) == 2
    assert not ids(heard.receipts_of(first)) & ids(heard.receipts_of(second))
    assert heard.runs.keys() == {first, second, None}
    assert len(heard.receipts) == 5


def test_the_ledger_names_the_run_of_workflows_and_engines_and_the_user_s_own_name(
    llm: OpenGradient, payments: Any
) -> None:
    async def agent() -> str:
        run = agents.function_agent(llm).run(user_msg=ARITHMETIC)
        assert "408" in str(await run)
        return run.run_id

    workflow = asyncio.run(agent())
    engines.query_engine(llm, engines.BRIDGES, ResponseMode.REFINE).query(engines.QUESTION)
    llm.complete("outside of any run")
    list(llm.stream_complete("outside of any run"))
    with named_run("by hand"):
        engines.query_engine(llm, engines.BRIDGES, ResponseMode.COMPACT).query(engines.QUESTION)
        list(llm.stream_complete("in a run that has a name"))

    runs = Counter(receipt.run for receipt in payments.ledger.receipts().result())
    engine = next(run for run in runs if run and run.startswith("RetrieverQueryEngine.query-"))
    assert runs.keys() == {workflow, engine, None, "by hand"}
    assert (runs[workflow], runs[None], runs["by hand"]) == (2, 2, 2)
    assert runs[engine] >= 1


def test_an_agent_s_output_holds_the_receipt_of_its_last_call(
    llm: OpenGradient, heard: SettlementLedgerHandler
) -> None:
    output, _ = asyncio.run(agents.run_agent(agents.function_agent(llm), ARITHMETIC))
    raw: Any = output.raw
    assert raw["x402"]["call_id"] == heard.receipts[-1].call_id


# -- on responses


@pytest.mark.parametrize("form", ALL)
def test_a_response_carries_its_receipt_outside_of_the_message(
    llm: OpenGradient, heard: SettlementLedgerHandler, form: str
) -> None:
    last = ask(llm, form, subject(form))[-1]
    (receipt,) = heard.receipts
    assert last.raw["x402"] == last.additional_kwargs["x402"] == receipt.to_message()
    assert all(type(value) in (str, int) for value in last.raw["x402"].values())
    assert len(json.dumps(last.raw["x402"])) < 300
    assert receipt_of(last) == receipt
    if hasattr(last, "message"):
        assert last.message.additional_kwargs == {}


@pytest.mark.parametrize("form", [form for form in ALL if "stream" in form])
def test_only_the_last_chunk_carries_the_receipt(llm: OpenGradient, form: str) -> None:
    *earlier, last = ask(llm, form, subject(form))
    assert earlier
    assert all("x402" not in piece.raw and "x402" not in piece.additional_kwargs for piece in earlier)
    assert receipt_of(last).outcome == "ok"


# -- as events


@pytest.mark.parametrize("form", ALL)
def test_an_event_names_the_span_of_its_call(llm: OpenGradient, form: str) -> None:
    with recorded() as events:
        ask(llm, form, subject(form))
    (event,) = events.of(SettlementEvent)
    assert event.span_id.startswith(f"OpenGradient.{form}-")
    assert event.run_id is None
    assert event.model_dump()["receipt"] == event.receipt.to_json()


@pytest.mark.parametrize("form", ALL)
def test_a_failed_call_is_told_of_with_the_receipt_that_its_error_carries(
    llm: OpenGradient, net: Devnet, heard: SettlementLedgerHandler, form: str
) -> None:
    net.faults.inject(faults.AnswerStatus(status=500))
    with pytest.raises(GatewayError) as raised:
        ask(llm, form, subject(form))
    assert [receipt.call_id for receipt in heard.receipts] == [raised.value.receipt.call_id]
    assert heard.receipts[0].outcome == "failed"


def test_what_was_never_signed_is_not_told_of(net: Devnet, account: Account, heard: SettlementLedgerHandler) -> None:
    network = f"{net.gateway_url}/network"
    stingy = SpendPolicy(max_per_authorization="0.000001")
    refused = OpenGradient(model=CHEAP, network=network, private_key=account.private_key, spend_policy=stingy)
    with pytest.raises(PolicyRefused):
        refused.complete("Too dear.")
    with pytest.raises(InvalidPrivateKey):
        OpenGradient(model=CHEAP, network=network, private_key="not a key").complete("Who pays?")
    with pytest.raises(ValueError, match="video"):
        refused.chat([_with_video()])
    refused.close()
    assert heard.receipts == ()


def _with_video() -> Any:
    from llama_index.core.base.llms.types import ChatMessage, VideoBlock

    return ChatMessage(role="user", blocks=[VideoBlock(video=b"frames", video_mimetype="video/mp4")])


@pytest.mark.parametrize("form", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
def test_the_payment_of_a_stream_is_told_of_before_anybody_reads(
    llm: OpenGradient, heard: SettlementLedgerHandler, form: str
) -> None:
    async def open_and_read() -> tuple[str, str]:
        opened = getattr(llm, form)(subject(form))
        stream = await opened if form.startswith("a") else opened
        (first,) = heard.receipts
        pieces = [piece async for piece in stream] if form.startswith("a") else list(stream)
        assert pieces[-1].raw["x402"] == heard.receipts[0].to_message()
        return first.outcome, first.authorization_id

    with recorded() as events:
        outcome, authorization_id = asyncio.run(open_and_read())
    (receipt,) = heard.receipts
    assert (outcome, receipt.outcome) == ("unknown", "ok")
    assert receipt.authorization_id == authorization_id
    assert receipt.completion_tokens
    (told,), (updated,) = events.of(SettlementEvent), events.of(SettlementUpdateEvent)
    assert told.receipt.call_id == updated.receipt.call_id
    assert told.span_id == updated.span_id


def test_a_stream_that_nobody_reads_is_told_of_when_it_is_dropped(
    llm: OpenGradient, heard: SettlementLedgerHandler
) -> None:
    stream = llm.stream_complete("Nobody reads this.")
    del stream
    gc.collect()
    (receipt,) = heard.receipts
    assert receipt.outcome == "abandoned"


@pytest.mark.parametrize("form", STREAMS)
def test_a_stream_outlives_the_model_that_opened_it(net: Devnet, account: Account, tmp_path: Any, form: str) -> None:
    path = tmp_path / "dropped.sqlite"

    def opened() -> Any:
        network = f"{net.gateway_url}/network"
        llm = OpenGradient(model=CHEAP, private_key=account.private_key, network=network, ledger=path)
        return getattr(llm, form)(subject(form))

    async def read() -> list[Any]:
        stream = await opened()
        gc.collect()
        return [piece async for piece in stream]

    if is_async(form):
        last = asyncio.run(read())[-1]
    else:
        stream = opened()
        gc.collect()
        last = list(stream)[-1]
    ledger = Ledger(path)
    assert [receipt.to_message() for receipt in ledger.receipts().result()] == [last.raw["x402"]]
    ledger.close()


def test_a_block_in_a_generator_that_a_web_server_reads_hears_the_calls_of_all_steps(llm: OpenGradient) -> None:
    handler = SettlementLedgerHandler()

    def pieces() -> Iterator[str]:
        with handler.listening():
            yield "Here it comes. "
            for question in ("Hello", "And now?"):
                yield from (piece.delta or "" for piece in llm.stream_complete(question))

    before = ids(llm.payments.ledger.receipts().result())
    assert "".join(in_steps(pieces())) != "Here it comes. "
    llm.complete("After it.")
    paid = ids(llm.payments.ledger.receipts().result()) - before
    assert (len(handler.receipts), len(paid)) == (2, 3)
    assert ids(handler.receipts) < paid


async def test_a_block_in_a_generator_that_is_dropped_ends_quietly(llm: OpenGradient) -> None:
    handler, faults = SettlementLedgerHandler(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

    async def pieces() -> AsyncIterator[str]:
        with handler.listening():
            async for piece in await llm.astream_complete("Hello"):
                yield piece.delta or ""

    async for _ in pieces():
        break
    gc.collect()
    await asyncio.sleep(0.1)
    await llm.acomplete("Somebody else's.")
    await llm.aclose()
    assert ([one.outcome for one in handler.receipts], faults) == (["abandoned"], [])


def test_an_abandoned_stream_keeps_its_own_run_though_it_is_closed_elsewhere(
    llm: OpenGradient, heard: SettlementLedgerHandler
) -> None:
    from llama_index_instrumentation.dispatcher import instrument_tags

    with instrument_tags({"llamaindex.run_id": "mine"}):
        stream = llm.stream_complete("Abandoned.")
    with instrument_tags({"llamaindex.run_id": "somebody else's"}):
        stream.close()
    assert heard.runs.keys() == {"mine"}


class Failing(BaseEventHandler):
    @classmethod
    def class_name(cls) -> str:
        return "Failing"

    def handle(self, event: Any, **_: Any) -> None:
        raise RuntimeError("a handler's fault")


class FailingCallback(SettlementCallbackHandler):
    def on_settlement(self, receipt: SettlementReceipt) -> None:
        super().on_settlement(receipt)
        raise RuntimeError("a handler's fault")


@pytest.mark.parametrize("form", ALL)
def test_a_handler_s_fault_does_not_reach_a_caller_who_has_paid(
    llm: OpenGradient, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing, callback = Failing(), FailingCallback()
    llm.callback_manager = CallbackManager([callback])
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(failing)
    try:
        assert ask(llm, form, subject(form))[-1].raw["x402"]
    finally:
        dispatcher.event_handlers = [handler for handler in dispatcher.event_handlers if handler is not failing]
    assert len(callback.receipts) == 1
    assert "a handler's fault" in caplog.text


# -- legacy callbacks


def test_legacy_callbacks_hear_the_same_receipts(
    llm: OpenGradient, net: Devnet, heard: SettlementLedgerHandler
) -> None:
    callback = SettlementCallbackHandler()
    llm.callback_manager = CallbackManager([callback])
    for form in ALL:
        ask(llm, form, subject(form))
    net.faults.inject(faults.AnswerStatus(status=500))
    with pytest.raises(OpenGradientError):
        llm.complete("This one fails.")
    stream = llm.stream_complete("This one is abandoned.")
    next(stream)
    stream.close()
    assert callback.receipts == heard.receipts
    assert len(callback.receipts) == len(ALL) + 2
    callback.clear()
    assert callback.receipts == ()


def test_a_copy_reports_to_the_same_handlers_and_pays_from_the_same_session(
    llm: OpenGradient, heard: SettlementLedgerHandler
) -> None:
    callback = SettlementCallbackHandler()
    llm.callback_manager = CallbackManager([callback])
    llm.complete("The original pays.")
    copied = copy.deepcopy(llm)
    copied.complete("The copy pays.")
    copied.close()
    assert callback.receipts == heard.receipts
    assert len({receipt.authorization_id for receipt in heard.receipts}) == 1


def test_a_handler_forgets_when_told_and_hears_nothing_when_it_stopped_listening(llm: OpenGradient) -> None:
    handler = SettlementLedgerHandler()
    with handler.listening():
        llm.complete("Heard.")
        assert len(handler.receipts) == 1
        handler.clear()
    llm.complete("Not heard.")
    assert handler.receipts == ()


# -- as they are known now


def test_handlers_of_both_kinds_show_what_the_ledger_knows_now(llm: OpenGradient, net: Devnet) -> None:
    legacy = SettlementCallbackHandler()
    llm.callback_manager = CallbackManager([legacy])
    with SettlementLedgerHandler().listening() as heard:
        stream = llm.stream_complete("Hello")
        next(stream)
        stream.close()
    assert heard.receipts[0].settled_atomic is legacy.receipts[0].settled_atomic is None
    net.close_sessions()
    heard.receipts[0].wait_settled(timeout_s=60)
    assert heard.receipts[0].status is legacy.receipts[0].status is ReceiptStatus.SETTLED
    legacy.clear()
    assert legacy.receipts == ()


def test_a_handler_refreshes_itself_and_keeps_the_newest_receipts(llm: OpenGradient, net: Devnet) -> None:
    with SettlementLedgerHandler(most=2).listening() as heard:
        for _ in range(4):
            llm.complete("Hello")
    assert len(heard.receipts) == 2
    net.close_sessions()
    heard.refresh()
    assert {receipt.status for receipt in heard.receipts} == {ReceiptStatus.SETTLED}
