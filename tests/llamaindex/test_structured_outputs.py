"""Structured prediction where it is not done by a tool, and where gateways leave `tool_choice` out."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index_opengradient.structured import PartialOutput, output_kwargs, output_tool, parse_output


class Wish(BaseModel):
    what: str = "nothing"
    size: int = 0


class Label(BaseModel):
    """A label."""

    text: str


def answer(text: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role="assistant", content=text))


@pytest.mark.parametrize(
    "text",
    [
        '{"what": "tea"}',
        '```json\n{"what": "tea"}\n```',
        '  {"what": "tea"}\n',
        'Here you go:\n```json\n{"what": "tea"}\n```\nAnything else?',
        'Sure! {"what": "tea"}',
    ],
)
def test_json_in_words_will_do(text):
    assert parse_output(answer(text), Wish) == Wish(what="tea")


@pytest.mark.parametrize(
    "text", ['Sure! {"wha', 'Sure! {"what": "te', 'Sure! {"what": "te", "inner": {"size": 1}, "si']
)
def test_json_in_words_grows_as_it_comes(text):
    chunk = answer(text)
    chunk.raw = {"choices": [{"finish_reason": None}]}
    grown = PartialOutput(Wish).feed(chunk)
    assert grown is None if "what" not in text else grown.what == "te"


def test_broken_arguments_are_not_an_object_of_defaults():
    block = ToolCallBlock(tool_name="Wish", tool_kwargs='{"what": "te')
    with pytest.raises(ValueError, match="did not give a valid Wish"):
        parse_output(ChatResponse(message=ChatMessage(role="assistant", blocks=[block])), Wish)


def test_an_invalid_object_says_what_is_wrong_and_that_it_was_paid_for():
    with pytest.raises(ValueError, match="is paid for"):
        parse_output(answer('{"size": "huge"}'), Wish)


def test_the_output_tool_describes_the_class():
    function = output_tool(Label)["function"]
    assert (function["name"], function["description"]) == ("Label", "A label.")
    assert function["parameters"]["required"] == ["text"]


@pytest.mark.parametrize("form", ["structured_predict", "astructured_predict"])
def test_other_program_modes_are_left_to_core(make_llm, form):
    llm = make_llm(pydantic_program_mode=PydanticProgramMode.LLM)
    prompt = PromptTemplate("Make a label with the text 'tea'. {extra}")
    output = getattr(llm, form)(Label, prompt, extra="Please.")
    output = asyncio.run(output) if form.startswith("a") else output
    assert isinstance(output, Label)


@pytest.mark.parametrize(
    "text", ['Take {this}: {"what": "tea"} or {that}.', 'First {"what": "tea"}, then {"what": "milk"}.']
)
def test_the_first_object_among_braces_is_taken(text):
    assert parse_output(answer(text), Wish) == Wish(what="tea")


def test_the_caller_s_tool_choice_stands_for_models_that_refuse_a_forced_tool():
    assert output_kwargs(Label, {"tool_choice": "auto", "temperature": 0})["tool_choice"] == "auto"
    assert output_kwargs(Label, None)["tool_choice"] == "required"


@pytest.mark.parametrize("text", ['{"what": "tea", "more": {"size": 1}', 'It is {"more": {"size": 1}, "what": "te'])
def test_an_object_inside_one_that_was_cut_off_is_not_the_answer(text):
    with pytest.raises(ValueError, match="did not give a valid Wish"):
        parse_output(answer(text), Wish)
