"""Structured output: what to bind to the model for each method, and how to read the answer back.

`json_schema` asks for a schema-bound answer, `function_calling` for a forced tool call, `json_mode` for any
JSON. A refusal raises `ModelRefusal` instead of a parse error. It does not know the model's wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from operator import itemgetter
from typing import Any, Final, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel
from typing_extensions import is_typeddict

from langchain_opengradient.conversions import RECEIPT_KEY
from langchain_opengradient.errors import ModelRefusal
from langchain_opengradient.tools import to_function
from opengradient_x402.gateway.request import wire_tool_name
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.strict_json import after_thought, object_in

Schema = dict[str, Any] | type
Method = Literal["json_schema", "function_calling", "json_mode"]
_FENCED: Final = re.compile(r"```(?:json|JSON)?\s*\n(.*?)\n?\s*```", re.DOTALL)
METHODS: Final = ("json_schema", "function_calling", "json_mode")


def to_response_format(schema: Schema, *, strict: bool | None = None) -> dict[str, Any]:
    """`schema` (pydantic v2 or v1 class, TypedDict, JSON schema, OpenAI format) as a `response_format`."""
    if isinstance(schema, Mapping):
        kind = None if "properties" in schema else schema.get("type")
        named = schema.get("json_schema") if kind == "json_schema" else schema
        if strict is None and isinstance(named, Mapping) and _is_named_schema(named):
            strict = named.get("strict") or None
        if kind in ("json_object", "text") or (kind == "json_schema" and strict is None):
            return dict(schema)
        if _is_named_schema(schema) and strict is None:
            return {"type": "json_schema", "json_schema": dict(schema)}
    function = to_function(as_function(schema), strict=strict)
    described: dict[str, Any] = {"name": _plain_name(function["name"]), "schema": function["parameters"]}
    if function.get("description"):
        described["description"] = function["description"]
    if strict is not None:
        described["strict"] = strict
    return {"type": "json_schema", "json_schema": described}


def check_method(method: str, *, schema: Schema | None, strict: bool | None, tools: Sequence[Any] | None) -> None:
    """Raises ValueError for arguments of `with_structured_output` that cannot be combined."""
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")
    if schema is None and method != "json_mode":
        raise ValueError(f"method={method!r} needs a schema; only 'json_mode' works without one.")
    if strict is not None and method == "json_mode":
        raise ValueError("`strict` needs a schema that the provider sees: use 'json_schema'.")
    if tools and method != "json_schema":
        raise ValueError(f"method={method!r} takes no tools: use 'json_schema'.")
    if schema is not None:
        check_schema(schema)


def check_schema(schema: Schema) -> None:
    """Raises ValueError if `schema` describes no object. Core would send a description of its constructor instead."""
    is_object = isinstance(schema, Mapping) or (
        isinstance(schema, type) and (is_basemodel_subclass(schema) or is_typeddict(schema) or is_dataclass(schema))
    )
    if not is_object:
        raise ValueError(
            f"{schema!r} describes no object, which is what models can be asked for. Nothing was paid. "
            "Use a pydantic class, a TypedDict, a dataclass or a JSON schema; wrap anything else in a field of one."
        )


def as_function(schema: Schema) -> Schema:
    """`schema` in a form that core can make a tool of: it does not know the shapes of a `response_format`."""
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("type") == "function" and isinstance(schema.get("function"), Mapping):
        return dict(schema["function"])
    named = schema["json_schema"] if isinstance(schema.get("json_schema"), Mapping) else schema
    if not _is_named_schema(named):
        return schema
    return {"name": named["name"], "description": named.get("description", ""), "parameters": dict(named["schema"])}


def forced_tool(schema: Schema, *, strict: bool | None = None) -> dict[str, Any]:
    """The tool whose arguments are an object of `schema`, under a name that every provider takes."""
    function = to_function(as_function(schema), strict=strict)
    return {"type": "function", "function": {**function, "name": _plain_name(function["name"])}}


def _plain_name(name: str) -> str:
    """A name that every provider takes: pydantic calls a generic class `Box[int]`."""
    return wire_tool_name(name).strip("_")


def _is_named_schema(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("schema"), Mapping) and isinstance(schema.get("name"), str)


def content_parser(schema: Schema | None) -> Runnable[Any, Any]:
    """Reads the answer's text: into a pydantic class (v2 or v1), or else into a dict, piece by piece."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    return _ContentParser(target=schema if is_class else None)


