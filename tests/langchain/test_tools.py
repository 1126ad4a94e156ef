"""Tools and tool choices in every form, and structured-output formats."""

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from langchain_opengradient import ChatOpenGradient
from langchain_opengradient.structured_output import to_response_format


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def greet(name: str) -> str:
    """Greet somebody."""
    return f"hello {name}"


class Person(BaseModel):
    """A person."""

    name: str = Field(description="full name")
    age: int


ANTHROPIC = {"name": "color", "description": "a color", "input_schema": {"type": "object", "properties": {}}}
OPENAI = {"type": "function", "function": {"name": "raw", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def model() -> ChatOpenGradient:
    return ChatOpenGradient(model="openai/gpt-5", private_key="0x" + "11" * 32)


def test_every_kind_of_tool_can_be_bound_at_once(model):
    bound = model.bind_tools([add, greet, Person, ANTHROPIC, OPENAI])
    assert [one["function"]["name"] for one in bound.kwargs["tools"]] == ["add", "greet", "Person", "color", "raw"]
    assert "tool_choice" not in bound.kwargs


def test_binding_never_changes_the_model(model):
    before = model.model_dump()
    first, second = model.bind_tools([add]), model.bind_tools([greet])
    assert model.model_dump() == before
    assert first.kwargs["tools"] != second.kwargs["tools"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("add", {"type": "function", "function": {"name": "add"}}),
        ({"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "add"}}),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
        ({"type": "any"}, "required"),
    ],
)
def test_tool_choices_mean_the_same_in_every_spelling(model, choice, expected):
    assert model.bind_tools([add, greet], tool_choice=choice).kwargs["tool_choice"] == expected


@pytest.mark.parametrize("choice", [None, False])
def test_no_choice_is_sent_when_there_is_none(model, choice):
    assert "tool_choice" not in model.bind_tools([add], tool_choice=choice).kwargs


@pytest.mark.parametrize("choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, {"x": 1}])
def test_a_choice_that_names_no_tool_is_refused_before_it_costs_anything(model, choice):
    with pytest.raises(ValueError, match="Nothing was paid"):
        model.bind_tools([add], tool_choice=choice)


def test_no_tools_bind_no_choice_either(model):
    assert model.bind_tools([], tool_choice="any", parallel_tool_calls=False).kwargs == {}


def test_a_providers_web_search_becomes_the_gateways(model):
    assert model.bind_tools([{"type": "web_search"}]).kwargs == {"web_search": True}


def test_strict_and_parallel_and_format_are_passed_on(model):
    kwargs = model.bind_tools([add], strict=True, parallel_tool_calls=False, response_format=Person).kwargs
    assert kwargs["tools"][0]["function"]["strict"] is True
    assert kwargs["parallel_tool_calls"] is False
    assert kwargs["response_format"]["json_schema"]["name"] == "Person"
    assert kwargs["response_format"]["json_schema"]["strict"] is True


class PersonV1(BaseModelV1):
    """A person."""

    name: str


class PersonDict(TypedDict):
    """A person."""

    name: str


@pytest.mark.parametrize("schema", [Person, PersonV1, PersonDict, Person.model_json_schema()])
def test_schemas_of_every_kind_become_a_response_format(schema):
    described = to_response_format(schema)["json_schema"]
    assert described["name"].startswith("Person")
    assert "name" in described["schema"]["properties"]
    assert "strict" not in described


def test_a_response_format_passes_through():
    given = to_response_format(Person, strict=True)
    assert to_response_format(given) == given
    assert to_response_format(given["json_schema"]) == given


def test_with_structured_output_refuses_what_cannot_work(model):
    with pytest.raises(ValueError, match="Unknown method"):
        model.with_structured_output(Person, method="telepathy")
    with pytest.raises(ValueError, match="needs a schema"):
        model.with_structured_output(None)
    with pytest.raises(ValueError, match="strict"):
        model.with_structured_output(Person, method="json_mode", strict=True)


def test_json_mode_shows_anthropic_the_schema_since_it_refuses_json_object():
    claude = ChatOpenGradient(model="anthropic/claude-sonnet-4-6", private_key="0x" + "11" * 32)
    first = claude.with_structured_output(Person, method="json_mode").first
    assert first.kwargs["response_format"]["type"] == "json_schema"


def test_a_tool_keeps_its_mark_for_the_provider_s_cache(model):
    marked = {**ANTHROPIC, "cache_control": {"type": "ephemeral"}}
    assert model.bind_tools([marked]).kwargs["tools"][0]["cache_control"] == {"type": "ephemeral"}
