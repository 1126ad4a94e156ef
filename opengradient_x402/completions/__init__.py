"""Chat completions as values: usage, tool calls, stream deltas, and the accumulator that both faces use.

Sans-I/O. It knows the OpenAI-shaped wire and the ways in which real gateways bend it (docs/wire.md, "What gateways do
not do"): `message` for `delta`, tool-call fragments without index, repeated ids, `stop` not applied, `length` never
said. It does not know HTTP, payments, or the types of a framework.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opengradient_x402 import strict_json
from opengradient_x402.completions.answer_parts import beside_text, image_urls, join_text, plain_reason
from opengradient_x402.completions.extras import choice_extras, cleaned, copied, grow, message_extras, response_extras
from opengradient_x402.completions.tool_calls import ToolCall, ToolCallAssembly, ToolCallDelta
from opengradient_x402.strict_json import WholeCharacters

if TYPE_CHECKING:
    from opengradient_x402.ledger.receipts import SettlementReceipt

__all__ = [
    "Completion",
    "Delta",
    "ErrorEvent",
    "StopCutter",
    "StreamAccumulator",
    "ToolCall",
    "ToolCallAssembly",
    "ToolCallDelta",
    "Truncated",
    "Usage",
    "image_urls",
    "join_text",
    "parse_completion",
    "parse_usage",
    "stop_sequences",
]

_PLAIN_MEMBERS = frozenset({"role", "content"})
"""A message with these alone is text, and nothing else is looked for in it."""
_PLAIN_CHOICE = frozenset({"index", "delta", "message", "finish_reason", "logprobs"})
_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_MAX_TOKENS = 10**12
"""No call has so many tokens: a larger count is no count (and JSON may say Infinity)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one call; the detail counts are parts of `prompt_tokens` or `completion_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0

    def to_wire(self, *, said: Any = None) -> dict[str, Any]:
        """The counts in OpenAI's names; `said`: the object that they were read from, whose other members are kept."""
        said = cleaned(said) if isinstance(said, dict) and not said.keys() <= _COUNTS else {}
        details = {
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_creation_tokens": self.cache_creation_tokens,
                "audio_tokens": self.audio_input_tokens,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": self.audio_output_tokens,
            },
        }
        more = {name: said[name] for name in details if isinstance(said.get(name), dict)}
        return {
            **said,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            **{name: {**more.get(name, {}), **counts} for name, counts in details.items()},
        }


@dataclass(slots=True)
class Delta:
    """What one stream event brought. Everything may be empty; the terminal one has a `finish_reason`."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing here that a reader of the stream would show."""
        return not (self.content or self.reasoning or self.refusal or self.tool_calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer. `raw` is the response (for a stream: its terminal event) as parsed JSON."""

    id: str
    model: str
    created: int
    content: str
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str
    usage: Usage | None = None
    images: tuple[str, ...] = ()
    logprobs: dict[str, Any] | None = None
    message_extras: dict[str, Any] = field(default_factory=dict)
    """What else is in the message, as the provider said it: `annotations`, `audio`, `reasoning_details`, …"""
    choice_extras: dict[str, Any] = field(default_factory=dict)
    """What else is said of the answer: `native_finish_reason`, `content_filter_results`, …"""
    response_extras: dict[str, Any] = field(default_factory=dict)
    """What else is in the response: `system_fingerprint`, `service_tier`, `citations`, …"""
    raw: dict[str, Any] = field(default_factory=dict, repr=False)
    served_text: str = field(default="", repr=False)
    """The text as the gateway sent and signed it, before `stop` was applied on our side."""
    receipt: SettlementReceipt | None = None

    def paid_by(self, receipt: SettlementReceipt | None) -> Completion:
        """This very answer, with its receipt."""
        object.__setattr__(self, "receipt", receipt)
        return self

    @property
    def token_usage(self) -> dict[str, Any] | None:
        """The usage as the wire has it: the counts in OpenAI's names, beside whatever else the provider counts."""
        return None if self.usage is None else self.usage.to_wire(said=self.raw.get("usage"))


class ErrorEvent(Exception):
    """The gateway reported an error inside a stream or a 2xx body. `error` is what it said."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.error = dict(error)
        super().__init__(str(self.error.get("error")))


class Truncated(Exception):
    """The stream ended before it was complete."""


def parse_usage(data: Any) -> Usage | None:
    """Usage from the wire's `usage` object; None when it is absent or is not one."""
    if not isinstance(data, dict):
        return None
    prompt, completion = _count(data, "prompt_tokens"), _count(data, "completion_tokens")
    prompt_details = data.get("prompt_tokens_details")
    completion_details = data.get("completion_tokens_details")
    if not (prompt_details or completion_details):
        total = _count(data, "total_tokens") or prompt + completion
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_count(data, "total_tokens") or prompt + completion,
        cached_tokens=_count(prompt_details, "cached_tokens"),
        cache_creation_tokens=_count(prompt_details, "cache_creation_tokens"),
        reasoning_tokens=_count(completion_details, "reasoning_tokens"),
        audio_input_tokens=_count(prompt_details, "audio_tokens"),
        audio_output_tokens=_count(completion_details, "audio_tokens"),
    )


def _count(data: Any, key: str) -> int:
    value = data.get(key) if isinstance(data, dict) else None
    return int(value) if isinstance(value, int | float) and 0 < value < _MAX_TOKENS else 0


class StreamAccumulator:
    """Turns wire events into `Delta`s, and at the end into one `Completion`. One per stream."""

    def __init__(
        self, *, stop: Sequence[str] = (), max_tokens: int | None = None, model: str = "", is_whole: bool = False
    ) -> None:
        """`is_whole`: the one event that comes is a whole answer."""
        self._is_whole = is_whole
        self._text: list[str] = []
        self._shown: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._tools: ToolCallAssembly | None = None
        """From the first tool call on."""
        self._cutter = StopCutter(stop) if stop else None
        self._max_tokens = max_tokens
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._images: list[str] = []
        self._whole: defaultdict[str, WholeCharacters] = defaultdict(WholeCharacters)
        """By the kind of text, of those that came."""
        self._logprobs: dict[str, Any] = {}
        self._message_extras: dict[str, Any] = {}
        self._choice_extras: dict[str, Any] = {}
        self._response_extras: dict[str, Any] = {}
        self._raw: dict[str, Any] = {}
        self._id = ""
        self._model = model
        self._created = 0

    @property
    def usage(self) -> Usage | None:
        """Usage, once an event has given it."""
        return self._usage

    @property
    def raw(self) -> dict[str, Any]:
        """The terminal event, with its claims and proof; empty before it arrived."""
        return self._raw

    @property
    def is_finished(self) -> bool:
        """Whether an event has said why the answer ends: no more of it follows, at most usage and claims."""
        return self._finish_reason is not None

    @property
    def text(self) -> str:
        """The text shown so far."""
        return "".join(self._shown)

    def feed(self, event: Mapping[str, Any]) -> Delta:
        """What this event adds. Raises ErrorEvent when the event is an error."""
        if event.get("error"):
            raise ErrorEvent(event)
        choices = event.get("choices")
        delta = self._feed_choice(choices[0]) if choices else Delta()
        if extras := response_extras(event):
            grow(self._response_extras, copied(extras))
        if not self._id:
            self._id = event.get("id") or ""
            self._created = event.get("created") or 0
        if self._finish_reason is not None or event.get("usage"):
            self._take_terminal(event)
            if delta.finish_reason == "stop" and self._ran_out():
                # gateways never send "length": the usage in this event shows it
                delta.finish_reason = self._finish_reason = "length"
        return delta

    def _feed_choice(self, choice: Mapping[str, Any]) -> Delta:
        piece = choice.get("delta") or choice.get("message") or {}
        delta = Delta()
        content = piece.get("content")
        if content:
            if not isinstance(content, str):
                piece, content = {**beside_text(content), **piece}, join_text(content)
            delta.content = self._take_text(self._whole["content"].take(content))
        if not piece.keys() <= _PLAIN_MEMBERS:
            self._feed_rest(piece, delta)
        if choice.get("logprobs") or not choice.keys() <= _PLAIN_CHOICE:
            self._feed_beside(choice)
        reason = choice.get("finish_reason")
        if reason and self._finish_reason is None:
            delta.finish_reason = self._finish_reason = reason if reason == "stop" else plain_reason(reason)
            self._release_held(delta)
        return delta

    def _feed_beside(self, choice: Mapping[str, Any]) -> None:
        """What is said of an answer beside its message."""
        if isinstance(logprobs := choice.get("logprobs"), Mapping):
            grow(self._logprobs, cleaned(logprobs))
        if extras := choice_extras(choice):
            grow(self._choice_extras, copied(extras))

    def _feed_rest(self, piece: Mapping[str, Any], delta: Delta) -> None:
        """What a message says beside its text."""
        reasoning = piece.get("reasoning_content") or piece.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            reasoning = self._whole["reasoning"].take(reasoning)
            self._reasoning.append(reasoning)
            delta.reasoning = reasoning
        if refusal := piece.get("refusal"):
            refusal = refusal if isinstance(refusal, str) else strict_json.dumps(cleaned(refusal)).decode()
            refusal = self._whole["refusal"].take(refusal)
            self._refusal.append(refusal)
            delta.refusal = refusal
        if parts := piece.get("tool_calls") or _older_call(piece):
            self._tools = tools = self._tools or ToolCallAssembly(are_whole=self._is_whole)
            known = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
            delta.tool_calls = [told for part in known for told in tools.take(part)]
        if images := piece.get("images"):
            self._images.extend(image_urls(images))
        if extras := message_extras(piece):
            grow(self._message_extras, copied(extras))

    def _take_text(self, text: str) -> str:
        self._text.append(text)
        if self._cutter is not None:
            text = self._cutter.pass_on(text)
        if text:
            self._shown.append(text)
        return text

    def _release_held(self, delta: Delta) -> None:
        if rest := self._rest("content"):
            delta.content += self._take_text(rest)
        if rest := self._rest("reasoning"):
            self._reasoning.append(rest)
            delta.reasoning += rest
        if rest := self._rest("refusal"):
            self._refusal.append(rest)
            delta.refusal += rest
        if self._tools is not None and (rests := self._tools.rest()):
            delta.tool_calls = [*delta.tool_calls, *rests]
        if self._cutter is not None and (held := self._cutter.release()):
            self._shown.append(held)
            delta.content += held

    def _rest(self, kind: str) -> str:
        """What stands for half a character that stayed alone."""
        return self._whole[kind].rest() if kind in self._whole else ""

    def _take_terminal(self, event: Mapping[str, Any]) -> None:
        self._raw.update({name: value for name, value in event.items() if value is not None or name not in self._raw})
        self._model = event.get("model") or self._model
        self._usage = parse_usage(event.get("usage")) or self._usage
        if images := event.get("images"):
            self._images.extend(image_urls(images))

    def _ran_out(self) -> bool:
        return bool(
            self._max_tokens
            and self._usage
            and self._usage.completion_tokens >= self._max_tokens
            and not (self._cutter is not None and self._cutter.is_cut)
        )

    def end(self) -> Delta:
        """What was held back, when no more events come: not every server says why an answer ends."""
        delta = Delta()
        self._release_held(delta)
        return delta

    def finish(self) -> Completion:
        """The whole answer. Raises Truncated when nothing arrived at all."""
        self.end()
        calls = () if self._tools is None else self._tools.build()
        if self._finish_reason is None and not (self._text or calls or self._refusal):
            raise Truncated("The stream ended without any content.")
        return Completion(
            id=self._id,
            model=self._model,
            created=self._created,
            content=self.text,
            reasoning="".join(self._reasoning),
            refusal="".join(self._refusal),
            tool_calls=calls,
            finish_reason=self._finish_reason or ("tool_calls" if calls else "stop"),
            usage=self._usage,
            images=tuple(dict.fromkeys(self._images)),
            logprobs=self._logprobs or None,
            message_extras=cleaned(self._message_extras),
            choice_extras=cleaned(self._choice_extras),
            response_extras=cleaned(self._response_extras),
            raw=self._raw,
            served_text="".join(self._text),
        )


def parse_completion(
    body: Mapping[str, Any], *, stop: Sequence[str] = (), max_tokens: int | None = None, model: str = ""
) -> Completion:
    """A non-streamed response as a `Completion`; the same rules as for a stream, since it is the same code.

    `model` is the name for a response that names none.

    Raises ErrorEvent when the body is an error, Truncated when it holds no answer.
    """
    accumulator = StreamAccumulator(stop=stop, max_tokens=max_tokens, model=model, is_whole=True)
    if not body.get("choices") and not body.get("error"):
        raise Truncated("The response has no choices.")
    accumulator.feed(body)
    return accumulator.finish()


def _older_call(piece: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A call in the form that OpenAI had before tools: one, without an id."""
    call = piece.get("function_call")
    return [{"function": call}] if isinstance(call, Mapping) else []


def stop_sequences(stop: Any) -> tuple[str, ...]:
    """`stop` as the wire allows it (a string, a list, or nothing) as a tuple."""
    if not stop:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


class StopCutter:
    """Applies `stop` sequences to streamed text, since gateways hash them but do not apply them."""

    __slots__ = ("_held", "_longest", "_sequences", "is_cut")

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequence for sequence in sequences if sequence)
        self._longest = max((len(sequence) for sequence in self._sequences), default=0)
        self._held = ""
        self.is_cut = False

    def pass_on(self, text: str) -> str:
        """The part of the text so far that can be shown: what may yet become a stop sequence is held back."""
        if self.is_cut:
            return ""
        text = self._held + text
        ends = [at for sequence in self._sequences if (at := text.find(sequence)) >= 0]
        if ends:
            self.is_cut, self._held = True, ""
            return text[: min(ends)]
        keep = self._suspicious_tail(text)
        shown, self._held = (text[:-keep], text[-keep:]) if keep else (text, "")
        return shown

    def release(self) -> str:
        """What was held back when the text ended."""
        held, self._held = self._held, ""
        return held

    def _suspicious_tail(self, text: str) -> int:
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(sequence.startswith(tail) for sequence in self._sequences):
                return size
        return 0
