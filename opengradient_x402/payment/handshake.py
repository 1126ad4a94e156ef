"""The 402 handshake as a generator: it decides, it never touches the network (x402 v2, HTTP transport).

Order of attempts: a live session; a payment of an earlier call whose fate is unknown; a pre-emptive signature over
known terms; an unpaid request, whose 402 tells the terms. At most one authorization a call: a second signature, after
the gateway changed its terms, is made in the same nonce space under the same nonce, so the chain can settle only one
of the two. After a signature has left, no answer of a gateway means "not paid": only the chain says that.

Who may be paid is `policy`, what is remembered is `payments`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, cast

import httpx

from opengradient_x402.effects import Read, Send, Steps, Wait
from opengradient_x402.errors import (
    BudgetExceeded,
    ChallengeInvalid,
    GatewayUnreachable,
    LedgerUnavailable,
    NotPaid,
    PaidButFailed,
    PaymentOutcomeUnknown,
)
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.payment.approval import approved
from opengradient_x402.payment.call import Call, payment_claims
from opengradient_x402.payment.challenge import Challenge, PaymentTerms, parse_challenge
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.permits import Doubtful, Fate, SignedPayment
from opengradient_x402.payment.sessions import PaidSession, SessionKey, Ticket, Waiting
from opengradient_x402.telemetry.spans import HTTP_TRACER, unpaid

SESSION_HEADER = "X-Upto-Session"
CHALLENGE_HEADER = "PAYMENT-REQUIRED"
SIGNATURE_HEADER = "PAYMENT-SIGNATURE"
RESPONSE_HEADER = "PAYMENT-RESPONSE"

_SESSION_ID = re.compile(r"[A-Za-z0-9._~-]{8,256}", re.ASCII)
_MAX_DEAD_SESSIONS = 32
_MAX_REASON_CHARS = 300
T = TypeVar("T")
_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Failures before a single byte of the request was written, unless `_carry` has seen otherwise."""


def pay(request: httpx.Request, *, call: Call, payments: Payments) -> Steps[httpx.Response]:
    """Obtain a response to `request`, paying for it if the gateway wants that."""
    payments.gateways.check_endpoint(str(request.url))
    if call.authorization is not None:
        raise PaidButFailed(
            f"Call {call.id} is already paid, and its response led to another request ({request.url.host}). "
            "It was not sent: one call pays once. Check the gateway's address; it must not redirect.",
            call_id=call.id,
        )
    key = payments.session_key(request)
    started, dead_sessions = time.monotonic(), 0
    while dead_sessions < _MAX_DEAD_SESSIONS:
        seat = payments.sessions.enter(key, blocking=call.is_blocking)
        if isinstance(seat, Waiting):
            yield from _wait_for_opening(seat, call, waited_s=time.monotonic() - started)
        elif isinstance(seat, Ticket):
            try:
                return (yield from _open(request, call, payments, seat))
            finally:
                payments.sessions.closed(seat)
        else:
            response = yield from _ride(request, call, payments, seat)
            if response is not None:
                return response
            dead_sessions += 1
    raise GatewayUnreachable(
        f"{key.origin} ended {_MAX_DEAD_SESSIONS} paid sessions in a row without serving call {call.id}. This call was "
        "not charged. The gateway is faulty: try again later, or use another one.",
        call_id=call.id,
    )


def _wait_for_opening(seat: Waiting, call: Call, *, waited_s: float) -> Steps[None]:
    try:
        # The time limit holds for all openings that this call waits for, not for each.
        yield Wait(seat.done, None if call.timeout_s is None else max(0.0, call.timeout_s - waited_s))
    except TimeoutError as exc:
        raise GatewayUnreachable(
            f"Call {call.id} waited {call.timeout_s:g} s for another call to open the paid session, which the "
            "gateway has not answered yet. Nothing was signed for this call. Try again, or raise `timeout`.",
            call_id=call.id,
            kind="timeout",
        ) from exc


