"""What demanding users do, and what went wrong when they did it."""

from __future__ import annotations

from datetime import date
from enum import Enum
from typing import Generic, TypeVar

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel, RootModel

from langchain_opengradient import ChatOpenGradient, SettlementCallbackHandler, TokenCounterHandler
from langchain_opengradient.content import to_part
from langchain_opengradient.messages import NotResent, to_wire
from langchain_opengradient.structured_output import to_response_format
from langchain_opengradient.tools import to_wire_tool
from opengradient_x402.errors import ConfigurationError, NotPaid
from opengradient_x402.payment.policy import SpendPolicy

from .conftest import Payer

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


# Listeners


@pytest.mark.parametrize("mode", ["invoke", "stream"])
def test_a_listener_that_fails_does_not_take_the_paid_answer_away(payer: Payer, mode, caplog):
    def fail(receipt) -> None:
        raise RuntimeError("the user's database is down")

    handler = SettlementCallbackHandler(on_receipt=fail)
    config = {"callbacks": [handler]}
    model = payer.model()
    text = (
        model.invoke("Hello", config).text
        if mode == "invoke"
        else "".join(c.text for c in model.stream("Hello", config))
    )
    assert text
    assert {receipt.call_id for receipt in handler.receipts} == set(payer.receipts())
    assert "database is down" in caplog.text


def test_the_counter_does_not_charge_for_answers_out_of_the_cache(payer: Payer):
    counter = TokenCounterHandler(is_quiet=True)
    model = payer.model(cache=InMemoryCache())
    for _ in range(3):
        answer = model.invoke("Hello", {"callbacks": [counter]})
    assert counter.cost_atomic == sum(receipt.cost_atomic or 0 for receipt in payer.receipts().values())
    assert counter.tokens == answer.usage_metadata["output_tokens"]


# Structured output


class Place(BaseModel):
    """A place."""

    city: str
    founded: date


Anything = TypeVar("Anything")


class Box(BaseModel, Generic[Anything]):
    """A box."""

    content: Anything


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "place", "schema": PARAMETERS},
        {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS}},
        {"name": "place", "parameters": PARAMETERS},
        {"type": "function", "function": {"name": "place", "parameters": PARAMETERS}},
        {"title": "place", **PARAMETERS},
    ],
    ids=["named", "format", "function", "tool", "schema"],
)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_every_way_to_write_a_schema_works_with_every_method(chat, schema, method, strict):
    runnable = chat().with_structured_output(schema, method=method, strict=strict)
    assert runnable.invoke("The city is 'Paris'.") == {"city": "Paris"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_schema_without_a_name_gets_one(chat, method):
    assert chat().with_structured_output(PARAMETERS, method=method).invoke("The city is 'Paris'.") == {"city": "Paris"}


class Extras(BaseModel):
    """Extras."""

    tags: dict[str, str]


class Cities(RootModel[list[str]]):
    """Cities."""


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(("schema", "strict"), [(Extras, True), (Cities, None), (Cities, True)])
def test_a_schema_that_providers_refuse_costs_nothing(chat, method, schema, strict):
    with pytest.raises(ValueError, match="Nothing was paid"):
        chat().with_structured_output(schema, method=method, strict=strict)


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "place", "schema": PARAMETERS},
        {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS}},
        {"title": "place", **PARAMETERS},
    ],
    ids=["named", "format", "schema"],
)
def test_strict_is_said_of_every_form_of_a_schema(schema):
    described = to_response_format(schema, strict=True)["json_schema"]
    assert (described["name"], described["strict"]) == ("place", True)
    assert described["schema"]["additionalProperties"] is False
    assert to_response_format(schema, strict=False)["json_schema"]["strict"] is False


def test_a_format_or_a_tool_that_says_strict_of_itself_is_as_strict_mode_wants_it():
    named = {"name": "place", "schema": PARAMETERS, "strict": True}
    for given in (named, {"type": "json_schema", "json_schema": named}):
        described = to_response_format(given)["json_schema"]
        assert (described["strict"], described["schema"]["additionalProperties"]) == (True, False)
    tool = {"type": "function", "function": {"name": "place", "parameters": PARAMETERS, "strict": True}}
    assert to_wire_tool(tool)["function"]["parameters"]["additionalProperties"] is False
    assert "additionalProperties" not in PARAMETERS
    with pytest.raises(ConfigurationError, match="strict=True of itself"):
        to_wire_tool(tool, strict=False)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_generic_class_is_named_as_providers_allow(chat, method):
    assert chat().with_structured_output(Box[int], method=method).invoke("It holds 7.") == Box[int](content=7)


@pytest.mark.parametrize("schema", [Colour, Place | Box, list[int], int])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_what_is_no_schema_is_refused_before_it_costs_anything(chat, schema, method):
    with pytest.raises(ValueError, match="Nothing was paid"):
        chat().with_structured_output(schema, method=method)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_that_does_not_fit_is_the_same_error_with_every_method(chat, method):
    class Even(BaseModel):
        """An even number."""

        number: int

        def model_post_init(self, context) -> None:
            if self.number % 2:
                raise ValueError("odd")

    with pytest.raises(OutputParserException, match="Even"):
        chat().with_structured_output(Even, method=method).invoke("The number is 7.")


def test_a_tool_whose_name_no_provider_takes_is_refused_before_it_costs_anything(model):
    with pytest.raises(ValueError, match="Nothing was paid"):
        model.bind_tools([{"type": "function", "function": {"name": "two words", "parameters": PARAMETERS}}])


