"""Denied payments: the 402 of an honest gateway, and the answers of gateways that take a payment and deny it.

`door` decides when; `Hoard` keeps the signatures that such a gateway has collected, and takes them to the chain.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from opengradient_devnet.facilitator.facilitator import Settlement, Verification
from opengradient_devnet.faults import DemandAnew, SettleAndRefuse
from opengradient_devnet.gateway.payment.challenge import (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    Scheme,
    encode_header,
    in_scheme,
)
from opengradient_devnet.gateway.payment.sessions import Payment, SessionBook, SettlementRecord

_GARBLED = "bm8ganNvbg"  # base64 without its padding, of no JSON

HeaderList = list[tuple[str, str]]


class Cashier(Protocol):
    """The part of a facilitator that the door needs. Both calls block."""

    def verify(self, payload: dict[str, Any], requirements: dict[str, Any]) -> Verification: ...

    def settle(
        self, payload: dict[str, Any], requirements: dict[str, Any], amount_atomic: int | None = None
    ) -> Settlement: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A 402. `headers` hold the challenge, unless it was a session that is dead. A gateway that lies has other ones."""

    headers: HeaderList
    body: bytes
    status: int = 402


class Hoard:
    """Signatures that were denied and kept. Usable from any thread; `take` and `settle` block."""

    def __init__(self, cashier: Cashier, *, records: SessionBook) -> None:
        self._cashier = cashier
        self._records = records
        self._lock = threading.Lock()
        self._kept: list[Payment] = []

    def keep(self, payment: Payment) -> None:
        """Have it for later."""
        with self._lock:
            self._kept.append(payment)

    def settle(self) -> list[SettlementRecord]:
        """Settle everything that was kept, each for all that was signed."""
        with self._lock:
            kept, self._kept = self._kept, []
        return [self._settle(payment, amount_atomic=None)[1] for payment in kept]

    def take(self, payment: Payment, fault: SettleAndRefuse) -> dict[str, Any]:
        """Settle what is about to be denied, if the fault says so; the true content of its PAYMENT-RESPONSE."""
        content: dict[str, Any] = {"success": False, "payer": payment.payer, "transaction": "", "amount": "0"}
        content["network"] = payment.requirements["network"]
        if fault.settles:
            outcome, _ = self._settle(payment, amount_atomic=None if fault.amount is None else int(fault.amount))
            content |= {"success": outcome.success, "transaction": outcome.transaction}
            content["amount"] = str(outcome.amount_atomic or 0)
        return content

    def _settle(self, payment: Payment, *, amount_atomic: int | None) -> tuple[Settlement, SettlementRecord]:
        outcome = self._cashier.settle(payment.payload, payment.requirements, amount_atomic)
        record = SettlementRecord.of(outcome, payment=payment)
        self._records.record(record)
        return outcome, record


def denial(fault: SettleAndRefuse, *, receipt: Mapping[str, Any], challenge: HeaderList) -> Refusal:
    """The answer of a gateway that denies a payment; `receipt` is the truth, `challenge` the headers of a good 402."""
    headers: HeaderList = [("content-type", fault.content_type)]
    match fault.challenge:
        case "absent":
            pass
        case "garbled":
            headers.append((PAYMENT_REQUIRED, _GARBLED))
        case "good":
            headers += [header for header in challenge if header[0] == PAYMENT_REQUIRED]
        case _:
            assert_never(fault.challenge)
    match fault.receipt:
        case "absent":
            pass
        case "garbled":
            headers.append((PAYMENT_RESPONSE, _GARBLED))
        case "failed":
            failed = {**receipt, "success": False, "transaction": "", "amount": "0", "errorReason": "settlement_failed"}
            headers.append((PAYMENT_RESPONSE, encode_header(failed)))
        case "good":
            headers.append((PAYMENT_RESPONSE, encode_header(receipt)))
        case _:
            assert_never(fault.receipt)
    return Refusal(headers=headers, body=fault.body.encode(), status=fault.status)


def other_terms(paid: Mapping[str, Any], fault: DemandAnew, *, offers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The terms that are demanded after `paid` was signed."""
    offer = dict(paid)
    if fault.scheme is not None:
        named = [known["extra"]["facilitatorAddress"] for known in offers if "facilitatorAddress" in known["extra"]]
        offer = in_scheme(offer, Scheme(fault.scheme), facilitator_address=next(iter(named), None))
    if fault.amount is not None:
        offer["amount"] = fault.amount
    if fault.max_timeout_s is not None:
        offer["maxTimeoutSeconds"] = fault.max_timeout_s
    return offer
