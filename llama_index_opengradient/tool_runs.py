"""Running the tools that a model called, for those who let one call do both (`predict_and_call`).

Core's own runner raises a bare KeyError for a tool that does not exist, and hands text that is no JSON to any tool
that takes one argument. Here neither runs; the result says why, so that whoever reads it can ask again.

Does not know how the model was asked, nor payments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.calling import acall_tool_with_selection, call_tool_with_selection
from llama_index.core.tools.types import ToolOutput

from llama_index_opengradient.tools import INVALID_ARGUMENTS

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


def run_tools(calls: Sequence[ToolSelection], tools: Sequence[BaseTool], *, verbose: bool) -> list[ToolOutput]:
    """What the called tools gave, one after the other; a tool's own fault is a result too."""
    return [_refusal(call, tools) or call_tool_with_selection(call, tools, verbose=verbose) for call in calls]


async def arun_tools(calls: Sequence[ToolSelection], tools: Sequence[BaseTool], *, verbose: bool) -> list[ToolOutput]:
    """As `run_tools`, all at once."""

    async def run(call: ToolSelection) -> ToolOutput:
        return _refusal(call, tools) or await acall_tool_with_selection(call, tools, verbose=verbose)

    return list(await asyncio.gather(*map(run, calls)))


def answer_of(outputs: list[ToolOutput], response: ChatResponse, *, error_on_tool_error: bool) -> AgentChatResponse:
    """The results as one answer; the model's own words when it called no tool.

    Raises ValueError when a tool failed and that was to be an error.
    """
    text = "\n\n".join(output.content for output in outputs)
    if error_on_tool_error and any(output.is_error for output in outputs):
        raise ValueError(f"{text} (The model's call was made and is paid for.)")
    return AgentChatResponse(response=text if outputs else response.message.content or "", sources=outputs)


def _refusal(call: ToolSelection, tools: Sequence[BaseTool]) -> ToolOutput | None:
    names = [tool.metadata.get_name() for tool in tools]
    if call.tool_name not in names:
        reason = f"There is no tool named {call.tool_name!r}; there are {', '.join(names)}."
    elif INVALID_ARGUMENTS in call.tool_kwargs:
        reason = f"The arguments of {call.tool_name} are not a JSON object: {call.tool_kwargs[INVALID_ARGUMENTS]}"
    else:
        return None
    return ToolOutput(
        content=reason, tool_name=call.tool_name, raw_input=call.tool_kwargs, raw_output=reason, is_error=True
    )
