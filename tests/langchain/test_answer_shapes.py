"""Whatever an answer carries reaches the user, and the same in every way to call the model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from pydantic import BaseModel

from langchain_opengradient import ChatOpenGradient
from langchain_opengradient.errors import ModelRefusal
from langchain_opengradient.messages import to_wire
from langchain_opengradient.structured_output import to_response_format
from langchain_opengradient.tools import to_wire_tool
from opengradient_x402 import strict_json
from opengradient_x402.completions import Completion, Delta, StreamAccumulator, parse_completion
from opengradient_x402.networks import PRESETS


class Events:
    """An open stream of these events."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events, self._accumulator = events, StreamAccumulator()
        self.completion: Completion | None = None

    def __iter__(self) -> Iterator[Delta]:
        for event in self._events:
            # As they travel: an escaped half of a character is two events' worth of JSON.
            yield self._accumulator.feed(strict_json.loads(json.dumps(event)))
        self.completion = self._accumulator.finish()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for delta in self:
            yield delta

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Scripted:
    """A gateway client that answers with this message, whole or in these pieces."""

    def __init__(self, message: dict[str, Any], pieces: list[dict[str, Any]], **rest: Any) -> None:
        self.payments = SimpleNamespace(network=next(iter(PRESETS.values())))
        self._choice = {name: rest.pop(name) for name in ("finish_reason", "logprobs") if name in rest}
        self._message, self._pieces, self._rest = message, pieces, rest
        self.body: dict[str, Any] = {}

    def chat(self, body: dict[str, Any], **_: Any) -> Completion:
        self.body = body
        choice = {"finish_reason": "stop", **self._choice, "message": self._message}
        return parse_completion(strict_json.loads(json.dumps({"id": "1", **self._rest, "choices": [choice]})))

    def stream(self, body: dict[str, Any], **_: Any) -> Events:
        self.body = body
        end = {"finish_reason": "stop", **self._choice, "delta": {}}
        return Events(
            [*({"choices": [{"delta": one}]} for one in self._pieces), {"id": "1", **self._rest, "choices": [end]}]
        )


class AsyncScripted(Scripted):
    async def chat(self, body: dict[str, Any], **options: Any) -> Completion:  # type: ignore[override]
        return super().chat(body, **options)

    async def stream(self, body: dict[str, Any], **options: Any) -> Events:  # type: ignore[override]
        return super().stream(body, **options)


def scripted(message: dict[str, Any], pieces: list[dict[str, Any]] | None = None, **rest: Any) -> ChatOpenGradient:
    pieces = [message] if pieces is None else pieces
    clients = {"client": Scripted(message, pieces, **rest), "async_client": AsyncScripted(message, pieces, **rest)}
    return ChatOpenGradient(model="openai/gpt-5", private_key="0x" + "11" * 32, **clients)


async def in_every_way(model: ChatOpenGradient) -> list[AIMessage]:
    streamed, astreamed = AIMessageChunk(""), AIMessageChunk("")
    for chunk in model.stream("x"):
        streamed += chunk
    async for chunk in model.astream("x"):
        astreamed += chunk
    return [model.invoke("x"), await model.ainvoke("x"), streamed, astreamed]


