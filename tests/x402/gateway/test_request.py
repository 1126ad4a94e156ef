"""What gateways cannot do, refused, translated or warned of before it is paid; the same for both faces."""

from __future__ import annotations

import warnings

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool

from langchain_opengradient import ChatOpenGradient
from langchain_opengradient.messages import to_wire
from llama_index_opengradient import OpenGradient
from llama_index_opengradient.messages import wire_messages
from opengradient_devnet import Account, Devnet
from opengradient_x402.completions import Completion, ToolCall
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.gateway.request import (
    GatewayLimitation,
    check_answer,
    prepared,
    wire_tool_choice,
    wire_tool_name,
    wire_tool_names,
)
from opengradient_x402.models import TEE_LLM
from opengradient_x402.parameters import is_anthropic
from support.payers import PROMPT, payments_for

TOOL = {"type": "function", "function": {"name": "add"}}
ASKED = [{"role": "user", "content": "Hello"}]
ADD = {"add": "add", "Box[int]": "Box_int_"}


def body_of(**members):
    return prepared({"model": "openai/gpt-5", "messages": ASKED, **members})


# -- refused


@pytest.mark.parametrize("messages", [None, [], (), "Hello", {"role": "user"}, 5, [5], ["Hello"], [None]])
def test_a_body_without_a_conversation_is_refused(messages):
    with pytest.raises(ConfigurationError, match=r"(?s)at least one message.*Nothing was paid"):
        body_of(messages=messages)
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        prepared({"model": "openai/gpt-5"})


@pytest.mark.parametrize("calls", [5, "add", [5], [{"id": "c1"}], [{"id": "c1", "function": {"arguments": "{}"}}]])
def test_tool_calls_that_are_none_are_refused_before_paying(calls):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    with pytest.raises(ConfigurationError, match=r"(?s)tool calls.*Nothing was paid"):
        body_of(messages=messages)


@pytest.mark.parametrize("part", ["Hello", 5, None, {}, {"type": None}, {"type": "text"}, {"type": "text", "text": 5}])
def test_a_part_that_does_not_say_what_it_is_is_refused(part):
    with pytest.raises(ConfigurationError, match=r"(?s)parts that say their type.*Nothing was paid"):
        body_of(messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}, part]}])


def test_more_than_one_answer_is_refused_since_gateways_give_one():
    with pytest.raises(ConfigurationError, match=r"(?s)Nothing was paid.*batch"):
        body_of(n=2)
    assert "n" not in body_of(n=1)


@pytest.mark.parametrize("tools", [[TOOL], [], None])
@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "nope"}}, "nope", "sometimes", {"x": 1}, 7, ["auto"]]
)
def test_a_choice_of_no_tool_is_refused(choice, tools):
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        body_of(tools=tools, tool_choice=choice)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"temperature": 2.1}, "temperature=2.1 was given, and gateways take numbers from 0 to 2"),
        ({"temperature": -0.1}, "from 0 to 2"),
        ({"temperature": float("nan")}, "from 0 to 2"),
        ({"temperature": "0.5"}, "from 0 to 2"),
        ({"top_p": 1.01}, "top_p=1.01 was given, and gateways take numbers from 0 to 1"),
        ({"top_p": True}, "from 0 to 1"),
        ({"seed": 1.0}, "seed=1.0 was given, and gateways take whole numbers"),
        ({"seed": "a"}, "whole numbers"),
        ({"max_tokens": "many"}, "max_tokens='many' was given, and gateways take whole numbers"),
        ({"max_tokens": 1.5}, "whole numbers"),
        ({"max_tokens": -1}, "max_tokens=-1 was given"),
        ({"max_completion_tokens": -1}, "max_completion_tokens=-1 was given"),
        ({"top_k": "many"}, "whole numbers"),
        ({"logprobs": "yes"}, "logprobs='yes' was given, and gateways take True or False"),
        ({"logprobs": 5}, "logprobs=5 was given"),
        ({"parallel_tool_calls": "no"}, "take True or False"),
        ({"web_search": "weather"}, "take True or False"),
        ({"user": 7}, "user=7 was given, and gateways take a text"),
        ({"reasoning_effort": 3}, "take a text"),
        ({"service_tier": True}, "take a text"),
        ({"modalities": "audio"}, "take a list"),
        ({"tools": TOOL}, "take a list"),
        ({"reasoning": "much"}, "take a dict"),
        ({"prediction": "the answer"}, "take a dict"),
        ({"response_format": "json"}, "take a dict"),
        ({"stop": list("abcde")}, "5 stop sequences were given, and gateways take 4"),
        ({"messages": [{"role": "developer", "content": "Be brief."}]}, "the role 'developer', which gateways cannot"),
        ({"messages": [{"role": "robot", "content": "Beep."}]}, "the role 'robot', which gateways cannot"),
    ],
)
def test_what_gateways_refuse_after_the_payment_is_refused_before_it(given, why):
    with pytest.raises(ConfigurationError, match=rf"(?s){why}.*Nothing was paid"):
        body_of(**given)


