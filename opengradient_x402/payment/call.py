"""One logical call: its id, what pays for it, how it ended, and the receipt that follows.

A call is what the user asked for once, however many HTTP requests that takes. It has at most one payment. What the
gateway claims in the body, the last stream event or the headers goes into the receipt as claims (docs/wire.md,
"Quotes" and "Data settlement").
"""

from __future__ import annotations

import base64
import binascii
import os
import random
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.channels.rides import Ride
from opengradient_x402.completions import Usage
from opengradient_x402.effects import Read, Send, Steps
from opengradient_x402.errors import ConfigurationError, PaidButFailed, PaymentOutcomeUnknown
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms, receipt_fields
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt, transaction_claim
from opengradient_x402.ledger.recorder import CallUnderWay
from opengradient_x402.money import QUOTED_IN, Asset, parse_amount
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.payment.sessions import SESSION_HEADER, PaidSession
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.strict_json import whole_characters
from opengradient_x402.telemetry.runs import name_of_run
from opengradient_x402.telemetry.spans import HTTP_TRACER, unpaid


class _Ids(Resident):
    """Where call ids come from; a forked child draws others than its parent."""

    def __init__(self) -> None:
        self._renew()
        belongs(self, Ending.WATCHERS)

    def _renew(self) -> None:
        # Ids must be unique, not secret (nonces are derived from them with the key). The system's generator gives up
        # the interpreter lock, which costs half a millisecond a call while the ledger writes.
        self.draw = random.Random(secrets.randbits(256)).getrandbits  # noqa: S311


_ids = _Ids()


def new_call_id(group: str = "") -> str:
    """An id that no other call has. Those of a `group` (hex digits) begin alike, and are found together."""
    return f"call_{group}{_ids.draw(96):024x}"


_CALL_ID: Final = re.compile(r"call_[0-9a-f]{24,64}", re.ASCII)


def checked_call_id(call_id: str) -> str:
    """The id that a call was given. Raises ConfigurationError for text that is not a call id."""
    if _CALL_ID.fullmatch(call_id) is None:
        raise ConfigurationError(
            f"The call id {call_id!r} cannot be used. Nothing was paid. Give `call_` and 24 to 64 hex digits in lower "
            "case, or leave it out."
        )
    return call_id


_EXTENSION = "opengradient.call"
"""Where a request of any httpx client carries its call: redirected requests have it too, so a call stays one call."""


@dataclass(slots=True, eq=False)
class Call:
    """State of one logical call, shared by the transport (which pays) and the client (which interprets)."""

    id: str = field(default_factory=new_call_id)
    model: str = ""
    base_url: str = ""
    """The gateway that was asked last."""
    settlement_mode: str = ""
    run: str | None = None
    """The run that makes it, if any."""
    timeout_s: float | None = None
    prompt_bytes: int = 0
    max_tokens: int | None = None
    limits: tuple[RunLimit, ...] = ()
    """What the runs that make this call may spend, besides what the wallet may."""
    is_keyed: bool = False
    """Whether its id was given: another process may have made this call before, or be making it."""
    earlier: Authorization | None = None
    """What an earlier process signed for this call: its nonce is used once more, and nothing else pays."""
    is_only_given_again: bool = False
    """Whether it is sent only to a gateway that gives an answer again for the same payment."""
    payees: frozenset[str] | None = None
    """All that may be paid at the endpoint that was asked last; None leaves it to network and policy."""
    is_blocking: bool = False
    """Whether the caller waits by blocking its thread."""
    created_at: int = field(default_factory=lambda: int(time.time()))
    began_s: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108  (a test may turn the clock)
    process_id: int = field(default_factory=os.getpid)
    """Whose call it is: a forked child that inherits it must not end or record it."""

    authorization: Authorization | None = None
    """The authorization that pays, from the moment its signature or session id may have left."""
    session: PaidSession | None = None
    ride: Ride | None = None
    """Its seat on a payment channel."""
    has_signed_out: bool = False
    """Whether a gateway has seen a signature of this call, even if it refused it."""
    is_answered: bool = False
    is_doubtful: bool = False
    """Whether the gateway answered a payment with an error that does not show whether it takes the payment."""
    is_refused: bool = False
    """Whether its error was reported."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """PAYMENT-RESPONSE, as the gateway sent it."""
    headers: httpx.Headers | None = None
    """Of the response."""
    receipt: SettlementReceipt | None = None
    """Set once, when the call is finished."""
    recorded: Future[str | None] | None = None
    """Done when the receipt is in the ledger; set with it. The result is the call that the proof came for first."""
    ending: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Taken for good by the thread that ends the call: a reader's, or another one that closes the stream."""
    is_over: bool = False
    """Whether it is ended and recorded."""

    @property
    def left_s(self) -> float | None:
        """What is left of its time limit; None without one."""
        return None if self.timeout_s is None else max(0.0, self.began_s + self.timeout_s - time.monotonic())

    def may_end(self) -> bool:
        """Whether this thread is the one that ends the call, and has not done it yet."""
        return not self.is_over and self.ending.acquire(blocking=False)

    def noted_under(self, authorization: Authorization) -> CallUnderWay:
        """What is noted of this call while it is under way, paid by this authorization."""
        return CallUnderWay(self.id, authorization.id, self.created_at, self.settlement_mode, self.model)

    @classmethod
    def of(cls, request: httpx.Request, *, is_blocking: bool) -> Call:
        """The call of a request that no gateway client made; the first request of a call begins it."""
        call = request.extensions.get(_EXTENSION)
        if not isinstance(call, Call):
            call = request.extensions[_EXTENSION] = cls(is_blocking=is_blocking, run=name_of_run())
        return call


