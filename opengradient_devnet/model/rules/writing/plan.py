"""The plan: which tools a request asks for, in which order, with which arguments, and which are done.

The request is cut into clauses; each clause goes to the tool that its words fit best. Calls that were made since the
question are removed, so an agent's loop always ends: a plan never has more calls than its question has clauses. Of
the tools' results only the numbers are used, by later steps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.rules.reading.clauses import clauses
from opengradient_devnet.model.rules.reading.conversation import Call
from opengradient_devnet.model.rules.reading.evidence import Evidence
from opengradient_devnet.model.rules.reading.text import STOPWORDS, raw_words
from opengradient_devnet.model.rules.reading.toolbox import FITTING, Tool, ToolChoice, fit
from opengradient_devnet.model.rules.schemas.schema import fill, needs

_REFERS_BACK = re.compile(r"\b(?:result|the answer|the sum|the product|that|it)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call to make: the tool, the words that ask for it, and whether it needs the steps before it."""

    tool: Tool
    text: str
    waits: bool = False

    @property
    def key(self) -> str:
        """What makes a call the same call: its tool, and the agent it passes to, if it does."""
        return f"{self.tool.name}>{self.tool.destination_for(self.text) or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a plan is made from: the question, what was called since, what came back, and known answers."""

    asked: str
    done: Sequence[Call] = ()
    results: Sequence[str] = ()
    known: Mapping[str, Any] | None = None


def next_calls(tools: Sequence[Tool], choice: ToolChoice, situation: Situation, *, parallel: bool = True) -> list[Call]:
    """The calls to make now; none when the question needs no (more) tools and none is required."""
    if not tools or not choice.allowed:
        return []
    if choice.name is not None:
        named = next(tool for tool in tools if tool.name == choice.name)
        return [_call(Step(tool=named, text=situation.asked), situation)]
    actions = _actions(tools) if choice.required else list(tools)
    if steps := _ready(plan(actions, situation.asked), situation.done):
        return [_call(step, situation) for step in (steps if parallel else steps[:1])]
    return [_call(_best(tools, actions, situation), situation)] if choice.required else []


def plan(tools: Sequence[Tool], asked: str) -> list[Step]:
    """The steps that `asked` names, in order, whether done or not."""
    steps: list[Step] = []
    waits = False
    for clause in clauses(asked):
        found = _steps_for(clause.text, tools, steps, waits=waits or clause.waits)
        waits = clause.waits and not found
        if found is not None:
            steps = found
    return [step for step in steps if step.tool.score(step.text) >= FITTING]


def _steps_for(text: str, tools: Sequence[Tool], steps: list[Step], *, waits: bool) -> list[Step] | None:
    """`steps` with the clause `text` taken in: as a step of its own, or as more words of the last one."""
    fitting = _fitting(text, tools)
    last = steps[-1] if steps else None
    if not fitting and last is not None and not waits:
        if not (_only_facts(text) and any(needs(last.tool.parameters)) and _stand_alone(last, text)):
            return [*steps[:-1], _joined(last, text)]
        again = f"{_frame(last.text)} {text}"
        return [*steps, Step(tool=last.tool, text=again)]
    is_more = last is not None and fitting == [last.tool] and not waits
    if last is not None and is_more and not _stand_alone(last, text):
        return [*steps[:-1], _joined(last, text)]
    if not fitting:
        return None
    waits = waits or bool(steps and _REFERS_BACK.search(text) and not _suffices(fitting[0], text))
    return [*steps, *(Step(tool=tool, text=text, waits=waits) for tool in fitting)]


def _fitting(text: str, tools: Sequence[Tool]) -> list[Tool]:
    """All tools that `text` calls by name, or else the best one, if it fits at all."""
    named = [tool for tool in tools if tool.is_named_in(text)]
    if named:
        return named
    best = max(tools, key=lambda tool: tool.score(text), default=None)
    return [best] if best is not None and best.score(text) >= FITTING else []


def _joined(step: Step, text: str) -> Step:
    return Step(tool=step.tool, text=f"{step.text} and {text}", waits=step.waits)


