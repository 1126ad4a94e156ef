"""Questions over given text: answer from a context, refine an answer, summarize, make a question stand alone.

The answer is the sentences of the context that share most words with the question, verbatim, so that a test can see
which document an answer came from. When the context has none, the answer says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from opengradient_devnet.model.rules.reading.conversation import Conversation
from opengradient_devnet.model.rules.reading.layout import ruled_blocks, section
from opengradient_devnet.model.rules.reading.text import content_words, one_line, overlap, sentences, stems

NOT_IN_CONTEXT = "The context does not say."

_END_OF_CONTEXT = (
    r"^\s*(?:Query|Question|User question|Human|Helpful Answer|Answer|Existing Answer|Original Answer|Instruction)"
    r"\s*:|</context>|^\s*Given the (?:new )?context"
)
_CONTEXT_LABEL = r"^[^\n]*\b(?:context|documents|passages|sources)\b[^\n]*:[ \t]*|<context>"
_QUESTION_LABEL = r"^\s*(?:The original query is as follows|User query|Query|Question|User question)\s*:[ \t]*"
_END_OF_QUESTION = (
    r"^\s*(?:Answer|Helpful Answer|Original Answer|Refined Answer|New Answer|Context|AI|Assistant)\s*:"
    r"|^We have provided|^-{5,}"
)
_ANSWER_LABEL = r"(?:We have provided an existing answer|^\s*Existing Answer|^\s*Original Answer)\s*:\s*"
_END_OF_ANSWER = (
    r"^\s*(?:New Answer|Refined Answer|Instruction|Query)\s*:|^We have the opportunity|^-{5,}|^Given the new context"
)
_FOLLOW_UP = re.compile(
    r"(?:Follow[ -]?Up (?:Input|Question)\s*:|<Follow Up Message>)\s*(?P<question>.*?)\s*"
    r"(?:<?Standalone question>?\s*:?)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
_SUMMARY = re.compile(
    r"\bsummar(?:y|ize|ise|ies)\b|\boverview\b|\bmain (?:points?|ideas?|themes?)\b|\bwhat\b.*\babout\b",
    re.IGNORECASE,
)
_SUMMARIZE_THIS = re.compile(
    r"(?:(?:write|give)\b[^\n]{0,40}\bsummary|summari[sz]e)\b[^\n]{0,60}?"
    r"\b(?:following|below|this|text|content)\b[^:.\n]*[:.](?:[^\n]*\n)?",
    re.IGNORECASE,
)
# Lines such as `file_name: a.txt` describe a document, and questions in a context state nothing.
_NO_STATEMENT = re.compile(r"\s*(?:[\w ]{1,30}:\s+\S+\s*\Z|(?:sub[ -]?)?question\s*:)", re.IGNORECASE)
_LABELLED_ANSWER = re.compile(r"\A\s*(?:\[['\"]|(?:response|answer)\s*:\s*)", re.IGNORECASE)
_SUMMARY_SENTENCES = 3
_ANSWER_SENTENCES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A prompt with its parts told apart: what is asked, of which context, and the answer so far, if any."""

    question: str
    context: str
    existing: str | None = None

    def answer(self) -> str:
        """The answer: refined when there is one already, a summary when one is asked for."""
        if self.existing is not None:
            return self._refined(self.existing)
        if _SUMMARY.search(self.question) and not relevant(self.question, self.context):
            return summary(self.context)
        return " ".join(relevant(self.question, self.context)) or NOT_IN_CONTEXT

    def _refined(self, existing: str) -> str:
        known = stems(existing)
        news = [found for found in relevant(self.question, self.context) if not stems(found) <= known]
        if not news:
            return existing
        kept = [] if NOT_IN_CONTEXT in existing else [existing]
        return " ".join([*kept, *news])


def read_retrieval(conversation: Conversation) -> Reading | None:
    """The parts of a prompt that brings its own context, in the question or in the instructions; else None."""
    asked = conversation.asked
    for text in (asked, conversation.instructions):
        if (context := _context(text)) is None:
            continue
        question = section(asked, _QUESTION_LABEL, until=_END_OF_QUESTION)
        existing = section(text, _ANSWER_LABEL, until=_END_OF_ANSWER)
        if question is None:
            question = re.split(r"\n\s*\n", asked)[-1] if text is asked else asked
        return Reading(question=question, context=context, existing=existing)
    return None


def standalone_question(asked: str) -> str | None:
    """The follow-up of a prompt that asks for a question to be made to stand alone: kept as it is."""
    match = _FOLLOW_UP.search(asked)
    return match["question"] if match else None


def summary_of(asked: str) -> str | None:
    """The summary that a "write a summary of the following" prompt asks for; None for other prompts."""
    match = _SUMMARIZE_THIS.search(asked)
    if match is None:
        return None
    body = re.sub(r"(?:CONCISE )?SUMMARY\s*:[\s\"]*\Z", "", asked[match.end() :]).strip("\"' \n")
    return summary(body) if body else None


def relevant(question: str, context: str) -> list[str]:
    """The sentences of `context` that share most words with `question`, in the order of the context."""
    wanted = frozenset(content_words(question))
    found = _sentences(context)
    scores = [overlap(wanted, sentence) for sentence in found]
    best = max(scores, default=0)
    if not best:
        return []
    ranked = sorted(range(len(found)), key=lambda index: (-scores[index], index))
    return [found[index] for index in sorted(ranked[:_ANSWER_SENTENCES]) if scores[index] * 2 >= best]


def summary(text: str) -> str:
    """The first sentences of `text`, one paragraph after the other until there are enough."""
    paragraphs = [_sentences(paragraph) for paragraph in re.split(r"\n\s*\n", text)]
    leading = [sentence for paragraph in paragraphs for sentence in paragraph[:1]]
    following = [sentence for paragraph in paragraphs for sentence in paragraph[1:]]
    return " ".join([*leading, *following][: max(_SUMMARY_SENTENCES, len(leading))])


def recalled(conversation: Conversation) -> str | None:
    """What the user stated earlier that most of the question's words occur in, to answer it from memory."""
    wanted = stems(conversation.asked)
    best, best_score = None, 0
    for turn in conversation.before_asked:
        for sentence in _sentences(turn.text) if turn.role == "user" else []:
            score = overlap(wanted, sentence)
            if not sentence.endswith("?") and score >= best_score and 2 * score >= len(wanted) > 0:
                best, best_score = sentence, score
    return best


def _context(text: str) -> str | None:
    """What a prompt gives to answer from: a ruled block, or what follows a label that speaks of context."""
    if not re.search(r"\b(?:context|documents|passages)\b|</context>", text, re.IGNORECASE):
        return None
    if blocks := ruled_blocks(text):
        return "\n\n".join(block for block in blocks if not re.match(_ANSWER_LABEL, block, re.IGNORECASE))
    labels = re.finditer(_CONTEXT_LABEL, text, re.IGNORECASE | re.MULTILINE)
    for label in labels:
        if body := section(text[label.start() :], re.escape(label[0]), until=_END_OF_CONTEXT):
            return body
    return None


def _sentences(text: str) -> list[str]:
    """The statements of a text: no metadata lines, no questions, labels of answers taken off."""
    lines = sentences(text.replace("\\n", "\n"))
    stated = (_LABELLED_ANSWER.sub("", line) for line in lines if not _NO_STATEMENT.match(line))
    return [one_line(line) for line in stated if line.strip()]
