"""Receipts on the spans of tracers; a 402 challenge is no error there. Works with the tracing packages that are loaded.

Does not import OpenTelemetry: where the process has not loaded it, nothing is done, and nothing is lost. The names are
those of OpenInference (`llm.cost.total`, `llm.token_count.*`), which Phoenix, Arize and Langfuse read, and
`opengradient.*` for what only a paid call has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal

import httpx

from opengradient_x402.ledger.receipts import SettlementReceipt

HTTP_TRACER: Final = "opentelemetry.instrumentation.httpx"
"""The module that makes a span of each request over httpx."""
_INSTRUMENTORS: Final = {"langchain": "LangChainInstrumentor", "llama_index": "LlamaIndexInstrumentor"}
_TAKEN: Final = (
    "call_id",
    "status",
    "outcome",
    "error",
    "authorization_id",
    "network",
    "payer",
    "payee",
    "settlement_mode",
    "authorized_atomic",
    "cost_atomic",
    "settled_atomic",
    "payment_hash",
    "tee_verified",
)


def annotate(receipt: SettlementReceipt | None, *, span: Any | None = None) -> None:
    """Puts the receipt on `span`, which is one LLM call's, as attributes; without it, on the current span as an event.

    The current one may be a web request's, which serves many calls: attributes would show the last one only. Costs a
    dict lookup when the process does not trace.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or receipt is None:
        return
    found = trace.get_current_span() if span is None else span
    if not found.is_recording():
        return
    if span is None:
        found.add_event("opengradient.receipt", attributes_of(receipt))
    else:
        found.set_attributes(attributes_of(receipt))


def openinference(framework: Literal["langchain", "llama_index"]) -> Any | None:
    """OpenInference's module for a framework, if the process traces with it."""
    module = sys.modules.get(f"openinference.instrumentation.{framework}")
    if module is None or not getattr(module, _INSTRUMENTORS[framework])().is_instrumented_by_opentelemetry:
        return None
    return module


def attributes_of(receipt: SettlementReceipt) -> dict[str, str | int | float]:
    """What a span says of a paid call. Amounts are decimal strings of atomic units; `llm.cost.total` is in USD."""
    found: dict[str, str | int | float] = {}
    for name in _TAKEN:
        if (value := getattr(receipt, name)) is not None:
            found[f"opengradient.{name}"] = str(value)
    prompt, completion = receipt.prompt_tokens, receipt.completion_tokens
    if prompt is not None and completion is not None:
        found["llm.token_count.prompt"] = prompt
        found["llm.token_count.completion"] = completion
        found["llm.token_count.total"] = prompt + completion
    if receipt.cost_usd is not None:
        with suppress(ValueError):  # a claim that is not a number is no claim
            found["llm.cost.total"] = float(receipt.cost_usd)
    return found


def unpaid(request: httpx.Request, *, is_blocking: bool) -> httpx.Request:
    """A request whose 402 asks for a payment: no error on its HTTP span, where `HTTP_TRACER` is loaded."""
    if "trace" in request.extensions:
        return request
    extensions = {**request.extensions, "trace": _mark_challenge if is_blocking else _amark_challenge}
    return httpx.Request(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=extensions
    )


def _mark_challenge(name: str, info: Mapping[str, Any]) -> None:
    """httpcore calls this for each step of a request, inside its span; a status that is OK stays so."""
    if name.endswith("receive_response_headers.complete") and httpx.codes.PAYMENT_REQUIRED in info["return_value"][:2]:
        trace = sys.modules["opentelemetry.trace"]
        span = trace.get_current_span()
        span.set_status(trace.StatusCode.OK)
        span.set_attribute("opengradient.challenge", value=True)


async def _amark_challenge(name: str, info: Mapping[str, Any]) -> None:
    _mark_challenge(name, info)
