"""The conversation of a request: its turns, the last question, and the results of tools since then.

It refuses what a provider refuses (unknown roles and parts, tool results that answer no call), so that the author
of a client sees the mistake here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.media import Attachment, attachments_of
from opengradient_devnet.model.protocol import ModelError

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_PARTS = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
# Messages in the user's name that report on the model's own last step: they ask nothing new.
_FEEDBACK = re.compile(r"\s*(?:Observation:|Error while parsing the output)")
# The last of these labels in a message introduces what is asked; what stands before it is state or setting.
_ASKED_LABEL = re.compile(r"^Current message:[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call that the conversation shows, with its arguments parsed (an empty dict when they are not JSON)."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message: its text, its attachments, its tool calls, and for a tool result the tool's name."""

    role: str
    text: str
    attachments: tuple[Attachment, ...] = ()
    calls: tuple[Call, ...] = ()
    tool_name: str = ""

    @property
    def is_question(self) -> bool:
        """True for a user's message that asks something, rather than reporting on the model's last step."""
        return self.role == "user" and bool(self.text.strip()) and not _FEEDBACK.match(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The turns of a request, and the index of the last turn that asks something (-1: none does)."""

    turns: tuple[Turn, ...]
    asked_at: int

    @property
    def asked(self) -> str:
        """What was asked last."""
        text = self.turns[self.asked_at].text if self.asked_at >= 0 else ""
        return _ASKED_LABEL.split(text)[-1].strip()

    @property
    def instructions(self) -> str:
        """The text of all system messages."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "system")

    @property
    def since_asked(self) -> tuple[Turn, ...]:
        """The turns after the last question."""
        return self.turns[self.asked_at + 1 :]

    @property
    def before_asked(self) -> tuple[Turn, ...]:
        """The turns before the last question."""
        return self.turns[: max(self.asked_at, 0)]

    @property
    def results(self) -> tuple[Turn, ...]:
        """The tool results since the last question."""
        return tuple(turn for turn in self.since_asked if turn.role == "tool")

    @property
    def calls(self) -> tuple[Call, ...]:
        """The tool calls since the last question."""
        return tuple(call for turn in self.since_asked for call in turn.calls)

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """What came with the last question and after it."""
        return tuple(item for turn in self.turns[max(self.asked_at, 0) :] for item in turn.attachments)


def read_conversation(request: Mapping[str, Any]) -> Conversation:
    """Read `request["messages"]`. Raises ModelError(400) for messages that a provider would refuse."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ModelError(400, "Invalid 'messages': expected a list of at least one message.")
    turns = tuple(_turns(messages))
    asked_at = max((index for index, turn in enumerate(turns) if turn.is_question), default=-1)
    return Conversation(turns=turns, asked_at=asked_at)


def _turns(messages: Sequence[Mapping[str, Any]]) -> Iterator[Turn]:
    open_calls: dict[str, str] = {}
    for index, message in enumerate(messages):
        _check_shape(message, index=index)
        role = _role(message, index=index)
        if open_calls and role != "tool":
            raise ModelError(
                400,
                f"Invalid messages[{index}]: an assistant message with 'tool_calls' must be followed by tool "
                f"messages responding to each 'tool_call_id'; missing: {', '.join(open_calls)}.",
            )
        tool_name = _answered(message, open_calls, index=index) if role == "tool" else ""
        for call in message.get("tool_calls") or []:
            open_calls[str(call["id"])] = str(call["function"]["name"])
        yield _turn(message, role=role, tool_name=tool_name, index=index)
    if open_calls:
        raise ModelError(400, f"Invalid 'messages': no tool message responds to {', '.join(open_calls)}.")


def _check_shape(message: object, *, index: int) -> None:
    if not isinstance(message, Mapping):
        raise ModelError(400, f"Invalid messages[{index}]: expected an object.")
    for call in message.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name") or not call.get("id"):
            raise ModelError(400, f"Invalid messages[{index}].tool_calls: expected an id and a function with a name.")


def _role(message: Mapping[str, Any], *, index: int) -> str:
    role = message.get("role")
    if role not in _ROLES:
        raise ModelError(400, f"Invalid messages[{index}].role: {role!r}.")
    return "system" if role == "developer" else str(role)


def _answered(message: Mapping[str, Any], open_calls: dict[str, str], *, index: int) -> str:
    call_id = str(message.get("tool_call_id"))
    if call_id not in open_calls:
        raise ModelError(
            400,
            f"Invalid messages[{index}]: a message with role 'tool' must respond to a preceding message with "
            f"'tool_calls'; no open call has the id {call_id!r}.",
        )
    return open_calls.pop(call_id)


def _turn(message: Mapping[str, Any], *, role: str, tool_name: str, index: int) -> Turn:
    content = message.get("content")
    calls = tuple(_call(call) for call in message.get("tool_calls") or [])
    if content is None and role != "assistant":
        raise ModelError(400, f"Invalid messages[{index}].content: null is for assistant messages only.")
    return Turn(
        role=role,
        text=_text(content, index=index),
        attachments=tuple(attachments_of(content)),
        calls=calls,
        tool_name=tool_name,
    )


def _text(content: object, *, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ModelError(400, f"Invalid messages[{index}].content: expected a string or a list of parts.")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in _PARTS:
            kind = part.get("type") if isinstance(part, dict) else part
            raise ModelError(
                400, f"Invalid messages[{index}].content: {kind!r} is none of {', '.join(sorted(_PARTS))}."
            )
    return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in content).strip("\n")


def _call(call: Mapping[str, Any]) -> Call:
    function = call["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except json.JSONDecodeError:
        arguments = {}
    return Call(name=str(function["name"]), arguments=arguments if isinstance(arguments, dict) else {})
