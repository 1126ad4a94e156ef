"""Tool calls in every dialect that gateways stream: sync, async, streamed and whole give the same calls."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from langchain_opengradient import ChatOpenGradient
from opengradient_devnet.faults import StreamStyle
from opengradient_devnet.tool_call_styles import ToolCallStyle
from opengradient_x402.payment.payments import Payments
from support.answer_shapes import SHAPES, Shape, Shaped

from .conftest import BETA, HAS_V3, Payer

pytestmark = pytest.mark.filterwarnings(BETA)


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool
def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"sunny in {city}"


QUESTION = "Multiply 3 and 4, and get the weather in Paris."


def calls(message: AIMessage) -> list[tuple]:
    assert all(one["id"] for one in message.tool_calls)
    return [(one["name"], one["args"]) for one in message.tool_calls]


@pytest.mark.parametrize("style", list(ToolCallStyle))
@pytest.mark.parametrize("as_message", [False, True], ids=["delta", "message"])
async def test_every_dialect_gives_the_same_calls_sync_and_async(payer: Payer, style, as_message):
    payer._net.faults.inject(StreamStyle(tool_calls=style, as_message=as_message), times=None)
    model = payer.model().bind_tools([multiply, weather])
    whole = await model.ainvoke(QUESTION)
    sync_sum = reduce(add, model.stream(QUESTION))
    async_sum = reduce(add, [chunk async for chunk in model.astream(QUESTION)])
    expected = calls(whole)
    assert {name for name, _ in expected} == {"multiply", "weather"}
    assert calls(sync_sum) == calls(async_sum) == expected
    if HAS_V3:
        assert calls(await (await model.astream_events(QUESTION, version="v3")).output) == expected
    assert sync_sum.text == async_sum.text == whole.text
    assert sync_sum.additional_kwargs == async_sum.additional_kwargs
    assert [b["type"] for b in sync_sum.content_blocks] == [b["type"] for b in whole.content_blocks]


async def test_broken_arguments_are_invalid_calls_on_every_way(payer: Payer):
    payer._net.faults.inject(StreamStyle(broken_arguments=True), times=None)
    model = payer.model().bind_tools([multiply], tool_choice="any")
    if HAS_V3:
        v3 = await (await model.astream_events("Multiply 3 and 4", version="v3")).output
        assert [block["type"] for block in v3.content_blocks] == ["invalid_tool_call"]
    for message in (
        model.invoke("Multiply 3 and 4"),
        reduce(add, model.stream("Multiply 3 and 4")),
        reduce(add, [chunk async for chunk in model.astream("Multiply 3 and 4")]),
    ):
        assert message.tool_calls == []
        assert [bad["name"] for bad in message.invalid_tool_calls] == ["multiply"]


async def test_a_malformed_call_in_structured_output_is_an_error_and_not_none(payer: Payer):
    from langchain_core.exceptions import OutputParserException
    from pydantic import BaseModel

    class Pair(BaseModel):
        """A pair."""

        a: int
        b: int

    payer._net.faults.inject(StreamStyle(broken_arguments=True), times=None)
    model = payer.model().with_structured_output(Pair, method="function_calling")
    with pytest.raises(OutputParserException):
        model.invoke("The pair of 3 and 4")
    with pytest.raises(OutputParserException):
        list(model.stream("The pair of 3 and 4"))


async def test_version_1_streams_merge_each_call_with_itself(payer: Payer):
    payer._net.faults.inject(StreamStyle(tool_calls=ToolCallStyle.INTERLEAVED), times=None)
    model = payer.model(output_version="v1").bind_tools([multiply, weather])
    total = reduce(add, model.stream(QUESTION))
    found = [block for block in total.content if block["type"] == "tool_call"]
    assert [(block["name"], block["args"]) for block in found] == calls(total)
    assert len(found) == 2


def kinds(message: AIMessage) -> list[str]:
    """In no order: an event stream has blocks as they came."""
    return sorted(block["type"] for block in message.content_blocks)


SHAPES_OF_CALLS = [shape for shape in SHAPES if shape.calls or shape.broken]


@pytest.mark.parametrize("shape", SHAPES_OF_CALLS, ids=lambda shape: shape.name)
async def test_event_streams_have_the_calls_of_a_whole_answer(shape: Shape, shaped: Shaped, paying: Payments):
    shaped.shape = shape
    async with ChatOpenGradient(model="openai/gpt-5", payments=paying) as model:
        whole = await model.ainvoke("x")
        ends = [
            event async for event in model.astream_events("x", version="v2") if event["event"].endswith("model_end")
        ]
        found = [ends[-1]["data"]["output"]]
        if HAS_V3:
            found.append(await (await model.astream_events("x", version="v3")).output)
    for message in found:
        assert [(one["name"], one["args"]) for one in message.tool_calls] == [
            (one["name"], one["args"]) for one in whole.tool_calls
        ]
        # Of what is broken, event streams may keep the bracket that stops core from repairing it.
        assert [one["name"] for one in message.invalid_tool_calls] == [one["name"] for one in whole.invalid_tool_calls]
        assert kinds(message) == kinds(whole)
