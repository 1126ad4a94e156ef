"""`RulesModel`: the deterministic model of the devnet, as a `Model`.

It makes an answer of a reply, with ids, limits and usage, and delivers it in one piece or many. The same
request always gets the same answer; `temperature`, `top_p` and `seed` change nothing. `reply` decides what to say.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opengradient_devnet.model.protocol import Answer, Chunk, Delivery, ModelError
from opengradient_devnet.model.rules.chunks import deltas
from opengradient_devnet.model.rules.reading.conversation import Call
from opengradient_devnet.model.rules.reply import reply_to
from opengradient_devnet.model.tokens import count, count_message, count_request, tokens
from opengradient_devnet.model.usage import usage
from opengradient_devnet.tool_call_styles import ToolCallStyle

_SILENT_EFFORTS = frozenset({None, "", "none", "minimal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesModel:
    """Answers by general rules over the request; see the modules of this package.

    With `compensates=False` it behaves as live gateways do: `stop` is not applied, and an answer that ran into
    `max_tokens` is cut but still says `stop` or `tool_calls`, never `length`.
    """

    compensates: bool = True

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery = Delivery()) -> Answer:  # noqa: B008 - frozen
        """Answer in one piece; never waits."""
        return self._answer(request, delivery=delivery)

    async def stream(
        self,
        request: Mapping[str, Any],
        *,
        delivery: Delivery = Delivery(),  # noqa: B008 - frozen
    ) -> AsyncGenerator[Chunk, None]:
        """Answer piece by piece, `delivery.pace_s` apart."""
        answer = self._answer(request, delivery=delivery)
        for index, delta in enumerate(deltas(answer.message, delivery=delivery)):
            # Without a pace, still yield to the loop: a long stream must not starve the gateway.
            await asyncio.sleep(delivery.pace_s if index else 0)
            yield Chunk(delta=delta, model=answer.model, as_message=delivery.as_message)
        await asyncio.sleep(delivery.pace_s)
        yield Chunk(
            delta={},
            model=answer.model,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            as_message=delivery.as_message,
        )

    async def aclose(self) -> None:
        """Nothing to release."""

    def _answer(self, request: Mapping[str, Any], *, delivery: Delivery) -> Answer:
        reply = reply_to(request)
        calls = [_tool_call(call, index, request) for index, call in enumerate(reply.calls)]
        content: str | None = reply.text
        if calls:
            names = " and ".join(call.name for call in reply.calls)
            content = f"I call {names}." if delivery.tool_calls is ToolCallStyle.WITH_TEXT else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if request.get("reasoning_effort") not in _SILENT_EFFORTS:
            message["reasoning_content"] = _reasoning(reply.calls)
        if calls:
            message["tool_calls"] = calls
        if delivery.broken_arguments:
            _cut_arguments(message)
        finish_reason = self._limit(message, request)
        reasoning_tokens = count(message.get("reasoning_content") or "")
        return Answer(
            message=message,
            finish_reason=finish_reason,
            usage=usage(
                prompt=count_request(request),
                completion_tokens=count_message(message),
                reasoning_tokens=reasoning_tokens,
            ),
            model=str(request.get("model") or "rules"),
        )

    def _limit(self, message: dict[str, Any], request: Mapping[str, Any]) -> str:
        """Apply `stop` and `max_tokens` to `message`; the finish reason that results."""
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        if self.compensates and message["content"]:
            message["content"] = _stopped(message["content"], request.get("stop"))
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        if limit is None:
            return reason
        if not isinstance(limit, int) or limit < 1:
            raise ModelError(400, f"Invalid 'max_tokens': expected a positive integer, got {limit!r}.")
        was_cut = _shorten(message, limit)
        return "length" if was_cut and self.compensates else reason


def _tool_call(call: Call, index: int, request: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    # The same call later in a conversation is another call: its id depends on where it stands.
    place = f"{len(request['messages'])} {index} {call.name} {arguments}"
    call_id = f"call_{hashlib.sha256(place.encode()).hexdigest()[:24]}"
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _reasoning(calls: Sequence[Call]) -> str:
    if not calls:
        return "No tool has to be called, so I answer from what the conversation says."
    return f"The question asks for {', '.join(call.name for call in calls)}, so I call it before I answer."


def _stopped(text: str, stop: object) -> str:
    sequences = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    ends = [text.find(str(sequence)) for sequence in sequences if str(sequence) in text]
    return text[: min(ends)] if ends else text


def _shorten(message: dict[str, Any], limit: int) -> bool:
    """Cut the message to `limit` tokens: reasoning first counted, then text, then arguments. True if cut."""
    left = limit
    was_cut = False
    for holder, key in _spoken(message):
        said = tokens(holder[key] or "")
        if len(said) > left:
            holder[key] = "".join(said[:left])
            was_cut = True
        left = max(0, left - len(said))
    return was_cut


def _spoken(message: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    texts = [(message, key) for key in ("reasoning_content", "content") if message.get(key)]
    return texts + [(call["function"], "arguments") for call in message.get("tool_calls") or []]


def _cut_arguments(message: dict[str, Any]) -> None:
    for call in message.get("tool_calls") or []:
        call["function"]["arguments"] = call["function"]["arguments"][:-1]
