"""The door of the paid gateway: who may make a call, and how its cost is collected.

A request comes in with a session id, with a signed payment or voucher, or with neither. `Door.admit` returns an
admission for those that are good, and otherwise a refusal: a 402 challenge, or the bare 402 of a session that has
ended. The session id is read first, so a request with both spends the session.

An admission is a `SessionAdmission` (cost is added to the session, settled later), a `ChannelAdmission` (cost is
charged to the channel, claimed later) or a `DirectAdmission` (settled before the answer's body is sent).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import Request

from opengradient_devnet.facilitator.facilitator import PaymentMalformed, Settlement
from opengradient_devnet.faults import (
    AlterChallenge,
    AlterTerms,
    DemandAnew,
    Faults,
    ForgeSessionId,
    KillSession,
    RawChallenge,
    RefusePayment,
    SettleAndRefuse,
    WrongTransaction,
)
from opengradient_devnet.gateway.jobs import Jobs
from opengradient_devnet.gateway.payment import challenge
from opengradient_devnet.gateway.payment.challenge import (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE,
    Scheme,
)
from opengradient_devnet.gateway.payment.channels import ChannelBook, ChannelCall, VoucherRefused
from opengradient_devnet.gateway.payment.denials import Cashier, HeaderList, Hoard, Refusal, denial, other_terms
from opengradient_devnet.gateway.payment.sessions import NonceInUse, Payment, SessionBook, SessionCall, SettlementRecord

SESSION_HEADER = "X-Upto-Session"
DEAD_SESSION_BODY = b'{"error": "Session expired or exhausted"}'
# The facilitator's own code for an authorization that is being settled already.
DUPLICATE = "duplicate_settlement"


class CollectionFailed(Exception):
    """The payment of an admitted call could not be settled; the client gets this instead of its answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__("settlement failed")
        self.refusal = refusal


class Admission(Protocol):
    """One admitted call. Exactly one of the three ends it; each returns headers for the response."""

    @property
    def payment(self) -> Payment: ...

    async def collect(self, cost_atomic: int) -> HeaderList:
        """The answer is complete and costs this much. Raises CollectionFailed."""
        ...

    async def begin_stream(self, worst_case_atomic: int) -> HeaderList:
        """The answer begins, and will cost at most this much; `end_stream` follows. Raises CollectionFailed."""
        ...

    def end_stream(self, cost_atomic: int) -> str | None:
        """The stream is over, or was abandoned; the PAYMENT-RESPONSE for its settlement event, if it has one.

        Ending twice changes nothing.
        """
        ...

    def waive(self) -> HeaderList:
        """The answer is an error: it costs nothing."""
        ...


class SessionAdmission:
    """A call inside a session."""

    def __init__(self, call: SessionCall, *, faults: Faults) -> None:
        self._call = call
        self._faults = faults

    @property
    def payment(self) -> Payment:
        return self._call.payment

    async def collect(self, cost_atomic: int) -> HeaderList:
        self._call.finish(cost_atomic=cost_atomic)
        return self._headers()

    async def begin_stream(self, worst_case_atomic: int) -> HeaderList:  # noqa: ARG002 - paid as it comes
        return self._headers()

    def end_stream(self, cost_atomic: int) -> None:
        self._call.finish(cost_atomic=cost_atomic)

    def waive(self) -> HeaderList:
        self._call.finish(cost_atomic=0)
        return self._headers()

    def _headers(self) -> HeaderList:
        forged = self._faults.take(ForgeSessionId)
        return [(SESSION_HEADER, forged.value if forged else self._call.session_id)]


class ChannelAdmission:
    """A call on a channel, which is charged when it ends. A stream's charge is in its last event."""

    def __init__(self, payment: Payment, call: ChannelCall, *, book: ChannelBook) -> None:
        self._payment = payment
        self._call = call
        self._book = book

    @property
    def payment(self) -> Payment:
        return self._payment

    async def collect(self, cost_atomic: int) -> HeaderList:
        response = self._book.finish(self._call, cost_atomic)
        return [(PAYMENT_RESPONSE, challenge.encode_header(response))]

    async def begin_stream(self, worst_case_atomic: int) -> HeaderList:  # noqa: ARG002 - charged when it ends
        return []

    def end_stream(self, cost_atomic: int) -> str | None:
        if self._call.is_over:
            return None
        return challenge.encode_header(self._book.finish(self._call, cost_atomic))

    def waive(self) -> HeaderList:
        self._book.release(self._call)
        return []


