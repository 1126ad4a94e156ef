"""A paid gateway before models of one's own: an OpenAI-compatible server, or a LangChain chat model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_devnet import Devnet
from opengradient_devnet.gateway.pricing import load_prices
from opengradient_devnet.model.langchain_upstream import LangChainModel, load_chat_model
from opengradient_devnet.model.protocol import Chunk, Delivery, ModelError
from opengradient_devnet.model.upstream import open_model
from opengradient_x402 import Payments
from support.answers import events_of
from support.loopback_server import serving
from support.payer import Payer, chat_body

HERE = "test_own_models_models"  # the module that a reference names; see `importable`
PRICE = {
    "context_tokens": 8192,
    "max_output_tokens": 2048,
    "input_usd_per_mtok": "1",
    "output_usd_per_mtok": "2",
}
REQUEST = {"model": "local/llama", "messages": [{"role": "user", "content": "Hi there"}]}
USAGE = {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


class Scripted(BaseChatModel):
    """Says what it is told to say, and keeps what it was asked."""

    model: str = "scripted-1"
    answer: AIMessage = AIMessage("Hello!")
    pieces: Sequence[AIMessageChunk] = ()
    failure: Exception | None = None
    asked: Any
    closed: Any

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools, **kwargs) -> Runnable:
        return self.bind(tools=tools, **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        self.asked.append((messages, {**kwargs, "stop": stop}))
        if self.failure is not None:
            raise self.failure
        return ChatResult(generations=[ChatGeneration(message=self.answer)])

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs) -> AsyncIterator[ChatGenerationChunk]:
        self.asked.append((messages, {**kwargs, "stop": stop}))
        try:
            for piece in self.pieces:
                yield ChatGenerationChunk(message=piece)
                await asyncio.sleep(0)
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed.append(True)


def scripted(**fields) -> tuple[Scripted, LangChainModel]:
    chat = Scripted(asked=[], closed=[], **fields)
    return chat, LangChainModel(chat=chat)


async def collect(model: LangChainModel, request=REQUEST, **delivery) -> list[Chunk]:
    return [chunk async for chunk in model.stream(request, delivery=Delivery(**delivery))]


# --- a LangChain model, asked -----------------------------------------------------------------------------


async def test_messages_and_parameters_go_in_as_openai_writes_them():
    chat, model = scripted()
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    await model.complete(
        {
            "model": "local/llama",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "2"},
            ],
            "temperature": 0.5,
            "max_completion_tokens": 7,
            "stop": ["END"],
            "tools": [TOOL],
            "tool_choice": "required",
            "stream": False,
            "user": "somebody",
        }
    )
    ((messages, parameters),) = chat.asked

    assert [type(message) for message in messages] == [SystemMessage, HumanMessage, AIMessage, ToolMessage]
    assert messages[2].tool_calls[0]["args"] == {"a": 1}
    assert parameters == {
        "temperature": 0.5,
        "max_tokens": 7,
        "stop": ["END"],
        "tools": [TOOL],
        "tool_choice": "required",
    }


async def test_text_reasoning_and_usage_come_out_as_openai_writes_them():
    details = {"input_token_details": {"cache_read": 3}, "output_token_details": {"reasoning": 2}}
    answer = AIMessage(
        [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Two."}],
        usage_metadata={**USAGE, **details},
        response_metadata={"stop_reason": "max_tokens"},
    )
    _, model = scripted(answer=answer)
    said = await model.complete(REQUEST)

    assert said.message == {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."}
    assert (said.finish_reason, said.model) == ("length", "local/llama")
    assert said.usage == {
        "prompt_tokens": 11,
        "completion_tokens": 4,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


async def test_tool_calls_come_out_whole_and_broken_ones_as_they_are():
    answer = AIMessage(
        "",
        tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}],
        invalid_tool_calls=[{"name": "add", "args": '{"a": ', "id": "y", "error": "cut"}],
    )
    _, model = scripted(answer=answer)
    said = await model.complete({**REQUEST, "tools": [TOOL]})

    assert said.message["content"] is None
    assert [call["function"]["arguments"] for call in said.message["tool_calls"]] == ['{"a": 1}', '{"a": ']
    assert [call["id"] for call in said.message["tool_calls"]] == ["x", "y"]
    assert said.finish_reason == "tool_calls"


async def test_usage_is_estimated_when_the_model_gives_none():
    _, model = scripted()
    usage = (await model.complete(REQUEST)).usage

    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] == 2


async def test_a_stream_passes_every_piece_on_and_ends_with_usage():
    pieces = [
        AIMessageChunk("Hel"),
        AIMessageChunk("lo", additional_kwargs={"reasoning_content": "Greet."}),
        AIMessageChunk("", usage_metadata=USAGE, response_metadata={"finish_reason": "stop"}),
    ]
    chat, model = scripted(pieces=pieces)
    chunks = await collect(model, as_message=True)

    assert [chunk.delta for chunk in chunks] == [
        {"content": "Hel"},
        {"content": "lo", "reasoning_content": "Greet."},
        {},
    ]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]
    assert chunks[-1].usage["completion_tokens"] == 4
    assert all(chunk.as_message for chunk in chunks)
    assert chat.closed == [True]


async def test_streamed_tool_calls_keep_index_id_name_and_fragments():
    def part(**fields):
        return AIMessageChunk("", tool_call_chunks=[{"name": None, "args": None, "id": None, "index": 0} | fields])

    _, model = scripted(pieces=[part(name="add", id="x", args=""), part(args='{"a":'), part(args="1}")])
    chunks = await collect(model, {**REQUEST, "tools": [TOOL]})

    assert [chunk.delta["tool_calls"][0] for chunk in chunks[:-1]] == [
        {"index": 0, "id": "x", "type": "function", "function": {"name": "add", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]
    assert chunks[-1].finish_reason == "tool_calls"


async def test_a_reader_who_leaves_ends_the_models_stream():
    chat, model = scripted(pieces=[AIMessageChunk(str(number)) for number in range(100)])
    stream = model.stream(REQUEST)
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(5):
        while not chat.closed:  # langchain-core leaves the model's own generator to the loop's finalizer
            await asyncio.sleep(0)

    assert len(chat.asked) == 1


class Refused(Exception):
    status_code = 429


@pytest.mark.parametrize(
    ("failure", "status", "retryable"), [(Refused("busy"), 429, True), (RuntimeError("out of memory"), 502, True)]
)
async def test_what_the_model_raises_becomes_a_provider_error(failure, status, retryable):
    _, model = scripted(failure=failure, pieces=[AIMessageChunk("a")])
    with pytest.raises(ModelError, match=str(failure)) as whole:
        await model.complete(REQUEST)
    with pytest.raises(ModelError, match=str(failure)) as streamed:
        await collect(model)

    for raised in (whole.value, streamed.value):
        assert (raised.status, raised.is_retryable) == (status, retryable)


@pytest.mark.parametrize(
    "request_",
    [
        {**REQUEST, "messages": [{"role": "wizard", "content": "Hi"}]},
        {**REQUEST, "messages": [7]},
    ],
)
async def test_messages_that_cannot_be_put_to_it_are_refused(request_):
    _, model = scripted()
    with pytest.raises(ModelError) as refused:
        await model.complete(request_)
    assert refused.value.status == 400


async def test_a_model_without_tools_says_so():
    model = LangChainModel(chat=FakeListChatModel(responses=["a"]))
    with pytest.raises(ModelError, match="FakeListChatModel does not take tools"):
        await model.complete({**REQUEST, "tools": [TOOL]})
    assert await model.names() == []


# --- references -------------------------------------------------------------------------------------------


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """A module of the user's, on the path."""
    (tmp_path / f"{HERE}.py").write_text(
        "from langchain_core.language_models.fake_chat_models import FakeListChatModel\n"
        "model = FakeListChatModel(responses=['I am local.'])\n"
        "def make():\n    return model\n"
        "def broken():\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop(HERE, None)


def test_a_reference_names_a_model_or_what_makes_one(importable):
    assert load_chat_model(f"{HERE}:model") is load_chat_model(f"{HERE}:make")


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("", "module:attribute"),
        ("json", "module:attribute"),
        ("no.such.module:model", "There is no chat model"),
        (f"{HERE}:nothing", "There is no chat model"),
        (f"{HERE}:number", "is a int"),
        (f"{HERE}:broken", "is a int"),
    ],
)
def test_a_reference_that_leads_nowhere_says_why(importable, reference, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_model(f"langchain:{reference}")


def test_langchain_is_not_imported_unless_it_is_asked_for():
    code = "import sys; from opengradient_devnet import Devnet; Devnet(); assert 'langchain_core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


# --- sold -------------------------------------------------------------------------------------------------


def offered(net: Devnet) -> dict[str, dict]:
    page = httpx.get(f"{net.gateway_url}/v1/models", trust_env=False).json()
    unpaid = httpx.get(f"{net.unpaid_url}/models", trust_env=False).json()
    assert page == unpaid
    return {model["id"]: model for model in page["data"]}


def test_a_langchain_model_is_sold_under_the_name_and_price_of_the_file(importable, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"opg_usd": "0.5", "models": {"local/llama": PRICE}}))
    with (
        Devnet(upstream=f"langchain:{HERE}:model", prices=prices) as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        whole = payer.chat(chat_body(model="local/llama")).json()
        streamed = events_of(payer.chat(chat_body(model="llama", stream=True)).text)
        unknown = payer.chat(chat_body(model="gpt-5"))
        records = net.close_sessions()
        assert list(offered(net)) == ["llama"]

    assert whole["choices"][0]["message"]["content"] == "I am local."
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed) == "I am local."
    assert unknown.status_code == 400
    usage = whole["usage"]
    price_wei = 2 * 10**12 * (usage["prompt_tokens"] + 2 * usage["completion_tokens"])
    assert price_wei in [record.amount_atomic for record in records]


