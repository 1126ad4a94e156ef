"""Tools in any form that LangChain users write -> function tools, the form that gateways read.

Pure conversions. It does not know the model, and it does not call tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_function, convert_to_openai_tool
from pydantic import BaseModel

from opengradient_x402.completions.schemas import object_schema, rooted_schema
from opengradient_x402.parameters import refused_request

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

# OpenAI and Anthropic put a date after it (`web_search_20250305`), Google has a dict with nothing else in it.
_WEB_SEARCH: Final = ("web_search", "google_search", "googleSearch")
_SAYS_WHICH: Final = frozenset({"type", "name"})
_NOT_BUILT_IN: Final = ("function", "object", "custom")
# The union of what OpenAI, Anthropic and Google allow: a name outside it fails at each, after it was paid.
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def to_wire_tool(tool: ToolLike, *, strict: bool | None = None) -> dict[str, Any]:
    """`tool` (a BaseTool, function, class, schema, OpenAI or Anthropic dict) as an OpenAI function tool.

    Raises ValueError for what a provider runs itself, and for a name or a schema that no provider takes: the call
    could only fail, after it was paid.
    """
    if isinstance(tool, Mapping) and tool.get("type", "function") not in _NOT_BUILT_IN and "input_schema" not in tool:
        raise ValueError(
            f"A tool of type {tool['type']!r} is one that its provider runs itself, and the gateways offer no such "
            "tool but web search. Nothing was paid. Bind a function in its place."
        )
    if isinstance(tool, Mapping) and "$ref" in tool:
        tool = rooted_schema(tool)
    if isinstance(tool, Mapping) and tool.get("type") == "function" and isinstance(tool.get("name"), str):
        # OpenAI's Responses API writes the function's members beside the type.
        inner = {name: value for name, value in tool.items() if name not in ("type", "cache_control")}
        tool = {**{name: tool[name] for name in tool.keys() & {"type", "cache_control"}}, "function": inner}
    wire = convert_to_openai_tool(tool)
    _complete(wire["function"], tool, strict=strict)
    name = wire["function"]["name"]
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError(
            f"A tool is named {name!r}, and providers take letters, digits, '_', '-', '.' and ':' only, at most 128. "
            "Nothing was paid. Give the tool another name."
        )
    extras = tool if isinstance(tool, Mapping) else getattr(tool, "extras", None) or {}
    if "cache_control" in extras:
        wire["cache_control"] = extras["cache_control"]  # Anthropic: the tools up to here may be cached
    return wire


def is_web_search(tool: ToolLike) -> bool:
    """Whether `tool` is some provider's built-in web search, which the gateways offer as a flag instead.

    Raises ValueError when it has options, such as domains or a location: the search would go beyond them.
    """
    if not isinstance(tool, Mapping):
        return False
    name = str(tool.get("type") or next(iter(tool), ""))
    if not name.startswith(_WEB_SEARCH) or "function" in tool or "input_schema" in tool or "parameters" in tool:
        return False
    options = {key: value for key, value in tool.items() if key not in _SAYS_WHICH and value not in (None, {})}
    if options:
        raise ValueError(
            f"The web search has options ({', '.join(sorted(options))}), and the gateways' search takes none. Nothing "
            'was paid. Leave them out (`{"type": "web_search"}`, or `web_search=True`) and say in the prompt what to '
            "look for."
        )
    return True


def to_function(schema: Mapping[str, Any] | type, *, strict: bool | None = None) -> dict[str, Any]:
    """`schema` (pydantic class, TypedDict, JSON schema, OpenAI function) as an OpenAI function."""
    if isinstance(schema, Mapping) and "$ref" in schema:
        schema = rooted_schema(schema)
    if isinstance(schema, Mapping) and not schema.keys() & {"name", "title", "function", "toolSpec"}:
        schema = {"title": "Answer", **schema}  # providers want a name, and a bare schema has none
    function = convert_to_openai_function(schema)
    _complete(function, schema, strict=strict)
    return function


def _complete(function: dict[str, Any], source: ToolLike, *, strict: bool | None) -> None:
    """Gives the function the parameters that providers take, strict ones if that was asked for.

    Those of a schema that refers to itself are taken from the `source`: core replaces them by an empty schema.
    """
    schema = _schema_of(source)
    parameters = function.get("parameters") or {}
    if schema is not None and _is_recursive(schema):
        kept = rooted_schema(schema)
        parameters = {name: value for name, value in kept.items() if name not in ("title", "description", "name")}
    if strict is not None and function.setdefault("strict", strict) != strict:
        raise refused_request(
            f"The tool {function['name']!r} says strict={function['strict']} of itself, and strict={strict} was given "
            "for all. Nothing was paid. Leave one of them out."
        )
    function["parameters"] = object_schema(parameters, of=function["name"], is_strict=bool(function.get("strict")))


def _schema_of(source: Any) -> Mapping[str, Any] | None:
    """The JSON schema with its references, as pydantic or the user wrote it."""
    if isinstance(source, BaseTool):
        source = source.tool_call_schema
    if isinstance(source, type) and issubclass(source, BaseModel):
        return source.model_json_schema()
    if not isinstance(source, Mapping):
        return None
    for inner in ("function", "parameters", "input_schema"):
        if isinstance(source.get(inner), Mapping):
            source = source[inner]
    return source if "properties" in source or "$ref" in source else None


def _is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether following the schema's references leads back to one of them, or to its root."""
    refers = {"#": _references(schema, without=("$defs", "definitions"))}
    for home in ("$defs", "definitions"):
        for name, inner in (schema.get(home) or {}).items():
            refers[f"#/{home}/{name}"] = _references(inner)

    def leads_back(start: str) -> bool:
        seen, waiting = set(), list(refers.get(start, ()))
        while waiting:
            reference = waiting.pop()
            if reference == start:
                return True
            if reference not in seen:
                seen.add(reference)
                waiting += refers.get(reference, ())
        return False

    return any(leads_back(start) for start in refers)


def _references(schema: Any, *, without: tuple[str, ...] = ()) -> list[str]:
    if isinstance(schema, Mapping):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [found for name, value in schema.items() if name not in without for found in _references(value)]
    if isinstance(schema, list):
        return [found for value in schema for found in _references(value)]
    return []