def _ride(request: httpx.Request, call: Call, payments: Payments, session: PaidSession) -> Steps[httpx.Response | None]:
    """Send within a live session. None: the gateway no longer knows the session, and did not serve."""
    payments.attach_session(call, session)
    try:
        payments.check_call(call, session.key, terms=session.authorization.terms)
        yield from _check_limits(call, payments, session.key, session.authorization)
    except BaseException:  # refused, or cancelled: nothing of this call was sent
        payments.detach(call)
        raise
    try:
        response = yield from _carry(_asking(_with_header(request, SESSION_HEADER, session.id), call), call)
    except _NEVER_LEFT:
        payments.detach(call)
        raise
    except httpx.TransportError as exc:
        raise _outcome_unknown(call, exc) from exc
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return (yield from _answered(response, call))
    # "Session expired or exhausted", or new terms: this request was not served, so it may be paid anew.
    payments.sessions.retire(session)
    payments.detach(call)
    if CHALLENGE_HEADER in response.headers:
        yield from _read_challenge(response, payments, session.key)
    else:
        yield Read(response)  # unread: its body means nothing, and may be endless
    return None


def _check_limits(call: Call, payments: Payments, key: SessionKey, authorization: Authorization) -> Steps[None]:
    """Refuses a call that could take a run above its limit, once the chain was asked what its earlier calls cost."""
    try:
        payments.check_limits(call, key, authorization)
    except BudgetExceeded:
        if not any(limit.unknown for limit in call.limits):
            raise
        yield Wait(payments.recount(call))
        payments.check_limits(call, key, authorization)


def _open(request: httpx.Request, call: Call, payments: Payments, ticket: Ticket) -> Steps[httpx.Response]:
    """Pay with an authorization: one in doubt if there is one, else a new one over the known or asked terms."""
    response: httpx.Response | None
    if (doubtful := payments.doubts.take(ticket.key)) is not None:
        response = yield from _offer_again(request, call, payments, ticket, doubtful)
        if response is not None:
            return response
    challenge = payments.known_terms(ticket.key)
    was_asked = challenge is None
    if challenge is None:
        payments.ledger.open_soon()  # while the gateway is asked for its terms
        response = yield Send(_asking(request, call))
        if response.status_code != httpx.codes.PAYMENT_REQUIRED:
            return response
        challenge = yield from _read_challenge(response, payments, ticket.key)
    signed = yield from _authorize(challenge, request, call, payments, ticket.key)
    response = yield from _send_signed(request, call, payments, ticket, signed)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    return (yield from _asked_again(response, request, call, payments, ticket, signed, may_sign=not was_asked))


def _offer_again(
    request: httpx.Request, call: Call, payments: Payments, ticket: Ticket, doubtful: Doubtful
) -> Steps[httpx.Response | None]:
    """Offer an earlier call's payment, whose fate is unknown. None: it is spent or expired, by the chain's word."""
    signed, origin = doubtful.signed, ticket.key.origin
    if doubtful.is_taken:
        if (yield from _from_ledger(payments.gateways.open_dispute(origin), call)) is None:  # cleared meanwhile
            return None
        call.authorization = signed.authorization
        raise payments.taken(call, doubtful, ticket.key)
    try:
        yield from _check_limits(call, payments, ticket.key, signed.authorization)
    except BaseException:  # it was not offered, and the next call may offer it
        payments.doubts.add(ticket.key, Doubtful(signed, was_refused=doubtful.was_refused))
        raise
    response = yield from _send_signed(request, call, payments, ticket, signed)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    fate: Fate = yield Wait(payments.fate(signed.authorization))
    if fate is Fate.OPEN:
        return (yield from _asked_again(response, request, call, payments, ticket, signed, may_sign=True))
    if fate is Fate.SETTLED and doubtful.was_refused:
        yield Read(response)
        with suppress(TimeoutError):  # it is recorded as soon as the database can be written
            yield Wait(payments.dispute_refused(signed), call.left_s)
        raise payments.taken(call, doubtful, ticket.key)
    payments.detach(call)
    call.has_signed_out = False  # that was another call's payment
    yield from _read_challenge(response, payments, ticket.key)
    return None


def _asked_again(
    response: httpx.Response,
    request: httpx.Request,
    call: Call,
    payments: Payments,
    ticket: Ticket,
    signed: SignedPayment,
    *,
    may_sign: bool,
) -> Steps[httpx.Response]:
    """The gateway answered a payment with 402. Terms that changed are signed once more, under the same nonce.

    Otherwise the outcome is unknown: the gateway holds a signature that can settle until its deadline.
    """
    claims = payment_claims(response.headers.get(RESPONSE_HEADER))
    current, why = yield from _terms_after(response, payments, ticket.key)
    if may_sign and not claims and current is not None and signed.accepted.raw not in [o.raw for o in current.terms]:
        try:
            again = yield from _authorize(current, request, call, payments, ticket.key, earlier=signed.authorization)
        except NotPaid as exc:
            payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
            raise payments.unresolved(call, signed, ticket.key, f"{why}; its new terms are refused: {exc}") from exc
        except BaseException:
            payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
            raise
        signed = again
        response = yield from _send_signed(request, call, payments, ticket, signed)
        if response.status_code != httpx.codes.PAYMENT_REQUIRED:
            return response
        claims = payment_claims(response.headers.get(RESPONSE_HEADER))
        _, why = yield from _terms_after(response, payments, ticket.key)
    call.claims = claims
    payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
    why = str(claims.get("errorReason") or why)[:_MAX_REASON_CHARS]
    raise payments.unresolved(call, signed, ticket.key, why)


