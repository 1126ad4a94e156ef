"""The accumulator reads every shape of stream that gateways have been seen to send."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.completions import ErrorEvent, StreamAccumulator, ToolCall, Truncated, parse_completion
from opengradient_x402.gateway.answer import DONE, EventDecoder
from opengradient_x402.proofs.attestation import output_hash

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "gateway_responses.json").read_text())
CAPTURED = {response["name"]: response for response in VECTORS["responses"]}


def event(delta=None, finish=None, *, key="delta", **rest):
    return {"choices": [{key: delta or {}, "index": 0, "finish_reason": finish}], **rest}


def tool(index=None, call_id=None, name=None, arguments=None):
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def run(*events, **options):
    accumulator = StreamAccumulator(**options)
    deltas = [accumulator.feed(item) for item in events]
    return deltas, accumulator.finish()


def calls_of(*parts):
    return run(*(event({"tool_calls": [part]}) for part in parts), event(finish="tool_calls"))


TWO_CALLS = (
    ToolCall(id="a", name="f", arguments='{"x": 1}'),
    ToolCall(id="b", name="g", arguments='{"y": 2}'),
)


@pytest.mark.parametrize("name", ["plain", "tools"])
def test_a_captured_stream_and_its_captured_body_give_the_same_completion(name):
    body = parse_completion(json.loads(CAPTURED[name]["body"]))
    accumulator = StreamAccumulator()
    for payload in EventDecoder().feed(CAPTURED[f"{name}_stream"]["body"].encode()):
        if payload != DONE:
            accumulator.feed(json.loads(payload))
    stream = accumulator.finish()
    for part in ("content", "tool_calls", "finish_reason", "usage", "model"):
        assert getattr(stream, part) == getattr(body, part), part
    assert stream.raw["tee_output_hash"] == body.raw["tee_output_hash"]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            [tool(0, "a", "f", '{"x": 1}'), tool(1, "b", "g", '{"y": 2}')],
            id="whole",
        ),
        pytest.param(
            [
                tool(0, "a", "f", ""),
                tool(0, None, None, '{"x"'),
                tool(0, None, None, ": 1}"),
                tool(1, "b", "g", '{"y": '),
                tool(1, None, None, "2}"),
            ],
            id="fragments",
        ),
        pytest.param(
            [
                tool(0, "a", "f", '{"x"'),
                tool(1, "b", "g", '{"y"'),
                tool(0, None, None, ": 1}"),
                tool(1, None, None, ": 2}"),
            ],
            id="interleaved",
        ),
        pytest.param(
            [tool(None, "a", "f", '{"x"'), tool(None, None, None, ": 1}"), tool(None, "b", "g", '{"y": 2}')],
            id="null index, first piece names the id",
        ),
        pytest.param(
            [
                tool(None, "a", "f", '{"x"'),
                tool(None, "b", "g", '{"y"'),
                tool(None, "a", "f", ": 1}"),
                tool(None, "b", "g", ": 2}"),
            ],
            id="null index, repeated ids, interleaved",
        ),
        pytest.param(
            [tool(0, "a", "f", '{"x"'), tool(0, "a", "f", ": 1}"), tool(1, "b", "g", '{"y": 2}')],
            id="repeated ids and names",
        ),
        pytest.param([tool(0, "a", "f", '{"x": 1}'), tool(0, "b", "g", '{"y": 2}')], id="every call says index 0"),
        pytest.param([tool(0, "a", "f", {"x": 1}), tool(1, "b", "g", {"y": 2})], id="arguments as objects"),
    ],
)
def test_tool_calls_are_put_together_however_they_are_cut(parts):
    deltas, completion = calls_of(*parts)
    found = tuple(
        ToolCall(id=c.id, name=c.name, arguments=json.dumps(json.loads(c.arguments))) for c in completion.tool_calls
    )
    assert found == TWO_CALLS
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    for index, call in enumerate(completion.tool_calls):
        own = [piece for piece in pieces if piece.index == index]
        assert [p.id for p in own if p.id] == [call.id], "the id is said once"
        assert [p.name for p in own if p.name] == [call.name], "the name is said once"
        assert "".join(p.arguments for p in own) == call.arguments


def test_calls_without_index_and_id_are_told_apart_by_their_names():
    _, completion = calls_of(tool(name="f", arguments='{"x": 1}'), tool(name="g", arguments='{"y": 2}'))
    assert [call.name for call in completion.tool_calls] == ["f", "g"]


@pytest.mark.parametrize("arguments", ["", None, "{}", '{"x": 1}'])
@pytest.mark.parametrize("pieces", [["f"], ["temp", "era", "ture"], ["f", "f", "f"]], ids=str)
def test_the_first_delta_of_a_call_has_its_whole_name_and_no_other_has_one(pieces, arguments):
    named = [tool(0, "a", name) for name in pieces]
    parts = [*named, tool(0, None, None, arguments), tool(1, "b", "last")]
    deltas, completion = calls_of(*parts)
    told = [one for delta in deltas for one in delta.tool_calls]
    name = "f" if pieces[0] == "f" else "temperature"
    assert [(one.index, one.id, one.name) for one in told if one.id or one.name] == [(0, "a", name), (1, "b", "last")]
    assert [call.name for call in completion.tool_calls] == [name, "last"]
    assert "".join(one.arguments for one in told) == (arguments or "")


@pytest.mark.parametrize("options", [{}, {"stop": ["END"]}], ids=["plain", "stop"])
def test_what_was_held_back_arrives_although_no_event_says_why_the_answer_ends(options):
    accumulator = StreamAccumulator(**options)
    deltas = [
        accumulator.feed(event({"content": "to the E", "reasoning_content": "hm\ud83d"})),
        accumulator.feed(event({"tool_calls": [tool(0, "a", "now")]})),
        accumulator.end(),
    ]
    completion = accumulator.finish()
    assert "".join(delta.content for delta in deltas) == completion.content == "to the E"
    assert "".join(delta.reasoning for delta in deltas) == completion.reasoning == "hm\ufffd"
    assert [one.name for delta in deltas for one in delta.tool_calls] == ["now"]
    assert completion.finish_reason == "tool_calls"


def test_malformed_arguments_are_kept_as_they_are():
    _, completion = calls_of(tool(0, "a", "f", '{"x": '))
    assert completion.tool_calls[0].arguments == '{"x": '


def test_text_and_a_tool_call_in_one_event_both_arrive():
    deltas, completion = run(event({"content": "hm", "tool_calls": [tool(0, "a", "f", "{}")]}), event(finish="stop"))
    assert (deltas[0].content, len(deltas[0].tool_calls), completion.content) == ("hm", 1, "hm")


def test_message_instead_of_delta_is_understood():
    _, completion = run(event({"content": "hi"}, key="message"), event(finish="stop"))
    assert completion.content == "hi"


def test_a_second_finish_event_is_ignored_and_its_usage_is_not():
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    deltas, completion = run(
        event({"content": "x"}), event(finish="stop"), event(finish="length"), {"choices": [], "usage": usage}
    )
    assert [d.finish_reason for d in deltas] == [None, "stop", None, None]
    assert (completion.finish_reason, completion.usage.total_tokens) == ("stop", 3)


def test_length_is_inferred_from_usage_because_gateways_never_say_it():
    usage = {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    deltas, completion = run(event({"content": "x"}), event(finish="stop", usage=usage), max_tokens=5)
    assert deltas[-1].finish_reason == completion.finish_reason == "length"


@given(
    st.text("abSTOP ", max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_stop_sequences_are_applied_however_the_text_is_cut(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    stops = ["STOP", "bab"]
    deltas, completion = run(
        event({"content": "."}), *(event({"content": piece}) for piece in pieces), event(finish="stop"), stop=stops
    )
    full = "." + text
    expected = full[: min((at for s in stops if (at := full.find(s)) >= 0), default=len(full))]
    assert completion.content == expected == "".join(delta.content for delta in deltas)
    assert completion.served_text == full


def test_an_error_event_raises_and_an_empty_stream_is_no_success():
    accumulator = StreamAccumulator()
    with pytest.raises(ErrorEvent, match="provider down"):
        accumulator.feed({"error": "provider down", "retryable": True})
    with pytest.raises(Truncated):
        StreamAccumulator().finish()


def test_usage_details_and_images_are_read():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    _, completion = run(
        event({"reasoning_content": "why"}),
        event(finish="stop", usage=usage, images=[{"image_url": {"url": "data:image/png;base64,AA"}}, "https://x/y"]),
    )
    assert (completion.usage.cached_tokens, completion.usage.reasoning_tokens) == (3, 2)
    assert completion.images == ("data:image/png;base64,AA", "https://x/y")
    assert completion.reasoning == "why"


@pytest.mark.parametrize("call_id", [None, "0"], ids=["no id", "one id for all"])
@pytest.mark.parametrize("index", ["none", "own", "zero"])
@pytest.mark.parametrize("key", ["delta", "message"])
def test_calls_without_an_id_of_their_own_are_calls_with_ids_of_their_own(call_id, index, key):
    indexes = {"none": (None, None), "own": (0, 1), "zero": (0, 0)}[index]
    parts = [tool(at, call_id, "add", f'{{"a": {at_call}}}') for at_call, at in enumerate(indexes)]
    deltas, completion = run(event({"tool_calls": parts}, key=key), event(finish="tool_calls"))
    assert [call.arguments for call in completion.tool_calls] == ['{"a": 0}', '{"a": 1}']
    ids = [call.id for call in completion.tool_calls]
    assert all(ids)
    assert len(set(ids)) == 2
    assert [part.id for delta in deltas for part in delta.tool_calls] == ids


def test_an_id_that_was_made_here_is_not_what_the_enclave_signed():
    answer = calls_of(tool(0, None, "f", "{}"))[1].tool_calls
    served = [ToolCall(id="", name="f", arguments="{}")]
    assert answer[0].id
    hashes = [output_hash(text="", tool_calls=calls, finish_reason="tool_calls") for calls in (answer, served)]
    assert hashes[0] == hashes[1]
