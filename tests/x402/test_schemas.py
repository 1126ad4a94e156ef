"""Schemas of tools and answers leave as providers take them, or are refused before anything is paid."""

from __future__ import annotations

from typing import Any

import pytest

from opengradient_x402.completions.schemas import SchemaWidened, object_schema
from opengradient_x402.errors import ConfigurationError

TEXT = {"type": "string"}
LISTED = {"type": "object", "properties": {"a": TEXT}}


def nested(inner: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema in each place that a schema can stand in."""
    return [
        {"type": "object", "properties": {"x": inner}},
        {"type": "object", "properties": {"x": {"type": "array", "items": inner}}},
        {"type": "object", "properties": {"x": {"anyOf": [{"type": "null"}, inner]}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": inner}},
        {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": inner}}}},
    ]


def found(schema: Any, key: str, value: Any) -> list[dict[str, Any]]:
    """Every part of the schema whose `key` is `value`."""
    if isinstance(schema, list):
        return [part for one in schema for part in found(one, key, value)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get(key) == value else []
    return own + [part for one in schema.values() for part in found(one, key, value)]


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"properties": {}}, {"type": "object", "required": []}])
@pytest.mark.parametrize("is_strict", [False, True])
def test_a_tool_without_parameters_has_an_object_with_no_members(schema, is_strict):
    made = object_schema(schema, of="now", is_strict=is_strict)
    assert (made["type"], made["properties"]) == ("object", {})


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("is_strict", [False, True])
def test_an_array_says_what_is_in_it(place, is_strict):
    made = object_schema(nested({"type": "array"})[place], of="tool", is_strict=is_strict)
    assert all("items" in one for one in found(made, "type", "array"))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": TEXT},
        {"type": "string"},
        {"anyOf": [LISTED, LISTED]},
        {"oneOf": [LISTED, LISTED]},
        {"enum": ["a"]},
        {"$ref": "#/$defs/L", "$defs": {"L": {"type": "array", "items": TEXT}}},
    ],
    ids=str,
)
def test_what_is_no_object_is_refused(schema):
    with pytest.raises(ConfigurationError, match=r"'Names'.*objects only.*Nothing was paid"):
        object_schema(schema, of="Names")


@pytest.mark.parametrize("name", ["anyOf", "oneOf", "allOf", "not"])
@pytest.mark.parametrize("is_strict", [False, True])
def test_a_choice_beside_the_members_of_a_tool_is_left_out_with_a_word(name, is_strict):
    schema = {**LISTED, name: {"required": ["a"]} if name == "not" else [{"required": ["a"]}]}
    with pytest.warns(SchemaWidened, match=f"'book' has {name} at its top"):
        made = object_schema(schema, of="book", is_strict=is_strict)
    assert name not in made
    assert made["properties"] == LISTED["properties"]


@pytest.mark.parametrize("inner", [{"type": "object"}, {"type": "object", "additionalProperties": TEXT}], ids=str)
@pytest.mark.parametrize("place", range(5))
def test_strict_mode_refuses_an_object_that_it_would_keep_empty(inner, place):
    schema = nested(inner)[place]
    with pytest.raises(ConfigurationError, match=r"strict mode.*Nothing was paid"):
        object_schema(schema, of="tool", is_strict=True)
    assert object_schema(schema, of="tool") == schema


def test_strict_mode_refuses_a_dict_at_the_top_too():
    counts = {"type": "object", "additionalProperties": {"type": "integer"}}
    with pytest.raises(ConfigurationError, match="strict mode"):
        object_schema(counts, of="Counts", is_strict=True)
    assert object_schema(counts, of="Counts") == {**counts, "properties": {}}


@pytest.mark.parametrize("place", range(5))
def test_strict_mode_has_every_member_required_and_nothing_that_providers_refuse(place):
    choice = {"oneOf": [LISTED, {"type": "null"}], "discriminator": {"propertyName": "a"}, "default": None}
    made = object_schema(nested(choice)[place], of="tool", is_strict=True)
    for one in found(made, "type", "object"):
        assert one["required"] == list(one["properties"])
        assert one["additionalProperties"] is False
    text = str(made)
    assert "anyOf" in text
    assert not any(word in text for word in ("'oneOf'", "'default'", "'discriminator'"))


def test_members_may_be_called_as_the_words_of_schemas_are():
    names = ("title", "default", "items", "oneOf", "properties", "discriminator", "type")
    schema = {"type": "object", "properties": dict.fromkeys(names, TEXT)}
    assert object_schema(schema, of="tool") == schema
    assert object_schema(schema, of="tool", is_strict=True)["properties"] == schema["properties"]


def test_the_user_s_schema_stays_as_it_is():
    schema = nested({"type": "array"})[0]
    object_schema(schema, of="tool", is_strict=True)
    assert schema == nested({"type": "array"})[0]
