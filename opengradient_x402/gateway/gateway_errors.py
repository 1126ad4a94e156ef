"""What a gateway's error body says, and of what kind it is.

Gateways answer with `{"error": …}`, with `application/problem+json`, or with
`{error, exception_type, source, provider_status, retryable}` (docs/wire.md, "Errors"). Pure; knows no payments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opengradient_x402.errors import ErrorKind

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
_BY_PHRASE: Final[tuple[tuple[str, ErrorKind], ...]] = (
    ("context length", "context_length"),
    ("context_length", "context_length"),
    ("maximum context", "context_length"),
    ("too many tokens", "context_length"),
    ("is not supported", "model_not_found"),
    ("model not found", "model_not_found"),
    ("rate limit", "rate_limit"),
    ("content filter", "content_filter"),
    ("content policy", "content_filter"),
)


def describe_error(body: Mapping[str, Any]) -> str:
    """The gateway's own words, shortened."""
    error = body.get("error")
    if isinstance(error, Mapping):
        error = error.get("message") or error
    text = error or body.get("detail") or body.get("title") or body.get("message") or "no reason given"
    return str(text).strip().rstrip(".")[:_MAX_SHOWN]


def kind_of(status: int | None, said: str, body: Mapping[str, Any]) -> ErrorKind:
    """The kind of failure: the provider's own status counts before the gateway's."""
    lowered = said.lower()
    for phrase, kind in _BY_PHRASE:
        if phrase in lowered and status not in (401, 403):
            return kind
    provider_status = body.get("provider_status")
    for code in (provider_status, status):
        if isinstance(code, int) and code in _BY_STATUS:
            return _BY_STATUS[code]
    return "provider"
