"""Structured output: what to bind to the model for each method, and how to read the answer back.

`json_schema` asks for a schema-bound answer, `function_calling` for a forced tool call, `json_mode` for any
JSON. A refusal raises `ModelRefusal` instead of a parse error. It does not know the model's wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_function
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_opengradient.conversions import RECEIPT_KEY
from langchain_opengradient.errors import ModelRefusal
from opengradient_x402.receipts import SettlementReceipt

Schema = dict[str, Any] | type
Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS: Final = ("json_schema", "function_calling", "json_mode")


def to_response_format(schema: Schema, *, strict: bool | None = None) -> dict[str, Any]:
    """`schema` (pydantic v2 or v1 class, TypedDict, JSON schema, OpenAI format) as a `response_format`."""
    if isinstance(schema, Mapping):
        if schema.get("type") in ("json_schema", "json_object", "text") and "properties" not in schema:
            return dict(schema)
        if isinstance(schema.get("schema"), Mapping) and isinstance(schema.get("name"), str):
            return {"type": "json_schema", "json_schema": dict(schema)}
    function = convert_to_openai_function(schema, strict=strict)
    described: dict[str, Any] = {"name": function["name"], "schema": function["parameters"]}
    if function.get("description"):
        described["description"] = function["description"]
    if strict is not None:
        described["strict"] = strict
    return {"type": "json_schema", "json_schema": described}


def content_parser(schema: Schema | None) -> Runnable[Any, Any]:
    """Reads the answer's text: into a pydantic class (v2 or v1), or else into a dict, piece by piece."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    return _ContentParser(target=schema if is_class else None)


def tool_parser(schema: Schema, name: str) -> Runnable[Any, Any]:
    """Reads the forced tool call: into a pydantic class (v2 or v1), or else into a dict."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _ToolParser(tools=[schema], first_tool_only=True)
    return _ToolKeyParser(key_name=name, first_tool_only=True)


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
        _check_answer(result)
        parsed = super().parse_result(result, partial=partial)
        if self.target is None:
            return parsed
        try:
            if issubclass(self.target, BaseModel):
                return self.target.model_validate(parsed)
            return self.target.parse_obj(parsed)
        except ValueError as exc:  # ValidationError of either version
            if partial:
                return None
            raise OutputParserException(
                f"The answer does not fit {self.target.__name__}: {exc}", llm_output=result[0].text
            ) from exc


class _ToolParser(PydanticToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check_answer(result)
        return super().parse_result(result, partial=partial)


class _ToolKeyParser(JsonOutputKeyToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        _check_answer(result)
        return super().parse_result(result, partial=partial)


def _check_answer(result: list[Generation]) -> None:
    """Raises for a refusal, and for a malformed call: core would return None, which reads as "no answer"."""
    message = result[0].message if result and isinstance(result[0], ChatGeneration) else None
    if not isinstance(message, AIMessage):
        return
    if isinstance(message, AIMessageChunk) and message.chunk_position != "last":
        return  # a stream under way: the rest of the refusal, or of the arguments, is still to come
    if refusal := message.additional_kwargs.get("refusal"):
        receipt = message.response_metadata.get(RECEIPT_KEY)
        raise ModelRefusal(
            str(refusal), receipt=SettlementReceipt.from_json(receipt) if isinstance(receipt, dict) else None
        )
    if message.invalid_tool_calls and not message.tool_calls:
        call = message.invalid_tool_calls[0]
        raise OutputParserException(
            f"The model called {call['name']!r} with malformed arguments.", llm_output=call["args"]
        )
