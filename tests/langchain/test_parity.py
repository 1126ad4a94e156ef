"""What users of ChatOpenAI and ChatOpenRouter give a model, and what the gateway gets: all, or nothing is paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_opengradient import ChatOpenGradient
from llamaindex.suite import Reply, ScriptedServer
from opengradient_devnet import Devnet
from opengradient_x402.errors import ConfigurationError, StreamInterrupted
from opengradient_x402.gateway.request import GatewayLimitation
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments

Make = Callable[..., ChatOpenGradient]
pytestmark = pytest.mark.filterwarnings(f"ignore::{GatewayLimitation.__module__}.GatewayLimitation")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as started:
        yield started


@pytest.fixture(scope="module")
def paying(server: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payments]:
    with Devnet(upstream=f"openai:{server.url}") as net:
        signer = LocalSigner(net.account(opg="10", approved=True).private_key)
        ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('parity') / 'ledger.sqlite'}")
        yield Payments(network=load_network(f"{net.gateway_url}/network"), signer=signer, ledger=ledger)
        ledger.close()


@pytest.fixture
def script(server: ScriptedServer) -> ScriptedServer:
    server.reset()
    return server


@pytest.fixture
def make(paying: Payments, script: ScriptedServer) -> Iterator[Make]:
    made: list[ChatOpenGradient] = []

    def model(**fields: Any) -> ChatOpenGradient:
        made.append(ChatOpenGradient(**{"model": "openai/gpt-5", "payments": paying, **fields}))
        return made[-1]

    yield model
    for one in made:
        one.close()


MEMBERS = {
    "temperature": 0.25,
    "max_tokens": 77,
    "stop": ["END"],
    "top_p": 0.5,
    "seed": 7,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logprobs": True,
    "top_logprobs": 2,
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "verbosity": "low",
    "service_tier": "flex",
    "user": "me",
    "prompt_cache_key": "k",
    "modalities": ["text"],
}


@pytest.mark.parametrize("how", ["constructor", "model_kwargs", "extra_body", "bind", "call"])
def test_what_is_set_is_sent_wherever_it_is_set(make: Make, script: ScriptedServer, how: str):
    script.say(Reply(text="ok"))
    if how == "constructor":
        make(**MEMBERS).invoke("x")
    elif how in ("model_kwargs", "extra_body"):
        make(**{how: MEMBERS}).invoke("x")
    elif how == "bind":
        make().bind(**MEMBERS).invoke("x")
    else:
        make().invoke("x", **MEMBERS)
    assert script.last_request.items() >= MEMBERS.items()


def test_an_empty_list_of_stop_sequences_in_a_call_takes_those_of_the_model_away(make: Make, script: ScriptedServer):
    script.say(*[Reply(text="the END")] * 3)
    model = make(stop=["END"])
    assert model.invoke("x").text == "the "
    for ask in (lambda: model.invoke("x", stop=[]), lambda: model.bind(stop=[]).invoke("x")):
        assert ask().text == "the END"
        assert "stop" not in script.last_request


def test_zero_is_set(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    make(temperature=0, seed=0, top_p=0, logprobs=False).invoke("x")
    assert script.last_request.items() >= {"temperature": 0, "seed": 0, "top_p": 0, "logprobs": False}.items()


def test_none_in_a_call_leaves_a_field_out_and_never_the_privacy_of_the_data(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    model = make(temperature=0.5, max_tokens=9, settlement_mode="private", timeout=50)
    answer = model.invoke("x", temperature=None, settlement_mode=None, timeout=None)
    assert "temperature" not in script.last_request
    assert script.last_request["max_tokens"] == 9
    assert answer.response_metadata["opengradient"]["settlement_mode"] == "private"


def test_the_model_has_both_names(make: Make):
    assert make().model == make().model_name == "openai/gpt-5"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"n": 2}, "batch"),
        ({"openai_api_key": "sk-1"}, "private_key"),
        ({"use_responses_api": True}, "Responses API"),
        ({"openrouter_provider": {"order": ["x"]}}, "Name the provider in `model`"),
        ({"temperatur": 0}, "Did you mean 'temperature'"),
        ({"spend_polcy": None}, "Did you mean 'spend_policy'"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "Keep one of them"),
        ({"http_client": 5}, "httpx client"),
        ({"timeout": 0}, "above 0"),
        ({"stream_chunk_timeout": -1}, "above 0"),
        ({"model_kwargs": {"temperatur": 0}}, "Did you mean 'temperature'"),
        ({"model_kwargs": {"stream": True}}, "streaming=True"),
        ({"model_kwargs": {"spend_policy": {}}}, "only a model has it"),
    ],
    ids=str,
)
def test_what_has_no_place_here_is_refused_in_the_constructor(make: Make, fields: dict[str, Any], hint: str):
    with pytest.raises(ValueError, match="Nothing was paid") as caught:
        make(**fields)
    assert hint in str(caught.value)


def tool_named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"n": 2}, "Ask n times"),
        ({"max_tokens": -1}, "Give at least 1"),
        ({"previous_response_id": "r1"}, "Responses API"),
        ({"functions": [{"name": "f"}]}, "Use `tools`"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search=True"),
        ({"extra_headers": {"Payment-Signature": "x"}}, "set by the call itself"),
        ({"extra_headers": {"X-SETTLEMENT-TYPE": "private"}}, "settlement_mode"),
        ({"extra_headers": {"X-Title": "Caf\xe9"}}, "printable ASCII"),
        ({"extra_headers": {"X-Title": "half an emoji: \ud83d"}}, "printable ASCII"),
        ({"extra_headers": {"X-Token": "read from a file\n"}}, "printable ASCII"),
        ({"extra_headers": {"X Title": "a"}}, "letters, digits and '-'"),
        ({"extra_query": {"half": "\ud83d"}}, "Correct the text"),
        ({"extra_body": {"messages": []}}, "Give the call its conversation"),
        ({"extra_body": {"messages": "Hello"}}, "Give the call its conversation"),
        ({"extra_body": {"messages": [{"role": "user", "content": [{}]}]}}, "Correct the part"),
        ({"tools": [{"type": "mcp", "server_url": "x"}]}, "no function"),
        ({"timeout": "soon"}, "seconds to connect"),
        ({"timeout": float("inf")}, "seconds above 0"),
        ({"frequency_penalty": -3}, "from -2 to 2"),
        ({"presence_penalty": float("nan")}, "from -2 to 2"),
        ({"temperature": 10**400}, "from 0 to 2"),
        ({"logit_bias": {"7": 10**400}}, "from -100 to 100"),
        ({"seed": 10**4000}, "of at most 63 bits"),
        ({"max_tokens": 2**63}, "of at most 63 bits"),
        ({"top_logprobs": 10**4000, "logprobs": True}, "from 0 to 20"),
        ({"stop": [1] * 5000}, "Give a text"),
        ({"logprobs": True, "top_logprobs": 21}, "from 0 to 20"),
        ({"top_logprobs": 2}, "logprobs=True"),
        ({"logit_bias": {"7": 500}}, "from -100 to 100"),
        ({"response_format": "json"}, "Give a dict"),
        ({"logprobs": "yes"}, "Give True or False"),
        ({"tool_choice": "sometimes"}, "there are no tools"),
        ({"tools": [tool_named("add")], "tool_choice": "sometimes"}, "the tools are ['add']"),
        ({"stop": [1]}, "Give a text"),
        ({"stop": 1}, "Give a text"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "Keep one of them"),
        ({"temperatur": 1}, "Did you mean 'temperature'"),
        ({"private_key": "0x11"}, "only a model has it"),
        ({"api_key": "sk-1"}, "only a model has it"),
        ({"spend_policy": {"max_per_call": "0.001"}}, "only a model has it"),
        ({"verify_tee": "require"}, "only a model has it"),
        ({"base_url": "http://a.example"}, "only a model has it"),
        ({"model_kwargs": {"seed": 1}}, "only a model has it"),
        ({"openai_api_key": "sk-1"}, "private_key"),
        ({"tools": [tool_named("add"), tool_named("add")]}, "Rename one of them"),
        ({"tools": [tool_named("math.add")]}, "another name"),
        ({"tools": [tool_named("a" * 65)]}, "another name"),
    ],
    ids=lambda given: str(given)[:60],
)
@pytest.mark.parametrize("how", ["call", "bind"])
def test_and_so_it_is_in_a_call(make: Make, script: ScriptedServer, given: dict[str, Any], hint: str, how: str):
    with pytest.raises(ConfigurationError, match="Nothing was paid") as caught:
        make().invoke("x", **given) if how == "call" else make().bind(**given).invoke("x")
    assert hint in str(caught.value)
    assert script.requests == []


@pytest.mark.parametrize("given", [{"max_completion_tokens": 7}, {"max_tokens": 7}])
def test_what_a_call_says_replaces_what_the_model_has_under_each_name(make: Make, script: ScriptedServer, given):
    script.say(Reply(text="ok"))
    make(max_tokens=5).invoke("x", **given, stop_sequences=["END"], request_timeout=20)
    assert script.last_request.items() >= {"max_tokens": 7, "stop": ["END"]}.items()
    assert not script.last_request.keys() & {"max_completion_tokens", "stop_sequences", "request_timeout"}


def test_google_takes_dots_in_the_names_of_tools(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    make(model="google/gemini-2.5-flash").invoke("x", tools=[tool_named("math.add")])
    assert script.last_request["tools"][0]["function"]["name"] == "math.add"


@pytest.mark.parametrize("role", ["function", "critic"])
def test_a_role_that_gateways_cannot_read_is_not_paid(make: Make, script: ScriptedServer, role: str):
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        make().invoke([ChatMessage(role=role, content="x"), HumanMessage("x")])
    assert script.requests == []


MARK = {"cache_control": {"type": "ephemeral"}}
TEXT, PNG = {"type": "text", "text": "x"}, {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
PAGES = {"type": "file", "base64": "JVBERi0=", "mime_type": "application/pdf", "filename": "a.pdf"}
ASKED = AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "c1"}])
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "3"}


@pytest.mark.parametrize(
    "messages",
    [
        [SystemMessage([{**TEXT, **MARK}]), HumanMessage("x")],
        [HumanMessage([{**TEXT, **MARK}])],
        [HumanMessage([{**TEXT, "extras": MARK}])],
        [HumanMessage([{**PNG, **MARK}])],
        [HumanMessage([{"type": "image_url", "image_url": "https://a.example/x.png", **MARK}])],
        [HumanMessage([{**PAGES, **MARK}])],
        [HumanMessage("x"), AIMessage([{**TEXT, **MARK}]), HumanMessage("y")],
        [HumanMessage("x"), ASKED, ToolMessage([{**TEXT, **MARK}], tool_call_id="c1")],
        [HumanMessage("x"), ASKED, HumanMessage([{**RESULT, **MARK}])],
    ],
    ids=["system", "text", "v1 text", "image", "link", "file", "assistant", "tool message", "tool result"],
)
def test_what_may_be_cached_is_marked_wherever_the_mark_stands(make: Make, script: ScriptedServer, messages):
    script.say(Reply(text="ok"))
    make().invoke(messages)
    parts = [
        part for one in script.last_request["messages"] if isinstance(one["content"], list) for part in one["content"]
    ]
    assert [part["cache_control"] for part in parts if "cache_control" in part] == [MARK["cache_control"]]


def test_and_so_are_tools_that_carry_the_mark_in_their_extras(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    make().bind_tools([add.model_copy(update={"extras": MARK})]).invoke("x")
    assert script.last_request["tools"][0]["cache_control"] == MARK["cache_control"]


def test_what_a_provider_keeps_of_an_answer_is_named_when_it_goes_back(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    spoke = AIMessage("", additional_kwargs={"audio": {"id": "audio_1", "data": "QUJD", "transcript": "hi"}})
    thought = ASKED.model_copy(update={"additional_kwargs": {"reasoning_content": "I must add."}})
    make().invoke([HumanMessage("x"), spoke, HumanMessage("y"), thought, ToolMessage("3", tool_call_id="c1")])
    sent = script.last_request["messages"]
    assert sent[1]["audio"] == {"id": "audio_1"}
    assert sent[3]["reasoning_content"] == "I must add."


class Seen(httpx.BaseTransport):
    """A transport of the user's that notes what passes."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def test_headers_and_a_query_are_sent_as_they_are_meant(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    with Seen() as seen:
        model = make(http_client=seen, default_headers={"X-Team": "blue", "X-Title": "a"})
        query = {"none": None, "yes": True, "many": [1, "b"], "v": 2}
        model.invoke("x", extra_headers={"X-Team": None, "X-Number": 7}, extra_query=query)
        model.close()
    (paid, *_) = [request for request in seen.requests if request.url.path == "/v1/chat/completions"]
    assert "x-team" not in paid.headers
    assert (paid.headers["x-title"], paid.headers["x-number"]) == ("a", "7")
    assert str(paid.url.query, "ascii") == "yes=true&many=1&many=b&v=2"


