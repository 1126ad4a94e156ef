"""Clauses: cuts a request into the things that it asks for, one after the other.

"Add 2 and 3, then tell me the weather in Paris and London" has four pieces; `plan` decides which of them belong
together. Quoted text is never cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from opengradient_devnet.model.rules.reading.text import sentences

_QUOTES = re.compile(r"(?<!\w)'[^'\n]+'(?!\w)|\"[^\"\n]+\"|“[^”\n]+”|`[^`\n]+`")
_JOINT = re.compile(
    r"(?P<then>[,;]?\s+(?:and\s+)?(?:then|afterwards|after\s+that|finally)[,:]?\s+)"
    r"|;\s+|,?\s+(?:and\s+also|and|as\s+well\s+as|also|plus\s+also)\s+",
    re.IGNORECASE,
)
_FIRST_THEN = re.compile(r"\s*(?:then|afterwards|after that|finally|next)\b[,:]?\s*", re.IGNORECASE)
# In "Paris, London and Rome" the comma is an "and"; in "Austin, TX and Boston, MA" it is not.
_LISTED = re.compile(r",\s+(?![A-Z]{2}\b)(?!and\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One piece of a request; `waits` when the text says that it comes after what stands before it."""

    text: str
    waits: bool = False


def clauses(text: str) -> list[Clause]:
    """Cut `text` at sentence ends and at the words that join one request to the next."""
    shelf: list[str] = []
    shelved = _QUOTES.sub(lambda match: _shelve(match[0], shelf), text)
    return [
        Clause(text=_unshelve(clause.text, shelf), waits=clause.waits)
        for sentence in sentences(shelved)
        for clause in _cut(sentence)
    ]


def _cut(sentence: str) -> Iterator[Clause]:
    waits = False
    if opening := _FIRST_THEN.match(sentence):
        waits, sentence = True, sentence[opening.end() :]
    listed, joint, last = sentence.rpartition(" and ")
    sentence = f"{_LISTED.sub(' and ', listed)}{joint}{last}"
    start = 0
    for match in _JOINT.finditer(sentence):
        if piece := sentence[start : match.start()].strip():
            yield Clause(text=piece, waits=waits)
        start, waits = match.end(), match["then"] is not None
    if piece := sentence[start:].strip():
        yield Clause(text=piece, waits=waits)


def _shelve(quoted: str, shelf: list[str]) -> str:
    shelf.append(quoted)
    return f"\ue000{len(shelf) - 1}\ue001"


def _unshelve(text: str, shelf: list[str]) -> str:
    return re.sub("\ue000(\\d+)\ue001", lambda match: shelf[int(match[1])], text)
