"""The facts of a prompt: numbers, quoted strings, names, and phrases, each given out once.

A field of a form gets the fact that fits it best: one that stands beside the field's own name, or else the
next unused one of its kind. Sentences are not understood: words that stand close together are taken to belong together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.rules.reading.text import STOPWORDS, one_line, raw_words, stem

_QUOTED = re.compile(
    r"(?<!\w)'([^'\n]+)'(?!\w)|\"([^\"\n]+)\"|“([^”\n]+)”|\u2018([^\u2019\n]+)\u2019|`([^`\n]+)`|「([^」\n]+)」|«([^»\n]+)»"
)
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:\d{2})?)?")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\d)")
_NAME = re.compile(
    r"\b[^\W\d_a-z][\w\u2019'-]*(?:[ \t]+(?:(?:of|de|van|von|da|la)[ \t]+)?[^\W\d_a-z][\w\u2019'-]*)*(?:, [A-Z]{2}\b)?"
)
# A capital at the start of a sentence is a name only when the word acts: "Ada is …", "Paris and Rome".
_ACTS = re.compile(r"\s*,?\s+(?:is|was|has|had|lives|works|likes|and|born|aged|wrote|said|are|were)\b")
_BEFORE_NAME = re.compile(r"\b(in|at|for|to|from|near|of|by|with)\s+(?:the\s+)?\Z", re.IGNORECASE)
_PHRASE = re.compile(r".*\b(?:about|for|on|of|in|at|regarding|to)\s+(?:the\s+|an?\s+)?(.+?)[\s.?!]*\Z", re.DOTALL)
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905 - a list to read
    )
}
_PLACE_FIELDS = frozenset("city location place country town destination region address where area".split())  # noqa: SIM905
_PROSE_FIELDS = frozenset(
    """query question input text message content prompt reason description request task summary thought body
    explanation topic answer instruction instructions report draft essay article note notes""".split()  # noqa: SIM905
)
_NEAR_WORDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A piece of the prompt, and where it stands."""

    value: str
    start: int
    end: int
    preposition: str = ""


class Evidence:
    """What a text offers for filling in a form. Facts are used up as they are taken.

    `known` holds values that the caller worked out already, by field name: they go before anything found.
    `background` is looked at when the text itself has nothing left.
    """

    def __init__(self, text: str, *, background: str = "", known: Mapping[str, Any] | None = None) -> None:
        # Lines stay apart: a name does not go on in the next one.
        self.text = "\n".join(one_line(line) for line in text.splitlines() if line.strip())
        self.known = dict(known or {})
        self._dates = _facts(_DATE, self.text)
        self._quotes = _facts(_QUOTED, self.text)
        bare = _blank(self.text, [*self._dates, *self._quotes])
        self._numbers = _facts(_NUMBER, bare) or _number_words(bare)
        self._names = [name for name in _names(bare) if not _overlaps(name, self._numbers)]
        self._background = Evidence(background) if background.strip() else None

    @property
    def has_numbers(self) -> bool:
        """Whether the text itself still has a number to give."""
        return bool(self._numbers)

    @property
    def has_strings(self) -> bool:
        """Whether the text itself still has a quoted string or a name to give."""
        return bool(self._quotes or self._names)

    def number_count(self) -> int:
        """How many numbers are left in the text itself."""
        return len(self._numbers)

    def take_number(self, field: str, *, hint: str = "") -> float | None:
        """The number that stands nearest to a word of `field` (or of `hint`), or else the next one."""
        fact = self._nearest(self._numbers, field) or self._nearest(self._numbers, hint)
        if fact is None and self._numbers:
            fact = self._numbers[0]
        if fact is not None:
            self._numbers.remove(fact)
            return float(fact.value.replace(",", ""))
        return self._background.take_number(field, hint=hint) if self._background else None

    def take_date(self) -> str | None:
        """The next ISO date, with its time if it has one."""
        if self._dates:
            return self._dates.pop(0).value
        return self._background.take_date() if self._background else None

    def take_string(self, field: str) -> str | None:
        """The quoted string, name or phrase that fits `field`; None when the text has none."""
        if fact := self._named(field):
            return self._use(fact)
        kinds = frozenset(raw_words(field))
        if self._quotes:
            return self._use(self._quotes[0])
        if kinds & _PROSE_FIELDS:
            return one_line(self.text) or None
        if fact := self._name_for(kinds):
            return self._use(fact)
        if self._background and self._background.has_strings:
            return self._background.take_string(field)
        return self._phrase()

    def take_named(self, field: str) -> str | None:
        """The string that the text calls by the name of `field` ("title: …", "my name is …"), if any."""
        fact = self._named(field)
        return self._use(fact) if fact else None

    def take_strings(self) -> list[str]:
        """All quoted strings that are left, or else all names."""
        pool = self._quotes or self._names
        values = [fact.value for fact in pool]
        pool.clear()
        return values

    def take_numbers(self) -> list[float]:
        """All numbers that are left."""
        values = [float(fact.value.replace(",", "")) for fact in self._numbers]
        self._numbers.clear()
        return values

    def pick(self, options: Iterable[Any]) -> Any | None:
        """The option that the text names; the longest name wins. None when it names none."""
        named = [option for option in options if _names_option(self.text, option)]
        if named:
            return max(named, key=lambda option: len(str(option)))
        return self._background.pick(options) if self._background else None

    def denies(self, field: str) -> bool:
        """Whether the text says no to `field`: "without sugar", "not urgent", "urgent: false"."""
        names = "|".join(re.escape(word) for word in raw_words(field) if word not in STOPWORDS) or re.escape(field)
        before = rf"\b(?:no|not|without|never|disable|isn't|don't)\s+(?:\w+\s+){{0,2}}?(?:{names})"
        after = rf"\b(?:{names})\w*\s*(?:is|=|:|to)?\s*(?:no|off|false|disabled)\b"
        return re.search(f"{before}|{after}", self.text, re.IGNORECASE) is not None

    def pairs(self) -> dict[str, str]:
        """`key: value` and `key=value` pairs of the text."""
        return {match[1]: match[2] for match in re.finditer(r"\b(\w+)\s*[:=]\s*([^\s,;]+)", self.text)}

    def _use(self, fact: Fact) -> str:
        for pool in (self._quotes, self._names, self._dates):
            if fact in pool:
                pool.remove(fact)
        return fact.value

    def _named(self, field: str) -> Fact | None:
        names = [re.escape(word) for word in raw_words(field) if word not in STOPWORDS]
        if not names:
            return None
        said = re.compile(rf"\b(?:{'|'.join(names)})\s*(?:is|=|:|named|called|to|of)\s+[\"'“\u2018`]?\Z", re.IGNORECASE)
        for fact in [*self._quotes, *self._names]:
            if said.search(self.text[: fact.start]):
                return fact
        return None

    def _name_for(self, kinds: frozenset[str]) -> Fact | None:
        asked_for = {"from" if kinds & {"origin", "from", "source", "departure"} else ""}
        asked_for |= {"to"} if kinds & {"destination", "to", "target", "arrival"} else set()
        for wanted in (
            asked_for - {""},
            {"in", "at", "to", "from", "near", "for"} if kinds & _PLACE_FIELDS else set(),
        ):
            if match := next((fact for fact in self._names if fact.preposition in wanted), None):
                return match
        return self._names[0] if self._names else None

    def _nearest(self, pool: list[Fact], field: str) -> Fact | None:
        wanted = {stem(word) for word in raw_words(field) if word not in STOPWORDS}
        for fact in pool if wanted else []:
            before = raw_words(self.text[: fact.start])[-_NEAR_WORDS:]
            after = raw_words(self.text[fact.end :])[:1]
            if wanted & {stem(word) for word in [*before, *after]}:
                return fact
        return None

    def _phrase(self) -> str | None:
        match = _PHRASE.match(self.text)
        return one_line(match[1]) if match else None


