"""The layout of a prompt: blocks between lines of dashes, labelled sections, lists, and JSON inside text.

Frameworks build prompts from templates: whatever the words, the parts stand in blocks and after labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_RULE = re.compile(r"^[ \t]*[-=]{5,}[ \t]*$", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*(?:\((\d+)\)|(?:Document|Choice|Summary)\s+(\d+)\s*:|(\d+)[.)])\s*", re.MULTILINE)
_DECODER = json.JSONDecoder()


def ruled_blocks(text: str) -> list[str]:
    """What stands between rules of dashes, blank blocks dropped; empty when there are not two rules."""
    pieces = _RULE.split(text)
    return [piece.strip() for piece in pieces[1:-1] if piece.strip()]


def section(text: str, label: str, *, until: str = "") -> str | None:
    """The text behind the last `label` (a pattern), up to the first match of `until` or the end."""
    starts = list(re.finditer(label, text, re.IGNORECASE | re.MULTILINE))
    if not starts:
        return None
    rest = text[starts[-1].end() :]
    end = re.search(until, rest, re.IGNORECASE | re.MULTILINE) if until else None
    return (rest[: end.start()] if end else rest).strip()


def numbered_items(text: str) -> dict[int, str]:
    """The items of a list numbered `(1)`, `1.` or `Document 1:`, by number."""
    marks = list(_NUMBERED.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    items: dict[int, str] = {}
    for mark, end in zip(marks, ends, strict=True):
        number = int(next(group for group in mark.groups() if group))
        items[number] = text[mark.end() : end].strip()
    return items


def json_values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Every JSON object that stands in `text`, with where it starts and ends; nested ones only as parts."""
    position = text.find("{")
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError:
            end = position + 1
        else:
            yield value, position, end
        position = text.find("{", end)