def _stand_alone(step: Step, text: str) -> bool:
    """Whether a step and a further clause each have enough for a call of their own."""
    return _suffices(step.tool, step.text) and _suffices(step.tool, text)


def _only_facts(text: str) -> bool:
    """Whether a clause is nothing but names, numbers and small words: "in London", "'blue'", "7"."""
    evidence = Evidence(f"and {text}")
    facts = " ".join([*evidence.take_strings(), *map(str, evidence.take_numbers())])
    left = set(raw_words(text)) - set(raw_words(facts)) - STOPWORDS - {"please"}
    return bool(facts) and not {word for word in left if not word.isdigit()}


def _frame(text: str) -> str:
    """The words of a clause without its facts, so that "weather in Paris" can be asked of London too."""
    evidence = Evidence(text)
    for fact in [*evidence.take_strings()]:
        text = text.replace(fact, "")
    return re.sub(r"\d+(?:\.\d+)?", "", text).strip(" ?.!,")


def _suffices(tool: Tool, text: str) -> bool:
    """Whether `text` alone has what the tool's required arguments need."""
    numbers, strings = needs(tool.parameters)
    evidence = Evidence(f"and {text}")
    return evidence.number_count() >= numbers and (evidence.has_strings or not strings)


def _ready(steps: Sequence[Step], done: Sequence[Call]) -> list[Step]:
    """What is left of a plan, up to the first step that has to wait for another."""
    struck = Counter(_done_keys(steps, done))
    left = []
    for step in steps:
        if struck[step.key]:
            struck[step.key] -= 1
        elif not _done_elsewhere(step, done):
            left.append(step)
    waiting = next((index for index, step in enumerate(left) if index and step.waits), len(left))
    return left[:waiting]


def _done_elsewhere(step: Step, done: Sequence[Call]) -> bool:
    """Whether passing a task on is needless, because a tool of the agent it would go to has done it already."""
    others = [call.name for call in done if call.name != step.tool.name]
    return bool(step.tool.destinations) and any(fit(name, "", step.text) >= FITTING for name in others)


def _done_keys(steps: Sequence[Step], done: Sequence[Call]) -> list[str]:
    tools = {step.tool.name: step.tool for step in steps}
    keys = []
    for call in done:
        tool = tools.get(call.name)
        values = {str(value) for value in call.arguments.values()}
        destination = next((name for name in tool.destinations if name in values), "") if tool else ""
        keys.append(f"{call.name}>{destination}")
    return keys


def _actions(tools: Sequence[Tool]) -> list[Tool]:
    """The tools that act. Forms are handed in last, so they stand back as long as there is something to do."""
    actions = [tool for tool in tools if not tool.is_form]
    return actions or list(tools)


def _best(tools: Sequence[Tool], actions: Sequence[Tool], situation: Situation) -> Step:
    """The one tool to call when some tool must be called and the plan has none left."""
    forms = [tool for tool in tools if tool not in actions]
    called = {call.name for call in situation.done}
    pool = forms or [tool for tool in tools if tool.name not in called] or list(tools)
    best = max(pool, key=lambda tool: tool.score(situation.asked))
    return Step(tool=best, text=situation.asked)


def _call(step: Step, situation: Situation) -> Call:
    known = dict(situation.known or {})
    if destination := step.tool.destination_for(step.text):
        properties = step.tool.parameters.get("properties") or {}
        known |= {name: destination for name in properties if "agent" in name.lower()}
        known.setdefault("reason", step.text)
    results = "\n".join(reversed(situation.results))
    refers_back = bool(results) and (
        step.tool.is_form or _REFERS_BACK.search(step.text) or not _suffices(step.tool, step.text)
    )
    text, background = step.text, situation.asked
    if refers_back:
        text, background = (f"{results}\n{text}", "") if step.tool.is_form else (text, f"{results}\n{background}")
    evidence = Evidence(text, background=background if background != text else "", known=known)
    arguments = fill(step.tool.parameters, evidence)
    return Call(name=step.tool.name, arguments=arguments if isinstance(arguments, dict) else {})