@pytest.mark.filterwarnings("ignore::opengradient_x402.gateway.request.GatewayLimitation")
def test_the_ends_of_the_ranges_are_sent():
    ends = {"temperature": 2, "top_p": 1, "seed": 0, "stop": list("abcd"), "max_tokens": 0}
    assert body_of(**ends).items() >= ends.items()
    assert body_of(temperature=0.0, top_p=0)["temperature"] == 0.0


# -- translated


def test_empty_and_absent_members_stay_out():
    assert body_of(stop=[], temperature=None, tools=[], tool_choice="auto", parallel_tool_calls=False) == {
        "model": "openai/gpt-5",
        "messages": ASKED,
    }
    asked = {"model": "openai/gpt-5", "messages": ASKED}
    assert body_of(stop=["", "END"], web_search=False) == {**asked, "stop": ["END"]}
    assert body_of(stop="END", web_search=True) == {**asked, "stop": "END", "web_search": True}


def test_the_newer_name_of_the_longest_answer_is_understood():
    assert body_of(max_completion_tokens=5) == {"model": "openai/gpt-5", "messages": ASKED, "max_tokens": 5}


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-6", "claude-haiku-4-5", TEE_LLM.CLAUDE_SONNET_4_6])
def test_json_mode_for_anthropic_is_sent_as_a_schema(model):
    assert is_anthropic(model)
    assert body_of(model=model, response_format={"type": "json_object"})["response_format"]["type"] == "json_schema"


JSON_MODE = {"type": "json_object"}


def said(content):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]


@pytest.mark.parametrize("content", ["Give me json.", [{"type": "text", "text": "As JSON, please."}]])
def test_json_mode_stays_json_mode_for_others(content):
    body = {"messages": said(content), "response_format": JSON_MODE}
    assert body_of(**body)["response_format"] == JSON_MODE


@pytest.mark.parametrize("model", ["openai/gpt-5", "gpt-4.1-mini", TEE_LLM.O3])
def test_json_mode_without_the_word_is_refused_for_openai_s_models(model):
    with pytest.raises(ConfigurationError, match=r"Nothing was paid.*Ask for JSON"):
        body_of(model=model, messages=said("Which city?"), response_format=JSON_MODE)


@pytest.mark.parametrize("model", ["x-ai/grok-4", "google/gemini-2.5-flash", "gpt-oss-20b", "llama3.2"])
def test_other_providers_do_not_ask_for_the_word(model):
    assert body_of(model=model, messages=said("Which city?"), response_format=JSON_MODE)["response_format"]


BLANK = ["", " \n", [{"type": "text", "text": ""}]]


@pytest.mark.parametrize("content", BLANK, ids=str)
def test_a_blank_message_is_refused_for_anthropic_s_models(content):
    with pytest.raises(ConfigurationError, match=r"user message is blank.*Nothing was paid"):
        body_of(model="anthropic/claude-sonnet-4-6", messages=said(content))
    assert body_of(messages=said(content))["messages"][1]["content"] == content


@pytest.mark.parametrize("content", [None, 5, {"type": "text", "text": "Hello"}], ids=str)
@pytest.mark.parametrize("model", ["openai/gpt-5", "anthropic/claude-sonnet-4-6"])
def test_a_message_whose_content_is_no_text_and_no_list_is_refused_for_every_model(model, content):
    with pytest.raises(ConfigurationError, match=r"text or a list of parts.*Nothing was paid"):
        body_of(model=model, messages=said(content))


def test_a_message_of_an_image_alone_is_not_blank():
    image = {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}
    for parts in ([image], [{"type": "text", "text": ""}, image]):
        assert body_of(model="anthropic/claude-sonnet-4-6", messages=said(parts))


def test_a_blank_text_beside_an_image_is_left_out_by_both_faces():
    url = "https://a.example/x.png"
    blocks = [TextBlock(text=""), ImageBlock(url=url)]
    theirs = [{"type": "text", "text": " "}, {"type": "image_url", "image_url": {"url": url}}]
    for (message,) in (to_wire([HumanMessage(theirs)]), wire_messages([ChatMessage(role="user", blocks=blocks)])):
        assert [part["type"] for part in message["content"]] == ["image_url"]


def test_the_caller_s_body_is_not_touched():
    given = {"model": "openai/gpt-5", "messages": ASKED, "stop": [""], "n": 1, "tools": []}
    prepared(given)
    assert given == {"model": "openai/gpt-5", "messages": ASKED, "stop": [""], "n": 1, "tools": []}


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (None, None),
        (False, None),
        (True, "required"),
        ("any", "required"),
        ("required", "required"),
        ("auto", "auto"),
        ("none", "none"),
        ({"type": "any"}, "required"),
        ("add", TOOL),
        (TOOL, TOOL),
        ({"type": "tool", "name": "add"}, TOOL),
        ("Box[int]", {"type": "function", "function": {"name": "Box_int_"}}),
        ("Box_int_", {"type": "function", "function": {"name": "Box_int_"}}),
    ],
)
def test_tool_choices_mean_the_same_in_every_spelling(choice, wire):
    assert wire_tool_choice(choice, ADD) == wire


