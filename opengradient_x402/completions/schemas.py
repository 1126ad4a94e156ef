"""JSON schemas of tools and of answers, as providers take them.

Providers refuse other schemas after the payment: an object has to be at the top, an array says what is in it, and
strict mode wants every member required and nothing left open. Pure; it does not know who wrote a schema.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from opengradient_x402.parameters import refused_request

_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SEVERAL: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
"""Members of a schema that hold schemas: by a name, in a list, or one."""
_CHOICES: Final = frozenset({"anyOf", "oneOf", "allOf", "enum", "const", "not"})
_NOT_STRICT: Final = ("default", "discriminator")


class SchemaWidened(UserWarning):
    """A schema has parts that providers refuse, and is sent without them."""


def rooted_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with an object at its top, where providers want one: a recursive class has a reference there."""
    home, _, name = str(schema.get("$ref", "")).removeprefix("#/").partition("/")
    target = (schema.get(home) or {}).get(name)
    if not isinstance(target, Mapping):
        return dict(schema)
    return {**{key: value for key, value in schema.items() if key != "$ref"}, **target}


def object_schema(schema: Mapping[str, Any], *, of: str, is_strict: bool = False) -> dict[str, Any]:
    """The schema of the tool or answer `of`, as every provider takes it; `is_strict`: for strict mode.

    Raises ConfigurationError for what describes no object, and in strict mode for objects whose members have no
    names.
    """
    rooted = _without_choices(rooted_schema(schema), of=of)
    kind = "choice" if rooted.keys() & _CHOICES else rooted.get("type", "object")
    if kind != "object":
        raise refused_request(
            f"The schema of {of!r} describes no object (but: {kind}), and providers take objects only. Nothing was "
            "paid. Put it into a field of an object."
        )
    whole = {"type": "object", **rooted}
    if not (is_strict and whole.get("additionalProperties")):
        whole.setdefault("properties", {})
    changed: dict[str, Any] = _changed(whole, partial(_strict, of=of) if is_strict else _complete)
    return changed


def _without_choices(schema: dict[str, Any], *, of: str) -> dict[str, Any]:
    """Without choices beside the members of an object, which OpenAI's and Anthropic's models refuse at the top.

    Servers of MCP say so which members go together; they still check it themselves.
    """
    choices = sorted(_CHOICES & schema.keys())
    if not choices or not schema.get("properties"):
        return schema
    warnings.warn(
        f"The schema of {of!r} has {' and '.join(choices)} at its top, which providers refuse. They are left out: the "
        "model sees the members, and not which of them go together. Say that in the description.",
        SchemaWidened,
        stacklevel=2,
    )
    return {name: value for name, value in schema.items() if name not in choices}


def _changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The schema with each schema inside it, and then itself, changed. Names of members are no members of a schema."""
    if not isinstance(schema, Mapping):
        return schema  # true and false are schemas, too
    out = dict(schema)
    for name in _NAMED:
        if isinstance(out.get(name), Mapping):
            out[name] = {inner: _changed(value, change) for inner, value in out[name].items()}
    for name in _SEVERAL:
        if isinstance(out.get(name), list):
            out[name] = [_changed(value, change) for value in out[name]]
    for name in _SINGLE:
        if name in out:
            out[name] = _changed(out[name], change)
    return change(out)


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's models refuse an array that does not say what is in it; servers of MCP write such schemas."""
    return {**schema, "items": {}} if schema.get("type") == "array" and "items" not in schema else schema


def _strict(schema: dict[str, Any], *, of: str) -> dict[str, Any]:
    """What OpenAI's strict mode asks: all members required, no others, no defaults, and `anyOf` for every choice."""
    out = {name: value for name, value in schema.items() if name not in _NOT_STRICT}
    if "oneOf" in out:
        out["anyOf"] = [*out.get("anyOf", ()), *out.pop("oneOf")]
    properties = out.get("properties")
    if isinstance(properties, Mapping):
        return {**out, "required": list(properties), "additionalProperties": False}
    if out.get("type") == "object":
        raise refused_request(
            f"The schema of {of!r} has an object without named members (such as a dict), and strict mode takes none: "
            "it could only stay empty. Nothing was paid. Name its members, use a list of objects, or leave `strict` "
            "out."
        )
    return _complete(out)