def _terms_after(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[tuple[Challenge | None, str]]:
    """What a 402 after a signature asks for, if it can be read, and why the payment was not taken."""
    try:
        challenge = yield from _read_challenge(response, payments, key)
    except NotPaid as exc:
        return None, f"its answer cannot be read ({type(exc).__name__})"
    return challenge, challenge.error or "no reason given"


def _acceptable(
    challenge: Challenge, call: Call, payments: Payments, key: SessionKey, earlier: Authorization | None
) -> Steps[PaymentTerms]:
    """The terms to sign, when gateway, price, funds, facilitator and clock are as they must be."""
    if (last := payments.gateways.recall_price(key.origin)) is not None:
        payments.gateways.recalled_price(key.origin, (yield from _from_ledger(last, call)))
    if (yield from _from_ledger(payments.gateways.open_dispute(key.origin), call)) is not None:
        raise payments.gateways.disputed(key.origin)
    terms = payments.choose(challenge, key, payees=call.payees, earlier=earlier)
    payments.check_call(call, key, terms=terms)
    funds = payments.funds.check(terms, challenge)
    needs_approval = funds is not None and (yield Wait(funds))
    if (pin := payments.gateways.pin_facilitator(terms, key.origin)) is not None:
        payments.gateways.confirm_facilitator(terms, key.origin, (yield from _from_ledger(pin, call)))
    if (asked := payments.clock.check()) is not None:
        yield Wait(asked)
    if payments.policy.approval is not None:
        yield from approved(
            terms,
            call,
            payer=payments.payer,
            asset=payments.network.asset,
            policy=payments.policy,
            ledger=payments.ledger,
        )
    if needs_approval:
        yield Wait(payments.funds.sponsor(terms, challenge))
    return terms


def _authorize(
    challenge: Challenge,
    request: httpx.Request,
    call: Call,
    payments: Payments,
    key: SessionKey,
    *,
    earlier: Authorization | None = None,
) -> Steps[SignedPayment]:
    """Check what there is to check, reserve the budget durably, then sign.

    `earlier` is an authorization whose signature has left: only terms in its nonce space are signed, under its nonce.
    """
    terms = yield from _acceptable(challenge, call, payments, key, earlier)
    drafted = payments.draft(terms, call, str(request.url), earlier=earlier)
    yield from _check_limits(call, payments, key, drafted)
    try:
        try:
            authorization = yield from _from_ledger(payments.reserve(drafted), call)
        except BudgetExceeded:
            # Authorizations past their deadline may hold budget that was never spent: ask the chain first.
            with suppress(TimeoutError):
                yield Wait(payments.reclaim(), call.left_s)
            if call.left_s is not None and call.left_s <= 0:
                raise
            authorization = yield from _from_ledger(payments.reserve(drafted), call)
        return payments.sign(terms, authorization, challenge)
    except BaseException:  # cancelled, or the signer failed: what never left must not hold budget
        if not call.has_signed_out:
            payments.ledger.mark_unsent(drafted.id)
        raise


def _from_ledger(answer: Future[T], call: Call) -> Steps[T]:
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


def _send_signed(
    request: httpx.Request, call: Call, payments: Payments, ticket: Ticket, signed: SignedPayment
) -> Steps[httpx.Response]:
    is_first_use = signed.authorization.call_id == call.id
    payments.attach(call, signed.authorization)
    try:
        response = yield from _carry(_with_header(request, SIGNATURE_HEADER, signed.header), call)
    except _NEVER_LEFT as exc:
        if is_first_use and call.has_signed_out:
            # An earlier signature under this nonce is out: the gateway refused it, and holds it all the same.
            payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
            raise _outcome_unknown(call, exc) from exc
        payments.detach(call)
        if is_first_use:
            with suppress(TimeoutError):  # it is done as soon as the database can be written
                yield Wait(payments.ledger.mark_unsent(signed.authorization.id), call.left_s)
        else:
            payments.doubts.add(ticket.key, Doubtful(signed))
        raise
    except httpx.TransportError as exc:
        payments.doubts.add(ticket.key, Doubtful(signed))
        raise _outcome_unknown(call, exc) from exc
    except BaseException:  # cancelled or interrupted while the signature was on its way
        payments.doubts.add(ticket.key, Doubtful(signed))
        raise
    call.has_signed_out = True
    if response.status_code == httpx.codes.PAYMENT_REQUIRED:
        return response
    if _bought(response, call, payments, ticket, signed):
        payments.gateways.accepted(ticket.key.origin, amount_atomic=signed.authorization.terms.amount_atomic)
    else:
        call.is_doubtful = True
        payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
        payments.gateways.refused(ticket.key.origin)
    return (yield from _answered(response, call))


def _bought(response: httpx.Response, call: Call, payments: Payments, ticket: Ticket, signed: SignedPayment) -> bool:
    """Whether the answer shows what the payment bought: a session, or this one answer."""
    session_id = response.headers.get(SESSION_HEADER)
    if session_id is not None and _SESSION_ID.fullmatch(session_id):
        call.session = payments.sessions.opened(ticket, session_id=session_id, authorization=signed.authorization)
        payments.reports.opened(signed.authorization, origin=ticket.key.origin)
    elif response.is_success:
        call.claims = payment_claims(response.headers.get(RESPONSE_HEADER))
        payments.sessions.sessionless(ticket)
    else:
        return False
    return True


def _answered(response: httpx.Response, call: Call) -> Steps[httpx.Response]:
    call.is_answered = not call.is_doubtful
    # The session's id spends its cap: nobody above, and no repr or log of theirs, needs it.
    response.headers.pop(SESSION_HEADER, None)
    call.headers = response.headers
    if response.has_redirect_location:
        yield Read(response)
        raise PaidButFailed(
            f"The gateway answered the paid call {call.id} with a redirect to another address. It was not "
            "followed: a payment is never carried to another host. The call may be charged; see its receipt. "
            "Set the gateway's final address as `base_url`.",
            call_id=call.id,
            status_code=response.status_code,
        )
    return response


def _read_challenge(response: httpx.Response, payments: Payments, key: SessionKey) -> Steps[Challenge]:
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


def _asking(request: httpx.Request, call: Call) -> httpx.Request:
    """A request that may be answered by a challenge, which is no error where a tracer looks on."""
    return unpaid(request, is_blocking=call.is_blocking) if HTTP_TRACER in sys.modules else request


def _with_header(request: httpx.Request, name: str, value: str) -> httpx.Request:
    """A copy that carries the payment; the caller's request never does, so no redirect can carry it on."""
    paid = httpx.Request(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )
    paid.headers[name] = value
    return paid


def _carry(paid: httpx.Request, call: Call) -> Steps[httpx.Response]:
    """Sends what carries a payment. What httpx reports of its writing counts more than the error that comes out.

    A transport of the user's may send more than once, and a hook of an httpx client may fail afterwards.
    """
    also, is_written = paid.extensions.get("trace"), False

    def note(name: str, info: Mapping[str, Any]) -> Any:
        nonlocal is_written  # CONNECT is written to a proxy, without the payment
        is_written |= name.endswith("send_request_headers.started") and info["request"].method != b"CONNECT"
        return None if also is None else also(name, info)

    async def anote(name: str, info: Mapping[str, Any]) -> None:
        if (answer := note(name, info)) is not None:
            await answer

    paid.extensions = {**paid.extensions, "trace": note if call.is_blocking else anote}
    try:
        return cast("httpx.Response", (yield Send(paid)))
    except _NEVER_LEFT as exc:
        if not is_written:
            raise
        kind = httpx.ReadTimeout if isinstance(exc, httpx.TimeoutException) else httpx.ReadError
        raise kind(str(exc), request=paid) from exc


def _outcome_unknown(call: Call, cause: httpx.TransportError) -> PaymentOutcomeUnknown:
    what = "timed out" if isinstance(cause, httpx.TimeoutException) else f"broke ({type(cause).__name__})"
    return PaymentOutcomeUnknown(
        f"The connection {what} after the payment of call {call.id} had been sent. It may be charged, up to its "
        "authorization, and it is not sent again. `opengradient-x402 receipts reconcile` tells from the chain "
        "what was taken.",
        call_id=call.id,
        kind="timeout" if isinstance(cause, httpx.TimeoutException) else "connection",
    )
