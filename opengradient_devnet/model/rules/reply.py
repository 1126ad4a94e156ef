"""The reply to a request: tool calls, a filled-in form, or text. The rules, in the order in which they apply.

1. Tools: those that the choice forces, or that the question asks for and that have not been called yet (`plan`).
2. `response_format`: the JSON schema, or a JSON object, filled in.
3. A ReAct prompt: its next step.
4. A printed JSON schema: filled in.
5. Text: see `_text`.

The rules use only the structure and the words of a request. None looks for a particular caller or test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.protocol import ModelError
from opengradient_devnet.model.rules.reading.conversation import Call, Conversation, read_conversation
from opengradient_devnet.model.rules.reading.evidence import Evidence
from opengradient_devnet.model.rules.reading.toolbox import read_choice, read_tools
from opengradient_devnet.model.rules.schemas.programs import json_object, read_printed_schema, without_format_talk
from opengradient_devnet.model.rules.schemas.schema import fill
from opengradient_devnet.model.rules.writing.plan import Situation, next_calls
from opengradient_devnet.model.rules.writing.prose import plain_answer, tool_answer
from opengradient_devnet.model.rules.writing.react import read_react
from opengradient_devnet.model.rules.writing.retrieval import (
    NOT_IN_CONTEXT,
    Reading,
    read_retrieval,
    recalled,
    standalone_question,
    summary_of,
)
from opengradient_devnet.model.rules.writing.selection import Selection, read_selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to answer: text, or calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A conversation with its last question read in every way that a prompt template can be built."""

    conversation: Conversation
    model: str
    selection: Selection | None
    reading: Reading | None

    @property
    def asked(self) -> str:
        """The question itself, without the template around it and the context in front of it."""
        return self.reading.question if self.reading else self.conversation.asked

    @property
    def known(self) -> dict[str, Any]:
        """Values that a form may ask for by name and that do not stand in the prompt as such."""
        if self.selection is not None:
            return self.selection.known
        if self.reading is not None:
            answer = self.reading.answer()
            return {"answer": answer, "response": answer, "query_satisfied": True}
        return {}

    @property
    def material(self) -> str:
        """The text whose facts fill in a form: tool results, the sentences that answer, and the question."""
        results = [turn.text for turn in self.conversation.results]
        answer = [self.reading.answer()] if self.reading else []
        return "\n".join([*results, *answer, without_format_talk(self.asked) or self.asked])


def reply_to(request: Mapping[str, Any]) -> Reply:
    """Answer a chat-completions request. Raises ModelError(400) for one that a provider would refuse."""
    conversation = read_conversation(request)
    prompt = _Prompt(
        conversation=conversation,
        model=str(request.get("model") or "rules"),
        selection=read_selection(conversation.asked),
        reading=read_retrieval(conversation),
    )
    if calls := _calls(request, prompt):
        return Reply(calls=tuple(calls))
    return Reply(text=_form(request, prompt) or _text(prompt))


def _calls(request: Mapping[str, Any], prompt: _Prompt) -> list[Call]:
    tools = read_tools(request)
    situation = Situation(
        asked=prompt.material if prompt.reading and not prompt.conversation.calls else prompt.asked,
        done=prompt.conversation.calls,
        results=[turn.text for turn in prompt.conversation.results],
        known=prompt.known,
    )
    parallel = request.get("parallel_tool_calls") is not False
    return next_calls(tools, read_choice(request, tools), situation, parallel=parallel)


def _form(request: Mapping[str, Any], prompt: _Prompt) -> str | None:
    wanted = request.get("response_format") or {}
    match wanted.get("type"):
        case "json_schema":
            schema = (wanted.get("json_schema") or {}).get("schema")
            if not isinstance(schema, Mapping):
                raise ModelError(400, "Invalid 'response_format': json_schema.schema is missing.")
            evidence = Evidence(prompt.material, known=prompt.known)
            return json.dumps(fill(schema, evidence), ensure_ascii=False)
        case "json_object":
            printed = read_printed_schema(f"{prompt.conversation.instructions}\n{prompt.conversation.asked}")
            return printed.filled() if printed else json_object(prompt.conversation.asked, known=prompt.known)
        case None | "text":
            return None
        case other:
            raise ModelError(400, f"Invalid 'response_format': {other!r} is no known type.")


def _text(prompt: _Prompt) -> str:
    """A ReAct step, a printed form, a retrieval answer, a tool's answer quoted, or plain prose: what fits first."""
    conversation = prompt.conversation
    asked = conversation.asked
    if (react := read_react(conversation)) is not None:
        return react.next_step(otherwise=plain_answer(conversation, model=prompt.model))
    if prompt.selection is not None:
        return prompt.selection.text
    if (printed := read_printed_schema(asked)) is not None:
        return printed.filled(known=prompt.known)
    if conversation.results:
        return tool_answer(conversation.results, conversation)
    for answer in (standalone_question(asked), summary_of(asked)):
        if answer is not None:
            return answer
    if prompt.reading is not None:
        answer = prompt.reading.answer()
        return plain_answer(conversation, model=prompt.model) if _only_remembered(prompt, answer) else answer
    return plain_answer(conversation, model=prompt.model)


def _only_remembered(prompt: _Prompt, answer: str) -> bool:
    """Whether the context has no answer, but an earlier turn of the conversation has."""
    return answer == NOT_IN_CONTEXT and recalled(prompt.conversation) is not None
