"""Structured prediction: a pydantic class as the one tool that the model has to call.

Pure: what to ask for, and what the answers mean, complete or in part. Core's own programs lose `tool_required`
when they stream, lose the system prompt in one of four forms, and send tool names that no provider accepts
for generic classes; the model therefore overrides structured prediction with what is here.

Does not know how the model is called, nor payments.
"""

from __future__ import annotations

from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from pydantic import BaseModel, ValidationError

from llama_index_opengradient.partial_json import parse_partial_object
from llama_index_opengradient.tools import INVALID_ARGUMENTS, is_partial, parse_arguments, tool_calls_of
from opengradient_x402.gateway.request import wire_tool_name

OutputT = TypeVar("OutputT", bound=BaseModel)


def output_tool(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The wire's tool definition whose arguments are an `output_cls`."""
    schema = output_cls.model_json_schema()
    name = schema.pop("title", output_cls.__name__)
    description = schema.pop("description", None) or f"Give the answer as a {name}."
    return {
        "type": "function",
        "function": {"name": wire_tool_name(name), "description": description, "parameters": schema},
    }


def output_kwargs(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The keyword arguments of the chat call that predicts an `output_cls`."""
    kwargs = dict(llm_kwargs or {})
    for name in ("tool_required", "tool_choice", "allow_parallel_tool_calls", "tools"):
        kwargs.pop(name, None)
    return {**kwargs, "tools": [output_tool(output_cls)], "tool_choice": "required", "parallel_tool_calls": False}


def parse_output(response: ChatResponse, output_cls: type[OutputT]) -> OutputT:
    """The `output_cls` that a complete response holds.

    Taken from the tool call, or from the text if the model wrote JSON there: some gateways do not forward
    `tool_choice`. Raises ValueError, which says what the model gave instead.
    """
    text = _output_text(response)
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as exc:
        raise ValueError(
            f"The model did not give a valid {output_cls.__name__}: {_shortened(text)!r} ({exc.error_count()} errors, "
            f"the first: {exc.errors()[0]['msg']}). The call was made and is paid for. Ask again, with a clearer "
            "prompt or another model."
        ) from exc


class PartialOutput:
    """The object so far, over the chunks of one stream."""

    def __init__(self, output_cls: type[OutputT]) -> None:
        self._output_cls = output_cls
        self._flexible_cls = create_flexible_model(output_cls)
        self._seen: dict[str, Any] | None = None

    def feed(self, response: ChatResponse) -> BaseModel | FlexibleModel | None:
        """The object after this chunk; None when the chunk brought nothing new.

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
    calls = tool_calls_of(response.message)
    if calls:
        arguments: str = calls[0]["function"]["arguments"]
        broken = parse_arguments(arguments, partial=is_partial(response)).get(INVALID_ARGUMENTS)
        return arguments if broken is None else str(broken)
    return _object_in(response.message.content or "", partial=is_partial(response))


def _object_in(text: str, *, partial: bool) -> str:
    """The JSON object that chat models like to put between friendly words, or into a Markdown fence."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        return text
    return text[start:] if partial or end < start else text[start : end + 1]


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
