"""Whoever traces sees what a call cost, in the tracer's own names, and no error where a gateway asks for money."""

from __future__ import annotations

import asyncio
import sys

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_devnet.faults import RefusePayment
from opengradient_x402.errors import PaymentOutcomeUnknown
from support.payers import PROMPT, async_client_for, client_for

pytestmark = [
    pytest.mark.devnet(pace_s=0.002),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),  # OpenInference's own
]


@pytest.fixture(scope="module")
def tracing():
    # Imported here: pytest imports this file for whoever runs other tests, and those do not trace.
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentors = [LangChainInstrumentor(), LlamaIndexInstrumentor(), HTTPXClientInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    yield provider, exporter
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
        del sys.modules[type(instrumentor).__module__]  # what is loaded is traced with, also in other tests


@pytest.fixture
def tracer(tracing):
    provider, exporter = tracing
    exporter.clear()
    return provider.get_tracer(__name__)


@pytest.fixture
def llm_spans(tracing, tracer):
    """The attributes of the LLM calls' spans that have ended."""

    def read():
        spans = tracing[1].get_finished_spans()
        return [dict(s.attributes) for s in spans if s.attributes.get("openinference.span.kind") == "LLM"]

    return read


@pytest.fixture
def http_spans(tracing, tracer):
    def read():
        """Of the requests to the gateway; the devnet of this process sends some of its own, which are traced too."""
        spans = [s for s in tracing[1].get_finished_spans() if s.kind is trace.SpanKind.CLIENT]
        return [s for s in spans if s.attributes["http.url"].endswith("/chat/completions")]

    return read


def costs(span) -> tuple:
    return tuple(
        span.get(name)
        for name in ("opengradient.call_id", "llm.cost.total", "llm.token_count.total", "opengradient.outcome")
    )


def wanted(receipt) -> tuple:
    total = receipt.prompt_tokens + receipt.completion_tokens
    return receipt.call_id, float(receipt.cost_usd), total, "ok"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_langchain_span_has_the_receipt(payments, llm_spans, is_stream):
    chat = ChatOpenGradient(model="openai/gpt-5-mini", payments=payments, max_tokens=30)
    if is_stream:
        list(chat.stream("hi"))
        _ = [chunk async for chunk in chat.astream("hi")]
    else:
        chat.invoke("hi")
        await chat.ainvoke("hi")
    receipts = payments.ledger.receipts().result()
    assert [costs(span) for span in llm_spans()] == [wanted(receipt) for receipt in receipts]


async def test_the_span_of_a_langchain_stream_that_was_dropped_says_what_pays_for_it(payments, llm_spans):
    chat = ChatOpenGradient(model="openai/gpt-5-mini", payments=payments, max_tokens=100)
    stream = chat.stream("Count to 50.")
    next(stream)
    stream.close()
    astream = chat.astream("Count to 50.")
    await anext(astream)
    await astream.aclose()
    receipts = payments.ledger.receipts().result()
    spans = llm_spans()
    assert [span["opengradient.call_id"] for span in spans] == [receipt.call_id for receipt in receipts]
    assert {span["opengradient.authorization_id"] for span in spans} == {receipts[0].authorization_id}
    assert len(spans) == 2


async def test_parallel_langchain_runs_do_not_mix_their_receipts(payments, tracing, llm_spans):
    chat = ChatOpenGradient(model="openai/gpt-5-mini", payments=payments, max_tokens=30)
    answers = await chat.abatch([f"Say {n}." for n in range(8)])
    by_call = {span["opengradient.call_id"]: span["output.value"] for span in llm_spans()}
    assert len(by_call) == 8
    for answer in answers:
        call_id = answer.response_metadata["opengradient"]["call_id"]
        assert call_id in by_call[call_id]


async def test_a_llamaindex_span_has_the_receipt(payments, llm_spans):
    llm = OpenGradient(model="openai/gpt-5-mini", payments=payments, max_tokens=30)
    llm.complete("hi")
    await llm.acomplete("hi")
    list(llm.stream_complete("hi"))
    receipts = payments.ledger.receipts().result()
    seen = {costs(span) for span in llm_spans() if "opengradient.call_id" in span}
    assert seen >= {wanted(receipt) for receipt in receipts}
    assert len(receipts) == 3


def test_a_span_that_is_not_of_one_llm_call_gets_an_event_for_each(payments, tracer, tracing):
    chat = ChatOpenGradient(model="openai/gpt-5-mini", payments=payments, max_tokens=30)
    from openinference.instrumentation.langchain import LangChainInstrumentor

    LangChainInstrumentor().uninstrument()
    try:
        with tracer.start_as_current_span("GET /ask"):
            for _ in range(2):
                chat.invoke("hi")
    finally:
        LangChainInstrumentor().instrument(tracer_provider=tracing[0])
    (span,) = [span for span in tracing[1].get_finished_spans() if span.name == "GET /ask"]
    told = [event.attributes["opengradient.call_id"] for event in span.events if event.name == "opengradient.receipt"]
    assert told == [receipt.call_id for receipt in payments.ledger.receipts().result()]


def check_challenges(spans) -> None:
    """Each call has a challenge, and then a request that was served; none of them is an error."""
    statuses = [span.attributes["http.status_code"] for span in spans]
    assert statuses.count(402) >= 2
    assert statuses.count(200) == 2
    assert not [span for span in spans if span.status.status_code is trace.StatusCode.ERROR]
    challenges = [span for span in spans if span.attributes.get("opengradient.challenge")]
    assert [span.attributes["http.status_code"] for span in challenges] == [402] * statuses.count(402)


def test_a_challenge_is_no_error_of_its_http_span(net, payments, http_spans):
    with client_for(payments) as client:
        client.chat(PROMPT)
        net.close_sessions()  # the next call asks in a session that is gone
        client.chat(PROMPT)
    check_challenges(http_spans())


async def test_nor_of_a_coroutines_http_span(net, payments, http_spans):
    async with async_client_for(payments) as client:
        await client.chat(PROMPT)
        await asyncio.to_thread(net.close_sessions)
        await client.chat(PROMPT)
    check_challenges(http_spans())


async def test_nor_over_a_transport_of_the_users(net, payments, http_spans):
    async with httpx.AsyncHTTPTransport() as wire, async_client_for(payments, http_transport=wire) as client:
        await client.chat(PROMPT)
        await asyncio.to_thread(net.close_sessions)
        await client.chat(PROMPT)
    check_challenges(http_spans())


async def test_each_of_many_coroutines_has_its_http_spans_in_its_own_trace(payments, http_spans, tracer):
    async with async_client_for(payments) as client:
        await client.chat(PROMPT)

        async def one(number: int) -> int:
            with tracer.start_as_current_span(f"user {number}") as span:
                assert [chunk async for chunk in await client.stream(PROMPT)]
                return span.get_span_context().trace_id

        traces = await asyncio.gather(*[one(number) for number in range(20)])
    served = [span for span in http_spans() if span.attributes["http.status_code"] == 200]
    assert sorted(span.context.trace_id for span in served if span.parent) == sorted(traces)


def test_a_payment_that_is_refused_stays_an_error(net, payments, http_spans):
    net.faults.inject(RefusePayment(), times=None)
    with client_for(payments) as client, pytest.raises(PaymentOutcomeUnknown):
        client.chat(PROMPT)
    check_refusal(http_spans())


async def test_so_it_does_for_coroutines(net, payments, http_spans):
    net.faults.inject(RefusePayment(), times=None)
    async with async_client_for(payments) as client:
        with pytest.raises(PaymentOutcomeUnknown):
            await client.chat(PROMPT)
    check_refusal(http_spans())


def check_refusal(spans) -> None:
    refused = [span.status.status_code for span in spans if span.attributes["http.status_code"] == 402]
    assert refused == [trace.StatusCode.OK, trace.StatusCode.ERROR]
