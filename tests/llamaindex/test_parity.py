"""What users of other integrations rely on, or were bitten by: with the answers that no obliging model gives."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from llama_index_opengradient import OpenGradient
from llamaindex.suite import Reply, ScriptedServer, call_to
from opengradient_devnet import Devnet
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.request import GatewayLimitation

# llama-index-workflows looks at every attribute of an agent when it is made, deprecated ones of pydantic included
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


@pytest.fixture(scope="module")
def scripted_net(server: ScriptedServer) -> Iterator[Devnet]:
    with Devnet(upstream=f"openai:{server.url}") as net:
        yield net


@pytest.fixture
def script(server: ScriptedServer) -> ScriptedServer:
    server.reset()
    return server


@pytest.fixture
def scripted(scripted_net: Devnet, script: ScriptedServer) -> Iterator[Callable[..., OpenGradient]]:
    """Makes models behind which the script answers."""
    key = scripted_net.account(opg="10", approved=True).private_key
    made: list[OpenGradient] = []

    def make(**fields: Any) -> OpenGradient:
        params = {"model": "openai/gpt-5", "private_key": key, "network": f"{scripted_net.gateway_url}/network"}
        made.append(OpenGradient(**{**params, **fields}))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def agent_run(llm: OpenGradient, tools: list[Any], text: str) -> str:
    async def run() -> str:
        return str(await FunctionAgent(tools=tools, llm=llm).run(text))

    return asyncio.run(run())


class Arguments(BaseModel):
    path: str = "/"
    recursive: bool = True


def test_a_tool_that_takes_anything_does_not_run_on_broken_arguments(scripted, script):
    ran: list[dict[str, Any]] = []

    async def remote(**arguments: Any) -> str:  # the shape of MCP tools: everything goes to the server
        ran.append(arguments)
        return "deleted"

    delete = FunctionTool.from_defaults(async_fn=remote, name="delete_files", description="-", fn_schema=Arguments)
    broken = call_to("delete_files", '{"path": "/tmp/scratch", "recur')
    script.say(Reply(text=None, tool_calls=[broken], finish_reason="length"), Reply(text="I could not."))
    assert agent_run(scripted(), [delete], "Delete the scratch folder.") == "I could not."
    assert ran == []
    told = [message["content"] for message in script.last_request["messages"] if message["role"] == "tool"]
    assert len(told) == 1
    assert "not a JSON object" in told[0]
    assert '{"path": "/tmp/scratch", "recur' in told[0]


def test_tools_that_the_wire_would_spell_alike_stay_two(scripted, script):
    ran: list[str] = []

    def tool(name: str) -> FunctionTool:
        def note(amount: int) -> str:
            ran.append(name)
            return f"ok {amount}"

        return FunctionTool.from_defaults(note, name=name, description=name)

    script.say(Reply(text="Nothing to do."))
    agent_run(scripted(), [tool("存款"), tool("取款")], "Deposit 5.")
    first, second = (one["function"]["name"] for one in script.last_request["tools"])
    assert first != second
    script.say(Reply(text=None, tool_calls=[call_to(second, {"amount": 5})]), Reply(text="done"))
    agent_run(scripted(), [tool("存款"), tool("取款")], "Withdraw 5.")
    assert ran == ["取款"]


def test_results_of_calls_without_ids_go_back_to_the_calls_that_they_answer(scripted, script):
    async def temperature(city: str) -> str:
        """The temperature in a city."""
        await asyncio.sleep(0.2 if city == "Oslo" else 0)  # agents collect results in the order in which tools finish
        return f"{city} is {'cold' if city == 'Oslo' else 'warm'}"

    calls = [call_to("temperature", {"city": city}, call_id=None) for city in ("Oslo", "Rome")]
    script.say(Reply(text=None, tool_calls=calls), Reply(text="done"))
    agent_run(scripted(), [FunctionTool.from_defaults(async_fn=temperature)], "How warm are Oslo and Rome?")
    sent = script.last_request["messages"]
    cities = {
        call["id"]: json.loads(call["function"]["arguments"])["city"]
        for message in sent
        for call in message.get("tool_calls") or ()
    }
    results = [message for message in sent if message["role"] == "tool"]
    assert len(cities) == len(results) == 2
    assert all(result["content"].startswith(cities[result["tool_call_id"]]) for result in results)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "x-ai/grok-4"},
        {"model": "google/gemini-2.5-flash-image"},
        {"model": "openai/gpt-5", "context_window": 16_000},
        {"model": "openai/gpt-5"},
    ],
    ids=str,
)
def test_query_engines_have_room_for_a_prompt_with_every_model(make_llm, fields):
    index = SummaryIndex.from_documents([Document(text="The ferry Otter has room for 40 passengers.")])
    assert str(index.as_query_engine(llm=make_llm(**fields)).query("How many passengers has the ferry room for?"))


def test_a_model_has_a_json_schema():
    schema = OpenGradient.model_json_schema()
    assert "model" in schema["properties"]
    assert OpenGradient(model="openai/gpt-5").model_dump_json()


USER = [ChatMessage(role="user", content="hi")]


def test_extra_members_and_headers_mean_what_they_mean_to_openai_s_users(scripted, script):
    scripted().chat(
        USER, extra_body={"chat_template_kwargs": {"enable_thinking": False}}, extra_headers={"X-Trace": "1"}
    )
    assert script.last_request["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"extra_body", "extra_headers"} & script.last_request.keys()


@pytest.mark.parametrize("wrong", [{"previous_response_id": "r1"}, {"stream": True}, {"n": 2}], ids=str)
def test_what_has_no_place_in_a_paid_call_is_refused_before_it_is_paid(scripted, script, wrong):
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        scripted().chat(USER, **wrong)
    assert script.requests == []


def test_strict_is_said_of_the_tools(scripted, script):
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    scripted().chat_with_tools([FunctionTool.from_defaults(add)], user_msg="hi", strict=True)
    assert script.last_request["tools"][0]["function"]["strict"] is True
    assert "strict" not in script.last_request


class Tagged(BaseModel):
    """A thing."""

    name: str = "x"
    tags: dict[str, str] = {}


def test_strict_tools_and_objects_are_as_strict_mode_wants_them(scripted, script):
    def find(text: str, most: int = 5) -> str:
        """Find."""
        return text

    script.say(Reply(text="no"), Reply(text=None, tool_calls=[call_to("City", {"name": "Paris"})]))
    llm = scripted(strict=True)
    llm.chat_with_tools([FunctionTool.from_defaults(find)], user_msg="hi")
    (asked,) = script.last_request["tools"]
    assert asked["function"]["parameters"]["required"] == ["text", "most"]
    assert asked["function"]["parameters"]["additionalProperties"] is False
    assert llm.structured_predict(City, PromptTemplate("x")) == City(name="Paris")
    assert script.last_request["tools"][0]["function"]["strict"] is True
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        llm.structured_predict(Tagged, PromptTemplate("x"))
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        scripted().structured_predict(Tagged, PromptTemplate("x"), llm_kwargs={"strict": True})


def test_fields_of_openai_s_users_are_sent(scripted, script):
    llm = scripted(
        logprobs=True,
        top_logprobs=2,
        reasoning_effort="low",
        modalities=["text"],
        audio_config={"voice": "alloy"},
        strict=True,
        default_headers={"X-Team": "blue"},
        timeout=(2, 50),
        additional_kwargs={"user": "me"},
    )
    with pytest.warns(GatewayLimitation):
        llm.chat_with_tools([FunctionTool.from_defaults(lambda a: a, name="same")], user_msg="hi")
    assert (
        script.last_request.items()
        >= {
            "logprobs": True,
            "top_logprobs": 2,
            "reasoning_effort": "low",
            "modalities": ["text"],
            "audio": {"voice": "alloy"},
            "user": "me",
        }.items()
    )
    assert script.last_request["tools"][0]["function"]["strict"] is True


def test_a_field_that_nobody_set_hides_nothing(scripted, script):
    scripted(additional_kwargs={"temperature": 0.5, "max_tokens": 7, "stop": ["END"]}).chat(USER)
    assert script.last_request.items() >= {"temperature": 0.5, "max_tokens": 7, "stop": ["END"]}.items()


def test_api_base_is_taken_for_base_url_with_a_word(scripted_net):
    with pytest.warns(UserWarning, match="taken for `base_url`"):
        llm = OpenGradient(model="openai/gpt-5", api_base=scripted_net.gateway_url)
    assert llm.base_url == scripted_net.gateway_url


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"api_version": "2024-01"}, "Azure"),
        ({"openai_client": "any"}, "http_client"),
        ({"reuse_client": False}, "always shared"),
        ({"temprature": 0}, "Did you mean 'temperature'"),
        ({"http_client": 5}, "httpx client"),
        ({"timeout": 0}, "above 0"),
    ],
    ids=str,
)
def test_what_has_no_place_here_is_refused_when_the_model_is_made(fields, hint):
    with pytest.raises(ValueError, match="Nothing was paid") as caught:
        OpenGradient(model="openai/gpt-5", **fields)
    assert hint in str(caught.value)


def test_a_client_of_the_user_s_sends_what_is_paid(scripted, script):
    paths: list[str] = []
    with httpx.Client(event_hooks={"request": [lambda request: paths.append(str(request.url))]}) as client:
        response = scripted(http_client=client).chat(USER, extra_query={"v": "1"})
    assert response.raw["x402"]["status"] == "served"
    assert any(path.endswith("/v1/chat/completions?v=1") for path in paths)


class City(BaseModel):
    """A city."""

    name: str


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_object_may_be_asked_for_by_its_format(scripted, script, *, is_stream):
    script.say(Reply(text='{"name": "Paris"}'))
    llm, prompt = scripted(structured_by="response_format"), PromptTemplate("Which city?")
    found = list(llm.stream_structured_predict(City, prompt))[-1] if is_stream else llm.structured_predict(City, prompt)
    assert found == City(name="Paris")
    assert script.last_request["response_format"]["json_schema"]["name"] == "City"
    assert not {"tools", "tool_choice"} & script.last_request.keys()


async def test_and_in_a_coroutine(scripted, script):
    script.say(*[Reply(text='{"name": "Paris"}')] * 2)
    llm, prompt = scripted(structured_by="response_format"), PromptTemplate("Which city?")
    assert await llm.astructured_predict(City, prompt) == City(name="Paris")
    grown = [found async for found in await llm.astream_structured_predict(City, prompt)]
    assert grown[-1] == City(name="Paris")
    await llm.aclose()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"private_key": "0x11"}, "only a model has it"),
        ({"spend_policy": {}}, "only a model has it"),
        ({"verify_tee": "require"}, "only a model has it"),
        ({"api_base": "http://a.example"}, "only a model has it"),
        ({"additional_kwargs": {"seed": 1}}, "only a model has it"),
        ({"temperatur": 1}, "Did you mean 'temperature'"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search=True"),
        ({"openai_client": "a client"}, "httpx client"),
        ({"presence_penalty": 3}, "from -2 to 2"),
        ({"logprobs": "yes"}, "Give True or False"),
        ({"tool_choice": "sometimes"}, "there are no tools"),
        ({"stop": [1]}, "Give a text"),
        ({"extra_body": {"messages": []}}, "Give the call its conversation"),
        ({"extra_headers": {"X-Title": "Caf\xe9"}}, "printable ASCII"),
        ({"extra_query": {"half": "\ud83d"}}, "Correct the text"),
    ],
    ids=lambda given: str(given)[:40],
)
@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_what_no_call_can_have_is_refused_before_paying(scripted, script, method, given, hint):
    with pytest.raises(ConfigurationError, match="Nothing was paid") as caught:
        getattr(scripted(), method)([ChatMessage(content="x")], **given)
    assert hint in str(caught.value)
    assert script.requests == []


def test_and_so_it_is_among_the_additional_members_of_a_model(scripted):
    with pytest.raises(ValueError, match="Did you mean 'temperature'"):
        scripted(additional_kwargs={"temperatur": 1})
    with pytest.raises(ConfigurationError, match="Give the call its conversation"):
        scripted(additional_kwargs={"messages": []}).complete("x")


def test_a_class_as_response_format_and_a_voice_are_sent_as_openai_s_users_give_them(scripted, script):
    script.say(Reply(text='{"path": "/", "recursive": true}'))
    scripted().chat([ChatMessage(content="x")], response_format=Arguments, audio_config={"voice": "alloy"})
    assert script.last_request["response_format"]["json_schema"]["name"] == "Arguments"
    assert script.last_request["audio"] == {"voice": "alloy"}


SOUND = {"id": "audio_1", "data": "QUJD", "transcript": "hi", "expires_at": 9}
SIGNED = [{"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0}]


@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_sound_and_signed_reasoning_are_in_the_message_and_go_back(scripted, script, method):
    script.say(Reply(text=None, extra={"audio": SOUND, "reasoning_details": SIGNED}), Reply(text="ok"))
    llm = scripted()
    said = getattr(llm, method)([ChatMessage(content="x")])
    message = (said if method == "chat" else list(said)[-1]).message
    (block,) = message.blocks
    assert block.resolve_audio().read() == b"ABC"
    llm.chat([ChatMessage(content="x"), message, ChatMessage(content="y")])
    sent = script.last_request["messages"][1]
    assert (sent["audio"], sent["reasoning_details"]) == ({"id": "audio_1"}, SIGNED)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(text=None, tool_calls=[call_to("Arguments", '{"path": "')], finish_reason="length"), "max_tokens"),
        (Reply(text='{"path": "', finish_reason="length"), "max_tokens"),
        (Reply(text="", finish_reason="content_filter"), "filter"),
        (Reply(text=None, extra={"refusal": "I will not."}), "refused"),
    ],
    ids=["call cut", "text cut", "filtered", "refused"],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_structured_prediction_says_why_there_is_no_object(scripted, script, reply, why, is_stream):
    script.say(reply)
    predict = scripted().stream_structured_predict if is_stream else scripted().structured_predict
    with pytest.raises(ValueError, match=why) as caught:
        list(predict(Arguments, PromptTemplate("x")))
    assert "is paid for" in str(caught.value)


@pytest.mark.parametrize("by", ["tool", "response_format"])
@pytest.mark.parametrize("text", ['{"path": "a\nb"}', '<think>{"path": "no"} or yes?</think>\n{"path": "a\nb"}'])
def test_an_object_with_bare_line_feeds_or_behind_a_thought_is_read(scripted, script, by, text):
    in_call = by == "tool" and "think" not in text
    script.say(Reply(text=None, tool_calls=[call_to("Arguments", text)]) if in_call else Reply(text=text))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GatewayLimitation)
        found = scripted(structured_by=by).structured_predict(Arguments, PromptTemplate("x"))
    assert found == Arguments(path="a\nb")
