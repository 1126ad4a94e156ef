"""The 402 handshake as a generator: it decides, it never touches the network (x402 v2, HTTP transport).

Order of attempts: a live session; a payment of an earlier call whose fate is unknown; a pre-emptive signature over
known terms; an unpaid request, whose 402 tells the terms. At most one authorization a call: a second signature, after
the gateway changed its terms, is made in the same nonce space under the same nonce, so the chain can settle only one
of the two. After a signature has left, no answer of a gateway means "not paid": only the chain says that.

Who may be paid is `policy`, what is remembered is `payments`.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress

import httpx

from opengradient_x402.effects import Read, Send, Steps, Wait
from opengradient_x402.errors import (
    BudgetExceeded,
    CallKnown,
    GatewayUnreachable,
    LedgerUnavailable,
    NotPaid,
    OpenGradientError,
    PaidButFailed,
    PaymentOutcomeUnknown,
)
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.payment.call import (
    NEVER_LEFT,
    Call,
    answered,
    asking,
    carry,
    in_session,
    outcome_unknown,
    with_header,
)
from opengradient_x402.payment.challenge import CHALLENGE_HEADER, SIGNATURE_HEADER, Challenge, PaymentTerms
from opengradient_x402.payment.channels.calls import pay_by_channel
from opengradient_x402.payment.doubts import Doubtful, Fate, not_served
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.permits import SignedPayment
from opengradient_x402.payment.sessions import SESSION_HEADER, PaidSession, SessionKey, Ticket, Waiting
from opengradient_x402.payment.steps import (
    acceptable,
    check_limits,
    from_ledger,
    payment_response,
    read_challenge,
    terms_after,
)

_SESSION_ID = re.compile(r"[A-Za-z0-9._~-]{8,256}", re.ASCII)
_MAX_DEAD_SESSIONS = 32
_MAX_REASON_CHARS = 300


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
    if call.earlier is not None:
        return (yield from _repeat(request, call, payments, key, call.earlier))
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
        payments.check_call(call, session.key, terms=session.terms)
        if call.limits:
            yield from check_limits(call, payments, session.key, session.authorization)
        if call.is_keyed:
            yield from from_ledger(payments.begun(call, session.authorization), call)
    except BaseException:  # refused, or cancelled: nothing of this call was sent
        payments.detach(call)
        raise
    try:
        response = yield from carry(in_session(request, call, session), call)
    except NEVER_LEFT:
        payments.detach(call)
        raise
    except httpx.TransportError as exc:
        raise outcome_unknown(call, exc) from exc
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return (yield from answered(response, call))
    # "Session expired or exhausted", or new terms: this request was not served, so it may be paid with a new payment.
    payments.sessions.retire(session)
    payments.detach(call)
    if CHALLENGE_HEADER in response.headers:
        yield from read_challenge(response, payments, session.key)
    else:
        yield Read(response)  # unread: its body means nothing, and may be endless
    return None


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
        response = yield Send(asking(request, call))
        if response.status_code != httpx.codes.PAYMENT_REQUIRED:
            return response
        challenge = yield from read_challenge(response, payments, ticket.key)
    terms = yield from acceptable(challenge, call, payments, ticket.key, None)
    if terms.channel is not None:
        payments.sessions.sessionless(ticket)  # others need not wait for this call
        return (yield from pay_by_channel(request, call, payments, ticket.key, terms=terms, challenge=challenge))
    signed = yield from _authorize(terms, challenge, request, call, payments, ticket.key)
    response = yield from _send_signed(request, call, payments, ticket, signed)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    return (yield from _asked_again(response, request, call, payments, ticket, signed, may_sign=not was_asked))


def _repeat(
    request: httpx.Request, call: Call, payments: Payments, key: SessionKey, earlier: Authorization
) -> Steps[httpx.Response]:
    """Pay with what an earlier process signed for this call, or else under its nonce: one of the two settles at most.

    A gateway that has taken it refuses it, unless it gives its answer again.
    """
    call.has_signed_out = True
    challenge = payments.known_terms(key)
    if challenge is None:
        response: httpx.Response = yield Send(asking(request, call))
        if response.status_code != httpx.codes.PAYMENT_REQUIRED:
            return response
        challenge = yield from read_challenge(response, payments, key)
    terms = yield from acceptable(challenge, call, payments, key, earlier)
    is_open = earlier.status in ("signed", "expired") and not call.is_only_given_again
    if payments.is_same(terms, earlier) and (challenge.gives_again or (is_open and not earlier.is_over)):
        yield from check_limits(call, payments, key, earlier)
        signed = payments.sign(terms, earlier, challenge, is_for_one=True)
    elif is_open:
        signed = yield from _authorize(terms, challenge, request, call, payments, key, earlier=earlier)
    else:
        raise CallKnown(
            f"The payment of call {call.id} was or may be taken, and {key.origin} gives no answer twice. Nothing was "
            f"paid now. `opengradient-x402 receipts show {call.id}` shows what became of it. To pay for a new answer, "
            "make the call under another id.",
            call_id=call.id,
        )
    ticket = Ticket(key, threading.get_ident())
    response = yield from _send_signed(request, call, payments, ticket, signed)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    call.claims = payment_response(response)
    _, why = yield from terms_after(response, payments, key)
    # An earlier process may have spent this payment: the gateway is not paused for the refusal.
    reason = str(call.claims.get("errorReason") or why)[:_MAX_REASON_CHARS]
    raise not_served(signed, origin=key.origin, call_id=call.id, reason=reason, asset=payments.network.asset)


def _offer_again(
    request: httpx.Request, call: Call, payments: Payments, ticket: Ticket, doubtful: Doubtful
) -> Steps[httpx.Response | None]:
    """Offer an earlier call's payment, whose fate is unknown. None: the chain shows that it is spent or expired."""
    signed = doubtful.signed
    if not (yield from _may_offer(doubtful, call, payments, ticket.key)):
        return None
    response = yield from _send_signed(request, call, payments, ticket, signed)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    fate = yield from _fate_of(doubtful, call, payments, ticket.key)
    if fate is Fate.OPEN:
        return (yield from _asked_again(response, request, call, payments, ticket, signed, may_sign=True))
    if fate is Fate.SETTLED and doubtful.was_refused:
        taken = payments.doubts.taken(call, doubtful, ticket.key)  # remembered also when this call is cancelled now
        yield Read(response)
        with suppress(TimeoutError, LedgerUnavailable):  # it is recorded as soon as the database can be written
            yield Wait(payments.doubts.dispute(signed), call.left_s)
        raise taken
    payments.detach(call)
    call.has_signed_out = False  # that was another call's payment
    yield from read_challenge(response, payments, ticket.key)
    return None


