"""Structured prediction: a pydantic class as the one tool that the model has to call, or as its answer's format.

Pure: what to ask for, and what the answers mean, complete or in part. Core's own programs lose `tool_required`
when they stream, lose the system prompt in one of four forms, and send tool names that no provider accepts
for generic classes; the model therefore overrides structured prediction with what is here.

Does not know how the model is called, nor payments.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse, ChatResponseAsyncGen, ChatResponseGen
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
)
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from llama_index_opengradient.partial_json import parse_partial_object
from llama_index_opengradient.tools import is_partial, tool_calls_of
from opengradient_x402.completions.schemas import object_schema
from opengradient_x402.gateway.request import wire_tool_name
from opengradient_x402.strict_json import object_in

dispatcher = get_dispatcher(__name__)
OutputT = TypeVar("OutputT", bound=BaseModel)
_FOR_CORE_ONLY = ("tool_required", "allow_parallel_tool_calls")


def output_tool(output_cls: type[BaseModel], *, strict: bool | None = None) -> dict[str, Any]:
    """The wire's tool definition whose arguments are an `output_cls`."""
    schema = object_schema(output_cls.model_json_schema(), of=output_cls.__name__, is_strict=bool(strict))
    name = schema.pop("title", output_cls.__name__)
    description = schema.pop("description", None) or f"Give the answer as a {name}."
    function = {"name": wire_tool_name(name), "description": description, "parameters": schema}
    return {"type": "function", "function": function if strict is None else {**function, "strict": strict}}


def output_kwargs(
    output_cls: type[BaseModel],
    llm_kwargs: dict[str, Any] | None,
    *,
    by_format: bool = False,
    strict: bool | None = None,
) -> dict[str, Any]:
    """The keyword arguments of the chat call that predicts an `output_cls`, as a tool's arguments or as the text."""
    kwargs = {name: value for name, value in (llm_kwargs or {}).items() if name not in _FOR_CORE_ONLY}
    tool = output_tool(output_cls, strict=kwargs.pop("strict", strict))
    if by_format:
        function = tool["function"]
        described = {"name": function["name"], "schema": function["parameters"]}
        if "strict" in function:
            described["strict"] = function["strict"]
        return {"response_format": {"type": "json_schema", "json_schema": described}, **kwargs}
    # Some models refuse a forced tool: the caller decides.
    return {"tool_choice": "required", **kwargs, "tools": [tool], "parallel_tool_calls": False}


def wire_keywords(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of one call as members of the request: OpenAI's users give classes as formats."""
    wire = dict(kwargs)
    if "audio_config" in wire:
        wire["audio"] = wire.pop("audio_config")
    wanted = wire.get("response_format")
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        wire["response_format"] = output_kwargs(wanted, None, by_format=True)["response_format"]
    return wire


def parse_output(response: ChatResponse, output_cls: type[OutputT]) -> OutputT:
    """The `output_cls` that a complete response holds.

    Taken from the tool call, or from the text if the model wrote JSON there: some gateways do not forward
    `tool_choice`. Raises ValueError, which says what the model gave instead.
    """
    text = _output_text(response)
    try:
        return output_cls.model_validate_json(_with_line_feeds(text))
    except ValidationError as exc:
        raise ValueError(
            f"The model did not give a valid {output_cls.__name__}: {_shortened(text)!r} ({exc.error_count()} errors, "
            f"the first: {exc.errors()[0]['msg']}). The call was made and is paid for. {_remedy(response)}"
        ) from exc


def _with_line_feeds(text: str) -> str:
    """Models write bare line feeds into strings, where JSON wants them escaped."""
    try:
        return text if "\n" not in text else json.dumps(json.loads(text, strict=False))
    except ValueError:
        return text


def _remedy(response: ChatResponse) -> str:
    """What to do about an answer that is no object: it depends on why it is none."""
    if response.additional_kwargs.get("refusal"):
        return "The model refused: ask for something else."
    choices = (response.raw.get("choices") if isinstance(response.raw, dict) else None) or [{}]
    reason = choices[0].get("finish_reason")
    if reason == "length":
        return "It was cut off at its longest length (finish_reason 'length'): raise `max_tokens`."
    if reason == "content_filter":
        return "The provider's filter cut it off (finish_reason 'content_filter'): ask for something else."
    return "Ask again, with a clearer prompt or another model."


def growing(responses: ChatResponseGen, output_cls: type[OutputT]) -> Generator[Any, None, None]:
    """The object so far, after each chunk that added something. Each one is dispatched as an event."""
    outputs, output = PartialOutput(output_cls), None
    with closing(responses):
        for response in responses:
            if (grown := outputs.feed(response)) is not None:
                output = grown
                dispatcher.event(LLMStructuredPredictInProgressEvent(output=output))
                yield output
    dispatcher.event(LLMStructuredPredictEndEvent(output=output))


async def agrowing(responses: ChatResponseAsyncGen, output_cls: type[OutputT]) -> AsyncGenerator[Any, None]:
    """As `growing`."""
    outputs, output = PartialOutput(output_cls), None
    async with aclosing(responses):
        async for response in responses:
            if (grown := outputs.feed(response)) is not None:
                output = grown
                dispatcher.event(LLMStructuredPredictInProgressEvent(output=output))
                yield output
    dispatcher.event(LLMStructuredPredictEndEvent(output=output))


class PartialOutput:
    """Builds the object from the chunks of one stream."""

    def __init__(self, output_cls: type[OutputT]) -> None:
        self._output_cls = output_cls
        self._flexible_cls = create_flexible_model(output_cls)
        self._seen: dict[str, Any] | None = None

    def feed(self, response: ChatResponse) -> BaseModel | FlexibleModel | None:
        """The object after this chunk; None if the chunk added nothing.

        While members are missing it is a `FlexibleModel` with the members so far. The last chunk gives the
        output class itself, or raises ValueError as `parse_output` does.
        """
        if not is_partial(response):
            return parse_output(response, self._output_cls)
        found = parse_partial_object(_output_text(response))
        if found == self._seen or not found:
            return None
        self._seen = found
        try:
            return self._output_cls.model_validate(found)
        except ValidationError:
            return self._flexible_cls.model_validate(found)


def _output_text(response: ChatResponse) -> str:
    if calls := tool_calls_of(response.message):
        return str(calls[0]["function"]["arguments"])
    text = response.message.content or ""
    return _rest_after_words(text) if is_partial(response) else object_in(text)


def _rest_after_words(text: str) -> str:
    return text[max(text.find("{"), 0) :]


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
