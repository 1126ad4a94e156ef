"""An odd member never takes a paid answer away: its text and its calls are there, on both faces and behind `serve`."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from langchain_opengradient.conversions import to_chunk, to_result, to_terminal_chunk
from llama_index_opengradient.responses import ChatStream, chat_response, completion_response
from opengradient_x402.completions import Completion, Delta, StreamAccumulator, parse_completion
from opengradient_x402.serve.answers import EventWriter, body_of

CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
NOTE = {"type": "url_citation", "url_citation": {"url": "https://a.example"}}
TOKEN = {"token": "a", "logprob": -1, "bytes": [1], "top_logprobs": []}
MESSAGE = {
    "role": "assistant",
    "content": "hello",
    "reasoning_content": "because",
    "refusal": None,
    "tool_calls": [CALL],
    "images": [{"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}],
    "annotations": [NOTE],
    "audio": {"id": "a1", "data": "QQ=="},
    "reasoning_details": [{"index": 0, "text": "x"}],
}
BODY = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": {}},
    "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE, "logprobs": {"content": [TOKEN]}}],
}
ODD: list[Any] = [None, 0, 1.5, True, "", "x", [], [None], ["x"], [1], [[]], [{}], {}, {"a": 1}, [{"text": None}]]
IN_MESSAGE = [
    *("role", "reasoning", "reasoning_content", "refusal", "function_call", "unknown"),
    *("images", "images.0", "images.0.image_url", "annotations", "annotations.0", "annotations.0.type"),
    *("annotations.0.url_citation", "audio", "audio.id", "audio.data", "audio.transcript"),
    *("reasoning_details", "reasoning_details.0", "reasoning_details.0.index"),
    *("tool_calls", "tool_calls.0", "tool_calls.0.id", "tool_calls.0.index", "tool_calls.0.type"),
    *("tool_calls.0.function", "tool_calls.0.function.name", "tool_calls.0.extra_content"),
]
PLACES = [
    *("id", "object", "created", "model", "usage", "usage.prompt_tokens", "usage.prompt_tokens_details"),
    *("images", "citations", "system_fingerprint", "choices.0.index", "choices.0.finish_reason", "choices.0.unknown"),
    *("choices.0.logprobs", "choices.0.logprobs.content", "choices.0.logprobs.content.0"),
    *(f"choices.0.logprobs.content.0.{name}" for name in ("token", "bytes", "logprob", "top_logprobs")),
    *(f"choices.0.message.{name}" for name in IN_MESSAGE),
]


def with_odd(place: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(BODY)
    *way, last = (int(name) if name.isdigit() else name for name in place.split("."))
    inner: Any = body
    for name in way:
        inner = inner[name]
    inner[last] = value
    return body


def streamed(body: dict[str, Any]) -> tuple[list[Delta], Completion]:
    accumulator = StreamAccumulator()
    (choice,) = body["choices"]
    message = choice.pop("message")
    first = {"choices": [{"index": 0, "delta": message, "finish_reason": None}]}
    last = {**body, "choices": [{**choice, "delta": {}}]}
    deltas = [accumulator.feed(first), accumulator.feed(last), accumulator.end()]
    return [delta for delta in deltas if not delta.is_empty], accumulator.finish()


@pytest.mark.parametrize("place", PLACES)
def test_a_whole_answer_with_an_odd_member_is_read(place: str):
    for value in ODD:
        completion = parse_completion(with_odd(place, value))
        message = to_result(completion, model_name="m").generations[0].message
        response = chat_response(completion)
        assert message.text == response.message.content == body_of(completion)["choices"][0]["message"]["content"]
        assert message.text == "hello"
        assert message.content_blocks
        for written in (message.model_dump_json(), response.model_dump_json(), json.dumps(body_of(completion))):
            assert "hello" in written


@pytest.mark.parametrize("place", PLACES)
def test_and_so_is_a_streamed_one(place: str):
    for value in ODD:
        deltas, completion = streamed(with_odd(place, value))
        total = sum_of([to_chunk(delta).message for delta in deltas], completion)
        stream = ChatStream()
        for delta in deltas:
            stream.feed(delta)
        assert total.text == completion_response(stream.finish(completion)).text == "hello"
        assert total.content_blocks
        writer = EventWriter(model="m", has_usage=True)
        events = [writer.of(delta) for delta in deltas] + list(writer.end(completion, None))
        assert b'"hello"' in b"".join(events)


def sum_of(chunks: list[Any], completion: Completion) -> AIMessageChunk:
    total = chunks[0]
    for chunk in (*chunks[1:], to_terminal_chunk(completion, None, model_name="m", with_usage=True).message):
        total += chunk
    return total


def test_a_bare_image_in_base64_becomes_a_data_url_and_what_is_no_image_is_left_out():
    images = ["iVBORw0KGgoAAA", {"b64_json": "/9j/AAA"}, {"image_url": "https://a.example/x.png"}, "x", {"url": 5}]
    completion = parse_completion(with_odd("choices.0.message.images", images))
    expected = ["data:image/png;base64,iVBORw0KGgoAAA", "data:image/jpeg;base64,/9j/AAA", "https://a.example/x.png"]
    assert list(completion.images) == expected


def test_what_is_said_beside_a_message_is_passed_on_by_the_server_too():
    body = with_odd("choices.0.native_finish_reason", "end_turn")
    assert body_of(parse_completion(body))["choices"][0]["native_finish_reason"] == "end_turn"
    _, completion = streamed(body)
    events = b"".join(EventWriter(model="m", has_usage=False).end(completion, None))
    assert b'"native_finish_reason":"end_turn"' in events
