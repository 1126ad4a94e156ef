"""Answers in OpenAI's shape: a `Completion` as one body, `Delta`s as the events of a stream.

The receipt is the member `opengradient` of the body, and of the last event before `[DONE]`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

from opengradient_x402 import strict_json
from opengradient_x402.completions import Completion, Delta, ToolCallDelta
from opengradient_x402.ledger.receipts import SettlementReceipt

DONE: Final = b"data: [DONE]\n\n"


def body_of(completion: Completion) -> dict[str, Any]:
    """The body of a `chat.completion`."""
    calls = [
        {**call.extras, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in completion.tool_calls
    ]
    message = {
        "role": "assistant",
        "content": completion.content or (None if calls or completion.refusal else ""),
        "refusal": completion.refusal or None,
        **({"reasoning_content": completion.reasoning} if completion.reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
        **_beside_the_text(completion),
    }
    choice = {
        **completion.choice_extras,
        "index": 0,
        "message": message,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
    }
    return {
        **completion.response_extras,
        "id": completion.id or f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": completion.created or int(time.time()),
        "model": completion.model,
        "choices": [choice],
        "usage": completion.token_usage,
        **_receipt(completion.receipt),
    }


class EventWriter:
    """Writes the events of one stream. `has_usage`: the client asked for a last event with the usage."""

    def __init__(self, *, model: str, has_usage: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._has_usage = has_usage
        self._role: dict[str, Any] = {"role": "assistant"}
        """Until the first event has said it."""

    def of(self, delta: Delta) -> bytes:
        """The event for what arrived. Why the answer ends is said at the end, in the event that has the receipt."""
        said: dict[str, Any] = {}
        if delta.content:
            said["content"] = delta.content
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.refusal:
            said["refusal"] = delta.refusal
        if delta.tool_calls:
            said["tool_calls"] = [_tool_call(call) for call in delta.tool_calls]
        return self._chunk(said) if said else b""

    def end(self, completion: Completion, receipt: SettlementReceipt | None) -> Iterator[bytes]:
        """The last events: the reason why it ends, the usage if it was asked for, and the receipt."""
        extras = [
            {"index": index, "function": {"arguments": ""}, **call.extras}
            for index, call in enumerate(completion.tool_calls)
            if call.extras
        ]
        delta = {**_beside_the_text(completion), **({"tool_calls": extras} if extras else {})}
        last = {**completion.response_extras, **_receipt(receipt)}
        more = {} if self._has_usage else last
        yield self._chunk(delta, ended=completion, **more)
        if self._has_usage:
            yield event({**last, **self._head, "choices": [], "usage": completion.token_usage})
        yield DONE

    def _chunk(self, delta: dict[str, Any], *, ended: Completion | None = None, **more: Any) -> bytes:
        choice = {
            **(ended.choice_extras if ended else {}),
            "index": 0,
            "delta": {**self._role, **delta},
            "logprobs": ended.logprobs if ended else None,
            "finish_reason": ended.finish_reason if ended else None,
        }
        self._role = {}
        usage = {"usage": None} if self._has_usage else {}
        return event({**more, **self._head, "choices": [choice], **usage})


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + strict_json.dumps(value) + b"\n\n"


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    named = {"id": call.id, "type": "function"} if call.id else {}
    function = {"name": call.name} if call.name else {}
    return {"index": call.index, **named, "function": {**function, "arguments": call.arguments}}


def _beside_the_text(completion: Completion) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in completion.images]
    return {**completion.message_extras, **({"images": images} if images else {})}


def _receipt(receipt: SettlementReceipt | None) -> dict[str, Any]:
    return {} if receipt is None else {"opengradient": receipt.to_message()}
