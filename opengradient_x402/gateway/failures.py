"""The error for a call that did not end well: what happened, what it means for the money, what to do.

Whether anything was paid is read from the call. Gateways describe failures in several shapes (docs/wire.md,
"Errors").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import httpx

from opengradient_x402.errors import (
    ErrorKind,
    GatewayError,
    GatewayUnreachable,
    InsecureEndpoint,
    NotPaid,
    OpenGradientError,
    PaymentOutcomeUnknown,
    ProofRejected,
    ResponseInvalid,
    StreamInterrupted,
)
from opengradient_x402.gateway.connections import is_certificate_failure
from opengradient_x402.payment.call import Call
from opengradient_x402.proofs.attestation import Verdict


def unreachable(call: Call, exc: httpx.TransportError) -> NotPaid:
    """Nothing was signed: no server answers, or a wrong one."""
    if is_certificate_failure(exc):
        return InsecureEndpoint(
            f"{call.base_url} showed a TLS certificate that is not trusted for it ({exc}). Nothing was sent, signed "
            "or paid. Somebody else may be answering there; a new certificate must be registered first.",
            call_id=call.id,
        )
    return GatewayUnreachable(
        f"No answer from {call.base_url} ({str(exc) or type(exc).__name__}). Nothing was signed for this call and "
        "nothing was paid. Check the address (`base_url`, OG_GATEWAY_URL) and your connection, then call again.",
        call_id=call.id,
        kind="timeout" if isinstance(exc, httpx.TimeoutException) else "connection",
    )


def interrupted(call: Call, what: str, *, shown_chars: int, is_timeout: bool = False) -> OpenGradientError:
    """The answer stopped before its end."""
    incomplete = f"The answer to call {call.id} is incomplete: {what} (after {shown_chars} characters)."
    if call.authorization is None:
        return NotPaid(
            f"{incomplete} The gateway did not ask for a payment, and nothing was paid.",
            call_id=call.id,
            kind="timeout" if is_timeout else "connection",
        )
    return StreamInterrupted(
        f"{incomplete} What was served is charged; see the receipt. It is not sent again: call again if the rest "
        "is worth a new payment.",
        call_id=call.id,
        kind="timeout" if is_timeout else "connection",
    )


def broken_line(call: Call, exc: httpx.TransportError, *, shown_chars: int) -> OpenGradientError:
    """The connection failed while the answer was being read."""
    is_timeout = isinstance(exc, httpx.TimeoutException)
    what = (
        "nothing arrived within the time limit"
        if is_timeout
        else f"the connection broke ({str(exc) or type(exc).__name__})"
    )
    return interrupted(call, what, shown_chars=shown_chars, is_timeout=is_timeout)


def unreadable(call: Call, reason: object) -> OpenGradientError:
    """Something answered, and it is not a chat completion."""
    if call.authorization is None:
        return NotPaid(
            f"What answers at {call.base_url} did not ask for a payment, and its answer is not a chat completion "
            f"({reason}). Nothing was paid. Check the address, and that no proxy or login page answers.",
            call_id=call.id,
            kind="provider",
        )
    return ResponseInvalid(
        f"The gateway's answer to call {call.id} is not a chat completion ({reason}). The call may be charged; see "
        "its receipt. If it happens again, tell the gateway's operator the call id.",
        call_id=call.id,
    )


def refused(call: Call, status: int | None, body: Mapping[str, Any]) -> OpenGradientError:
    """The gateway, or the provider behind it, answered with an error; `status` is None inside a 2xx answer."""
    said = describe_error(body)
    kind = kind_of(status, said, body)
    shown = f" (HTTP {status})" if status is not None else ""
    if call.authorization is None:
        return NotPaid(
            f"The gateway refused call {call.id}{shown}: {said}. Nothing was paid.",
            call_id=call.id,
            status_code=status,
            kind=kind,
        )
    if call.is_doubtful:
        return PaymentOutcomeUnknown(
            f"The gateway answered the payment of call {call.id} with an error{shown}: {said}. Only the chain can say "
            "whether it takes the payment: `opengradient-x402 receipts reconcile` asks it. Nothing else was signed, "
            "and the next call offers the same payment again.",
            call_id=call.id,
            status_code=status,
            kind=kind,
        )
    return GatewayError(
        f"The gateway failed call {call.id}{shown}: {said}. The payment had been accepted; what is charged for the "
        "failure, if anything, is on the receipt once it settles. It was not tried again.",
        call_id=call.id,
        status_code=status,
        kind=kind,
    )


def withheld(call: Call, verdict: Verdict) -> ProofRejected:
    """Proofs are required, and this answer's does not hold."""
    return ProofRejected(
        f"The answer to call {call.id} is withheld: {verdict.sentence}. The call was served and will be charged; the "
        "receipt says how much, and is evidence against the gateway. Use another gateway, or "
        '`verify_tee="warn"` to see such answers.',
        call_id=call.id,
    )