def _may_offer(doubtful: Doubtful, call: Call, payments: Payments, key: SessionKey) -> Steps[bool]:
    """False when its dispute was cleared. Raises what forbids to offer it now; it is kept for the next call then."""
    try:
        if doubtful.is_taken:
            if (yield from from_ledger(payments.objections(key), call)).dispute is None:
                return False
        else:
            yield from check_limits(call, payments, key, doubtful.signed.authorization)
            if call.is_keyed:
                yield from from_ledger(payments.begun(call, doubtful.signed.authorization), call)
    except BaseException:
        payments.doubts.add(key, doubtful)
        raise
    if doubtful.is_taken:
        call.authorization = doubtful.signed.authorization
        raise payments.doubts.taken(call, doubtful, key)
    return True


def _fate_of(doubtful: Doubtful, call: Call, payments: Payments, key: SessionKey) -> Steps[Fate]:
    """What the chain says of a payment that was refused now; open, when that is not found out in the call's time."""
    try:
        fate: Fate = yield Wait(payments.doubts.fate(doubtful.signed.authorization), call.left_s)
    except (TimeoutError, OpenGradientError):  # of the ledger, too: a signature has left, so nothing is "not paid"
        return Fate.OPEN
    except BaseException:  # cancelled
        payments.doubts.add(key, doubtful._replace(was_refused=True))
        raise
    return fate


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
    try:
        claims = payment_response(response)
        current, why = yield from terms_after(response, payments, ticket.key)
        if not may_sign or claims or current is None or signed.accepted.raw in [o.raw for o in current.terms]:
            call.claims = claims
            why = str(claims.get("errorReason") or why)[:_MAX_REASON_CHARS]
            raise _unresolved(call, payments, signed, ticket.key, why)
        try:
            terms = yield from acceptable(current, call, payments, ticket.key, signed.authorization)
            again = yield from _authorize(
                terms, current, request, call, payments, ticket.key, earlier=signed.authorization
            )
        except NotPaid as exc:
            raise _unresolved(call, payments, signed, ticket.key, f"{why}; its new terms are refused: {exc}") from exc
    except BaseException:  # also when it is cancelled now: what the gateway holds is offered again
        payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
        raise
    response = yield from _send_signed(request, call, payments, ticket, again)
    if response.status_code != httpx.codes.PAYMENT_REQUIRED:
        return response
    return (yield from _asked_again(response, request, call, payments, ticket, again, may_sign=False))