@pytest.fixture
def local_server():
    """An OpenAI-compatible server with two models; it tells what it was asked for."""
    asked: list[dict] = []

    async def models(_request):
        return JSONResponse({"object": "list", "data": [{"id": "llama3.2:1b"}, {"id": "hf.co/some/model"}]})

    async def chat(request):
        body = await request.json()
        asked.append({**body, "authorization": request.headers.get("authorization")})
        message = {"role": "assistant", "content": "I am local."}
        return JSONResponse({"choices": [{"message": message, "finish_reason": "stop"}]})

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])]
    with serving(Starlette(routes=routes)) as url:
        yield f"openai:{url}/v1", asked


def test_without_prices_everything_that_the_server_lists_is_sold_at_the_price_of_the_house(local_server):
    upstream, asked = local_server
    with (
        Devnet(upstream=upstream, upstream_key="secret", opg_usd="2") as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        menu = offered(net)
        answer = payer.chat(chat_body(model="llama3.2:1b")).json()
        opg_price = httpx.get(f"{net.gateway_url}/v1/models", trust_env=False).json()["opg_price_usd"]

    assert list(menu) == ["llama3.2:1b", "hf.co/some/model"]
    assert menu["llama3.2:1b"]["pricing"] == {"input_usd_per_mtok": "1", "output_usd_per_mtok": "4"}
    assert answer["choices"][0]["message"]["content"] == "I am local."
    assert (asked[0]["model"], asked[0]["authorization"]) == ("llama3.2:1b", "Bearer secret")
    assert (opg_price, answer["opengradient"]["opg_price_usd"]) == ("2", "2")


@pytest.mark.parametrize("name", ["llama3", "ollama/llama3", "llama3:latest", "ollama/hf.co/some/model:latest"])
def test_a_model_that_ollama_lists_as_its_latest_is_asked_for_by_the_name_that_people_have(name):
    async def models(_request):
        return JSONResponse({"data": [{"id": "llama3:latest"}, {"id": "hf.co/some/model:latest"}]})

    async def chat(request):
        message = {"role": "assistant", "content": (await request.json())["model"]}
        return JSONResponse({"choices": [{"message": message, "finish_reason": "stop"}]})

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])]
    with serving(Starlette(routes=routes)) as url, Devnet(upstream=f"openai:{url}/v1") as net:
        key = net.account(approved=True).private_key
        with closing(ChatOpenGradient(model=name, private_key=key, network=f"{net.gateway_url}/network")) as llm:
            assert llm.invoke("hi").content == name.removeprefix("ollama/")


