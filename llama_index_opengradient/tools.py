"""Tools on their way out and tool calls on their way back.

Out: `BaseTool` -> the wire's function object.
Back: a response's tool calls -> `ToolSelection`s.

Knows LlamaIndex's tool vocabulary and the OpenAI-shaped one. Does not know messages, HTTP or payments, and
never runs a tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from llama_index_opengradient.partial_json import parse_partial_object
from opengradient_x402.gateway.request import wire_tool_name

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

INVALID_ARGUMENTS: Final = "invalid_arguments"
"""The one argument of a tool call whose JSON was broken: the text as the model wrote it.

The tool refuses it as unexpected, and the model reads that refusal and can try again. Running the tool with
what could be salvaged, or with nothing, would be a call that nobody asked for.
"""


def tool_definition(tool: BaseTool) -> dict[str, Any]:
    """The wire's definition of a tool."""
    function: dict[str, Any] = {
        "name": wire_tool_name(tool.metadata.get_name()),
        "description": tool.metadata.description,
        "parameters": tool.metadata.get_parameters_dict(),
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def selections(response: ChatResponse) -> list[ToolSelection]:
    """The tool calls of a response, complete or still streaming, in the order in which the model made them."""
    partial = is_partial(response)
    return [
        ToolSelection(
            tool_id=call["id"],
            tool_name=call["function"]["name"],
            tool_kwargs=parse_arguments(call["function"]["arguments"], partial=partial),
        )
        for call in tool_calls_of(response.message)
    ]


def is_partial(response: ChatResponse) -> bool:
    """Whether this is a chunk of a stream that goes on, whose tool arguments may be incomplete."""
    choices = (response.raw.get("choices") if isinstance(response.raw, dict) else None) or [{"finish_reason": "stop"}]
    return choices[0].get("finish_reason") is None


def parse_arguments(arguments: Any, *, partial: bool = False) -> dict[str, Any]:
    """Keyword arguments from what the wire or a block holds; see INVALID_ARGUMENTS for broken JSON."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    text = (arguments or "").strip()
    if partial:
        return parse_partial_object(text)
    if not text:
        return {}
    try:
        parsed = json.loads(text, strict=False)  # models write bare line feeds into strings
    except ValueError:
        parsed = text
    if parsed is None:
        return {}
    return parsed if isinstance(parsed, dict) else {INVALID_ARGUMENTS: text}


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
    """What `additional_kwargs["tool_calls"]` holds beside the blocks: core still looks for it when it streams."""
    return [_wire_call(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]


def _wire_call(call_id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": text}}


def _plain_call(call: Any) -> dict[str, Any]:
    """A tool call that another integration left behind: a dict, or an SDK's model object."""
    data = call if isinstance(call, Mapping) else call.model_dump()
    function = data.get("function") or {}
    arguments = function.get("arguments")
    return _wire_call(data.get("id"), function.get("name") or "", "" if arguments is None else arguments)


def keep_first_call(response: ChatResponse) -> ChatResponse:
    """The response with its first tool call only: what `parallel_tool_calls` off means to a caller."""
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
