"""Answers become messages without loss; a streamed answer adds up to the same message as a whole one."""

import json
from functools import reduce
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langchain_core.utils.json import parse_partial_json

from langchain_opengradient.conversions import to_chunk, to_result, to_terminal_chunk, unrepairable_end
from opengradient_x402.completions import Completion, Delta, StreamAccumulator, ToolCall, ToolCallDelta, Usage

USAGE = Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12, cached_tokens=3, reasoning_tokens=2)


def completion(**fields) -> Completion:
    return Completion(
        **{"id": "c1", "model": "gpt-5", "created": 1, "content": "", "finish_reason": "stop", "usage": USAGE, **fields}
    )


def streamed(events: list[dict], **terminal) -> AIMessageChunk:
    """The message that LangChain adds up from these wire events."""
    accumulator = StreamAccumulator(model="gpt-5")
    chunks = []
    for event in events:
        delta = accumulator.feed(event)
        if not delta.is_empty:
            chunks.append(to_chunk(delta))
    chunks.append(
        to_terminal_chunk(accumulator.finish(), None, **{"model_name": "openai/gpt-5", "with_usage": True, **terminal})
    )
    return reduce(add, chunks).message


def event(delta: dict, finish_reason: str | None = None, **more) -> dict:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more}


def call(index, call_id=None, name=None, arguments=None) -> dict:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return {"index": index, "function": function, **({"id": call_id} if call_id else {})}


END = event({}, "tool_calls", usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})


def test_a_whole_answer_keeps_reasoning_images_refusal_and_usage_details():
    message = (
        to_result(
            completion(content="hi", reasoning="hm", refusal="", images=("data:image/png;base64,AA==",)),
            model_name="openai/gpt-5",
        )
        .generations[0]
        .message
    )
    assert message.content_blocks == [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "hi"},
        {"type": "image", "base64": "AA==", "mime_type": "image/png"},
    ]
    assert message.usage_metadata == {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "input_token_details": {"cache_read": 3},
        "output_token_details": {"reasoning": 2},
    }
    counts = message.response_metadata.pop("token_usage")
    assert (counts["prompt_tokens"], counts["prompt_tokens_details"]["cached_tokens"]) == (7, 3)
    assert message.response_metadata == {
        "model_provider": "opengradient",
        "model_name": "openai/gpt-5",
        "finish_reason": "stop",
        "id": "c1",
    }


def test_usage_can_be_left_off_the_stream():
    message = streamed([event({"content": "a"}), END], with_usage=False)
    assert message.usage_metadata is None
    assert "token_usage" not in message.response_metadata


FRAGMENTS = [
    event({"tool_calls": [call(0, "c1", "f", '{"a"')]}),
    event({"tool_calls": [call(0, arguments=": 1}")]}),
    event({"tool_calls": [call(1, "c2", "g", "{}")]}),
    END,
]
WHOLE = [
    event({"tool_calls": [call(0, "c1", "f", '{"a": 1}'), call(1, "c2", "g", "{}")]}),
    END,
]
NULL_INDEX = [
    event({"tool_calls": [call(None, "c1", "f", '{"a"')]}),
    event({"tool_calls": [call(None, arguments=": 1}")]}),
    event({"tool_calls": [call(None, "c2", "g", "{}")]}),
    END,
]
REPEATED_IDS = [
    event({"tool_calls": [call(0, "c1", "f", '{"a"')]}),
    event({"tool_calls": [call(0, "c1", "f", ": 1}")]}),
    event({"tool_calls": [call(1, "c2", "g", "{}")]}),
    END,
]
INTERLEAVED = [
    event({"tool_calls": [call(0, "c1", "f", '{"a"'), call(1, "c2", "g", "{")]}),
    event({"tool_calls": [call(1, arguments="}"), call(0, arguments=": 1}")]}),
    END,
]
ALWAYS_ZERO = [
    event({"tool_calls": [call(0, "c1", "f", '{"a": 1}')]}),
    event({"tool_calls": [call(0, "c2", "g", "{}")]}),
    END,
]
EXPECTED_CALLS = [
    {"name": "f", "args": {"a": 1}, "id": "c1", "type": "tool_call"},
    {"name": "g", "args": {}, "id": "c2", "type": "tool_call"},
]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(FRAGMENTS, id="fragments"),
        pytest.param(WHOLE, id="whole"),
        pytest.param(NULL_INDEX, id="null_index"),
        pytest.param(REPEATED_IDS, id="repeated_ids"),
        pytest.param(INTERLEAVED, id="interleaved"),
        pytest.param(ALWAYS_ZERO, id="always_zero"),
    ],
)
def test_tool_calls_add_up_however_they_are_cut(events):
    message = streamed(events)
    assert message.tool_calls == EXPECTED_CALLS
    assert message.invalid_tool_calls == []
    assert [block["type"] for block in message.content_blocks] == ["tool_call", "tool_call"]