LOGPROBS = {"content": [{"token": "ok", "logprob": -0.1, "bytes": [1], "top_logprobs": []}]}
NOTE = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 2},
}
DETAILS = [{"type": "reasoning.text", "text": "because", "signature": "s", "index": 0}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\U0001f600"}'}}
SIGNED = {"google": {"thought_signature": "abc"}}


@pytest.mark.parametrize(
    "cut", ["hi \ud83d|\ude00 bye", "\ud83d|\ude00|", "|\ud83d||\ude00", "a\ud83d|\ude00b\ud83d|\ude00"]
)
@pytest.mark.parametrize("member", ["content", "reasoning_content", "refusal"])
async def test_half_of_an_emoji_in_one_event_and_half_in_the_next_is_one_emoji(member: str, cut: str):
    whole = cut.replace("|", "").encode("utf-16", "surrogatepass").decode("utf-16")
    for message in await in_every_way(scripted({member: whole}, [{member: piece} for piece in cut.split("|")])):
        found = message.content if member == "content" else message.additional_kwargs[member]
        assert found == whole


async def test_a_half_that_stays_alone_costs_no_answer():
    for message in await in_every_way(scripted({"content": "a\ud83d b\ude00 c\ud83d"})):
        assert message.content == "a� b� c�"
        json.dumps(message.content).encode()


async def test_an_emoji_in_arguments_may_be_cut_too():
    pieces = [
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a": "\ud83d'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '\ude00"}'}}]},
    ]
    for message in await in_every_way(scripted({"tool_calls": [CALL]}, pieces)):
        assert message.tool_calls[0]["args"] == {"a": "\U0001f600"}


async def test_logprobs_citations_fingerprints_and_audio_are_on_the_message():
    message = {"content": "ok", "annotations": [NOTE], "audio": {"id": "a1", "data": "QUJD", "transcript": "ok"}}
    pieces = [
        {"content": "ok"},
        {"annotations": [NOTE]},
        *({"audio": {"id": "a1", "data": part}} for part in ("QU", "JD")),
    ]
    rest = {
        "logprobs": LOGPROBS,
        "system_fingerprint": "fp_1",
        "service_tier": "flex",
        "citations": ["https://a.example"],
    }
    for found in await in_every_way(scripted(message, pieces, **rest)):
        metadata = found.response_metadata
        assert metadata["logprobs"] == LOGPROBS
        assert (metadata["system_fingerprint"], metadata["service_tier"]) == ("fp_1", "flex")
        assert metadata["citations"] == ["https://a.example"]
        assert found.additional_kwargs["audio"]["data"] == "QUJD"
        (text,) = [block for block in found.content_blocks if block["type"] == "text"]
        assert text["annotations"][0]["url"] == "https://a.example"


async def test_what_a_provider_wants_back_is_kept_and_sent_back():
    message = {"reasoning_details": DETAILS, "tool_calls": [{**CALL, "extra_content": SIGNED}]}
    pieces = [
        {"reasoning_details": [{"type": "reasoning.text", "text": "be", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "cause", "signature": "s", "index": 0}]},
        {"tool_calls": [{"index": 0, **CALL, "extra_content": SIGNED}]},
    ]
    for found in await in_every_way(scripted(message, pieces)):
        assert found.additional_kwargs["reasoning_details"] == DETAILS
        (wire,) = to_wire([found])
        assert wire["reasoning_details"] == DETAILS
        assert wire["tool_calls"][0]["extra_content"] == SIGNED
        assert wire["tool_calls"][0]["id"] == "c1"


async def test_a_refusal_is_a_block_where_core_has_them():
    for found in await in_every_way(scripted({"content": None, "refusal": "no"}, [{"refusal": "n"}, {"refusal": "o"}])):
        assert found.additional_kwargs["refusal"] == "no"
        if hasattr(exceptions, "ModelRefusalError"):
            assert [(block["type"], block["refusal"]) for block in found.content_blocks] == [("refusal", "no")]


class Pay(BaseModel):
    """A payment."""

    to: str
    amount: int


@pytest.mark.parametrize(
    "text", ['{"to": "bob", "amount": 12', '{"to": "bob"', '```json\n{"to": "bob", "amount": 12', '{"a', ""]
)
@pytest.mark.parametrize("reason", ["length", "content_filter", "stop"])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("schema", [Pay, Pay.model_json_schema()], ids=["class", "schema"])
def test_an_answer_that_was_cut_off_is_an_error_and_never_a_repaired_object(text, reason, method, schema):
    message: dict[str, Any] = {"content": text or "x"}
    if method == "function_calling":
        message = {"content": "", "tool_calls": [{**CALL, "function": {"name": "Pay", "arguments": text or "x"}}]}
    runnable = scripted(message, finish_reason=reason).with_structured_output(schema, method=method)
    words = "malformed arguments|no JSON" if reason == "stop" else f"finish_reason '{reason}'"
    with pytest.raises(OutputParserException, match=words):
        runnable.invoke("x")
    with pytest.raises(OutputParserException, match=words):
        list(runnable.stream("x"))


@pytest.mark.parametrize(
    "text",
    [
        '{"to": "bob", "amount": 1}',
        '<think>{"to": "al"}</think>{"to": "bob", "amount": 1}',
        'Here [1]:\n```json\n{"to": "bob",\n"amount": 1}\n```\nBye {x}.',
    ],
)
def test_a_whole_answer_is_read_among_friendly_words(text: str):
    runnable = scripted({"content": text}).with_structured_output(Pay)
    assert runnable.invoke("x") == list(runnable.stream("x"))[-1] == Pay(to="bob", amount=1)


def test_a_refusal_of_structured_output_is_cores():
    runnable = scripted({"content": None, "refusal": "no"}).with_structured_output(Pay)
    with pytest.raises(ModelRefusal) as caught:
        runnable.invoke("x")
    assert isinstance(caught.value, getattr(exceptions, "ModelRefusalError", OutputParserException))
    assert caught.value.raw_message.additional_kwargs["refusal"] == "no"


class Node(BaseModel):
    """A node."""

    value: int
    children: list[Node] = []


class Even(BaseModel):
    """Mutually recursive."""

    odd: Odd | None = None


class Odd(BaseModel):
    """Mutually recursive."""

    even: Even | None = None


class Tree(BaseModel):
    """Recursive below its root."""

    root: Node


@pytest.mark.parametrize("schema", [Node, Even, Tree, Node.model_json_schema(), Tree.model_json_schema()])
@pytest.mark.parametrize("strict", [None, True])
def test_a_schema_that_refers_to_itself_is_sent_whole(schema: Any, strict: bool | None):
    sent = to_response_format(schema, strict=strict)["json_schema"]["schema"]
    tool = to_wire_tool(schema, strict=strict)["function"]["parameters"]
    for one in (sent, tool):
        text = json.dumps(one)
        assert '"items": {}' not in text
        assert one["type"] == "object"
        assert all(f'"{name}"' in json.dumps(one["$defs"]) for name in (r.split("/")[-1] for r in references(one)))
        assert "children" in text or "even" in text
        if strict:
            assert text.count('"additionalProperties": false') == text.count('"properties"')


def references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for value in schema.values() for found in references(value)]
    return [found for value in schema for found in references(value)] if isinstance(schema, list) else []
