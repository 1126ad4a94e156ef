"""The steps that all ways to pay share: limits, a person's approval, the ledger's answer, and what a 402 asks for.

With `SpendPolicy(approve_above=…, approval=…)` a person is asked before a signature. Nothing is signed before the
answer, and nothing after a refusal; the decision is noted in the ledger.
Which way is taken, and in which order, is decided by `handshake` and `channels`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, cast

import httpx

from opengradient_x402.effects import Read, Steps, Wait
from opengradient_x402.errors import (
    BudgetExceeded,
    ChainUnavailable,
    ChallengeInvalid,
    LedgerUnavailable,
    NotPaid,
)
from opengradient_x402.ledger.authorizations import DECISION_NOTED_AS, Authorization
from opengradient_x402.money import format_amount
from opengradient_x402.payment.approval import Approval, ApprovalRequest, asked, not_approved
from opengradient_x402.payment.call import Call, payment_claims
from opengradient_x402.payment.challenge import (
    CHALLENGE_HEADER,
    RESPONSE_HEADER,
    Challenge,
    PaymentTerms,
    parse_challenge,
)
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.sessions import SessionKey

T = TypeVar("T")


def check_limits(call: Call, payments: Payments, key: SessionKey, authorization: Authorization) -> Steps[None]:
    """Refuses a call that could take a run above its limit, once the chain was asked what its earlier calls cost."""
    try:
        payments.check_limits(call, key, authorization)
    except BudgetExceeded:
        if not any(limit.unknown for limit in call.limits):
            raise
        with suppress(TimeoutError):  # what is not known by then counts with its worst case
            yield Wait(payments.doubts.recount(call), call.left_s)
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


def from_chain(answer: Future[T], call: Call, problem: str) -> Steps[T]:
    """What is found out on the chain before anything is signed, within the time limit of the call."""
    try:
        return cast("T", (yield Wait(answer, call.left_s)))
    except TimeoutError as exc:
        raise ChainUnavailable(
            f"{problem} within the {call.timeout_s or 0:g} s of call {call.id}: the node does not answer. Nothing was "
            "signed for this call. Try again, raise `timeout`, or use another `rpc_url`.",
            call_id=call.id,
        ) from exc


def read_challenge(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[Challenge]:
    """What a 402 asks for, remembered for the next call. Raises ChallengeInvalid."""
    header = response.headers.get(CHALLENGE_HEADER)
    yield Read(response)
    payments.forget_terms(key)
    if header is None:
        raise ChallengeInvalid(
            f"{key.origin} answered 402 without a PAYMENT-REQUIRED header, so it cannot be paid. "
            "Nothing was paid for this request. Check that the address is an x402 v2 gateway.",
            status_code=402,
        )
    payments.clock.compare(response.headers.get("date"))
    challenge = parse_challenge(header)
    payments.remember_terms(key, challenge)
    return challenge


def payment_response(response: httpx.Response) -> dict[str, Any]:
    """What the gateway claims of the payment in its header; nothing when that cannot be read."""
    return payment_claims(response.headers.get(RESPONSE_HEADER))


def terms_after(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[tuple[Challenge | None, str]]:
    """What a 402 after a signature asks for, if it can be read, and why the payment was not taken."""
    try:
        challenge = yield from read_challenge(response, payments, key)
    except NotPaid as exc:
        return None, f"its answer cannot be read ({type(exc).__name__})"
    return challenge, challenge.error or "no reason given"


def acceptable(
    challenge: Challenge, call: Call, payments: Payments, key: SessionKey, earlier: Authorization | None
) -> Steps[PaymentTerms]:
    """The terms to sign, when gateway, price, funds, facilitator and clock are as they must be, and a person agrees.

    After an `earlier` signature only terms in its nonce space are. Raises NotPaid.
    """
    if (last := payments.gateways.recall_price(key.origin)) is not None:
        payments.gateways.recalled_price(key.origin, (yield from from_ledger(last, call)))
    against = yield from from_ledger(payments.objections(key), call)
    if against.dispute is not None:
        raise payments.gateways.disputed(key.origin)
    terms = payments.choose(challenge, key, payees=call.payees, earlier=earlier)
    payments.check_call(call, key, terms=terms)
    if against.is_loss:
        yield from _with_whole_ledger(payments, call)
    funds = None if terms.channel is not None else payments.funds.check(terms, challenge)
    needs_approval = funds is not None and (yield Wait(funds))
    if (pin := payments.gateways.pin_facilitator(terms, key.origin)) is not None:
        payments.gateways.confirm_facilitator(terms, key.origin, (yield from from_ledger(pin, call)))
    yield from with_right_clock(payments, call)
    yield from agreed(terms, challenge, call, payments, needs_approval=needs_approval)
    return terms


def _with_whole_ledger(payments: Payments, call: Call) -> Steps[None]:
    """Returns when the chain shows that the ledger misses no payment of today. Raises LedgerUnavailable."""
    from opengradient_x402.settlement.lost import found_in

    problem = f"{found_in(payments.ledger)}. Which of its payments are missing could not be read from the chain"
    refusal = yield from from_chain(payments.doubts.refusal(), call, problem)
    if refusal is not None:
        raise LedgerUnavailable(refusal, is_retryable=False)


def agreed(
    terms: PaymentTerms, challenge: Challenge, call: Call, payments: Payments, *, needs_approval: bool
) -> Steps[None]:
    """Returns when a person agrees, where one must be asked, and the clock can be signed with.

    What the payment needs to settle (`needs_approval`) is signed then. Raises NotPaid.
    """
    yield from approved(terms, call, payments)
    yield from with_right_clock(payments, call)  # it can be set, or the machine can sleep, while one waits
    if needs_approval:
        yield from sponsored(terms, challenge, call, payments)


def sponsored(terms: PaymentTerms, challenge: Challenge, call: Call, payments: Payments) -> Steps[None]:
    """Signs the approval that travels with the payment; the payment itself is then signed with a right clock."""
    yield from from_chain(payments.funds.sponsor(terms, challenge), call, "An approval could not be prepared")
    yield from with_right_clock(payments, call)


def with_right_clock(payments: Payments, call: Call) -> Steps[None]:
    """Returns when this machine's clock is known to be right. Raises PolicyRefused, ChainUnavailable."""
    while (asked := payments.clock.check()) is not None:
        yield from from_chain(asked, call, "This machine's clock could not be checked")