class DirectAdmission:
    """A call that is paid on its own.

    The header that names the transaction precedes the body, so a stream paid with upto is settled before its
    first token, for the most that it can cost; an exact payment is always taken whole.
    """

    def __init__(self, payment: Payment, *, door: Door) -> None:
        self._payment = payment
        self._door = door

    @property
    def payment(self) -> Payment:
        return self._payment

    async def collect(self, cost_atomic: int) -> HeaderList:
        return await self._door.settle_now(self._payment, cost_atomic=cost_atomic)

    async def begin_stream(self, worst_case_atomic: int) -> HeaderList:
        return await self.collect(worst_case_atomic)

    def end_stream(self, cost_atomic: int) -> None:
        """Nothing is left to do: it was settled at the beginning."""

    def waive(self) -> HeaderList:
        self._door.forget(self._payment)
        return []


class Door:
    """Decides about payments. Runs on the event loop; verification and settlement happen in threads."""

    def __init__(
        self,
        cashier: Cashier,
        *,
        offers: Sequence[dict[str, Any]],
        sessions: SessionBook | None,
        channels: ChannelBook,
        records: SessionBook,
        faults: Faults,
        jobs: Jobs | None = None,
        extensions: Mapping[str, Any] = challenge.APPROVAL_SPONSORING,
    ) -> None:
        self._cashier = cashier
        self._extensions = extensions
        self._offers = list(offers)
        self._sessions = sessions
        self._channels = channels
        self._records = records
        self._faults = faults
        self._jobs = jobs
        self._lock = threading.Lock()
        self.hoard = Hoard(cashier, records=records)
        self._offered_once: list[dict[str, Any]] = []
        self._being_settled: set[str] = set()

    async def admit(self, request: Request) -> Admission | Refusal:
        """Let a request in, or say what it has to pay."""
        route = (request.method, request.url.path)
        session_id = request.headers.get(SESSION_HEADER)
        if session_id is not None:
            return self._enter_session(session_id, route=route)
        content, offer, error = self._offered(request.headers)
        if content is None or offer is None:
            return self.refuse(request, error=error)
        if offer["scheme"] == Scheme.BATCH_SETTLEMENT:
            return await self._enter_channel(content, offer, request)
        payment, error = await self._verified_payment(content, offer)
        if payment is None:
            return self.refuse(request, error=error)
        lied = await self._lied(payment, request)
        if lied is not None:
            return lied
        try:
            if self._sessions is not None and payment.requirements["scheme"] == "upto":
                return SessionAdmission(self._sessions.open(payment, route=route), faults=self._faults)
            self._reserve(payment)
        except NonceInUse:
            return self.refuse(request, error=DUPLICATE)
        return DirectAdmission(payment, door=self)

    async def _lied(self, payment: Payment, request: Request) -> Refusal | None:
        """What a gateway answers that denies a good payment; None when it is honest."""
        refused = self._faults.take(RefusePayment)
        if refused is not None:
            return self.refuse(request, error=refused.error)
        taken = self._faults.take(SettleAndRefuse)
        if taken is not None:
            receipt = await to_thread.run_sync(self.hoard.take, payment, taken)
            good = self.refuse(request).headers if taken.challenge == "good" else []
            return denial(taken, receipt=receipt, challenge=good)
        anew = self._faults.take(DemandAnew)
        if anew is None:
            return None
        if anew.settles != "never":
            self.hoard.keep(payment)
        if anew.settles == "now":
            await to_thread.run_sync(self.hoard.settle)
        offer = other_terms(payment.requirements, anew, offers=self._offers)
        with self._lock:
            self._offered_once.append(offer)
        return self.refuse(request, offers=[offer])

    def refuse(
        self, request: Request, *, error: str = "Payment required", offers: Sequence[dict[str, Any]] | None = None
    ) -> Refusal:
        """A 402 with the challenge for this request."""
        raw = self._faults.take(RawChallenge)
        if raw is not None:
            copies = raw.copies if raw.header is not None else 0
            return Refusal(headers=[(PAYMENT_REQUIRED, raw.header or "")] * copies, body=b"{}")
        content = challenge.challenge(
            resource_url=str(request.url.replace(query="")),
            offers=offers or self._current_offers(),
            error=error,
            extensions=self._extensions,
        )
        altered = self._faults.take(AlterChallenge)
        if altered is not None:
            content = altered.apply(content)
        # The live gateways send the type twice (both the framework and the middleware add it).
        json_type = ("content-type", "application/json")
        header = (PAYMENT_REQUIRED, challenge.encode_header(content))
        return Refusal(headers=[json_type, header, json_type], body=b"{}")

    async def settle_now(self, payment: Payment, *, cost_atomic: int) -> HeaderList:
        """Settle a payment that has no session; the header says what came of it, or which job it is now.

        Raises CollectionFailed.
        """
        is_exact = payment.requirements["scheme"] == "exact"
        amount_atomic = None if is_exact else min(cost_atomic, payment.cap_atomic)
        if self._jobs is None:
            outcome = await to_thread.run_sync(self._settle, payment, amount_atomic)
        else:
            outcome = Settlement(
                success=True,
                transaction=self._jobs.submit("payment", partial(self._settle, payment, amount_atomic)),
                block_number=None,
                amount_atomic=payment.cap_atomic if amount_atomic is None else amount_atomic,
                payer=payment.payer,
                network=payment.requirements["network"],
            )
        headers = [(PAYMENT_RESPONSE, challenge.encode_header(self._response(outcome, payment.payer)))]
        if not outcome.success:
            raise CollectionFailed(Refusal(headers=headers, body=b"{}"))
        return headers

    def _settle(self, payment: Payment, amount_atomic: int | None) -> Settlement:
        try:
            outcome = self._cashier.settle(payment.payload, payment.requirements, amount_atomic)
            self._records.record(SettlementRecord.of(outcome, payment=payment))
        finally:
            self.forget(payment)
        return outcome

    def forget(self, payment: Payment) -> None:
        """A direct call is over: from here on the chain keeps its nonce from being used again."""
        with self._lock:
            self._being_settled.discard(payment.authorization_id)

    def _response(self, outcome: Settlement, payer: str) -> dict[str, Any]:
        wrong = self._faults.take(WrongTransaction)
        content: dict[str, Any] = {
            "success": outcome.success,
            "payer": payer,
            "transaction": wrong.transaction if wrong else outcome.transaction,
            "network": outcome.network,
            "amount": str(outcome.amount_atomic or 0),
        }
        if outcome.reason is not None:
            content["errorReason"] = outcome.reason
        return content

    def _enter_session(self, session_id: str, *, route: tuple[str, str]) -> Admission | Refusal:
        call = None
        if self._sessions is not None and self._faults.take(KillSession) is None:
            call = self._sessions.enter(session_id, route=route)
        if call is None:
            return Refusal(headers=[("content-type", "application/json")], body=DEAD_SESSION_BODY)
        return SessionAdmission(call, faults=self._faults)

    async def _enter_channel(
        self, content: dict[str, Any], offer: dict[str, Any], request: Request
    ) -> Admission | Refusal:
        refused = self._faults.take(RefusePayment)
        if refused is not None:
            return self.refuse(request, error=refused.error)
        try:
            call = await to_thread.run_sync(self._channels.admit, content, offer)
            if call.payment.kind == "refund":
                done = await to_thread.run_sync(self._channels.refund, call)
                header = (PAYMENT_RESPONSE, challenge.encode_header(done))
                return Refusal(status=200, headers=[header], body=b'{"message": "Refund acknowledged"}')
        except PaymentMalformed as exc:
            return self.refuse(request, error=str(exc))
        except VoucherRefused as exc:
            offers = self._current_offers()
            if exc.extra:
                offers = [
                    {**one, "extra": {**one["extra"], **exc.extra}} if one["scheme"] == offer["scheme"] else one
                    for one in offers
                ]
            return self.refuse(request, error=exc.reason, offers=offers)
        payment = Payment(payload=content, requirements=offer, payer=call.payment.config.payer)
        return ChannelAdmission(payment, call, book=self._channels)

    def _offered(self, headers: Headers) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
        """The payment that came, and the offer that it answers; or why there is none."""
        header = headers.get(PAYMENT_SIGNATURE)
        content = challenge.parse_payment(header) if header is not None else None
        if content is None:
            return None, None, "Payment required"
        self._channels.keep(content)
        offer = challenge.matching_offer(content["accepted"], self._honoured_offers())
        return content, offer, "" if offer is not None else "No matching payment requirements"

    async def _verified_payment(self, content: dict[str, Any], offer: dict[str, Any]) -> tuple[Payment | None, str]:
        try:
            verdict = await to_thread.run_sync(self._cashier.verify, content, offer)
        except PaymentMalformed as exc:
            return None, str(exc)
        if not verdict.is_valid or verdict.payer is None:
            return None, verdict.reason or "Payment required"
        return Payment(payload=content, requirements=offer, payer=verdict.payer), ""

    def _reserve(self, payment: Payment) -> None:
        with self._lock:
            if payment.authorization_id in self._being_settled:
                raise NonceInUse
            self._being_settled.add(payment.authorization_id)

    def _current_offers(self) -> list[dict[str, Any]]:
        lasting = self._faults.lasting(AlterTerms)
        altered = self._faults.take(AlterTerms)
        if altered is None:
            return self._offers
        offers = [altered.apply(offer) for offer in self._offers]
        if altered is not lasting:
            with self._lock:
                self._offered_once.extend(offers)
        return offers

    def _honoured_offers(self) -> list[dict[str, Any]]:
        lasting = self._faults.lasting(AlterTerms)
        with self._lock:
            once = list(self._offered_once)
        return [lasting.apply(offer) if lasting else offer for offer in self._offers] + once