def test_text_reasoning_and_a_tool_call_in_one_chunk_are_all_kept():
    message = streamed(
        [event({"content": "Looking.", "reasoning_content": "hm", "tool_calls": [call(0, "c1", "f", "{}")]}), END]
    )
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call"]


@pytest.mark.parametrize(
    "arguments", ['{"path": "/', '{"a": [1', "nonsense", "[1, 2]", '{"a": 1} trailing', '{"a": "x\\']
)
def test_malformed_arguments_are_never_repaired_into_a_call(arguments):
    message = streamed([event({"tool_calls": [call(0, "c1", "f", arguments)]}), END])
    assert message.tool_calls == []
    assert [bad["id"] for bad in message.invalid_tool_calls] == ["c1"]
    assert message.invalid_tool_calls[0]["args"].startswith(arguments)
    whole = to_result(
        completion(tool_calls=(ToolCall(id="c1", name="f", arguments=arguments),)), model_name="openai/gpt-5"
    )
    assert whole.generations[0].message.tool_calls == []
    assert whole.generations[0].message.invalid_tool_calls[0]["args"] == arguments


def test_a_good_call_beside_a_malformed_one_survives():
    message = streamed([event({"tool_calls": [call(0, "c1", "f", '{"a'), call(1, "c2", "g", '{"b": 2}')]}), END])
    assert [good["id"] for good in message.tool_calls] == ["c2"]
    assert [bad["id"] for bad in message.invalid_tool_calls] == ["c1"]


def test_a_fragment_is_not_mistaken_for_a_call_and_a_whole_call_is_one_at_once():
    fragment = to_chunk(Delta(tool_calls=[ToolCallDelta(0, "c1", "f", '{"a": [1')])).message
    assert fragment.tool_calls == []
    assert fragment.invalid_tool_calls == []
    assert fragment.tool_call_chunks[0]["args"] == '{"a": [1'
    whole = to_chunk(Delta(tool_calls=[ToolCallDelta(0, "c1", "f", '{"a": [1]}')])).message
    assert whole.tool_calls[0]["args"] == {"a": [1]}


def test_a_call_without_arguments_has_none():
    message = streamed([event({"tool_calls": [call(0, "c1", "f", "")]}), END])
    assert message.tool_calls[0]["args"] == {}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except ValueError:
        return False


@given(
    st.one_of(
        st.text(alphabet='{}[]",:\\ a1\n', max_size=30),
        st.dictionaries(st.text(max_size=4), st.lists(st.text(max_size=4), max_size=2), max_size=3)
        .map(json.dumps)
        .flatmap(lambda text: st.integers(1, len(text)).map(lambda size: text[:size])),
    ).filter(lambda text: text.strip() and not _is_object(text))
)
def test_no_malformed_json_can_be_completed_once_its_end_is_spoilt(text):
    try:
        repaired = parse_partial_json(text + unrepairable_end(text))
    except ValueError:
        repaired = None
    assert not isinstance(repaired, dict)


def test_only_the_terminal_chunk_says_how_it_ended():
    chunk = to_chunk(Delta(content="a", tool_calls=[ToolCallDelta(0, "c1", "f", "{")])).message
    assert chunk.response_metadata == {"model_provider": "opengradient"}
    assert chunk.usage_metadata is None
    assert chunk.chunk_position is None
    last = to_terminal_chunk(completion(content="a"), None, model_name="m", with_usage=True).message
    assert last.chunk_position == "last"
    assert last.content_blocks == []


def test_sharing_the_chunk_metadata_does_not_let_one_message_change_another():
    first, second = to_chunk(Delta(content="a")).message, to_chunk(Delta(content="b")).message
    first.response_metadata["mine"] = 1
    assert "mine" not in second.response_metadata
    assert "mine" not in to_chunk(Delta(content="c")).message.response_metadata