def test_a_choice_that_is_not_offered_is_refused_with_what_is():
    with pytest.raises(ConfigurationError, match=r"'divide', and the tools are \['add'\]"):
        wire_tool_choice("divide", {"add": "add"})


# -- tool names


@pytest.mark.parametrize(
    ("name", "wire"), [("add", "add"), ("Box[int]", "Box_int_"), ("Box[dict[str, int]]", "Box_dict_str__int__")]
)
def test_names_are_respelled_for_the_wire(name, wire):
    assert wire_tool_name(name) == wire


@pytest.mark.parametrize("pair", [("存款", "取款"), ("x" * 64 + "_read", "x" * 64 + "_pay"), ("x" * 64, "x" * 65)])
def test_names_that_would_lose_what_tells_them_apart_stay_distinct(pair):
    wire = [wire_tool_name(name) for name in pair]
    assert len(set(wire)) == 2
    assert all(len(name) <= 64 and name.isascii() for name in wire)


def test_names_that_differ_in_punctuation_only_are_refused_together():
    assert wire_tool_names(["a.b"]) == {"a.b": "a_b"}
    assert wire_tool_names(["a.b", "a.b"]) == {"a.b": "a_b"}
    with pytest.raises(ConfigurationError, match=r"'a\.b' and 'a/b'.*Nothing was paid"):
        wire_tool_names(["a.b", "a/b"])


# -- warned of


@pytest.mark.parametrize("name", ["seed", "top_p"])
def test_what_a_gateway_may_not_forward_is_sent_with_a_warning(name):
    with pytest.warns(GatewayLimitation, match=name):
        assert body_of(**{name: 1})[name] == 1


def answer(**fields) -> Completion:
    return Completion(**{"id": "", "model": "gpt-5", "created": 0, "content": "no", "finish_reason": "stop", **fields})


def test_an_ignored_tool_choice_is_visible():
    body = body_of(tools=[TOOL], tool_choice="required")
    with pytest.warns(GatewayLimitation, match="without a tool call"):
        check_answer(body, answer())


def test_an_obeyed_a_free_and_a_cut_choice_are_no_reason_to_warn():
    required = body_of(tools=[TOOL], tool_choice="required")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_answer(required, answer(tool_calls=(ToolCall(id="1", name="add", arguments="{}"),)))
        check_answer(required, answer(finish_reason="length"))
        check_answer(body_of(tools=[TOOL], tool_choice="auto"), answer())


# -- for everybody


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


NOPE = {"type": "function", "function": {"name": "nope"}}
ASK = [ChatMessage(role="user", content="Say hello")]
CASES = {
    "no such tool": (
        lambda model: model().bind_tools([add], tool_choice=NOPE).invoke("Say hello"),
        lambda llm: llm().chat_with_tools([FunctionTool.from_defaults(add)], user_msg="Say hello", tool_choice=NOPE),
    ),
    "no such tool in a stream": (
        lambda model: list(model().bind_tools([add], tool_choice="nope").stream("Say hello")),
        lambda llm: list(
            llm().stream_chat_with_tools([FunctionTool.from_defaults(add)], user_msg="Say hello", tool_choice="nope")
        ),
    ),
    "two answers": (
        lambda model: model(model_kwargs={"n": 2}).invoke("Say hello"),
        lambda llm: llm(additional_kwargs={"n": 2}).chat(ASK),
    ),
    "a seed": (
        lambda model: model(model_kwargs={"seed": 1}).invoke("Say hello"),
        lambda llm: llm(additional_kwargs={"seed": 1}).chat(ASK),
    ),
    "an empty stop": (lambda model: model(stop=[""]).invoke("Say hello"), lambda llm: llm(stop=[""]).chat(ASK)),
}


@pytest.mark.parametrize("case", CASES)
def test_both_faces_have_the_same_outcome(net: Devnet, account: Account, tmp_path, case: str):
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:

        def outcome(call, make):
            before = len(payments.ledger.receipts().result())
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    call(make)
                    how = "answered"
                except ConfigurationError as exc:
                    how = type(exc).__name__
            paid = len(payments.ledger.receipts().result()) - before
            return how, paid, [str(warning.message) for warning in said if warning.category is GatewayLimitation]

        of_langchain, of_llama_index = CASES[case]
        first = outcome(of_langchain, lambda **k: ChatOpenGradient(model="openai/gpt-5", payments=payments, **k))
        second = outcome(of_llama_index, lambda **k: OpenGradient(model="openai/gpt-5", payments=payments, **k))
        assert first == second
        assert first[1] == (first[0] == "answered")


def test_a_client_without_a_framework_is_told_the_same(net: Devnet, account: Account, tmp_path):
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments, GatewayClient(payments) as client:
        with pytest.raises(ConfigurationError, match="one answer a call"):
            client.chat({**PROMPT, "n": 3})
        with pytest.raises(ConfigurationError, match="one answer a call"):
            client.stream({**PROMPT, "n": 3})
        assert payments.ledger.receipts().result() == []