def _unresolved(
    call: Call, payments: Payments, signed: SignedPayment, key: SessionKey, reason: str
) -> PaymentOutcomeUnknown:
    payments.gateways.refused(key.origin)
    payments.funds.forget()
    return not_served(signed, origin=key.origin, call_id=call.id, reason=reason, asset=payments.network.asset)


def _authorize(
    terms: PaymentTerms,
    challenge: Challenge,
    request: httpx.Request,
    call: Call,
    payments: Payments,
    key: SessionKey,
    *,
    earlier: Authorization | None = None,
) -> Steps[SignedPayment]:
    """Reserve the budget durably, then sign.

    `earlier` is an authorization whose signature has left: only terms in its nonce space are signed, under its nonce.
    """
    drafted = payments.draft(terms, call, str(request.url), earlier=earlier)
    yield from check_limits(call, payments, key, drafted)
    is_first = call.is_keyed and earlier is None
    reserving = payments.reserve(drafted, is_first=is_first)
    try:
        try:
            authorization = yield from from_ledger(reserving, call)
        except BudgetExceeded:
            # Authorizations past their deadline may hold budget that was never spent: ask the chain first.
            with suppress(TimeoutError):
                yield Wait(payments.doubts.reclaim(), call.left_s)
            if call.left_s is not None and call.left_s <= 0:
                raise
            reserving = payments.reserve(drafted, is_first=is_first)
            authorization = yield from from_ledger(reserving, call)
        return payments.sign(terms, authorization, challenge, is_for_one=call.is_keyed)
    except BaseException:  # cancelled, or the signer failed: what never left must not hold budget
        if not call.has_signed_out:
            payments.release(drafted, reserving, is_first=is_first)
        raise


def _send_signed(
    request: httpx.Request, call: Call, payments: Payments, ticket: Ticket, signed: SignedPayment
) -> Steps[httpx.Response]:
    is_first_use = signed.authorization.call_id == call.id
    payments.attach(call, signed.authorization)
    try:
        response = yield from carry(with_header(request, SIGNATURE_HEADER, signed.header), call)
    except NEVER_LEFT as exc:
        if is_first_use and call.has_signed_out:
            # An earlier signature under this nonce is out: the gateway refused it, but still holds it.
            payments.doubts.add(ticket.key, Doubtful(signed, was_refused=True))
            raise outcome_unknown(call, exc) from exc
        payments.detach(call)
        if is_first_use:
            with suppress(TimeoutError):  # it is done as soon as the database can be written
                yield Wait(payments.ledger.mark_unsent(signed.authorization.id), call.left_s)
        else:
            payments.doubts.add(ticket.key, Doubtful(signed))
        raise
    except httpx.TransportError as exc:
        payments.doubts.add(ticket.key, Doubtful(signed))
        raise outcome_unknown(call, exc) from exc
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
    return (yield from answered(response, call))


def _bought(response: httpx.Response, call: Call, payments: Payments, ticket: Ticket, signed: SignedPayment) -> bool:
    """Whether the answer shows what the payment bought: a session, or this one answer."""
    session_id = response.headers.get(SESSION_HEADER)
    if session_id is not None and _SESSION_ID.fullmatch(session_id):
        call.session = payments.sessions.opened(ticket, session_id=session_id, authorization=signed.authorization)
        payments.reports.opened(signed.authorization, origin=ticket.key.origin)
    elif response.is_success:
        call.claims = payment_response(response)
        payments.sessions.sessionless(ticket)
    else:
        return False
    return True
