"""The shapes in which providers and gateways give answers, whole and in pieces, and what each of them means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opengradient_devnet.model.protocol import Answer, Chunk, Delivery

Json = dict[str, Any]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One answer: `message` when it comes whole, `deltas` when it is streamed, and what a reader must find.

    `calls` are (name, arguments, id); the id None stands for one that is made here.
    """

    name: str
    message: Json
    deltas: list[Json]
    text: str = ""
    calls: list[tuple[str, Any, str | None]] = field(default_factory=list)
    broken: list[tuple[str, str, str | None]] = field(default_factory=list)
    found: Json = field(default_factory=dict)
    reason: str = "stop"
    plain_reason: str = ""
    """What a reader is told, where it is not the reason that the provider gives."""
    usage: Json = field(default_factory=lambda: dict(USAGE))
    beside_message: Json = field(default_factory=dict)
    beside_choices: Json = field(default_factory=dict)
    early: Json = field(default_factory=dict)
    """Members of every event before the last one."""


class Shaped:
    """A model that answers with one shape, whichever is set."""

    def __init__(self) -> None:
        self.shape: Shape | None = None

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery = Delivery()) -> Answer:  # noqa: B008
        shape = self._shape()
        return Answer(
            message={"role": "assistant", "content": None, **shape.message},
            finish_reason=shape.reason,
            usage=shape.usage,
            model=str(request["model"]),
            choice_members=shape.beside_message,
            members=shape.beside_choices,
        )

    async def stream(
        self,
        request: Mapping[str, Any],
        *,
        delivery: Delivery = Delivery(),  # noqa: B008
    ) -> AsyncGenerator[Chunk, None]:
        shape, model = self._shape(), str(request["model"])
        for delta in shape.deltas:
            yield Chunk(delta=delta, model=model, members=shape.early)
        yield Chunk(
            delta={},
            model=model,
            finish_reason=shape.reason,
            usage=shape.usage,
            choice_members=shape.beside_message,
            members=shape.beside_choices,
        )

    async def aclose(self) -> None:
        pass

    def _shape(self) -> Shape:
        assert self.shape is not None
        return self.shape


def call(name: str, arguments: Any, call_id: str | None = "c1", **more: Any) -> Json:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}, **more}
    return made if call_id is None else {"id": call_id, **made}


def part(index: int | None, *, name: str | None = None, call_id: str | None = None, arguments: Any = "") -> Json:
    """A delta with one piece of a tool call."""
    function = {"arguments": arguments, **({} if name is None else {"name": name})}
    piece = {"function": function, **({} if index is None else {"index": index})}
    return {"tool_calls": [piece if call_id is None else {"id": call_id, "type": "function", **piece}]}


def spoken(text: str, *pieces: str, **rest: Any) -> Shape:
    deltas = [{"content": piece} for piece in pieces or (text,)]
    return Shape(**{"message": {"content": text}, "deltas": deltas, "text": text, **rest})


def called(name: str, deltas: list[Json], *calls: Json, **rest: Any) -> Shape:
    return Shape(
        **{"name": name, "message": {"tool_calls": list(calls)}, "deltas": deltas, "reason": "tool_calls", **rest}
    )


OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'
TWO = (call("temperature", OSLO, "c1"), call("temperature", ROME, "c2"))
BOTH: list[tuple[str, Any, str | None]] = [
    ("temperature", {"city": "Oslo"}, "c1"),
    ("temperature", {"city": "Rome"}, "c2"),
]
ONE = BOTH[:1]
NAMELESS = [(name, arguments, None) for name, arguments, _ in BOTH]
LOGPROBS = {"content": [{"token": "ok", "logprob": -0.1, "bytes": [111, 107], "top_logprobs": []}]}
NOTE = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 2},
}
DETAIL = {"type": "reasoning.text", "text": "because", "signature": "s", "index": 0}
SIGNED = {"extra_content": {"google": {"thought_signature": "abc"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
PARTS = [{"type": "text", "text": "4"}]
GRIN = "\U0001f600"

TEXTS = [
    spoken("Hello.", name="text"),
    spoken("Hello you.", "Hel", "lo", " ", "you", ".", name="text in pieces"),
    spoken("Hello you.", "", "Hello", "", " you.", "", name="text with empty pieces"),
    Shape(name="nothing", message={"content": ""}, deltas=[]),
    Shape(name="null", message={"content": None}, deltas=[{"content": None}]),
    Shape(name="role only", message={"content": ""}, deltas=[{"role": "assistant", "content": ""}]),
    spoken("  \n ", name="blanks"),
    spoken(f"a{GRIN}b", name="emoji"),
    Shape(
        name="half an emoji in each event",
        message={"content": f"a{GRIN}b"},
        deltas=[{"content": "a\ud83d"}, {"content": "\ude00b"}],
        text=f"a{GRIN}b",
    ),
    Shape(
        name="halves with nothing between",
        message={"content": GRIN},
        deltas=[{"content": "\ud83d"}, {"content": ""}, {"content": "\ude00"}],
        text=GRIN,
    ),
    Shape(name="a half alone", message={"content": "a\ud83d"}, deltas=[{"content": "a\ud83d"}], text="a\ufffd"),
    Shape(
        name="text in parts",
        message={"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        deltas=[{"content": [{"type": "text", "text": "Hel"}]}, {"content": [{"type": "text", "text": "lo"}]}],
        text="Hello",
    ),
    spoken("Hel", name="cut", reason="length"),
    spoken("Hel", name="cut in Anthropic's words", reason="max_tokens", plain_reason="length"),
    spoken("Hel", name="cut in Google's words", reason="MAX_TOKENS", plain_reason="length"),
    spoken("Hel", name="filtered in Google's words", reason="SAFETY", plain_reason="content_filter"),
    spoken("Hello.", name="ended in Anthropic's words", reason="end_turn", plain_reason="stop"),
    spoken("Hello.", name="ended for a reason of its own", reason="pause_turn"),
    spoken("Hel", name="filtered", reason="content_filter"),
    Shape(name="filtered before a word", message={"content": ""}, deltas=[], reason="content_filter"),
    Shape(
        name="refused",
        message={"refusal": "I will not."},
        deltas=[{"refusal": "I will "}, {"refusal": "not."}],
        found={"refusal": "I will not."},
    ),
    Shape(
        name="refused in a part",
        message={"content": [{"type": "refusal", "refusal": "no"}]},
        deltas=[{"content": [{"type": "refusal", "refusal": "no"}]}],
        found={"refusal": "no"},
    ),
    Shape(
        name="half a character alone in a refusal",
        message={"refusal": "a\ud83d"},
        deltas=[{"refusal": "a\ud83d"}],
        found={"refusal": "a\ufffd"},
    ),
    Shape(
        name="refused after words",
        message={"content": "Well: ", "refusal": "no."},
        deltas=[{"content": "Well: "}, {"refusal": "no."}],
        text="Well: ",
        found={"refusal": "no."},
    ),
]

REASONING = [
    Shape(
        name="reasoning",
        message={"content": "4", "reasoning_content": "2 and 2"},
        deltas=[{"reasoning_content": "2 and"}, {"reasoning_content": " 2"}, {"content": "4"}],
        text="4",
        found={"reasoning": "2 and 2"},
    ),
    Shape(
        name="reasoning under its other name",
        message={"content": "4", "reasoning": "2 and 2"},
        deltas=[{"reasoning": "2 and"}, {"reasoning": " 2"}, {"content": "4"}],
        text="4",
        found={"reasoning": "2 and 2"},
    ),
    Shape(
        name="reasoning between words",
        message={"content": "So 4", "reasoning_content": "hm"},
        deltas=[{"content": "So"}, {"reasoning_content": "hm"}, {"content": " 4"}],
        text="So 4",
        found={"reasoning": "hm"},
    ),
    Shape(
        name="reasoning alone",
        message={"content": "", "reasoning_content": "hm"},
        deltas=[{"reasoning_content": "hm"}],
        reason="length",
        found={"reasoning": "hm"},
    ),
    Shape(
        name="half an emoji in each piece of reasoning",
        message={"content": "x", "reasoning_content": GRIN},
        deltas=[{"reasoning_content": "\ud83d"}, {"reasoning_content": "\ude00"}, {"content": "x"}],
        text="x",
        found={"reasoning": GRIN},
    ),
    Shape(
        name="half a character alone in reasoning",
        message={"content": "x", "reasoning_content": "a\ud83d"},
        deltas=[{"reasoning_content": "a\ud83d"}, {"content": "x"}],
        text="x",
        found={"reasoning": "a\ufffd"},
    ),
    Shape(
        name="reasoning in a part",
        message={"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, *PARTS]},
        deltas=[{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, {"content": PARTS}],
        text="4",
        found={"reasoning": "hm"},
    ),
    Shape(
        name="half an emoji in each piece of reasoning details",
        message={"content": "x", "reasoning_details": [{**DETAIL, "text": GRIN}]},
        deltas=[
            {"reasoning_details": [{**DETAIL, "text": "\ud83d"}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": "\ude00", "index": 0}]},
            {"content": "x"},
        ],
        text="x",
        found={"reasoning_details": [{**DETAIL, "text": GRIN}]},
    ),
    Shape(
        name="reasoning details",
        message={"content": "4", "reasoning_details": [DETAIL]},
        deltas=[
            {"reasoning_details": [{**DETAIL, "text": "be", "signature": None}]},
            {"reasoning_details": [{"type": "reasoning.text", "text": "cause", "signature": "s", "index": 0}]},
            {"content": "4"},
        ],
        text="4",
        found={"reasoning_details": [DETAIL]},
    ),
    called(
        "reasoning before a call",
        [{"reasoning_content": "hm"}, part(0, name="temperature", call_id="c1", arguments=OSLO)],
        message={"reasoning_content": "hm", "tool_calls": [TWO[0]]},
        calls=ONE,
        found={"reasoning": "hm"},
    ),
]

CALLS = [
    called("call whole", [part(0, name="temperature", call_id="c1", arguments=OSLO)], TWO[0], calls=ONE),
    called(
        "call in fragments",
        [
            part(0, name="temperature", call_id="c1"),
            *(part(0, arguments=piece) for piece in ('{"ci', 'ty": "Os', 'lo"}')),
        ],
        TWO[0],
        calls=ONE,
    ),
    called(
        "two calls in one event",
        [{"tool_calls": [{"index": 0, **TWO[0]}, {"index": 1, **TWO[1]}]}],
        *TWO,
        calls=BOTH,
    ),
    called(
        "two calls one after another",
        [
            part(0, name="temperature", call_id="c1", arguments='{"city": '),
            part(0, arguments='"Oslo"}'),
            part(1, name="temperature", call_id="c2", arguments='{"city": '),
            part(1, arguments='"Rome"}'),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "two calls interleaved",
        [
            part(0, name="temperature", call_id="c1"),
            part(1, name="temperature", call_id="c2"),
            part(0, arguments='{"city": '),
            part(1, arguments='{"city": '),
            part(0, arguments='"Oslo"}'),
            part(1, arguments='"Rome"}'),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "interleaved by id alone",
        [
            part(None, name="temperature", call_id="c1", arguments='{"city": '),
            part(None, name="temperature", call_id="c2", arguments='{"city": '),
            part(None, call_id="c1", arguments='"Oslo"}'),
            part(None, call_id="c2", arguments='"Rome"}'),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "without an index",
        [
            part(None, name="temperature", call_id="c1", arguments='{"city": '),
            part(None, arguments='"Oslo"}'),
            part(None, name="temperature", call_id="c2", arguments=ROME),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "index 0 for both",
        [
            part(0, name="temperature", call_id="c1", arguments=OSLO),
            part(0, name="temperature", call_id="c2", arguments=ROME),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "indexes from 1",
        [
            part(1, name="temperature", call_id="c1", arguments=OSLO),
            part(2, name="temperature", call_id="c2", arguments=ROME),
        ],
        *TWO,
        calls=BOTH,
    ),
    called(
        "the id in every piece",
        [
            part(0, name="temperature", call_id="c1", arguments='{"city": '),
            part(0, call_id="c1", arguments='"Oslo"}'),
        ],
        TWO[0],
        calls=ONE,
    ),
    called(
        "the name in every piece",
        [
            part(0, name="temperature", call_id="c1", arguments='{"city": '),
            part(0, name="temperature", call_id="c1", arguments='"Oslo"}'),
        ],
        TWO[0],
        calls=ONE,
    ),
    called(
        "without an id",
        [part(0, name="temperature", arguments=OSLO)],
        call("temperature", OSLO, None),
        calls=NAMELESS[:1],
    ),
    called(
        "two without ids",
        [part(0, name="temperature", arguments=OSLO), part(1, name="temperature", arguments=ROME)],
        *(call("temperature", text, None) for text in (OSLO, ROME)),
        calls=NAMELESS,
    ),
    called(
        "two without ids and indexes",
        [part(None, name="temperature", arguments=OSLO), part(None, name="temperature", arguments=ROME)],
        *(call("temperature", text, None) for text in (OSLO, ROME)),
        calls=NAMELESS,
    ),
    called(
        "empty ids",
        [{"tool_calls": [{"index": at, **call("temperature", text, "")}]} for at, text in enumerate((OSLO, ROME))],
        *(call("temperature", text, "") for text in (OSLO, ROME)),
        calls=NAMELESS,
    ),
    called(
        "one id for two calls",
        [
            part(0, name="temperature", call_id="c1", arguments=OSLO),
            part(1, name="temperature", call_id="c1", arguments=ROME),
        ],
        *(call("temperature", text, "c1") for text in (OSLO, ROME)),
        calls=[BOTH[0], NAMELESS[1]],
    ),
    called(
        "a name in two pieces",
        [part(0, name="temp", call_id="c1"), part(0, name="erature", arguments=OSLO)],
        TWO[0],
        calls=ONE,
    ),
    called(
        "a name in three pieces, without arguments, before another call",
        [part(0, name="n", call_id="c1"), part(0, name="o"), part(0, name="w"), part(1, name="today", call_id="c2")],
        call("now", "", "c1"),
        call("today", "", "c2"),
        calls=[("now", {}, "c1"), ("today", {}, "c2")],
    ),
    called(
        "two without ids, indexes and arguments",
        [part(None, name="now"), part(None, name="today")],
        *(call(name, "", None) for name in ("now", "today")),
        calls=[("now", {}, None), ("today", {}, None)],
    ),
    called(
        "a call in the form before tools",
        [
            {"function_call": {"name": "temperature", "arguments": '{"city": '}},
            {"function_call": {"arguments": '"Oslo"}'}},
        ],
        message={"function_call": {"name": "temperature", "arguments": OSLO}},
        calls=NAMELESS[:1],
    ),
    called(
        "null arguments",
        [part(0, name="now", call_id="c1", arguments=None)],
        call("now", None),
        calls=[("now", {}, "c1")],
    ),
    called("no arguments", [part(0, name="now", call_id="c1")], call("now", ""), calls=[("now", {}, "c1")]),
    called(
        "blank arguments",
        [part(0, name="now", call_id="c1", arguments=" ")],
        call("now", " "),
        calls=[("now", {}, "c1")],
    ),
    called(
        "arguments that say null",
        [part(0, name="now", call_id="c1", arguments="null")],
        call("now", "null"),
        calls=[("now", {}, "c1")],
    ),
    called(
        "arguments as an object",
        [part(0, name="temperature", call_id="c1", arguments={"city": "Oslo"})],
        call("temperature", {"city": "Oslo"}),
        calls=ONE,
    ),
    called(
        "a bare line feed in arguments",
        [part(0, name="say", call_id="c1", arguments='{"text": "a\nb"}')],
        call("say", '{"text": "a\nb"}'),
        calls=[("say", {"text": "a\nb"}, "c1")],
    ),
    called(
        "half an emoji in each piece of arguments",
        [part(0, name="say", call_id="c1", arguments='{"text": "\ud83d'), part(0, arguments='\ude00"}')],
        call("say", f'{{"text": "{GRIN}"}}'),
        calls=[("say", {"text": GRIN}, "c1")],
    ),
    called(
        "arguments that are cut",
        [part(0, name="say", call_id="c1", arguments='{"text": "a')],
        call("say", '{"text": "a'),
        broken=[("say", '{"text": "a', "c1")],
        reason="length",
    ),
    called(
        "half a character at the end of arguments that are cut",
        [part(0, name="say", call_id="c1", arguments='{"text": "\ud83d')],
        call("say", '{"text": "\ud83d'),
        broken=[("say", '{"text": "\ufffd', "c1")],
        reason="length",
    ),
    called(
        "two objects as arguments",
        [part(0, name="say", call_id="c1", arguments='{"text": "a"}{"text": "b"}')],
        call("say", '{"text": "a"}{"text": "b"}'),
        broken=[("say", '{"text": "a"}{"text": "b"}', "c1")],
    ),
    called(
        "arguments that are a list",
        [part(0, name="say", call_id="c1", arguments="[1]")],
        call("say", "[1]"),
        broken=[("say", "[1]", "c1")],
    ),
    called(
        "arguments that are words",
        [part(0, name="say", call_id="c1", arguments="hello")],
        call("say", "hello"),
        broken=[("say", "hello", "c1")],
    ),
    called(
        "one call good and one broken",
        [
            part(0, name="temperature", call_id="c1", arguments=OSLO),
            part(1, name="say", call_id="c2", arguments='{"te'),
        ],
        TWO[0],
        call("say", '{"te', "c2"),
        calls=ONE,
        broken=[("say", '{"te', "c2")],
    ),
    called(
        "words before a call",
        [{"content": "Let me look."}, part(0, name="temperature", call_id="c1", arguments=OSLO)],
        message={"content": "Let me look.", "tool_calls": [TWO[0]]},
        text="Let me look.",
        calls=ONE,
    ),
    called(
        "words after a call",
        [part(0, name="temperature", call_id="c1", arguments=OSLO), {"content": "I am looking."}],
        message={"content": "I am looking.", "tool_calls": [TWO[0]]},
        text="I am looking.",
        calls=ONE,
    ),
    called(
        "a call that ends with stop",
        [part(0, name="temperature", call_id="c1", arguments=OSLO)],
        TWO[0],
        calls=ONE,
        reason="stop",
    ),
    called(
        "a thought signature",
        [{"tool_calls": [{"index": 0, **TWO[0], **SIGNED}]}],
        {**TWO[0], **SIGNED},
        calls=ONE,
        found={"call_extras": {"c1": SIGNED}},
    ),
    called(
        "a thought signature on one of two",
        [{"tool_calls": [{"index": 0, **TWO[0], **SIGNED}]}, {"tool_calls": [{"index": 1, **TWO[1]}]}],
        {**TWO[0], **SIGNED},
        TWO[1],
        calls=BOTH,
        found={"call_extras": {"c1": SIGNED}},
    ),
]

CARRIED = [
    spoken("ok", name="logprobs", beside_message={"logprobs": LOGPROBS}, found={"logprobs": LOGPROBS}),
    Shape(
        name="citations",
        message={"content": "ok", "annotations": [NOTE]},
        deltas=[{"content": "ok"}, {"annotations": [NOTE]}],
        text="ok",
        found={"annotations": [NOTE]},
    ),
    Shape(
        name="two citations in two events",
        message={"content": "ok", "annotations": [NOTE, {**NOTE, "n": 2}]},
        deltas=[{"content": "ok"}, {"annotations": [NOTE]}, {"annotations": [{**NOTE, "n": 2}]}],
        text="ok",
        found={"annotations": [NOTE, {**NOTE, "n": 2}]},
    ),
    Shape(
        name="audio",
        message={"content": None, "audio": {"id": "a1", "data": "QUJD", "transcript": "ok", "expires_at": 9}},
        deltas=[
            {"audio": {"id": "a1", "data": "QU", "transcript": "o"}},
            {"audio": {"data": "JD", "transcript": "k", "expires_at": 9}},
        ],
        found={"audio": {"id": "a1", "data": "QUJD", "transcript": "ok", "expires_at": 9}},
    ),
    Shape(
        name="half an emoji in each piece of a transcript",
        message={"content": None, "audio": {"id": "a1", "transcript": GRIN}},
        deltas=[{"audio": {"id": "a1", "transcript": "\ud83d"}}, {"audio": {"transcript": "\ude00"}}],
        found={"audio": {"id": "a1", "transcript": GRIN}},
    ),
    Shape(
        name="an image in a part",
        message={"content": [*PARTS, IMAGE]},
        deltas=[{"content": PARTS}, {"content": [IMAGE]}],
        text="4",
        found={"images": [IMAGE["image_url"]["url"]]},
    ),
    Shape(
        name="an image",
        message={"content": "ok", "images": [IMAGE]},
        deltas=[{"content": "ok"}, {"images": [IMAGE]}],
        text="ok",
        found={"images": [IMAGE["image_url"]["url"]]},
    ),
    spoken(
        "ok",
        name="the provider's own reason, and what its filter says",
        beside_message={"native_finish_reason": "end_turn", "content_filter_results": {"hate": {"filtered": False}}},
        found={"native_finish_reason": "end_turn", "content_filter_results": {"hate": {"filtered": False}}},
    ),
    spoken("ok", name="fingerprint", beside_choices={"system_fingerprint": "fp"}, found={"system_fingerprint": "fp"}),
    spoken("ok", name="service tier", beside_choices={"service_tier": "flex"}, found={"service_tier": "flex"}),
    spoken("ok", name="list of pages", beside_choices={"citations": ["u"]}, found={"citations": ["u"]}),
    spoken(
        "ok",
        name="fingerprint in every event",
        beside_choices={"system_fingerprint": "fp"},
        early={"system_fingerprint": "fp"},
        found={"system_fingerprint": "fp"},
    ),
    spoken("ok", name="usage in every event", early={"usage": {**USAGE, "completion_tokens": 1, "total_tokens": 12}}),
    spoken(
        "ok",
        name="usage with details",
        usage={
            **USAGE,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        found={"cached": 4, "reasoned": 3},
    ),
]

SHAPES = [*TEXTS, *REASONING, *CALLS, *CARRIED]
