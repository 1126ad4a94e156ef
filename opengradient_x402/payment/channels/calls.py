"""Pays a call by a payment channel (x402 batch-settlement): a seat, a deposit where one is needed, a voucher.

The voucher is in the ledger before it leaves. After it has left, nothing that a gateway says lowers what was signed; a
correction of the sum is followed once, with a voucher of ours that covers it, and never below what the chain shows.
The next call goes on from there. What a call was charged is read when it ends (`Rides.end`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import httpx

from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.channels.rides import Ride
from opengradient_x402.channels.vouchers import BUSY, STALE, corrected_base, deposit_payload, voucher_payload
from opengradient_x402.effects import Sleep, Steps, Wait, in_thread
from opengradient_x402.errors import (
    BudgetExceeded,
    NotPaid,
    OpenGradientError,
    PaymentOutcomeUnknown,
    PolicyRefused,
)
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.payment.call import NEVER_LEFT, Call, answered, carry, outcome_unknown, with_header
from opengradient_x402.payment.challenge import SIGNATURE_HEADER, Challenge, PaymentTerms
from opengradient_x402.payment.channels.seats import looked, seated, seen, up_to_date, wanted_channel
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.permits import payment_header
from opengradient_x402.payment.sessions import SessionKey
from opengradient_x402.payment.steps import (
    acceptable,
    agreed,
    check_limits,
    from_ledger,
    payment_response,
    terms_after,
    with_right_clock,
)

_CALLS_OF_A_DEPOSIT: Final = 10
"""A deposit covers this many calls at their highest cost, if the policy allows it. Gateways may ask for more."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_LONGEST_BUSY_S: Final = 60.0
_HOLD_S: Final = 660.0
"""Seconds that a process may hold a channel for a call, or the call's time limit, when nothing is known of it."""
_FRESH_S: Final = 60
"""A channel that no call has used for so long is looked at again: gateways give back what is in idle ones, unasked."""
_MAX_REASON_CHARS: Final = 300


def pay_by_channel(
    request: httpx.Request,
    call: Call,
    payments: Payments,
    key: SessionKey,
    *,
    terms: PaymentTerms,
    challenge: Challenge,
) -> Steps[httpx.Response]:
    """Sends the request with a voucher for what it may cost; the call has the seat until it is finished."""
    if terms.channel is None:
        raise ValueError("terms without a channel")
    began_s = time.monotonic()
    _tidy_soon(payments)
    wanted = wanted_channel(terms, terms.channel, payments, str(request.url))
    authorization = None
    while authorization is None:
        call.ride = ride = yield from seated(call, payments, wanted, began_s)
        try:
            authorization = yield from _reserved(request, call, payments, key, ride, terms, challenge)
        except BaseException:  # nothing has left
            payments.detach(call)
            raise
        if authorization is None:
            payments.detach(call)
    attempt = _Attempt(
        request=request,
        call=call,
        payments=payments,
        key=key,
        ride=ride,
        authorization=authorization,
        terms=terms,
        challenge=challenge,
    )
    response = yield from _ridden(attempt)
    if response.is_success:
        call.claims = payment_response(response)
        payments.gateways.accepted(key.origin, amount_atomic=attempt.terms.amount_atomic)
    else:
        call.is_doubtful = True
        payments.gateways.refused(key.origin)
    return (yield from answered(response, call))


# -- a voucher


def _tidy_soon(payments: Payments) -> None:
    """Begins to take back what is idle, if the policy says so, and the last time is an hour ago. Reports nothing."""
    if payments.policy.idle_channels == "keep" or not payments.rides.may_tidy():
        return

    def tidy() -> None:
        with suppress(OpenGradientError):  # it is tried again, and the command says what is wrong
            payments.channels.tidy()

    in_thread(tidy, name="opengradient-tidy")


