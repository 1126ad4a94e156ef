"""The bodies of a gateway's answers, byte for byte as the live gateways write them.

Complete answers and plain errors are written by the live gateways' framework (sorted, indented, newline); stream
events by `json.dumps` with default separators, except the final event of an individually settled stream, which is
compact.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from opengradient_devnet.gateway.pricing import ModelPrice
from opengradient_devnet.gateway.transcript import Transcript
from opengradient_devnet.model.protocol import Chunk, ModelError

# What the gateway of 2026-04 says of every failure (measured).
HIDDEN_FAILURE = "Request processing failed"
DONE = b"data: [DONE]\n\n"


def pretty(content: Mapping[str, Any]) -> bytes:
    """JSON as the live gateways' web framework writes it."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def error(message: str) -> bytes:
    """`{"error": …}`."""
    return (json.dumps({"error": message}, separators=(",", ":")) + "\n").encode()


def problem(*, status: int, title: str, detail: str) -> bytes:
    """An `application/problem+json` body (RFC 9457)."""
    return pretty({"detail": detail, "status": status, "title": title, "type": "about:blank"})


def provider_error(failure: ModelError) -> bytes:
    """The error of newer gateways, which says where it arose and whether to try again."""
    return (json.dumps(provider_error_fields(failure), separators=(",", ":")) + "\n").encode()


def provider_error_fields(failure: ModelError) -> dict[str, Any]:
    """The members of `provider_error`."""
    return {
        "error": failure.message,
        "exception_type": type(failure).__name__,
        "source": "provider",
        "provider_status": failure.provider_status,
        "retryable": failure.is_retryable,
    }


def models_page(models: Iterable[ModelPrice], *, opg_usd: Decimal | None) -> dict[str, Any]:
    """What is on offer as OpenAI's list of models; prices are decimal strings, USD per million tokens."""
    return {
        "object": "list",
        **({} if opg_usd is None else {"opg_price_usd": str(opg_usd)}),
        "data": [
            {
                "id": price.name,
                "object": "model",
                "created": 0,
                "owned_by": price.provider,
                "context_length": price.context_tokens,
                "max_output_tokens": price.max_output_tokens,
                "pricing": {
                    "input_usd_per_mtok": str(price.input_usd_per_mtok),
                    "output_usd_per_mtok": str(price.output_usd_per_mtok),
                },
            }
            for price in models
        ],
    }


def completion(transcript: Transcript, *, model: str, created_s: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """A `chat.completion`; `extra` are the proof and the gateway's other members. All that the model said is in it."""
    message: dict[str, Any] = {**transcript.message_members, "role": "assistant", "content": transcript.content}
    if transcript.reasoning:
        message["reasoning_content"] = transcript.reasoning
    if transcript.tool_calls:
        message["tool_calls"] = transcript.tool_calls
    choice = {"index": 0, "message": message, "finish_reason": transcript.finish_reason}
    return {
        **transcript.members,
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "choices": [{**transcript.choice_members, **choice}],
        **extra,
    }


def text_completion(completion: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion as OpenAI's older endpoint writes one: the text is in the choice itself."""
    choices = [
        {"index": choice["index"], "text": choice["message"]["content"], "finish_reason": choice["finish_reason"]}
        for choice in completion["choices"]
    ]
    return {**completion, "object": "text_completion", "choices": choices}


def delta_event(chunk: Chunk, *, model: str) -> bytes:
    """One event of a stream that is not the last."""
    choice = chunk.choice()
    key = "message" if chunk.as_message else "delta"
    delta = dict(choice[key])
    if not chunk.is_terminal:
        delta.setdefault("role", "assistant")
    choice = {**chunk.choice_members, **_choice(key, delta, chunk.finish_reason)}
    return event({**chunk.members, "choices": [choice], "model": model})


def final_event(transcript: Transcript, *, model: str, extra: Mapping[str, Any], is_compact: bool) -> bytes:
    """The event that ends a stream: finish_reason, then the proof, usage and other members in `extra`."""
    choice = {**transcript.choice_members, **_choice("delta", {}, transcript.finish_reason)}
    content = {**transcript.members, "choices": [choice], "model": model, **extra}
    return event(content, separators=(",", ":") if is_compact else None)


def event(content: Mapping[str, Any], *, separators: tuple[str, str] | None = None) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content, separators=separators)}\n\n".encode()


def settlement_event(response: str) -> bytes:
    """How a stream says what it was charged: the value of PAYMENT-RESPONSE in a named event (og-x402 2.15.0)."""
    return b"event: x402-settlement\n" + event({"success": True, "paymentResponse": response})


def _choice(key: str, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {key: delta, "index": 0, "finish_reason": finish_reason}
