"""Plain answers: what the model says when no form, tool or context tells it what to say.

It says openly that it is a rule: it repeats the question, and names the model that it stands for and what arrived. It
counts, or adds words, when it is asked to, so that a test can get a long stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle, islice

from opengradient_devnet.model.rules.reading.conversation import Conversation, Turn
from opengradient_devnet.model.rules.reading.text import one_line
from opengradient_devnet.model.rules.writing.retrieval import recalled

_COUNT = re.compile(r"\bcount\s+(?:up\s+)?(?:from\s+(?P<first>\d+)\s+)?to\s+(?P<last>\d+)", re.IGNORECASE)
_LENGTH = re.compile(r"\b(?P<number>\d+)[\s-]+(?P<unit>words?|sentences?|lines?|paragraphs?)\b", re.IGNORECASE)
_FILLER = "The devnet answers by rule, and every call is paid for, so a long answer is only a long answer."
_LONGEST_WORDS = 20_000


def plain_answer(conversation: Conversation, *, model: str) -> str:
    """An answer to the last question, from the conversation alone."""
    asked = one_line(conversation.asked)
    long = _counted(asked) or _lengthy(asked)
    if long:
        return long
    remembered = recalled(conversation)
    said = f"Earlier you said: {remembered}" if remembered else f"You said: {asked}"
    count = len(conversation.turns)
    closing = f"{model} answers this by rule, from {count} message{'s' if count != 1 else ''}."
    return " ".join(filter(None, [_ended(said), _received(conversation), closing]))


def tool_answer(results: Sequence[Turn], conversation: Conversation) -> str:
    """What the tools answered, quoted."""
    quoted = " ".join(_ended(f"The tool {turn.tool_name} answered: {_result(turn)}") for turn in results)
    beyond = [turn for turn in conversation.since_asked if turn.role == "user"]
    received = [item.describe() for turn in beyond for item in turn.attachments]
    return f"{quoted} Received: {', '.join(received)}." if received else quoted


def _received(conversation: Conversation) -> str:
    items = [item.describe() for item in conversation.attachments]
    return f"Received: {', '.join(items)}." if items else ""


def _result(turn: Turn) -> str:
    return " ".join(filter(None, [turn.text.strip(), *(item.describe() for item in turn.attachments)]))


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…", "}", "]")) else f"{text}."


def _counted(asked: str) -> str | None:
    match = _COUNT.search(asked)
    if match is None:
        return None
    first, last = int(match["first"] or 1), int(match["last"])
    return ", ".join(map(str, range(first, min(last, first + _LONGEST_WORDS) + 1))) or None


def _lengthy(asked: str) -> str | None:
    match = _LENGTH.search(asked)
    if match is None or not int(match["number"]):
        return None
    number = min(int(match["number"]), _LONGEST_WORDS)
    unit = match["unit"].lower().rstrip("s")
    if unit == "word":
        return " ".join(islice(cycle(_FILLER.split()), number))
    return {"sentence": " ", "line": "\n", "paragraph": "\n\n"}[unit].join([_FILLER] * number)