def _reserved(
    request: httpx.Request,
    call: Call,
    payments: Payments,
    key: SessionKey,
    ride: Ride,
    terms: PaymentTerms,
    challenge: Challenge,
) -> Steps[Authorization | None]:
    """Decides about a deposit, and writes voucher and reservation durably. None: the channel cannot be used now."""
    yield from _prepare_deposit(call, payments, ride, terms, challenge, most=None)
    if ride.channel.status != "open":
        return None
    drafted = replace(payments.draft(terms, call, str(request.url)), nonce=int(ride.channel.id, 16))
    yield from check_limits(call, payments, key, drafted)
    is_first = call.is_keyed and not call.has_signed_out
    for attempt in (1, 2):
        reserving = payments.rides.book.reserve(
            ride.channel,
            drafted,
            budget=payments.budget,
            deposit=ride.deposit,
            hold_s=max(_HOLD_S, call.timeout_s or 0.0),
            is_first=is_first,
        )
        try:
            reserved = yield from from_ledger(reserving, call)
        except BudgetExceeded:
            if attempt == 2:
                raise
            with suppress(TimeoutError):
                yield Wait(payments.doubts.reclaim(), call.left_s)
        else:
            break
    if reserved is None:
        return None
    ride.channel, ride.voucher = reserved
    payments.reports.signed(drafted)
    return drafted


def _prepare_deposit(
    call: Call, payments: Payments, ride: Ride, terms: PaymentTerms, challenge: Challenge, *, most: int | None
) -> Steps[None]:
    """The deposit that goes along, if the channel holds too little for a voucher of `most` (None: for one call more).

    A deposit that is out is sent again, the same one, until the chain shows that it is used or void.
    """
    ride.channel = channel = yield from _known_now(ride.channel, call, payments, is_first=most is None)
    if channel.status != "open":
        return
    needed = (channel.charged_atomic + terms.amount_atomic) if most is None else most
    if channel.deposit is not None:
        ride.deposit = None if payments.rides.has_arrived(channel) else channel.deposit
        if ride.deposit is not None:
            yield from _sponsored_again(payments, replace(terms, amount_atomic=ride.deposit.amount_atomic), challenge)
    elif channel.balance_atomic >= needed:
        ride.deposit = None
    else:
        least = max(terms.channel.min_deposit_atomic if terms.channel else 0, needed - channel.balance_atomic)
        limit = payments.policy.deposit_atomic(payments.network.asset)
        if least > limit:
            asset = payments.network.asset
            raise PolicyRefused(
                f"The payment channel needs {asset.format(least)} more; the limit is {asset.format(limit)}. Nothing "
                "was signed. Raise `max_deposit`, or run `opengradient-x402 channels refund` and try again."
            )
        amount = min(limit, max(least, _CALLS_OF_A_DEPOSIT * terms.amount_atomic))
        deposited = replace(terms, amount_atomic=amount)
        funds = payments.funds.check(deposited, challenge)
        needs_approval = funds is not None and (yield Wait(funds))
        yield from agreed(deposited, challenge, call, payments, needs_approval=needs_approval)
        salt = payments.signer.nonce_for(f"deposit of {call.id}")
        ride.deposit = Deposit(amount_atomic=amount, salt=salt, deadline=int(time.time()) + terms.max_timeout_s)


def _known_now(channel: Channel, call: Call, payments: Payments, *, is_first: bool) -> Steps[Channel]:
    """The channel, looked at again where the chain may show something else by now."""
    if channel.is_pending:
        return (yield from seen(channel, (yield from looked(channel, payments)), payments, call))
    if is_first and channel.used_at + _FRESH_S <= time.time():
        return (yield from up_to_date(channel, payments, call))
    return channel


def _sponsored_again(payments: Payments, deposited: PaymentTerms, challenge: Challenge) -> Steps[None]:
    """A deposit that is out goes with an approval of its own again, where it needs one."""
    funds = payments.funds.check(deposited, challenge)
    with suppress(NotPaid):  # what is missing shows at the gateway: the deposit may have been collected
        if funds is not None and (yield Wait(funds)):
            yield from with_right_clock(payments)
            yield Wait(payments.funds.sponsor(deposited, challenge))


