"""Passing calls on to an OpenAI-compatible server, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from opengradient_devnet.model.protocol import Chunk, Delivery, ModelError
from opengradient_devnet.model.rules import RulesModel
from opengradient_devnet.model.upstream import UpstreamModel, open_model

REQUEST = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi there"}], "temperature": 0.5}
USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


@dataclass
class FakeServer:
    """Answers each connection with a script: bytes to send, numbers of seconds to wait, None to wait for ever."""

    script: list[bytes | float | None]
    requests: list[tuple[str, dict, dict]] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    connections: list[asyncio.Task] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.current_task())
        try:
            await self.play(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append((lines[0], headers, body))
        for item in self.script:
            if item is None:
                await reader.read()  # returns when the other side closes
                self.hung_up.set()
            elif isinstance(item, bytes):
                writer.write(item)
                await writer.drain()
            else:
                await asyncio.sleep(item)


@asynccontextmanager
async def serving(*script) -> AsyncIterator[tuple[FakeServer, UpstreamModel]]:
    fake = FakeServer(list(script))
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    model = UpstreamModel(base_url=fake.url, api_key="provider-key", timeout_s=60)
    try:
        yield fake, model
    finally:
        await model.aclose()
        server.close()
        await server.wait_closed()
        await asyncio.gather(*fake.connections)


def plain(body, *, status="200 OK"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(delta=None, *, finish_reason=None, **fields):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def completion(**fields):
    message = {"role": "assistant", "content": "Hello!"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "model": "gpt-5-2025", **fields}


async def collect(model, request=REQUEST, **delivery) -> list[Chunk]:
    return [chunk async for chunk in model.stream(request, delivery=Delivery(**delivery))]


async def test_passes_the_request_on_under_the_providers_own_model_name():
    async with serving(plain(completion(usage=USAGE))) as (fake, model):
        answer = await model.complete({**REQUEST, "web_search": True})
    line, headers, body = fake.requests[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers["authorization"] == "Bearer provider-key"
    assert body == {**REQUEST, "model": "gpt-5"}
    assert (answer.message["content"], answer.finish_reason, answer.usage) == ("Hello!", "stop", USAGE)
    assert answer.model == "openai/gpt-5"


async def test_raw_rules_do_not_compensate_for_what_gateways_leave_out():
    request = {**REQUEST, "stop": " ", "max_tokens": 2}
    helpful, raw = [await open_model(name).complete(request) for name in ("rules", "rules:raw")]

    assert " " not in helpful.message["content"]
    assert " " in raw.message["content"]
    assert raw.finish_reason == "stop"


@pytest.mark.parametrize(
    ("keep_provider", "asked_for", "sent"),
    [(True, "openai/gpt-5", "openai/gpt-5"), (False, "llama3.2:1b", "llama3.2:1b"), (False, "a/b/c", "b/c")],
)
async def test_the_provider_prefix_is_stripped_unless_it_is_to_be_kept(keep_provider, asked_for, sent):
    async with serving(plain(completion())) as (fake, model):
        model.keep_provider = keep_provider
        await model.complete({**REQUEST, "model": asked_for})
    assert fake.requests[0][2]["model"] == sent


async def test_usage_is_estimated_when_the_server_gives_none():
    async with serving(plain(completion())) as (_, model):
        estimated = (await model.complete(REQUEST)).usage
    by_rules = (await RulesModel().complete(REQUEST)).usage
    assert estimated["prompt_tokens"] == by_rules["prompt_tokens"]
    assert estimated["completion_tokens"] == 2
    assert estimated["total_tokens"] == estimated["prompt_tokens"] + 2


async def test_streams_deltas_then_one_terminal_chunk_with_usage():
    script = [STREAM, event({"role": "assistant"}), event({"content": "Hel"}), event({"content": "lo"})]
    script += [event({}, finish_reason="stop"), event(usage=USAGE), DONE]
    async with serving(*script) as (fake, model):
        chunks = await collect(model)
    assert fake.requests[0][2]["stream_options"] == {"include_usage": True}
    assert [chunk.delta for chunk in chunks] == [{"role": "assistant"}, {"content": "Hel"}, {"content": "lo"}, {}]
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", USAGE)
    assert not any(chunk.is_terminal for chunk in chunks[:-1])


async def test_tool_calls_pass_through_a_stream_untouched():
    part = {"index": None, "id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    script = [STREAM, event({"tool_calls": [part]}), event({"content": None}, finish_reason="tool_calls"), DONE]
    async with serving(*script) as (_, model):
        chunks = await collect(model)
    assert chunks[0].delta == {"tool_calls": [part]}
    assert chunks[-1].finish_reason == "tool_calls"
    assert chunks[-1].usage["completion_tokens"] > 0


async def test_a_delta_is_passed_on_before_the_server_says_the_next():
    async with serving(STREAM, event({"content": "now"}), None) as (_, model):
        stream = model.stream(REQUEST)
        first = await asyncio.wait_for(anext(stream), timeout=60)
        await stream.aclose()
    assert first.delta == {"content": "now"}


async def test_closing_the_stream_closes_the_connection():
    async with serving(STREAM, event({"content": "now"}), None) as (fake, model):
        stream = model.stream(REQUEST)
        await anext(stream)
        assert not fake.hung_up.is_set()
        await stream.aclose()
        await asyncio.wait_for(fake.hung_up.wait(), timeout=60)


async def test_cancelling_the_reader_closes_the_connection():
    async with serving(STREAM, event({"content": "now"}), None) as (fake, model):
        reading = asyncio.create_task(collect(model))
        while not fake.requests:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(fake.hung_up.wait(), timeout=60)


async def test_a_pace_slows_the_stream_down():
    script = [STREAM, *(event({"content": text}) for text in "abc"), event({}, finish_reason="stop"), DONE]
    async with serving(*script) as (_, model):
        start = time.monotonic()
        await collect(model, pace_s=0.03)
    assert time.monotonic() - start >= 0.09


@pytest.mark.parametrize(
    ("status", "passed_on", "is_retryable"),
    [
        ("400 Bad Request", 400, False),
        ("401 Unauthorized", 502, True),
        ("404 Not Found", 404, False),
        ("422 Unprocessable", 400, False),
        ("429 Too Many Requests", 429, True),
        ("500 Internal Server Error", 502, True),
        ("503 Service Unavailable", 503, True),
    ],
)
async def test_a_refusal_becomes_a_model_error_with_the_providers_words(status, passed_on, is_retryable):
    refusal = plain({"error": {"message": "model `x` is off", "type": "t"}}, status=status)
    async with serving(refusal) as (_, model):
        for ask in (model.complete(REQUEST), collect(model)):
            with pytest.raises(ModelError, match="model `x` is off") as caught:
                await ask
            assert (caught.value.status, caught.value.is_retryable) == (passed_on, is_retryable)
            assert caught.value.provider_status == int(status[:3])
            assert "provider-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ([STREAM, event({"content": "Hel"})], "middle of the answer"),
        ([STREAM, event({"content": "Hel"}), DONE], "middle of the answer"),
        ([STREAM, event({"content": "Hel"}), b'data: {"error": {"message": "overloaded"}}\n\n'], "overloaded"),
        ([STREAM, b"data: {broken\n\n"], "not JSON"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", event({"content": "Hel"})], "broke off"),
        ([b""], "broke off"),
    ],
    ids=["no-end", "no-finish", "error-event", "no-json", "cut-body", "no-response"],
)
async def test_a_broken_stream_is_a_502_and_never_an_answer(script, complaint):
    async with serving(*script) as (_, model):
        with pytest.raises(ModelError, match=complaint) as caught:
            await collect(model)
    assert caught.value.status == 502


@pytest.mark.parametrize("body", [b"<html>", {}, {"choices": []}, {"choices": [{}]}, []])
async def test_an_answer_that_is_no_completion_is_a_502(body):
    async with serving(plain(body)) as (_, model):
        with pytest.raises(ModelError, match="no chat completion") as caught:
            await model.complete(REQUEST)
    assert caught.value.status == 502


async def test_nobody_listening_is_a_503_and_silence_a_504():
    async with serving(None) as (_, model):
        model.timeout_s = 0.1
        with pytest.raises(ModelError, match="too long") as silence:
            await model.complete(REQUEST)
    with pytest.raises(ModelError, match="Cannot reach") as nobody:
        await model.complete(REQUEST)
    await model.aclose()
    assert (silence.value.status, nobody.value.status) == (504, 503)
    assert silence.value.is_retryable
    assert nobody.value.is_retryable


def test_one_model_serves_several_loops_one_after_another():
    model = UpstreamModel(base_url="", timeout_s=60)

    async def ask():
        async with serving(plain(completion(usage=USAGE))) as (fake, _):
            model.base_url = fake.url
            answer = await model.complete(REQUEST)
            await model.aclose()
            return answer.message["content"]

    assert [asyncio.run(ask()) for _ in range(3)] == ["Hello!"] * 3


async def test_an_upstream_is_opened_by_its_name():
    assert isinstance(open_model("rules"), RulesModel)
    model = open_model("openai:http://127.0.0.1:11434/v1", api_key="secret-key")
    assert isinstance(model, UpstreamModel)
    assert model.base_url == "http://127.0.0.1:11434/v1"
    assert "secret-key" not in repr(model)


@pytest.mark.parametrize("name", ["", "gpt-5", "openai:", "openai:localhost", "ollama:http://127.0.0.1/v1"])
def test_an_unknown_upstream_is_refused_with_what_to_write(name):
    with pytest.raises(ValueError, match="openai:"):
        open_model(name)