@pytest.mark.parametrize(
    "tool",
    [{"type": "code_interpreter", "container": {"type": "auto"}}, {"type": "computer_20250124", "name": "computer"}],
)
def test_a_tool_that_only_its_provider_can_run_is_refused_before_it_costs_anything(model, tool):
    with pytest.raises(ValueError, match="Nothing was paid"):
        model.bind_tools([tool])


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_20260209", "name": "web_search"},
        {"type": "web_search_preview_2025_03_11"},
        {"google_search": {}},
    ],
)
def test_web_search_is_recognised_in_every_providers_spelling(model, tool):
    assert model.bind_tools([tool]).kwargs == {"web_search": True}


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "find", "description": "Find.", "input_schema": PARAMETERS},
        {"type": "custom", "name": "find", "description": "Find.", "input_schema": PARAMETERS},
        {"title": "find", "description": "Find.", **PARAMETERS},
    ],
)
def test_tools_in_the_dicts_of_other_providers_are_functions_here(model, tool):
    assert model.bind_tools([tool]).kwargs["tools"][0]["function"]["parameters"]["required"] == ["city"]


def test_a_format_of_a_generic_class_has_a_plain_name():
    assert to_response_format(Box[int])["json_schema"]["name"] == "Box_int"


# Messages


def test_no_messages_are_refused_before_they_cost_anything(payer: Payer):
    with pytest.raises(ConfigurationError, match="no messages"):
        payer.model().invoke([])
    assert payer.receipts() == {}


@pytest.mark.parametrize(
    "kind",
    [
        "bash_code_execution_tool_result",
        "code_execution_result",
        "compaction",
        "computer_call",
        "custom_tool_call",
        "executable_code",
        "image_generation_call",
        "mcp_call",
        "mcp_tool_use",
        "something_of_next_year",
        "web_fetch_tool_result",
    ],
)
def test_a_history_from_another_provider_goes_on_here(kind):
    message = AIMessage([{"type": kind, "id": "1"}, {"type": "text", "text": "It is 4."}])
    with pytest.warns(NotResent, match=kind):
        assert to_wire([message]) == [{"role": "assistant", "content": "It is 4."}]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "input_text", "text": "x"}, {"type": "text", "text": "x"}),
        ({"type": "output_text", "text": "x"}, {"type": "text", "text": "x"}),
        (
            {"type": "input_image", "image_url": "https://x/y"},
            {"type": "image_url", "image_url": {"url": "https://x/y"}},
        ),
        (
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        ),
        (
            {"type": "file", "source_type": "text", "text": "x", "mime_type": "text/plain"},
            {"type": "text", "text": "x"},
        ),
        ({"type": "file", "base64": "w6TDtg==", "mime_type": "text/plain"}, {"type": "text", "text": "äö"}),
        (
            {
                "type": "search_result",
                "title": "Tea",
                "source": "https://tea",
                "content": [{"type": "text", "text": "It is hot."}],
            },
            {"type": "text", "text": "Tea\nhttps://tea\nIt is hot."},
        ),
    ],
)
def test_blocks_of_the_responses_api_text_files_and_search_results_are_shown_to_the_model(block, part):
    assert to_part(block) == part


def test_a_bedrock_cache_point_is_a_hint_and_no_content():
    assert to_wire([HumanMessage([{"type": "text", "text": "x"}, {"cachePoint": {"type": "default"}}])]) == [
        {"role": "user", "content": "x"}
    ]


@pytest.mark.parametrize("text", ["bad \ud800 surrogate", "fine"])
def test_what_cannot_be_written_as_json_is_refused_before_it_costs_anything(payer: Payer, text):
    kwargs = {} if text != "fine" else {"extra_body": {"x": object()}}
    with pytest.raises(NotPaid, match="Nothing was") as caught:
        payer.model().invoke(text, **kwargs)
    assert caught.value.kind == "invalid_request"
    assert payer.receipts() == {}


def test_arguments_of_an_earlier_call_may_be_dates():
    call = {"name": "book", "args": {"day": date(2024, 1, 2)}, "id": "1"}
    wire = to_wire([AIMessage("", tool_calls=[call]), ToolMessage("booked", tool_call_id="1")])
    assert wire[0]["tool_calls"][0]["function"]["arguments"] == '{"day": "2024-01-02"}'


# Fields


def test_parameters_of_the_request_may_be_given_as_fields():
    model = ChatOpenGradient(model="openai/gpt-5", top_k=5, model_kwargs={"user": "u"})
    assert model.model_kwargs == {"user": "u", "top_k": 5}


def test_a_misspelt_field_is_reported_without_its_value():
    with pytest.raises(ValueError, match="Did you mean 'settlement_mode'") as caught:
        ChatOpenGradient(model="openai/gpt-5", settlement_mod="s3cr3t")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_model_must_have_a_name(name):
    with pytest.raises(ValueError, match="model"):
        ChatOpenGradient(model=name)


def test_a_policy_may_be_written_as_a_mapping():
    model = ChatOpenGradient(model="openai/gpt-5", spend_policy={"max_per_day": "1", "payees": []})
    assert model.spend_policy == SpendPolicy(max_per_day="1")


def test_a_timeout_is_some_time():
    with pytest.raises(ValueError, match="timeout"):
        ChatOpenGradient(model="openai/gpt-5", timeout=0)


def test_an_empty_stop_sequence_does_not_empty_the_answer(model):
    assert model.invoke("Hello", stop=[""]).text


def test_a_class_may_be_bound_as_response_format(model):
    assert model.bind(response_format=Box[int]).invoke("It holds 7.").text == '{"content": 7}'
