"""Tools, from every form that LangChain users write to the one that the gateways read.

Pure conversions. It does not know the model, and it does not call tools.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

# OpenAI and Anthropic put a date after it (`web_search_20250305`), Google has a dict with nothing else in it.
_WEB_SEARCH: Final = ("web_search", "google_search", "googleSearch")
_NOT_BUILT_IN: Final = ("function", "object", "custom")
# The union of what OpenAI, Anthropic and Google allow: a name outside it fails at each, after it was paid.
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def to_wire_tool(tool: ToolLike, *, strict: bool | None = None) -> dict[str, Any]:
    """`tool` (a BaseTool, function, class, schema, OpenAI or Anthropic dict) as an OpenAI function tool.

    Raises ValueError for what a provider runs itself, and for a name that no provider takes: the call could only
    fail, after it was paid.
    """
    if isinstance(tool, Mapping) and tool.get("type", "function") not in _NOT_BUILT_IN and "input_schema" not in tool:
        raise ValueError(
            f"A tool of type {tool['type']!r} is one that its provider runs itself, and the gateways offer no such "
            "tool but web search. Nothing was paid. Bind a function in its place."
        )
    wire = convert_to_openai_tool(tool, strict=strict)
    name = wire["function"]["name"]
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError(
            f"A tool is named {name!r}, and providers take letters, digits, '_', '-', '.' and ':' only, at most 128. "
            "Nothing was paid. Give the tool another name."
        )
    if isinstance(tool, Mapping) and "cache_control" in tool:
        wire["cache_control"] = tool["cache_control"]  # Anthropic: the tools up to here may be cached
    return wire


def is_web_search(tool: ToolLike) -> bool:
    """Whether `tool` is some provider's built-in web search, which the gateways offer as a flag instead."""
    return isinstance(tool, Mapping) and str(tool.get("type") or next(iter(tool), "")).startswith(_WEB_SEARCH)