def _header(ride: Ride, voucher: Voucher, payments: Payments, terms: PaymentTerms, challenge: Challenge) -> str:
    signer, network, extensions = payments.signer, payments.network, None
    if ride.deposit is None:
        payload = voucher_payload(ride.channel, voucher.max_atomic, signer=signer, network=network)
    else:
        token = (terms.asset_name or network.asset.name, terms.asset_version or network.asset.version)
        payload = deposit_payload(
            ride.channel, voucher.max_atomic, ride.deposit, signer=signer, network=network, token=token
        )
        extensions = payments.funds.approval
    return payment_header(payload, accepted=terms, resource=challenge.resource, extensions=extensions)


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """A voucher on its way, and what was done already to have it taken."""

    request: httpx.Request
    call: Call
    payments: Payments
    key: SessionKey
    ride: Ride
    authorization: Authorization
    terms: PaymentTerms
    challenge: Challenge
    is_corrected: bool = False
    is_renewed: bool = False
    busy_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S


def _ridden(attempt: _Attempt) -> Steps[httpx.Response]:
    """Sends the voucher; again while the channel is busy, and once more after what can be believed."""
    while True:
        response = yield from _sent(attempt)
        if response.status_code != httpx.codes.PAYMENT_REQUIRED:
            return response
        try:
            why = yield from _amended(attempt, response)
        except OpenGradientError as exc:  # a voucher has left: this error cannot mean "not paid"
            why = exc.message
        if why is not None:
            with suppress(OpenGradientError):  # a voucher has left: a failed look changes nothing
                now = yield from up_to_date(attempt.ride.channel, attempt.payments, attempt.call)
                if now.status == "closed":
                    why += "; the chain shows nothing in its channel any more, so the next call opens another one"
            raise _unresolved(attempt.call, attempt.payments, attempt.key, attempt.authorization, why)


def _amended(attempt: _Attempt, response: httpx.Response) -> Steps[str | None]:
    """None when the voucher is to be sent again: the same one later, or another one now. Otherwise why not."""
    call, payments = attempt.call, attempt.payments
    current, why = yield from terms_after(response, payments, attempt.key)
    why = why[:_MAX_REASON_CHARS]
    if current is not None:
        payments.remember_terms(attempt.key, _without_state(current))
    if why.endswith(BUSY):
        if attempt.busy_s > _LONGEST_BUSY_S or (call.left_s is not None and call.left_s <= attempt.pause_s):
            return why
        yield Sleep(attempt.pause_s)
        attempt.busy_s += attempt.pause_s
        attempt.pause_s = min(2 * attempt.pause_s, _LONGEST_PAUSE_S)
        return None
    if current is None:
        return why
    if why.endswith(STALE):
        problem = yield from _corrected(current, attempt)
        return problem and f"it says that the sum of this channel's charges is another one, and {problem}"
    if attempt.is_renewed or attempt.terms.raw in [offer.raw for offer in current.terms]:
        return why
    try:
        yield from _renew(current, attempt)
    except NotPaid as exc:
        return f"{why}; its new terms are refused: {exc.message}"
    return None


def _renew(current: Challenge, attempt: _Attempt) -> Steps[None]:
    """Takes the terms that the gateway has now, for the same channel. Raises NotPaid."""
    call, payments, before = attempt.call, attempt.payments, attempt.terms
    attempt.is_renewed = True
    terms = yield from acceptable(current, call, payments, attempt.key, None)
    same = ("channel", "pay_to", "asset", "transfer_method")
    if any(getattr(terms, name) != getattr(before, name) for name in same):
        raise PolicyRefused("They are not for this channel.")
    attempt.terms, attempt.challenge = terms, current
    anew = yield from _reserved(attempt.request, call, payments, attempt.key, attempt.ride, terms, current)
    if anew is None:
        raise PolicyRefused("Another process took the channel meanwhile.")
    attempt.authorization = anew


