"""Errors as OpenAI clients read them: a status, `{"error": {…}}`, and whether a client may try again.

OpenAI's own clients obey `x-should-retry`. Others look at the status alone, and try 408, 409, 429 and all from 500
again. So no failure that may have been paid has one of these: it is 424, and `error.code` says what failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from opengradient_x402 import strict_json
from opengradient_x402.errors import (
    AllowanceMissing,
    BudgetExceeded,
    ConfigurationError,
    InsufficientFunds,
    NotPaid,
    OpenGradientError,
    PolicyRefused,
)
from opengradient_x402.ledger.receipts import SettlementReceipt

RECEIPT_HEADER: Final = "x-opengradient-receipt"
FAILED_AFTER_PAYMENT: Final = 424
_RETRY_AFTER_S: Final = "2"
_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND, _TOO_MANY, _NO_MONEY = 400, 403, 404, 429, 402
_UPSTREAM, _UNAVAILABLE = 502, 503
_OF_THE_REQUEST: Final[Mapping[str, int]] = {
    "invalid_request": _BAD_REQUEST,
    "configuration": _BAD_REQUEST,
    "context_length": _BAD_REQUEST,
    "content_filter": _BAD_REQUEST,
    "model_not_found": _NOT_FOUND,
}
"""Kinds of failure that the same request would meet again: no client tries these again."""
_CODES: Final = {"context_length": "context_length_exceeded", "rate_limit": "rate_limit_exceeded"}
"""OpenAI's names, where they differ from ours."""


def receipt_headers(receipt: SettlementReceipt | None) -> dict[str, str]:
    """The header that names the call, how its payment stands, and what it cost in atomic units, if that is known."""
    if receipt is None:
        return {}
    said = receipt.to_message()
    cost = next((f"; {name}={said[name]}" for name in ("cost_atomic", "estimated_cost_atomic") if name in said), "")
    return {RECEIPT_HEADER: f"{receipt.call_id}; status={receipt.status}{cost}"}


def error_body(
    message: str, *, kind: str, code: str, param: str | None = None, receipt: SettlementReceipt | None = None
) -> dict[str, Any]:
    """OpenAI's shape of an error, with the receipt beside it."""
    said: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return said if receipt is None else {**said, "opengradient": receipt.to_message()}


def refusal(
    status: int,
    message: str,
    *,
    code: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    may_retry: bool = False,
    receipt: SettlementReceipt | None = None,
) -> Response:
    """The response for a request that gets no answer."""
    headers = {"x-should-retry": "true" if may_retry else "false", **receipt_headers(receipt)}
    if may_retry:
        headers["retry-after"] = _RETRY_AFTER_S
    body = error_body(message, kind=kind, code=code, param=param, receipt=receipt)
    return Response(strict_json.dumps(body), status, headers, media_type="application/json")


def body_of(problem: OpenGradientError) -> dict[str, Any]:
    """The error's body; in a stream it is an event."""
    status = status_of(problem)
    return error_body(problem.message, kind=_type(problem, status), code=_code(problem), receipt=problem.receipt)


def refusal_of(problem: OpenGradientError) -> Response:
    """The response for a call that failed."""
    status = status_of(problem)
    return refusal(
        status,
        problem.message,
        code=_code(problem),
        kind=_type(problem, status),
        may_retry=isinstance(problem, NotPaid) and (problem.is_retryable or problem.kind == "rate_limit"),
        receipt=problem.receipt,
    )


def status_of(problem: OpenGradientError) -> int:
    """The status that OpenAI clients expect; after a payment, none that any client tries again."""
    if (of_request := _OF_THE_REQUEST.get(problem.kind)) is not None:
        return of_request
    if not isinstance(problem, NotPaid):
        return FAILED_AFTER_PAYMENT
    if isinstance(problem, BudgetExceeded) or problem.kind == "rate_limit":
        return _TOO_MANY
    if isinstance(problem, InsufficientFunds | AllowanceMissing):
        return _NO_MONEY
    if isinstance(problem, ConfigurationError):
        return _BAD_REQUEST
    if isinstance(problem, PolicyRefused):
        return _FORBIDDEN
    return _UNAVAILABLE if problem.is_retryable or problem.kind == "ledger" else _UPSTREAM


def _code(problem: OpenGradientError) -> str:
    if isinstance(problem, BudgetExceeded):
        return "insufficient_quota"
    if isinstance(problem, InsufficientFunds):
        return "insufficient_funds"
    return _CODES.get(problem.kind, problem.kind)


def _type(problem: OpenGradientError, status: int) -> str:
    if isinstance(problem, BudgetExceeded | InsufficientFunds | AllowanceMissing):
        return "insufficient_quota"
    if status in (_BAD_REQUEST, _NOT_FOUND):
        return "invalid_request_error"
    if status == _TOO_MANY:
        return "rate_limit_error"
    return "permission_error" if status == _FORBIDDEN else "api_error"