_MAX_SHOWN: Final = 600
_BY_STATUS: Final[Mapping[int, ErrorKind]] = {
    400: "invalid_request",
    401: "authentication",
    403: "authentication",
    404: "model_not_found",
    408: "timeout",
    413: "context_length",
    415: "invalid_request",
    422: "invalid_request",
    429: "rate_limit",
    451: "content_filter",
    504: "timeout",
}
_BY_WORDS: Final[tuple[tuple[re.Pattern[str], ErrorKind], ...]] = (
    (
        re.compile(
            r"tokens per (min|day)|\btpm\b|rate[ _]limit|too many requests"
            r"|resource (has been )?exhausted|exceeded your (current )?quota|insufficient_quota|\boverloaded(_error)?\b"
        ),
        "rate_limit",
    ),
    (
        re.compile(
            r"context[ _](length|window|limit|size)|maximum context|too many (input |prompt )?tokens"  # OpenAI, vLLM
            r"|(prompt|input|request|message|conversation)s? (is|are) too (long|large)"  # Anthropic, Bedrock
            r"|(input )?token count .*exceeds|exceeds the maximum (number of tokens|prompt length)"  # Google
            r"|maximum (prompt|model|input|sequence) length|prompt contains \d+ tokens"  # xAI, vLLM, Mistral
            r"|prompt exceeds max|max_new_tokens. must be|input token count is \d+ but|string too long"
            r"|tokens .{0,40}exceeds? (the |max )(model limit|message tokens)|range of input length"  # ByteDance, Qwen
            r"|contextwindowexceeded"  # LiteLLM
            r"|reduce the length of the (messages|prompt|input)|exceeds? .{0,40}(max|limit)[a-z ]* \d+ (input )?tokens"
        ),
        "context_length",
    ),
    (
        re.compile(
            r"is not supported|model not found|model_not_found|no such model|unknown model"
            r"|model .{0,80} does not exist|models/.{0,80} is not found"  # OpenAI, Google
        ),
        "model_not_found",
    ),
    (
        re.compile(
            r"content[ _](filter|policy|management policy)|safety (system|filter|_check)|safety_check"
            r"|(blocked|filtered) due to|violat(es|ing) (our )?usage|flagged as|may contain sensitive information"
        ),
        "content_filter",
    ),
)
"""Words in providers' messages and codes that tell the kind of failure."""


def describe_error(body: Mapping[str, Any]) -> str:
    """The gateway's own words, shortened."""
    error = body.get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error
    text = error or body.get("detail") or body.get("title") or body.get("message") or "no reason given"
    return str(text).strip().rstrip(".")[:_MAX_SHOWN]


def kind_of(status: int | None, said: str, body: Mapping[str, Any]) -> ErrorKind:
    """The kind of failure: the provider's own status counts before the gateway's."""
    error = body.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    lowered = f"{said} {code or ''}".lower()
    for words, kind in _BY_WORDS:
        if words.search(lowered) and status not in (401, 403):
            return kind
    provider_status = body.get("provider_status")
    for code in (provider_status, status):
        if isinstance(code, int) and code in _BY_STATUS:
            return _BY_STATUS[code]
    return "provider"
