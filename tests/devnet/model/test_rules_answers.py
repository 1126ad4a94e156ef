"""What the rule model says, how long, how it is cut into chunks, and what it counts."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import pytest

from opengradient_devnet.model.protocol import Delivery, ModelError
from opengradient_devnet.model.rules import RulesModel
from opengradient_devnet.model.tokens import count, tokens
from opengradient_devnet.tool_call_styles import ToolCallStyle

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather at a location.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
TWO_CALLS = {
    "model": "openai/gpt-5",
    "messages": [{"role": "user", "content": "What is the weather in Paris and London?"}],
    "tools": [TOOL],
}


def request_for(content, **options):
    return {"model": "openai/gpt-5", "messages": [{"role": "user", "content": content}], **options}


def answer(content, *, model=None, **options):
    return asyncio.run((model or RulesModel()).complete(request_for(content, **options)))


def chunks_of(request, **delivery):
    async def collect():
        return [chunk async for chunk in RulesModel().stream(request, delivery=Delivery(**delivery))]

    return asyncio.run(collect())


def assembled_calls(chunks):
    """Tool calls put together as a client must: by index, or by the last open call where there is none."""
    calls: dict[int, dict] = {}
    for chunk in chunks:
        for part in chunk.delta.get("tool_calls", []):
            if part["index"] is None:
                is_new = "id" in part and part["id"] not in {call["id"] for call in calls.values()}
                index = len(calls) if is_new else len(calls) - 1
            else:
                index = part["index"]
            call = calls.setdefault(
                index, {"id": part.get("id"), "name": part["function"].get("name"), "arguments": ""}
            )
            call["arguments"] += part["function"].get("arguments", "")
    return [(call["name"], json.loads(call["arguments"])) for _, call in sorted(calls.items())]


def test_says_back_what_it_was_asked_and_names_the_model():
    content = answer("Where is my hat?").message["content"]
    assert "Where is my hat?" in content
    assert "openai/gpt-5" in content


def test_the_answer_carries_the_name_of_the_model_asked_for():
    assert answer("Hi").model == "openai/gpt-5"


def test_the_same_request_gets_the_same_answer_at_any_temperature():
    assert answer("Hi", temperature=0) == answer("Hi", temperature=2, seed=7)


def test_remembers_what_the_user_said_before():
    messages = [
        {"role": "user", "content": "My name is Ada. I like tea."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "What is my name?"},
    ]
    content = asyncio.run(RulesModel().complete({"model": "m", "messages": messages})).message["content"]
    assert "My name is Ada." in content
    assert "tea" not in content


def test_counts_and_writes_at_length_when_asked():
    assert answer("Count from 3 to 6.").message["content"] == "3, 4, 5, 6"
    assert len(answer("Write a story of 500 words.").message["content"].split()) == 500


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"x" * 70).decode()},
            },
            "image/png (70 bytes)",
        ),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "https://example.com/a.png"),
        (
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"y" * 9).decode(), "format": "wav"}},
            "audio/wav (9 bytes)",
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
            'application/pdf "a.pdf" (4 bytes)',
        ),
    ],
)
def test_acknowledges_what_arrived_by_type_and_size(part, expected):
    assert expected in answer([{"type": "text", "text": "Look at this."}, part]).message["content"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,not base64!"}},
        {"type": "image_url", "image_url": {"url": "data:text/plain;base64,eHh4"}},
        {"type": "image_url", "image_url": {"url": "/home/me/a.png"}},
        {"type": "file", "file": {}},
        {"type": "image", "source": {"type": "base64", "data": "eHh4"}},
        {"type": "thinking", "thinking": "hm"},
    ],
)
def test_refuses_parts_that_a_provider_would_refuse(part):
    with pytest.raises(ModelError) as caught:
        answer([{"type": "text", "text": "Look."}, part])
    assert caught.value.status == 400


def test_media_cost_tokens():
    plain, with_image = (
        answer([{"type": "text", "text": "Look."}, *parts]).usage["prompt_tokens"]
        for parts in ([], [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}])
    )
    assert with_image == plain + 85


def test_max_tokens_cuts_the_answer_and_says_so():
    cut = answer("Count to 100.", max_tokens=5)
    assert cut.finish_reason == "length"
    assert cut.usage["completion_tokens"] == count(cut.message["content"]) == 5


def test_max_tokens_cuts_tool_arguments_too():
    cut = asyncio.run(RulesModel().complete({**TWO_CALLS, "max_completion_tokens": 4}))
    assert cut.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.message["tool_calls"][0]["function"]["arguments"])


def test_stop_ends_the_answer_before_the_first_sequence():
    assert answer("Count to 9.", stop=["5", "4"]).message["content"] == "1, 2, 3, "
    assert answer("Count to 9.", stop="2").message["content"] == "1, "


def test_without_compensation_stop_is_ignored_and_length_is_never_said():
    model = RulesModel(compensates=False)
    assert answer("Count to 5.", model=model, stop=["3"]).message["content"] == "1, 2, 3, 4, 5"
    cut = answer("Count to 100.", model=model, max_tokens=5)
    assert cut.finish_reason == "stop"
    assert cut.usage["completion_tokens"] == 5


@pytest.mark.parametrize("limit", [0, -1, "many"])
def test_refuses_a_limit_that_is_none(limit):
    with pytest.raises(ModelError, match="max_tokens"):
        answer("Hi", max_tokens=limit)


def test_reasons_only_when_asked_to_and_counts_it():
    assert "reasoning_content" not in answer("Hi").message
    reasoned = answer("Hi", reasoning_effort="high")
    details = reasoned.usage["completion_tokens_details"]
    assert details["reasoning_tokens"] == count(reasoned.message["reasoning_content"]) > 0
    assert reasoned.usage["completion_tokens"] > details["reasoning_tokens"]


def test_usage_adds_up_and_grows_with_what_is_sent():
    short, long = answer("Hi").usage, answer("Hi " * 100).usage
    assert short["total_tokens"] == short["prompt_tokens"] + short["completion_tokens"]
    assert long["prompt_tokens"] >= short["prompt_tokens"] + 99


def test_marked_parts_count_as_cached_once_they_were_seen():
    marked = {"role": "user", "content": [{"type": "text", "text": "A long text.", "cache_control": {"type": "x"}}]}
    first = asyncio.run(RulesModel().complete({"model": "m", "messages": [marked]})).usage["prompt_tokens_details"]
    again = [marked, {"role": "assistant", "content": "Ok."}, {"role": "user", "content": "Go on."}]
    later = asyncio.run(RulesModel().complete({"model": "m", "messages": again})).usage["prompt_tokens_details"]
    assert first["cached_tokens"] == 0
    assert first["cache_creation_tokens"] == later["cached_tokens"] == count("A long text.")


@pytest.mark.parametrize("text", ["", "Hello, world!", "  two  blanks\n\n", "你好 12345 élan", "a" * 50])
def test_tokens_put_together_are_the_text(text):
    assert "".join(tokens(text)) == text


@pytest.mark.parametrize("content", ["Hi", "Write 40 words."])
def test_a_stream_says_what_the_complete_answer_says(content):
    request = request_for(content, reasoning_effort="low")
    whole = asyncio.run(RulesModel().complete(request))
    chunks = chunks_of(request)
    assert chunks[0].delta["role"] == "assistant"
    assert "".join(chunk.delta.get("content", "") for chunk in chunks) == whole.message["content"]
    assert "".join(chunk.delta.get("reasoning_content", "") for chunk in chunks) == whole.message["reasoning_content"]
    assert sum(1 for chunk in chunks if chunk.delta.get("content")) >= 3
    assert [chunk.is_terminal for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", whole.usage)


@pytest.mark.parametrize("style", list(ToolCallStyle))
def test_tool_calls_survive_every_style_of_streaming(style):
    chunks = chunks_of(TWO_CALLS, tool_calls=style)
    assert assembled_calls(chunks) == [("get_weather", {"location": place}) for place in ("Paris", "London")]
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_styles_are_what_their_names_say():
    parts = {
        style: [
            chunk.delta["tool_calls"] for chunk in chunks_of(TWO_CALLS, tool_calls=style) if "tool_calls" in chunk.delta
        ]
        for style in ToolCallStyle
    }
    order = [part[0]["index"] for part in parts[ToolCallStyle.INTERLEAVED]]
    assert order[:4] == [0, 1, 0, 1]
    assert len(parts[ToolCallStyle.WHOLE]) == 2
    assert len(parts[ToolCallStyle.FRAGMENTS]) > 4
    assert all(part[0]["index"] is None for part in parts[ToolCallStyle.NULL_INDEX])
    assert all(part[0]["id"] and part[0]["function"]["name"] for part in parts[ToolCallStyle.REPEATED_IDS])
    assert [len(part) for part in parts[ToolCallStyle.WITH_TEXT]] == [2]


def test_text_and_tools_can_come_in_one_chunk():
    chunks = chunks_of(TWO_CALLS, tool_calls=ToolCallStyle.WITH_TEXT)
    assert any(chunk.delta.get("content") and chunk.delta.get("tool_calls") for chunk in chunks)


def test_broken_arguments_are_no_json():
    delivery = Delivery(broken_arguments=True)
    message = asyncio.run(RulesModel().complete(TWO_CALLS, delivery=delivery)).message
    for call in message["tool_calls"]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(call["function"]["arguments"])


def test_deltas_can_be_called_messages():
    choices = [chunk.choice() for chunk in chunks_of(request_for("Hi"), as_message=True)]
    assert all("message" in choice and "delta" not in choice for choice in choices)


async def test_a_pace_is_kept_and_a_closed_stream_ends_at_once():
    stream = RulesModel().stream(request_for("Count to 100."), delivery=Delivery(pace_s=0.02))
    start = time.monotonic()
    for _ in range(4):
        await anext(stream)
    assert time.monotonic() - start >= 0.06
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_streams_interleave_on_one_loop():
    order: list[int] = []

    async def read(number):
        async for _ in RulesModel().stream(request_for("Count to 20.")):
            order.append(number)

    await asyncio.gather(read(1), read(2))
    assert order[:4] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}],
        ["Hi"],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    ],
)
def test_refuses_messages_that_a_provider_would_refuse(messages):
    with pytest.raises(ModelError) as caught:
        asyncio.run(RulesModel().complete({"model": "m", "messages": messages}))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "content",
    ["a, b, c, " * 5000, "{" * 20_000, "Ada Bob 1 2 " * 4000, " " * 50_000 + "x", "context\n-----\n" * 3000],
    ids=["commas", "braces", "names", "blanks", "rules"],
)
def test_long_and_odd_prompts_are_answered_with_little_work(content):
    start = time.process_time()
    asyncio.run(RulesModel().complete({**TWO_CALLS, "messages": [{"role": "user", "content": content}]}))
    assert time.process_time() - start < 2
