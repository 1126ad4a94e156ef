"""The tools that a request offers, and how well the words of each fit a text.

`plan` decides whether a tool is called, `schema` with which arguments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.rules.reading.text import mentions, stems

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_TYPE_NAME = re.compile(r"(?:[A-Z][a-z0-9]+)+(?:_[A-Za-z0-9_]*)?\Z|_?Response\w*\Z")
_LIST_LINE = re.compile(r"^\s*[-*]\s*['\"`]?(\w+)['\"`]?\s*:\s*(.+)$", re.MULTILINE)
_LISTED = re.compile(r"\{(?:[^{}]|\n)*\}")
# What follows in a docstring is about arguments and results, not about what the tool is for.
_DETAILS = re.compile(r"\n\s*(?:Args|Arguments|Parameters|Returns|Raises|Examples?)\s*:|\n\s*:param", re.IGNORECASE)
_WANTS_A_FORM = re.compile(r"\b(?:extract|parse|fill in|structured?|generate|create|produce)\b", re.IGNORECASE)
_OPERATORS = (
    (re.compile(r"\d\s*\+\s*\d|\d\s+plus\s+\d"), "plus add sum"),
    (re.compile(r"\d\s*[*\u00d7x]\s*\d|\btimes\b"), "times multiply product"),
    (re.compile(r"\d\s*[/÷]\s*\d"), "divide quotient"),
    (re.compile(r"\d\s+[-\u2212]\s+\d|\bminus\b"), "minus subtract difference"),
)

# Scores: a tool called by its name beats any number of words; a word of the name weighs more than one of the
# description. One word of the name, or two of the description, make a tool fit for being called unasked.
_NAMED = 100
_NAME_WORD = 3
FITTING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    destinations: Mapping[str, str] = field(default_factory=dict)
    """other agents that the description lists by name, for a tool that passes the conversation on."""

    @property
    def is_form(self) -> bool:
        """Whether the tool is named like a type: its arguments are a result to hand in, not an action."""
        return _TYPE_NAME.match(self.name) is not None

    @property
    def purpose(self) -> str:
        """The description without the parts about arguments and results."""
        return _DETAILS.split(self.description)[0]

    def score(self, text: str) -> int:
        """How well `text` fits this tool; at least FITTING when it may be called unasked."""
        if self.destinations:
            return max(fit(name, purpose, text) for name, purpose in self.destinations.items())
        asked_for = FITTING if self.is_form and _WANTS_A_FORM.search(text) else 0
        return asked_for + fit(self.name, self.purpose, text)

    def is_named_in(self, text: str) -> bool:
        """Whether `text` calls the tool by its exact name."""
        return mentions(text, self.name)

    def destination_for(self, text: str) -> str | None:
        """The listed agent that `text` fits best; None for a tool that lists none."""
        scores = {name: fit(name, purpose, text) for name, purpose in self.destinations.items()}
        return max(scores, key=lambda name: scores[name]) if scores else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """`tool_choice`, read: a tool that must be called by name, or whether some tool may or must be called."""

    allowed: bool = True
    required: bool = False
    name: str | None = None


def make_tool(*, name: str, description: str, parameters: Mapping[str, Any] | None) -> Tool:
    """A tool from what a request or a prompt says of it."""
    parameters = parameters or {"type": "object", "properties": {}}
    passes_on = any("agent" in field_name.lower() for field_name in parameters.get("properties") or {})
    return Tool(
        name=name,
        description=description,
        parameters=parameters,
        destinations=_listed(description) if passes_on else {},
    )


def read_tools(request: Mapping[str, Any]) -> list[Tool]:
    """The function tools of a request. Raises ModelError(400) for names that providers refuse."""
    offered = request.get("tools") or []
    functions = [item.get("function") for item in offered if item.get("type") == "function"]
    if not all(isinstance(function, Mapping) for function in functions):
        raise ModelError(400, "Invalid 'tools': a tool of type 'function' needs a 'function' object.")
    tools = [
        make_tool(
            name=str(function.get("name")),
            description=str(function.get("description") or ""),
            parameters=function.get("parameters"),
        )
        for function in functions
    ]
    names = [tool.name for tool in tools]
    for name in names:
        if not _NAME.match(name):
            raise ModelError(400, f"Invalid tool name {name!r}: expected {_NAME.pattern[:-2]}.")
        if names.count(name) > 1:
            raise ModelError(400, f"Invalid 'tools': the name {name!r} is used twice.")
    return tools


def read_choice(request: Mapping[str, Any], tools: Sequence[Tool]) -> ToolChoice:
    """`tool_choice` in any of its forms. Raises ModelError(400) when it names a tool that is not offered."""
    choice = request.get("tool_choice")
    if isinstance(choice, Mapping):
        name = str((choice.get("function") or choice).get("name"))
        if all(tool.name != name for tool in tools):
            raise ModelError(400, f"Invalid 'tool_choice': no tool is named {name!r}.")
        return ToolChoice(required=True, name=name)
    if choice in {"required", "any"}:
        if not tools:
            raise ModelError(400, "Invalid 'tool_choice': it is 'required', but there are no tools.")
        return ToolChoice(required=True)
    if choice not in {None, "auto", "none"}:
        raise ModelError(400, f"Invalid 'tool_choice': {choice!r} is none of auto, none, required.")
    return ToolChoice(allowed=choice != "none")


def _listed(description: str) -> dict[str, str]:
    """Names and purposes listed in a description: `- Name: purpose` lines, or a printed mapping."""
    for block in _LISTED.findall(description):
        try:
            value = ast.literal_eval(block)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, dict):
            return {str(name): str(purpose) for name, purpose in value.items()}
    return {match[1]: match[2] for match in _LIST_LINE.finditer(description)}


def fit(name: str, purpose: str, text: str) -> int:
    """How well `text` fits something of that name and purpose."""
    if mentions(text, name):
        return _NAMED
    spoken = " ".join([text, *(words for pattern, words in _OPERATORS if pattern.search(text))])
    said, own = stems(spoken) - stems("agent"), stems(name) - stems("agent")
    return _NAME_WORD * len(said & own) + len((said & stems(purpose)) - own)