def _sent(attempt: _Attempt) -> Steps[httpx.Response]:
    call, payments, ride, voucher = attempt.call, attempt.payments, attempt.ride, attempt.ride.voucher
    if voucher is None:
        raise ValueError("a ride without a voucher")
    payments.attach(call, attempt.authorization)
    header = _header(ride, voucher, payments, attempt.terms, attempt.challenge)
    try:
        response = yield from carry(with_header(attempt.request, SIGNATURE_HEADER, header), call)
    except NEVER_LEFT as exc:
        if ride.has_left:  # an earlier voucher of this call is out
            raise outcome_unknown(call, exc) from exc
        with suppress(TimeoutError):
            yield Wait(payments.rides.book.drop(voucher), call.left_s)
        payments.detach(call)
        raise
    except httpx.TransportError as exc:
        raise outcome_unknown(call, exc) from exc
    ride.has_left = call.has_signed_out = True
    return response


def _corrected(current: Challenge, attempt: _Attempt) -> Steps[str | None]:
    """Uses the gateway's sum, once, if it can be believed: None; otherwise the reason, as text."""
    call, payments, ride, terms = attempt.call, attempt.payments, attempt.ride, attempt.terms
    if attempt.is_corrected:
        return "it said another sum before"
    attempt.is_corrected = True
    if ride.voucher is None:
        raise ValueError("a ride without a voucher")
    offers = [offer.raw["extra"] for offer in current.terms if offer.channel == terms.channel]
    state = yield from looked(ride.channel, payments)
    ride.channel = yield from seen(ride.channel, state, payments, call)
    said = corrected_base(
        offers[0] if offers else {}, ride.channel, claimed_atomic=state.claimed_atomic, network=payments.network
    )
    if isinstance(said, str):
        return said
    base, signed = said
    correcting = payments.rides.book.correct(ride.voucher, base, signed_atomic=signed, is_found=ride.is_found)
    corrected = yield from from_ledger(correcting, call)
    if corrected is None:
        return f"{base} atomic units are more than the calls of this ledger can have cost"
    ride.voucher = corrected
    ride.channel = replace(ride.channel, charged_atomic=base)
    yield from _prepare_deposit(call, payments, ride, terms, attempt.challenge, most=ride.voucher.max_atomic)
    if ride.deposit is not None and ride.deposit != ride.channel.deposit:
        yield from from_ledger(payments.rides.book.deposit(ride.channel.id, ride.deposit), call)
    return None


def _without_state(challenge: Challenge) -> Challenge:
    """The challenge without what a correction says of one channel: later calls on others accept it, too."""
    return replace(challenge, terms=tuple(map(_stateless, challenge.terms)))


def _stateless(terms: PaymentTerms) -> PaymentTerms:
    if terms.channel is None:
        return terms
    extra = {name: value for name, value in terms.raw["extra"].items() if name not in ("channelState", "voucherState")}
    return replace(terms, raw={**terms.raw, "extra": extra})


def _unresolved(
    call: Call, payments: Payments, key: SessionKey, authorization: Authorization, why: str
) -> PaymentOutcomeUnknown:
    payments.gateways.refused(key.origin)
    payments.funds.forget()
    payments.forget_terms(key)
    most = payments.network.asset.format(authorization.amount_atomic)
    return PaymentOutcomeUnknown(
        f"{key.origin} did not serve call {call.id} after its voucher had been sent: {why}. It holds a voucher that "
        f"can take up to {most} for this call; the chain shows what it takes (`opengradient-x402 receipts reconcile`). "
        "The next call on this channel goes on from what was charged. `opengradient-x402 channels list` shows what is "
        "in it, and `channels withdraw` takes it back without the gateway's help.",
        call_id=call.id,
        status_code=402,
        kind="payment",
    )