def approved(terms: PaymentTerms, call: Call, payments: Payments) -> Steps[None]:
    """Returns when the payment may be signed. Raises PaymentNotApproved when it may not, or nobody answered in time.

    The time that the answer takes is not counted as time of the call.
    """
    asset, policy = payments.network.asset, payments.policy
    least_atomic = policy.approve_above_atomic(asset)
    if least_atomic is None or terms.amount_atomic <= least_atomic:
        return
    request = ApprovalRequest(
        call_id=call.id,
        endpoint=call.base_url,
        payee=terms.pay_to,
        payer=payments.payer,
        network=terms.network,
        scheme=terms.scheme,
        amount_atomic=terms.amount_atomic,
        amount=format_amount(terms.amount_atomic, decimals=asset.decimals),
        symbol=asset.symbol,
        model=call.model,
    )
    asked_at, asked_s = int(time.time()), time.monotonic()
    answer, give_up = asked(cast("Approval", policy.approval), request, is_blocking=call.is_blocking)
    try:
        verdict = "approved" if (yield Wait(answer, policy.approval_timeout_s)) is True else "refused"
    except TimeoutError:
        verdict = "unanswered"
    finally:
        give_up()
        call.began_s += time.monotonic() - asked_s
    decision = {**request.to_json(), "asked_at": asked_at, "decided_at": int(time.time()), "decision": verdict}
    yield Wait(payments.ledger.note(f"{DECISION_NOTED_AS} {call.id}", json.dumps(decision)), call.left_s)
    if verdict != "approved":
        raise not_approved(request, verdict, policy.approval_timeout_s)
