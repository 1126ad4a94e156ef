"""ReAct prompts: tools described in text, answered with `Thought/Action/Action Input` lines.

It reads the printed tools, the question and the steps so far, wherever the prompt has them, and writes the next
step. `plan` decides which tool comes next, as for real tool calls.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.rules.reading.conversation import Call, Conversation
from opengradient_devnet.model.rules.reading.layout import json_values, section
from opengradient_devnet.model.rules.reading.toolbox import Tool, ToolChoice, make_tool
from opengradient_devnet.model.rules.writing.plan import Situation, next_calls

_FORMAT = re.compile(r"^\s*Action:.*^\s*Action Input:", re.MULTILINE | re.DOTALL)
_TOOL = re.compile(r"^> Tool Name: (?P<name>[^\n]+)\nTool Description: ", re.MULTILINE)
_TOOL_ARGUMENTS = "\nTool Args: "
_TOOL_LINE = re.compile(
    r"^(?P<name>\w+)(?:\([^\n]*?\))?(?:\s*->\s*\S+)?\s*(?::|-)\s+(?P<purpose>[^\n]+)$", re.MULTILINE
)
_ACTION = re.compile(
    r"^\s*Action:\s*(?P<name>[\w-]+).*?^\s*Action Input:\s*(?P<input>[^\n]*)", re.MULTILINE | re.DOTALL
)
_OBSERVATION = re.compile(r"^\s*Observation:\s*(?P<text>.*?)(?=^\s*Thought:|\Z)", re.MULTILINE | re.DOTALL)
_BARE_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReActPrompt:
    """A ReAct prompt, read."""

    tools: tuple[Tool, ...]
    question: str
    done: tuple[Call, ...]
    observations: tuple[str, ...]
    answer_label: str
    takes_json: bool

    def next_step(self, *, otherwise: str) -> str:
        """The next step in the format that the prompt asks for; `otherwise` answers when no tool is needed."""
        situation = Situation(asked=self.question, done=self.done, results=self.observations)
        calls = next_calls(self.tools, ToolChoice(), situation, parallel=False)
        if calls:
            return self._action(calls[0])
        if not self.observations:
            return f"Thought: I can answer without using any more tools.\n{self.answer_label} {otherwise}"
        answer = "; ".join(text.strip() for text in self.observations)
        return f"Thought: I can answer without using any more tools.\n{self.answer_label} {answer}"

    def _action(self, call: Call) -> str:
        given = (
            json.dumps(call.arguments, ensure_ascii=False)
            if self.takes_json
            else " ".join(str(value) for value in call.arguments.values())
        )
        return (
            f"Thought: I need to use a tool to help me answer the question.\nAction: {call.name}\nAction Input: {given}"
        )


def read_react(conversation: Conversation) -> ReActPrompt | None:
    """The ReAct prompt that a conversation holds, in its instructions or in its question; else None."""
    inline = not _FORMAT.search(conversation.instructions)
    prompt = conversation.asked if inline else conversation.instructions
    if not _FORMAT.search(prompt):
        return None
    head, question, steps = _inline_parts(prompt) if inline else (prompt, conversation.asked, "")
    if not inline:
        steps = "\n".join(f"{_labelled(turn.role, turn.text)}\n" for turn in conversation.since_asked)
    return ReActPrompt(
        tools=tuple(_tools(head)),
        question=question,
        done=tuple(_calls(steps)),
        observations=tuple(match["text"] for match in _OBSERVATION.finditer(steps)),
        answer_label="Final Answer:" if "Final Answer:" in head else "Answer:",
        takes_json="JSON" in head,
    )


def _inline_parts(prompt: str) -> tuple[str, str, str]:
    """Instructions, question and steps of a prompt that holds all three in one text."""
    at = prompt.rfind("\nQuestion:")
    rest = prompt[at:] if at >= 0 else prompt
    question = section(rest, r"^Question:", until=r"^\s*Thought:") or rest
    return prompt[: at if at >= 0 else None], question, rest[rest.find("Thought:") :]


def _labelled(role: str, text: str) -> str:
    return f"Observation: {text}" if role == "tool" and not text.startswith("Observation:") else text


def _tools(head: str) -> Iterator[Tool]:
    printed = list(_printed_blocks(head))
    if printed:
        yield from printed
        return
    names = {name.strip() for match in re.findall(r"one of \[?([^\])\n]+)", head) for name in match.split(",")}
    for match in _TOOL_LINE.finditer(head):
        if match["name"] in names:
            yield make_tool(name=match["name"], description=match["purpose"], parameters=_BARE_INPUT)


def _printed_blocks(head: str) -> Iterator[Tool]:
    """Tools printed as `> Tool Name`, `Tool Description` (any number of lines) and `Tool Args` (a schema)."""
    for match in _TOOL.finditer(head):
        purpose, _, rest = head[match.end() :].partition(_TOOL_ARGUMENTS)
        schema = next((value for value, start, _ in json_values(rest) if start == 0), None)
        yield make_tool(name=match["name"].strip(), description=purpose, parameters=schema)


def _calls(steps: str) -> Iterator[Call]:
    for match in _ACTION.finditer(steps):
        yield Call(name=match["name"], arguments=_mapping(match["input"]))


def _mapping(text: str) -> dict[str, Any]:
    """A printed mapping, in JSON or as Python prints it; empty when it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, dict):
            return value
    return {}