def _facts(pattern: re.Pattern[str], text: str) -> list[Fact]:
    facts = []
    for match in pattern.finditer(text):
        group = next((index for index in range(1, pattern.groups + 1) if match[index]), 0)
        facts.append(Fact(value=match[group], start=match.start(group), end=match.end(group)))
    return facts


def _blank(text: str, facts: Iterable[Fact]) -> str:
    for fact in facts:
        text = text[: fact.start] + "_" * (fact.end - fact.start) + text[fact.end :]
    return text


def _number_words(text: str) -> list[Fact]:
    words = re.finditer(r"\b(?:" + "|".join(_NUMBER_WORDS) + r")\b", text, re.IGNORECASE)
    return [Fact(value=str(_NUMBER_WORDS[match[0].lower()]), start=match.start(), end=match.end()) for match in words]


def _names(text: str) -> list[Fact]:
    facts = []
    for match in _NAME.finditer(text):
        value, start = match[0], match.start()
        first, _, rest = value.partition(" ")
        if _starts_sentence(text, start) and not _ACTS.match(text, match.end()):
            value, start = rest, start + len(first) + 1
        if value and not value[0].islower() and value.lower() not in STOPWORDS:
            preposition = _BEFORE_NAME.search(text[:start])
            word = preposition[1].lower() if preposition else ""
            facts.append(Fact(value=value, start=start, end=match.end(), preposition=word))
    return facts


def _starts_sentence(text: str, start: int) -> bool:
    return re.search(r"(?:\A|\n|[.!?:]\s+)[\"'“\u2018(]*\Z", text[:start]) is not None


def _overlaps(fact: Fact, others: Iterable[Fact]) -> bool:
    return any(fact.start < other.end and other.start < fact.end for other in others)


def _names_option(text: str, option: object) -> bool:
    spoken = str(option).replace("_", " ").replace("-", " ")
    plain = text.replace("_", " ").replace("-", " ")
    return bool(spoken.strip()) and re.search(rf"(?<!\w){re.escape(spoken)}(?!\w)", plain, re.IGNORECASE) is not None