_UNIX_TIME = re.compile(r"[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client understood of the response: `raw` is the body or the terminal stream event."""

    model: str = ""
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    tee_verified: str | None = None
    tee_uncovered: str | None = None


def build_receipt(
    call: Call, *, outcome: str, error: str | None, answer: Answer | None, asset: Asset
) -> SettlementReceipt:
    """The receipt of a call that has a payment attached, in `asset`."""
    authorization = call.authorization
    if authorization is None:
        raise ValueError("A call without a payment has no receipt.")
    answer = answer if answer is not None else Answer()
    usage, headers = answer.usage, _own(call.headers)
    paid_by = receipt_fields(authorization) if call.session is None else call.session.receipt_fields
    terms = authorization.terms if call.session is None else call.session.terms
    return SettlementReceipt(
        call_id=call.id,
        status=ReceiptStatus.SERVED if call.is_answered else ReceiptStatus.AUTHORIZED,
        created_at=call.created_at,
        outcome=outcome,
        error=error or _failed_settlement(call),
        **paid_by,
        model=answer.model or call.model or authorization.model,
        settlement_mode=call.settlement_mode or authorization.settlement_mode,
        run=call.run,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        cost_atomic=_cost(call, terms, answer, asset),
        cost_usd=_quoted(answer, "cost_usd"),
        opg_usd=_quoted(answer, "opg_price_usd") if asset.symbol == QUOTED_IN else None,
        **_payment_claims(call),
        tee_verified=answer.tee_verified,
        tee_uncovered=answer.tee_uncovered,
        **_data_claims(headers, answer),
        **_proof(headers, answer),
    )


def _quoted(answer: Answer, name: str) -> str | None:
    costs = answer.raw.get("opengradient")
    return _text(costs.get(name)) if isinstance(costs, dict) else None


def _cost(call: Call, terms: SignedTerms, answer: Answer, asset: Asset) -> int | None:
    """What the gateway claims. An `exact` payment moves the signed amount: a claim changes nothing.

    The `opengradient` object of an answer quotes OPG: it says nothing about a payment in another token.
    """
    if terms.scheme == "exact":
        return terms.amount_atomic
    if terms.scheme == "batch-settlement" and isinstance(charged := call.claims.get("amount"), str):
        return _amount(charged, decimals=0)
    claimed = _quoted(answer, "cost_opg") if asset.symbol == QUOTED_IN else None
    if claimed is not None:
        return _amount(claimed, decimals=asset.decimals)
    amount = call.claims.get("amount")
    return _amount(amount, decimals=0) if isinstance(amount, str) else None


def taken_claim(call: Call) -> int:
    """What the gateway says that it has taken, in atomic units, with a payment that is for this call alone.

    A gateway without sessions settles before it sends the body, a stream for its worst case: a quote that comes later
    does not bound that. Never more than was signed.
    """
    amount = call.claims.get("amount")
    if call.authorization is None or call.session is not None or not isinstance(amount, str):
        return 0
    return min(_amount(amount, decimals=0) or 0, call.authorization.amount_atomic)


def _amount(text: str, *, decimals: int) -> int | None:
    try:
        return parse_amount(text, decimals=decimals)
    except ValueError:  # a claim that is not an amount is no claim
        return None


_MAX_REASON_CHARS: Final = 300


def payment_claims(text: object) -> dict[str, Any]:
    """The JSON object in the base64 text of a PAYMENT-RESPONSE; nothing in one that cannot be read."""
    try:
        claims = strict_json.loads(base64.b64decode(text, validate=True)) if isinstance(text, str) else None
    except (ValueError, binascii.Error):
        return {}
    return cast("dict[str, Any]", claims) if isinstance(claims, dict) else {}


def _failed_settlement(call: Call) -> str | None:
    """Why the gateway says that it could not settle, after an answer that was complete."""
    if call.claims.get("success") is not False:
        return None
    reason = _text(call.claims.get("errorReason")) or "no reason given"
    return f"settlement failed: {whole_characters(reason[:_MAX_REASON_CHARS])}"


def _payment_claims(call: Call) -> dict[str, Any]:
    """A transaction, or the job that will make one: og-x402 puts either into the same place."""
    named = _text(call.claims.get("transaction"))
    claimed = transaction_claim(named)
    return {"claimed_payment_tx_hash": claimed, "payment_job": None if claimed is not None else named}


def _own(headers: httpx.Headers | None) -> Mapping[str, str]:
    """The headers of a gateway's own (`X-…`): few, since httpx is slow to look one up among many."""
    if headers is None:
        return {}
    own = [(name, value) for name, value in headers.raw if name[:2] in (b"X-", b"x-")]
    return httpx.Headers(own) if own else {}


def _data_claims(headers: Mapping[str, str], answer: Answer) -> dict[str, Any]:
    raw = answer.raw
    named = _text(raw.get("data_settlement_transaction_hash")) or headers.get("X-Settlement-Tx-Hash") or None
    claimed = transaction_claim(named)
    job = _text(raw.get("settlement_job_id")) or headers.get("X-Settlement-Job-ID")
    return {
        "data_tx_hash": claimed,
        "data_settlement_job": job or (None if claimed is not None else named),
        "data_blob_id": _text(raw.get("data_settlement_blob_id")) or headers.get("X-Settlement-Walrus-Blob-ID"),
    }


def _proof(headers: Mapping[str, str], answer: Answer) -> dict[str, Any]:
    raw = answer.raw
    timestamp = raw.get("tee_timestamp", headers.get("X-TEE-Timestamp"))
    return {
        "tee_id": _text(raw.get("tee_id")) or headers.get("X-TEE-ID"),
        "tee_signature": _text(raw.get("tee_signature")) or headers.get("X-TEE-Signature"),
        "tee_request_hash": _text(raw.get("tee_request_hash")) or headers.get("X-TEE-Request-Hash"),
        "tee_output_hash": _text(raw.get("tee_output_hash")) or headers.get("X-TEE-Output-Hash"),
        "tee_timestamp": int(timestamp) if _UNIX_TIME.fullmatch(str(timestamp)) else None,
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# -- its requests


def answered(response: httpx.Response, call: Call) -> Steps[httpx.Response]:
    call.is_answered = not call.is_doubtful
    # Whoever has the session's id can spend its cap: callers do not get it, nor do their logs.
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


def asking(request: httpx.Request, call: Call) -> httpx.Request:
    """A request that may be answered by a challenge, which tracers must not show as an error."""
    return unpaid(request, is_blocking=call.is_blocking) if HTTP_TRACER in sys.modules else request


def with_header(request: httpx.Request, name: str, value: str) -> httpx.Request:
    """A copy that carries the payment; the caller's request never does, so no redirect can carry it on."""
    paid = httpx.Request(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )
    paid.headers[name] = value
    return paid


def in_session(request: httpx.Request, call: Call, session: PaidSession) -> httpx.Request:
    """A copy that the session pays for, if the gateway still knows the session."""
    return asking(with_header(request, SESSION_HEADER, session.id), call)


NEVER_LEFT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Failures before a single byte of the request was written, unless `carry` has seen otherwise."""


def carry(paid: httpx.Request, call: Call) -> Steps[httpx.Response]:
    """Sends what carries a payment. What httpx reports of its writing counts more than the error that comes out.

    A transport of the user's may send more than once, and a hook of an httpx client may fail after that.
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
    except NEVER_LEFT as exc:
        if not is_written:
            raise
        kind = httpx.ReadTimeout if isinstance(exc, httpx.TimeoutException) else httpx.ReadError
        raise kind(str(exc), request=paid) from exc


def outcome_unknown(call: Call, cause: httpx.TransportError) -> PaymentOutcomeUnknown:
    what = "timed out" if isinstance(cause, httpx.TimeoutException) else f"broke ({type(cause).__name__})"
    return PaymentOutcomeUnknown(
        f"The connection {what} after the payment of call {call.id} had been sent. It may be charged, up to its "
        "authorization, and it is not sent again. `opengradient-x402 receipts reconcile` tells from the chain "
        "what was taken.",
        call_id=call.id,
        kind="timeout" if isinstance(cause, httpx.TimeoutException) else "connection",
    )


def despite_signals(step: Callable[[], object]) -> None:
    """Takes a step that goes on where it was cut off: if a signal's exception does that, it is raised afterwards."""
    try:
        step()
    except BaseException:
        step()
        raise
