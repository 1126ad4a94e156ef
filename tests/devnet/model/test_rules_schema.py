"""JSON schemas filled in from prompts: always valid, and from the facts of the prompt where there are any."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from decimal import Decimal
from enum import Enum
from typing import Annotated, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.rules import RulesModel

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


class Address(BaseModel):
    street: str
    city: str


class Person(BaseModel):
    name: str
    age: int
    nickname: str | None = None


class Employee(Person):
    address: Address
    boss: Person | None = None


class People(BaseModel):
    people: list[Person]


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float


class Square(BaseModel):
    kind: Literal["square"]
    side: float


class Drawing(BaseModel):
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    colour: Colour


class Box(BaseModel, Generic[T]):
    content: T


class Tree(BaseModel):
    label: str
    children: list[Tree] = Field(default_factory=list)


class Everything(BaseModel):
    count: Annotated[int, Field(gt=3, lt=9)]
    even: Annotated[int, Field(multiple_of=2)]
    price: Decimal
    share: Annotated[float, Field(ge=0, le=1)]
    code: Annotated[str, Field(min_length=5, max_length=8)]
    day: dt.date
    moment: dt.datetime
    identity: UUID
    pair: tuple[int, str]
    tags: Annotated[list[str], Field(min_length=2, max_length=3)]
    scores: dict[str, int]
    either: int | str
    maybe: bool | None
    nothing: None
    unique: set[int]


def answer_to(text, response_format):
    request = {"model": "m", "messages": [{"role": "user", "content": text}], "response_format": response_format}
    return asyncio.run(RulesModel().complete(request)).message["content"]


def filled(model, text):
    schema = {"name": "x", "schema": model.model_json_schema(), "strict": True}
    return model.model_validate_json(answer_to(text, {"type": "json_schema", "json_schema": schema}))


@pytest.mark.parametrize("model", [Person, Employee, People, Drawing, Box[int], Box[list[Person]], Tree, Everything])
@pytest.mark.parametrize(
    "text",
    [
        "Hi",
        "Ada Lovelace is 36 years old and lives in London.",
        "a=1, b=2, 'x' and \"y\" on 2024-02-29; 99999 red squares",
        "你好。こんにちは",
        "{}",
    ],
)
def test_every_schema_gets_a_valid_value_from_any_prompt(model, text):
    assert filled(model, text) is not None


def test_names_and_numbers_come_from_the_prompt():
    assert filled(Person, "Ada Lovelace is 36 years old.") == Person(name="Ada Lovelace", age=36)


def test_a_number_goes_to_the_field_that_it_stands_beside():
    assert filled(Person, "Born in 1815, Ada reached the age of 36.").age == 36


def test_an_optional_field_is_filled_in_when_the_prompt_names_it():
    assert filled(Person, "Ada is 36 and her nickname is 'Enchantress'.").nickname == "Enchantress"


def test_a_list_of_objects_gets_one_for_every_clause_that_has_the_facts():
    people = filled(People, "Ada is 36 years old and Bob is 25.").people
    assert people == [Person(name="Ada", age=36), Person(name="Bob", age=25)]


def test_an_enum_and_a_tagged_union_follow_the_words():
    drawing = filled(Drawing, "Draw a dark blue square with side 4.")
    assert drawing == Drawing(shape=Square(kind="square", side=4), colour=Colour.DARK_BLUE)


def test_a_list_of_numbers_takes_them_all():
    assert filled(Box[list[int]], "Put 3, 4 and 5 in the box.").content == [3, 4, 5]


def test_a_list_of_strings_takes_all_names():
    assert filled(Box[list[str]], "We visit Paris, London and Rome.").content == ["Paris", "London", "Rome"]


def test_no_means_false():
    assert filled(Box[bool], "There is no content.").content is False
    assert filled(Box[bool], "There is content.").content is True


def test_a_schema_that_requires_itself_is_refused():
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}
    with pytest.raises(ModelError, match="requires itself"):
        answer_to("x", {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def test_json_object_has_the_keys_that_the_prompt_names():
    text = "Tell me a joke about cats. Respond in JSON with the 'setup' and 'punchline' keys."
    assert set(json.loads(answer_to(text, {"type": "json_object"}))) == {"setup", "punchline"}


def test_a_schema_printed_in_the_prompt_is_filled_in_as_text():
    prompt = (
        "Extract: Ada is 36 years old.\n\nHere's a JSON schema to follow:\n"
        f"{json.dumps(Person.model_json_schema())}\n\nOutput a valid JSON object but do not repeat the schema."
    )
    expected = Person(name="Ada", age=36)
    assert Person.model_validate_json(answer_to(prompt, {"type": "text"})) == expected
    escaped = prompt.replace("{", "{{").replace("}", "}}")
    assert Person.model_validate_json(answer_to(escaped, {"type": "text"})) == expected


def test_an_unknown_response_format_is_refused():
    with pytest.raises(ModelError, match="grammar"):
        answer_to("x", {"type": "grammar"})