def tool_parser(schema: Schema, name: str) -> Runnable[Any, Any]:
    """Reads the forced tool call: into a pydantic class (v2 or v1), or else into a dict."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    return _ToolParser(key_name=name, first_tool_only=True, target=schema if is_class else None)


def chain(
    model: Runnable[LanguageModelInput, Any], parser: Runnable[Any, Any], *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Model, then parser; with `include_raw` a dict of `raw`, `parsed` and `parsing_error`."""
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return cast(
        "Runnable[LanguageModelInput, Any]",
        RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error"),
    )


class _ContentParser(JsonOutputParser):
    """Core's parser, with refusals, and with classes of both pydantic versions as `target`."""

    target: Any = None
    pydantic_object: Any = None  # core's annotation names a type variable that mypy cannot see from here

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        is_whole = _check_answer(result) or not partial
        if is_whole:
            return _fitted(_whole_json(result), self.target, partial=False, text=result[0].text)
        parsed = super().parse_result(result, partial=partial)
        return _fitted(parsed, self.target, partial=partial, text=result[0].text)


class _ToolParser(JsonOutputKeyToolsParser):
    """Core's parser, with refusals, and with classes of both pydantic versions as `target`."""

    target: Any = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if _check_answer(result) and (reason := _cut_short(result)) and not _has_calls(result):
            raise OutputParserException(f"The model gave no arguments: {reason}", llm_output=result[0].text)
        arguments = super().parse_result(result, partial=partial)
        return None if arguments is None else _fitted(arguments, self.target, partial=partial, text=str(arguments))


def _fitted(value: Any, target: Any, *, partial: bool, text: str) -> Any:
    """`value` as an instance of `target`, or unchanged without one. None while a stream does not fit yet."""
    if target is None:
        return value
    try:
        return target.model_validate(value) if issubclass(target, BaseModel) else target.parse_obj(value)
    except ValueError as exc:  # ValidationError of either version
        if partial:
            return None
        raise OutputParserException(f"The answer does not fit {target.__name__}: {exc}", llm_output=text) from exc


def _whole_json(result: list[Generation]) -> Any:
    """The JSON in a finished answer. Raises OutputParserException for JSON that was cut off: it is never completed."""
    text = after_thought(result[0].text)
    fenced = _FENCED.search(text)
    for candidate in (text, *(fenced.groups() if fenced else ()), object_in(text)):
        try:
            return json.loads(candidate.strip(), strict=False)  # a bare newline inside a string is clear enough
        except ValueError:
            continue
    reason = _cut_short(result) or "Ask again, with a clearer prompt or another model."
    raise OutputParserException(
        f"The answer is no JSON: {result[0].text[:200]!r}. The call was made and is paid for. {reason}",
        llm_output=result[0].text,
    )


def _cut_short(result: list[Generation]) -> str | None:
    """What the user can do about an answer that was cut off or filtered; None for any other answer."""
    message = _message_of(result)
    reason = None if message is None else message.response_metadata.get("finish_reason")
    if reason == "length":
        return "It was cut off at its longest length (finish_reason 'length'): raise `max_tokens`."
    if reason == "content_filter":
        return "The provider's filter cut it off (finish_reason 'content_filter'): ask for something else."
    return None


def _has_calls(result: list[Generation]) -> bool:
    message = _message_of(result)
    return message is not None and bool(message.tool_calls)


def _message_of(result: list[Generation]) -> AIMessage | None:
    message = result[0].message if result and isinstance(result[0], ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


def _check_answer(result: list[Generation]) -> bool:
    """Whether the answer is complete. A streamed answer is complete with its last chunk.

    Raises for a refusal, and for a malformed call: core would return None, which reads as "no answer".
    """
    message = _message_of(result)
    if message is None:
        return False
    if isinstance(message, AIMessageChunk) and message.chunk_position != "last":
        return False  # a stream under way: the rest of the refusal, or of the arguments, is still to come
    if refusal := message.additional_kwargs.get("refusal"):
        receipt = message.response_metadata.get(RECEIPT_KEY)
        raise ModelRefusal(
            str(refusal),
            receipt=SettlementReceipt.from_json(receipt) if isinstance(receipt, dict) else None,
            raw_message=message,
        )
    if message.invalid_tool_calls and not message.tool_calls:
        call = message.invalid_tool_calls[0]
        raise OutputParserException(
            f"The model called {call['name']!r} with malformed arguments. {_cut_short(result) or ''}".rstrip(),
            llm_output=call["args"],
        )
    return True
