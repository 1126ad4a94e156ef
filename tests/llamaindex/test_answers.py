"""Whatever an answer carries is in the response, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from pydantic import BaseModel

from llama_index_opengradient.messages import wire_messages
from llama_index_opengradient.responses import ChatStream, chat_response, completion_response
from llama_index_opengradient.structured import output_tool
from opengradient_x402 import strict_json
from opengradient_x402.completions import StreamAccumulator, parse_completion

LOGPROBS = {
    "content": [
        {"token": "a", "logprob": -0.1, "bytes": [1], "top_logprobs": []},
        {
            "token": "b",
            "logprob": -0.2,
            "bytes": None,
            "top_logprobs": [{"token": "b", "logprob": -0.2}, {"token": "c"}],
        },
    ]
}
NOTES = [{"type": "url_citation", "url_citation": {"url": "https://a.example"}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SIGNED = {"extra_content": {"google": {"thought_signature": "abc"}}}


def both(message: dict[str, Any], *pieces: dict[str, Any], **rest: Any) -> list[ChatResponse]:
    """The response to a whole answer, and the last chunk of the same one streamed."""
    choice = {"finish_reason": "stop", **{name: rest.pop(name) for name in ("logprobs",) if name in rest}}
    whole = parse_completion({"id": "1", **rest, "choices": [{**choice, "message": message}]})
    accumulator, stream = StreamAccumulator(), ChatStream()
    events = [{"choices": [{"delta": piece}]} for piece in pieces or (message,)]
    for event in [*events, {"id": "1", **rest, "choices": [{**choice, "delta": {}}]}]:
        stream.feed(accumulator.feed(strict_json.loads(json.dumps(event))))
    return [chat_response(whole), stream.finish(accumulator.finish())]


def test_logprobs_citations_and_fingerprints_are_in_the_response() -> None:
    for response in both({"content": "ab", "annotations": NOTES}, logprobs=LOGPROBS, system_fingerprint="fp_1"):
        assert [[one.token for one in token] for token in response.logprobs or ()] == [["a"], ["b", "c"]]
        assert response.raw["choices"][0]["logprobs"] == LOGPROBS
        assert response.raw["system_fingerprint"] == "fp_1"
        assert response.additional_kwargs["annotations"] == NOTES
        assert response.raw["choices"][0]["message"]["annotations"] == NOTES
        assert completion_response(response).logprobs == response.logprobs


def test_half_of_an_emoji_in_one_chunk_and_half_in_the_next_is_one_emoji() -> None:
    for response in both({"content": "\U0001f600!"}, {"content": "\ud83d"}, {"content": "\ude00!"}):
        assert response.message.content == "\U0001f600!"


def test_thought_signatures_go_back_with_their_calls() -> None:
    for response in both({"tool_calls": [{**CALL, **SIGNED}]}, {"tool_calls": [{"index": 0, **CALL, **SIGNED}]}):
        (wire,) = wire_messages([response.message])
        assert wire["tool_calls"] == [{**CALL, **SIGNED}]
        assert response.raw["choices"][0]["message"]["tool_calls"] == [{**CALL, **SIGNED}]


class Node(BaseModel):
    """A node."""

    children: list[Node] = []


def test_a_recursive_class_is_asked_for_as_an_object_with_its_references() -> None:
    parameters = output_tool(Node)["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert "children" in parameters["$defs"]["Node"]["properties"]