@pytest.mark.parametrize("is_client", [True, False])
def test_a_client_of_the_user_s_sends_what_is_paid(make: Make, script: ScriptedServer, *, is_client: bool):
    script.say(Reply(text="ok"), Reply(text="ok"))
    with Seen() as seen, httpx.Client(transport=seen) as client:
        model = make(http_client=client if is_client else seen, default_headers={"X-Team": "blue"})
        answer = model.invoke("x", extra_headers={"X-Trace": "7"}, extra_query={"v": 2})
        assert "".join(chunk.text for chunk in model.stream("x", timeout=(2, 50))) == "ok"
        model.close()
        assert not client.is_closed
    paid = [request for request in seen.requests if request.url.path == "/v1/chat/completions"]
    assert answer.response_metadata["opengradient"]["status"] == "served"
    assert {request.headers["x-team"] for request in paid} == {"blue"}
    assert (paid[0].headers["x-trace"], str(paid[0].url.query, "ascii")) == ("7", "v=2")
    assert paid[-1].extensions["timeout"]["connect"] == 2
    assert "x-trace" not in paid[-1].headers


async def test_and_an_async_one_the_async_calls(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    async with httpx.AsyncClient(event_hooks={"request": [noted := Noted()]}) as client:
        model = make(http_async_client=client)
        assert (await model.ainvoke("x")).text == "ok"
        await model.aclose()
    assert "/v1/chat/completions" in noted.paths


class Noted:
    """An event hook of httpx."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, request: httpx.Request) -> None:
        self.paths.append(request.url.path)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def subtract(a: int, b: int) -> int:
    """Subtract a number."""
    return a - b


RESPONSES_TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}


def test_tools_in_the_form_of_the_responses_api_are_functions(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    bound = make().bind_tools([RESPONSES_TOOL])
    make().bind(tools=[RESPONSES_TOOL]).invoke("x")
    inner = {name: value for name, value in RESPONSES_TOOL.items() if name != "type"}
    assert script.last_request["tools"] == [{"type": "function", "function": inner}]
    assert bound.kwargs["tools"][0]["function"]["name"] == "add"
    assert bound.kwargs["tools"][0]["function"]["strict"] is True


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]},
        },
    ],
)
def test_allowed_tools_are_the_only_ones_that_are_sent(make: Make, script: ScriptedServer, choice: dict[str, Any]):
    script.say(Reply(text="ok"))
    with pytest.warns(GatewayLimitation, match="tool_choice"):
        make().bind_tools([add, subtract], tool_choice=choice).invoke("x")
    assert [one["function"]["name"] for one in script.last_request["tools"]] == ["add"]
    assert script.last_request["tool_choice"] == "required"
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        make().bind_tools([subtract], tool_choice=choice)


def test_anthropic_s_choice_may_say_that_calls_are_not_parallel(make: Make):
    bound = make().bind_tools([add], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert (bound.kwargs["tool_choice"], bound.kwargs["parallel_tool_calls"]) == ("auto", False)


@pytest.mark.parametrize(
    "search",
    [
        {"type": "web_search", "search_context_size": "low"},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
        {"google_search": {"exclude_domains": ["a.example"]}},
    ],
    ids=str,
)
def test_a_web_search_that_would_go_beyond_its_options_is_refused(make: Make, search: dict[str, Any]):
    with pytest.raises(ValueError, match="Nothing was paid"):
        make().bind_tools([search])


class City(BaseModel):
    """A city."""

    name: str


def test_structured_output_may_come_with_tools(make: Make, script: ScriptedServer):
    script.say(Reply(text='{"name": "Paris"}'))
    assert make().with_structured_output(City, tools=[add]).invoke("x") == City(name="Paris")
    assert [one["function"]["name"] for one in script.last_request["tools"]] == ["add"]
    assert script.last_request["response_format"]["json_schema"]["name"] == "City"
    with pytest.raises(ValueError, match="json_schema"):
        make().with_structured_output(City, method="function_calling", tools=[add])


CALLS = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": name} for name in ("c1", "c2")])


@pytest.mark.parametrize(
    "messages",
    [
        [HumanMessage("x"), CALLS],
        [HumanMessage("x"), CALLS, ToolMessage("3", tool_call_id="c1"), HumanMessage("and now?")],
        [HumanMessage("x"), ToolMessage("3", tool_call_id="c1")],
        [HumanMessage("x"), CALLS, *(ToolMessage("3", tool_call_id=name) for name in ("c1", "c3"))],
    ],
    ids=["no result", "one result of two", "no call", "another call's result"],
)
def test_a_conversation_that_every_provider_refuses_is_not_paid(make: Make, script: ScriptedServer, messages):
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        make().invoke(messages)
    assert script.requests == []


@pytest.mark.parametrize(("name", "sent"), [("Ann Lee", "Ann_Lee"), ("a/b<c>", "a_b_c_"), ("Zoë", "Zoë"), ("", None)])
def test_names_of_messages_are_sent_as_providers_take_them(make: Make, script: ScriptedServer, name, sent):
    script.say(Reply(text="ok"))
    make().invoke([HumanMessage("x", name=name)])
    assert script.last_request["messages"][0].get("name") == sent


def test_token_counts_are_where_chatopenai_has_them(make: Make, script: ScriptedServer):
    script.say(Reply(text="ok"))
    model = make()
    message = model.invoke("x")
    counts = message.response_metadata["token_usage"]
    assert counts["prompt_tokens"] == message.usage_metadata["input_tokens"]
    both = model.generate([[HumanMessage("x")], [HumanMessage("x")]]).llm_output
    assert both["token_usage"]["prompt_tokens"] == 2 * counts["prompt_tokens"]
    assert both["model_name"] == "openai/gpt-5"


def test_tokens_have_no_ids_without_a_tokenizer(make: Make):
    with pytest.raises(NotImplementedError, match="get_num_tokens"):
        make().get_token_ids("Hello")
    assert make(custom_get_token_ids=lambda text: [len(text)]).get_token_ids("Hello") == [5]


def test_a_stream_may_be_silent_for_the_time_between_two_chunks_only(devnets, tmp_path):
    net = devnets(pace_s=2.0)
    account = net.account(opg="1", approved=True)
    network, ledger = f"{net.gateway_url}/network", f"sqlite:///{tmp_path / 'own.sqlite'}"
    with (
        ChatOpenGradient(
            model="openai/gpt-5",
            private_key=account.private_key,
            network=network,
            ledger=ledger,
            timeout=60,
            stream_chunk_timeout=0.5,
        ) as model,
        pytest.raises(StreamInterrupted) as caught,
    ):
        list(model.stream("Hello"))
    assert caught.value.kind == "timeout"