def test_with_prices_only_what_they_name_is_sold_and_shown_also_what_the_server_does_not_list(local_server):
    upstream, asked = local_server
    prices = {"opg_usd": "1", "models": {"local/hf.co/some/model": PRICE, "local/hidden": PRICE}}
    with (
        Devnet(upstream=upstream, prices=prices) as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        assert set(offered(net)) == {"hf.co/some/model", "hidden"}
        for name in ("hf.co/some/model", "local/hf.co/some/model", "local/hidden"):
            assert payer.chat(chat_body(model=name)).status_code == 200
        assert payer.chat(chat_body(model="llama3.2:1b")).status_code == 400

    assert [body["model"] for body in asked] == ["hf.co/some/model", "hf.co/some/model", "hidden"]


def test_a_price_for_anything_else_opens_the_servers_own_list(local_server):
    upstream, _asked = local_server
    prices = {"opg_usd": "1", "models": {"local/hidden": PRICE}, "anything_else": {**PRICE, "input_usd_per_mtok": "9"}}
    with Devnet(upstream=upstream, prices=prices) as net:
        menu = offered(net)

    assert list(menu) == ["hidden", "llama3.2:1b", "hf.co/some/model"]
    assert menu["hf.co/some/model"]["pricing"]["input_usd_per_mtok"] == "9"
    assert menu["hf.co/some/model"]["owned_by"] == "upstream"


def test_a_server_without_a_list_sells_anything_and_lists_nothing_unless_there_is_a_price_list():
    with serving(Starlette()) as url:
        with Devnet(upstream=f"openai:{url}/v1") as net:
            assert offered(net) == {}
        with Devnet(upstream=f"openai:{url}/v1", prices={"opg_usd": "1", "models": {"local/llama": PRICE}}) as net:
            assert list(offered(net)) == ["llama"]


@pytest.mark.parametrize(
    ("name", "asked_for"),
    [
        ("llama3.2:1b", "llama3.2:1b"),
        ("ollama/llama3.2:1b", "llama3.2:1b"),
        ("hf.co/some/model", "hf.co/some/model"),
    ],
)
def test_both_faces_call_a_local_model_at_once_under_its_own_name_or_any_providers(
    local_server, tmp_path, name, asked_for
):
    upstream, asked = local_server
    with Devnet(upstream=upstream) as net:
        key = net.account(approved=True).private_key
        ledger = tmp_path / "ledger.sqlite"
        with closing(Payments.open(network=f"{net.gateway_url}/network", private_key=key, ledger=ledger)) as payments:
            said = ChatOpenGradient(model=name, payments=payments).invoke("Hi").text
            also_said = OpenGradient(model=name, payments=payments).complete("Hi").text

    assert (said, also_said) == ("I am local.", "I am local.")
    assert [body["model"] for body in asked] == [asked_for, asked_for]


def test_names_are_found_whole_before_their_provider_is_taken_off():
    prices = load_prices({"opg_usd": "1", "models": {"local/hf.co/x": PRICE, "openai/gpt": PRICE}})

    assert prices.find("hf.co/x").name == prices.find("local/hf.co/x").name == "hf.co/x"
    assert prices.find("openai/gpt") is prices.find("gpt")
    for unknown in ("anthropic/gpt", "x", "other/hf.co/x", ""):
        assert prices.find(unknown) is None


# --- from the command line --------------------------------------------------------------------------------


def test_the_command_finds_a_langchain_model_in_the_folder_it_is_started_in(importable, tmp_path):
    command = [sys.executable, "-m", "opengradient_devnet", "--upstream", f"langchain:{HERE}:nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 2
    assert f"module '{HERE}' has no attribute 'nothing'" in done.stderr
