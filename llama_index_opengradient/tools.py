"""`BaseTool`s -> the wire's tools, and the tool calls of responses -> `ToolSelection`s.

Out: `BaseTool` -> the wire's function object.
Back: a response's tool calls -> `ToolSelection`s, and what a caller gets for a call that cannot be run.

Knows LlamaIndex's tool vocabulary and the OpenAI-shaped one. Does not know messages, HTTP or payments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import ToolOutput

from llama_index_opengradient.partial_json import parse_partial_object
from opengradient_x402.completions.schemas import object_schema
from opengradient_x402.gateway.request import wire_tool_name

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

_SHOWN_CHARS: Final = 200
CALL_EXTRAS_KEY: Final = "tool_call_extras"
"""Where a message keeps what a provider wants back with its tool calls (thought signatures), by the call's id."""

AUDIO_KEY: Final = "reference_audio_id"
"""Where a message keeps the id under which a provider knows its sound (as in llama-index-llms-openai)."""
DETAILS_KEY: Final = "reasoning_details"
"""Where a message keeps the signed reasoning that a provider wants back."""


def tool_definition(tool: BaseTool, *, strict: bool | None = None) -> dict[str, Any]:
    """The wire's definition of a tool. Raises ConfigurationError for parameters that no provider takes."""
    name = tool.metadata.get_name()
    function: dict[str, Any] = {
        "name": wire_tool_name(name),
        "description": tool.metadata.description,
        "parameters": object_schema(tool.metadata.get_parameters_dict(), of=name, is_strict=bool(strict)),
        "strict": strict,
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def selections(response: ChatResponse) -> list[ToolSelection]:
    """The tool calls of a response, complete or still streaming, in the order in which the model made them.

    A call whose arguments are no JSON object selects a tool that nobody has: an agent runs nothing, and answers the
    model with that name, which says what was wrong. Running the tool on what could be salvaged, or on nothing, would
    be a call that nobody asked for.
    """
    partial = is_partial(response)
    return [_selection(call, partial=partial) for call in tool_calls_of(response.message)]


def _selection(call: dict[str, Any], *, partial: bool) -> ToolSelection:
    name, text = call["function"]["name"], call["function"]["arguments"]
    arguments = parse_partial_object(text) if partial else parse_arguments(text)
    if arguments is None:
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
        name = f"{name} (which was not run, because these arguments are not a JSON object: {shown})"
        arguments = {"invalid_arguments": text}
    return ToolSelection(tool_id=call["id"], tool_name=name, tool_kwargs=arguments)


def not_found(call: ToolSelection, tools: Sequence[BaseTool]) -> ToolOutput | None:
    """An error result for a call of a tool that does not exist, as agents make it; core's runner raises KeyError."""
    names = [tool.metadata.get_name() for tool in tools]
    if call.tool_name in names:
        return None
    reason = f"Tool {call.tool_name} not found. There are: {', '.join(names)}."
    return ToolOutput(
        content=reason, tool_name=call.tool_name, raw_input=call.tool_kwargs, raw_output=reason, is_error=True
    )


def answer_of(outputs: list[ToolOutput], response: ChatResponse, *, error_on_tool_error: bool) -> AgentChatResponse:
    """The results of the called tools as one answer; the model's own words when it called none.

    Raises ValueError when a tool failed and that was to be an error.
    """
    text = "\n\n".join(output.content for output in outputs)
    if error_on_tool_error and any(output.is_error for output in outputs):
        raise ValueError(f"{text} (The model's call was made and is paid for.)")
    return AgentChatResponse(response=text if outputs else response.message.content or "", sources=outputs)


def is_partial(response: ChatResponse) -> bool:
    """Whether more chunks follow this one, so that its tool arguments may be incomplete."""
    choices = (response.raw.get("choices") if isinstance(response.raw, dict) else None) or [{"finish_reason": "stop"}]
    return choices[0].get("finish_reason") is None


def parse_arguments(arguments: Any) -> dict[str, Any] | None:
    """Keyword arguments from what the wire or a block holds; None for what is not a JSON object."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        parsed = json.loads(
            (arguments or "").strip() or "{}", strict=False
        )  # models write bare line feeds into strings
    except ValueError:
        return None
    if parsed is None:
        return {}
    return parsed if isinstance(parsed, dict) else None


def tool_calls_of(message: ChatMessage) -> list[dict[str, Any]]:
    """A message's tool calls in the wire's form, with arguments as JSON text and `""` for a missing id.

    Blocks are the source; `additional_kwargs["tool_calls"]` counts only for messages that have no such block,
    as older integrations and stored chats write them.
    """
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [_wire_call(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]
    return [_plain_call(call) for call in message.additional_kwargs.get("tool_calls") or ()]


def mirror(blocks: Sequence[ToolCallBlock]) -> list[dict[str, Any]]:
    """The calls for `additional_kwargs["tool_calls"]`, beside the blocks: core still reads them there in streams."""
    return [_wire_call(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]


def _wire_call(call_id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    # Users write dates, decimals and UUIDs into the calls of their examples.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": text}}


def _plain_call(call: Any) -> dict[str, Any]:
    """A tool call that another integration left behind: a dict, or an SDK's model object."""
    data = call if isinstance(call, Mapping) else call.model_dump()
    function = data.get("function") or {}
    arguments = function.get("arguments")
    return _wire_call(data.get("id"), function.get("name") or "", "" if arguments is None else arguments)


def keep_first_call(response: ChatResponse) -> ChatResponse:
    """The response with its first tool call only, for a caller who turned parallel calls off."""
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if len(calls) < 2:
        return response
    blocks = [block for block in response.message.blocks if not isinstance(block, ToolCallBlock)] + calls[:1]
    return _with_calls(response, blocks)


def restore_names(response: ChatResponse, names: Sequence[str]) -> ChatResponse:
    """The response with tool names as the caller's tools spell them, for names that the wire cannot carry."""
    spelled = {wire_tool_name(name): name for name in names if wire_tool_name(name) != name}
    if not spelled:
        return response
    blocks = [
        block.model_copy(update={"tool_name": spelled.get(block.tool_name, block.tool_name)})
        if isinstance(block, ToolCallBlock)
        else block
        for block in response.message.blocks
    ]
    return _with_calls(response, blocks)


def _with_calls(response: ChatResponse, blocks: list[Any]) -> ChatResponse:
    calls = [block for block in blocks if isinstance(block, ToolCallBlock)]
    if not calls:
        return response
    message = response.message.model_copy(
        update={
            "blocks": blocks,
            "additional_kwargs": {**response.message.additional_kwargs, "tool_calls": mirror(calls)},
        }
    )
    return response.model_copy(update={"message": message})
