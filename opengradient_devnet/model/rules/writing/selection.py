"""Prompts that ask to choose: from a numbered list, ranked documents, tools for sub-questions, keywords.

Numbers start at 1, as the prompts print them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.rules.reading.layout import json_values, numbered_items, ruled_blocks, section
from opengradient_devnet.model.rules.reading.text import STOPWORDS, one_line, overlap, raw_words, stems

_CHOICES = re.compile(r"numbered\s+list\s*\(1 to (\d+)\)", re.IGNORECASE)
_MOST = re.compile(r"no more than (\d+)", re.IGNORECASE)
_QUESTION = re.compile(r"\bquestion:\s*'(?P<question>.*?)'\s*(?:\n|\Z)", re.IGNORECASE | re.DOTALL)
_RANKING = re.compile(r"\bDoc:\s*\d+,\s*Relevance:\s*\d+", re.IGNORECASE)
_KEYWORDS = re.compile(r"'KEYWORDS: <keywords>'")
_MOST_KEYWORDS = re.compile(r"up to (\d+)\s+keywords", re.IGNORECASE)
_HIGHEST_RELEVANCE = 10
_JOINING = frozenset({"and", "or", "with", "versus", "vs", "vs.", "to"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice made: as text in the form that the prompt asks for, and as values for a form to fill in."""

    text: str
    known: dict[str, Any]


def read_selection(asked: str) -> Selection | None:
    """The choice that a prompt asks for; None when it asks for none."""
    for read in (_choose, _rank, _sub_questions, _keywords):
        if (selection := read(asked)) is not None:
            return selection
    return None


def _choose(asked: str) -> Selection | None:
    if _CHOICES.search(asked) is None:
        return None
    items = numbered_items("\n".join(ruled_blocks(asked)))
    quoted = _QUESTION.search(asked)
    if not items or quoted is None:
        return None
    most = _MOST.search(asked)
    numbers = _ranked(quoted["question"], items, limit=int(most[1]) if most else 1)
    reasons = {number: f"It fits the question best: {one_line(items[number])[:80]}" for number in numbers}
    chosen = [{"choice": number, "reason": reasons[number]} for number in numbers]
    known = {
        "selections": [{"index": number, "reason": reasons[number]} for number in numbers],
        "index": numbers[0],
        "choice": numbers[0],
        "reason": reasons[numbers[0]],
    }
    if "ANSWER:" in asked:
        listed = ", ".join(map(str, numbers))
        return Selection(text=f"ANSWER: {listed}\n{reasons[numbers[0]]}", known=known)
    return Selection(text=json.dumps(chosen, ensure_ascii=False), known=known)


def _ranked(question: str, items: dict[int, str], *, limit: int) -> list[int]:
    """The best item and, within `limit`, those that share with the question a word that no better one has."""
    wanted = stems(question)
    ranked = sorted(items, key=lambda number: (-overlap(wanted, items[number]), number))
    chosen, covered = ranked[:1], wanted & stems(items[ranked[0]])
    for number in ranked[1:limit]:
        if (wanted & stems(items[number])) - covered:
            chosen.append(number)
            covered |= stems(items[number])
    return chosen


def _rank(asked: str) -> Selection | None:
    if _RANKING.search(asked) is None:
        return None
    body = re.split(r"let's try this now\s*:", asked, flags=re.IGNORECASE)[-1]
    question = section(body, r"^\s*Question\s*:", until=r"^\s*Answer\s*:") or ""
    items = numbered_items(re.split(r"^\s*Question\s*:", body, flags=re.MULTILINE)[0])
    scores = {number: overlap(stems(question), text) for number, text in items.items()}
    ranked = sorted((number for number in items if scores[number]), key=lambda number: (-scores[number], number))
    top = max(scores.values(), default=1) or 1
    lines = [f"Doc: {number}, Relevance: {_HIGHEST_RELEVANCE * scores[number] // top or 1}" for number in ranked]
    return Selection(text="\n".join(lines) or "None of the documents is relevant.", known={})


def _sub_questions(asked: str) -> Selection | None:
    if not re.search(r"\bsub-?questions\b", asked, re.IGNORECASE):
        return None
    offered = section(asked, r"<Tools>|\bTools\s*:", until=r"<User Question>|\bUser Question\s*:")
    question = section(asked, r"<User Question>|\bUser Question\s*:", until=r"<Output>|\bOutput\s*:")
    tools = next((value for value, _, _ in json_values(offered or "")), None)
    if not isinstance(tools, dict) or not question:
        return None
    items = [
        {"sub_question": _narrowed(question, name, tools), "tool_name": name} for name in _ranked_tools(question, tools)
    ]
    text = f"```json\n{json.dumps({'items': items}, indent=4, ensure_ascii=False)}\n```"
    return Selection(text=text, known={"items": items})


def _ranked_tools(question: str, tools: dict[str, str]) -> list[str]:
    """The tools that share with the question a word that tells them apart; all tools when none does."""
    wanted = stems(question)
    own = {name: stems(f"{name} {purpose}") for name, purpose in tools.items()}
    shared = frozenset.intersection(*own.values()) if len(own) > 1 else frozenset()
    return [name for name in tools if (own[name] - shared) & wanted] or list(tools)


def _narrowed(question: str, name: str, tools: dict[str, str]) -> str:
    """The question as asked of one tool: without the words that belong to the others only."""
    own = stems(f"{name} {tools[name]}")
    foreign = stems(" ".join(f"{other} {purpose}" for other, purpose in tools.items() if other != name)) - own
    words = question.split()
    dropped = [bool(stems(word) & foreign) for word in words]
    neighbours = [any(dropped[max(0, index - 1) : index + 2]) for index in range(len(words))]
    return " ".join(
        word
        for word, gone, beside in zip(words, dropped, neighbours, strict=True)
        if not gone and not (beside and word.lower() in _JOINING)
    )


def _keywords(asked: str) -> Selection | None:
    if _KEYWORDS.search(asked) is None:
        return None
    most = _MOST_KEYWORDS.search(asked)
    body = asked.split("---------------------")[1] if asked.count("---------------------") > 1 else asked
    found = [word for word in raw_words(body) if word not in STOPWORDS and len(word) > 1]
    keywords = list(dict.fromkeys(found))[: int(most[1]) if most else None]
    return Selection(text=f"KEYWORDS: {', '.join(keywords)}", known={"keywords": keywords})
