"""Words, sentences and relevance: how the rules read text.

English only, by spelling: a short list of words without meaning of their own, a stem without suffix so that "adds",
"adding" and "adder" are the same, and a count of shared words instead of understanding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Words that occur in any request whatever it is about, and so say nothing about which tool or sentence fits.
STOPWORDS = frozenset(
    """a about above after again all also am an and another any anyone anything are as ask at be because been
    before being below between both but by call can could current did do does doing down each else every few
    following for from further function get give given has have having he hello help her here hers hey hi
    him his how i if in input into is it its just let like make may me mean might more most must my need no
    nor not now of off on once one only or other our ours out output over own please put return run same she
    should so some such take tell than thank thanks that the their them then there these they thing this
    those to too tool tools under until up us use used useful user using value very want was we were what
    whats when where which while who whom why will with would yes you your yours""".split()  # noqa: SIM905 - a list to read, not a hundred quotes
)

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?。\uff01\uff1f])[\"'”\u2019)]*\s+|\n+|(?<=[。\uff01\uff1f])")
_SUFFIXES = tuple(
    "ications ication ations ation ings ing iers ier ies ied ers er ors or ed es s ly y e".split()  # noqa: SIM905
)
_SHORTEST_STEM = 3


def stem(word: str) -> str:
    """`word` in lower case without its ending: weathers, weathered -> weath."""
    word = word.lower()
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM:
            return word.removesuffix(suffix)
    return word


def raw_words(text: str) -> list[str]:
    """Every word in lower case, `snake_case` and `CapWords` taken apart, in order."""
    return [word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text.replace("_", " ")))]


def content_words(text: str) -> list[str]:
    """The stems of the words that carry meaning, in order. Single letters are dropped, digits are kept."""
    kept = (word for word in raw_words(text) if word not in STOPWORDS)
    return [stem(word) for word in kept if len(word) > 1 or word.isdigit() or not word.isascii()]


def stems(text: str) -> frozenset[str]:
    """The set of `content_words`."""
    return frozenset(content_words(text))


def sentences(text: str) -> list[str]:
    """`text` cut at sentence ends and line breaks, blank pieces dropped."""
    return [piece.strip() for piece in _SENTENCE_END.split(text) if piece and piece.strip()]


def overlap(question: Iterable[str], text: str) -> int:
    """How many of the `question` stems occur in `text`."""
    return len(frozenset(question) & stems(text))


def one_line(text: str) -> str:
    """`text` with every run of white space made one blank."""
    return " ".join(text.split())


def mentions(text: str, name: str) -> bool:
    """Whether `name` stands in `text` as a word of its own, in any case."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE) is not None
