"""The steps that all ways to pay share: a signed request goes out, and what came back is read.

Which way is taken, and in which order, is decided by `handshake` and `channels`.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Final, TypeVar, cast

import httpx

from opengradient_x402.effects import Read, Steps, Wait
from opengradient_x402.errors import (
    BudgetExceeded,
    ChallengeInvalid,
    LedgerUnavailable,
    NotPaid,
)
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.payment.call import Call, payment_claims
from opengradient_x402.payment.challenge import Challenge, parse_challenge
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.sessions import SessionKey

CHALLENGE_HEADER: Final = "PAYMENT-REQUIRED"
SIGNATURE_HEADER: Final = "PAYMENT-SIGNATURE"
RESPONSE_HEADER: Final = "PAYMENT-RESPONSE"
T = TypeVar("T")


def check_limits(call: Call, payments: Payments, key: SessionKey, authorization: Authorization) -> Steps[None]:
    """Refuses a call that could take a run above its limit, once the chain was asked what its earlier calls cost."""
    try:
        payments.check_limits(call, key, authorization)
    except BudgetExceeded:
        if not any(limit.unknown for limit in call.limits):
            raise
        yield Wait(payments.recount(call))
        payments.check_limits(call, key, authorization)


def from_ledger(answer: Future[T], call: Call) -> Steps[T]:
    """What the ledger answers, within the time limit of the call."""
    try:
        return cast("T", (yield Wait(answer, call.left_s)))
    except TimeoutError as exc:
        answer.cancel()  # what has not begun is not done later
        raise LedgerUnavailable(
            f"The ledger did not answer within the {call.timeout_s or 0:g} s of call {call.id}: another program holds "
            "it, or its server hangs. Nothing was signed for this call. End that program (`opengradient-x402 ledger "
            "check` looks at the ledger), try again, or raise `timeout`.",
            call_id=call.id,
        ) from exc


def read_challenge(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[Challenge]:
    header = response.headers.get(CHALLENGE_HEADER)
    yield Read(response)
    payments.forget_terms(key)
    if header is None:
        raise ChallengeInvalid(
            f"{key.origin} answered 402 without a PAYMENT-REQUIRED header, so it cannot be paid. "
            "Nothing was paid for this request. Check that the address is an x402 v2 gateway.",
            status_code=402,
        )
    payments.clock.heard(response.headers.get("date"))
    challenge = parse_challenge(header)
    payments.remember_terms(key, challenge)
    return challenge


def payment_response(response: httpx.Response) -> dict[str, Any]:
    return payment_claims(response.headers.get(RESPONSE_HEADER))


def terms_after(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[tuple[Challenge | None, str]]:
    """What a 402 after a signature asks for, if it can be read, and why the payment was not taken."""
    try:
        challenge = yield from read_challenge(response, payments, key)
    except NotPaid as exc:
        return None, f"its answer cannot be read ({type(exc).__name__})"
    return challenge, challenge.error or "no reason given"
