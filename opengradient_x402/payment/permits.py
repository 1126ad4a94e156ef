"""From accepted terms to a signed payment (x402 v2, EVM), and signed payments whose fate is unknown.

Whether to pay is decided by `policy`, and the ledger has the authorization before anything is signed here.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, payment_digest, payment_document
from opengradient_x402.errors import PaidButFailed, PaymentOutcomeUnknown, PolicyRefused
from opengradient_x402.keys.signer import Signer, sign_typed
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.money import Asset
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import PaymentTerms
from opengradient_x402.payment.sessions import SessionKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPayment:
    """An authorization and a signature under it, ready to be sent. The header is worth money, so it is in no repr."""

    authorization: Authorization
    accepted: PaymentTerms
    header: str = field(repr=False)
    is_for_one: bool = False
    """Whether it pays for its own call alone: no other call may offer it."""


def terms_to_sign(terms: PaymentTerms, *, network: Network, now_s: int) -> SignedTerms:
    """What a signature made now allows.

    Raises PolicyRefused when the terms are for another chain than the network's: a signature is valid wherever its
    chain id says.
    """
    if terms.chain_id != network.chain_id:
        raise PolicyRefused(
            f"The terms are for chain {terms.chain_id}, the client pays on {network.caip2} only. Nothing was signed."
        )
    if terms.channel is not None:
        return SignedTerms(
            scheme=terms.scheme,
            transfer_method=terms.transfer_method,
            asset=terms.asset,
            payee=terms.pay_to,
            facilitator=terms.channel.receiver_authorizer,
            spender=BATCH_SETTLEMENT,
            amount_atomic=terms.amount_atomic,
            signed_at=now_s,
            deadline=0,  # a voucher has none
        )
    proxy = network.upto_proxy if terms.scheme == "upto" else network.exact_proxy
    return SignedTerms(
        scheme=terms.scheme,
        transfer_method=terms.transfer_method,
        asset=terms.asset,
        payee=terms.pay_to,
        facilitator=terms.facilitator,
        spender=terms.asset if terms.transfer_method == "eip3009" else proxy,
        amount_atomic=terms.amount_atomic,
        signed_at=now_s,
        deadline=now_s + terms.max_timeout_s,
    )


def signed_payload(
    authorization: Authorization, *, accepted: PaymentTerms, signer: Signer, network: Network
) -> dict[str, Any]:
    """The payload of a payment, with the signature over the authorization's latest terms: it can move money."""
    fields: dict[str, Any] = {
        "payer": authorization.payer,
        "nonce": authorization.nonce,
        "network": network,
        "token_name": accepted.asset_name,
        "token_version": accepted.asset_version,
    }
    digest = payment_digest(authorization.terms, **fields)
    signature = sign_typed(signer, digest, lambda: payment_document(authorization.terms, **fields))
    make = _transfer if authorization.transfer_method == "eip3009" else _permit
    return {**make(authorization), "signature": "0x" + signature.hex()}


def payment_header(
    payload: Mapping[str, Any],
    *,
    accepted: PaymentTerms,
    resource: Mapping[str, Any],
    extensions: Mapping[str, Any] | None = None,
) -> str:
    """The value of PAYMENT-SIGNATURE: base64 of compact JSON. It is worth money: never log it."""
    document: dict[str, Any] = {
        "x402Version": 2,
        "payload": payload,
        "accepted": accepted.raw,
        "resource": resource,
    }
    if extensions:
        document["extensions"] = extensions
    content = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(content.encode("ascii")).decode("ascii")


def _permit(authorization: Authorization) -> dict[str, Any]:
    terms = authorization.terms
    witness = {"to": terms.payee, "facilitator": terms.facilitator, "validAfter": "0"}
    if terms.scheme == "exact":
        del witness["facilitator"]
    return {
        "permit2Authorization": {
            "from": authorization.payer,
            "permitted": {"token": terms.asset, "amount": str(terms.amount_atomic)},
            "spender": terms.spender,
            "nonce": str(authorization.nonce),
            "deadline": str(terms.deadline),
            "witness": witness,
        }
    }


def _transfer(authorization: Authorization) -> dict[str, Any]:
    terms = authorization.terms
    return {
        "authorization": {
            "from": authorization.payer,
            "to": terms.payee,
            "value": str(terms.amount_atomic),
            "validAfter": "0",
            "validBefore": str(terms.deadline),
            "nonce": "0x" + authorization.nonce.to_bytes(32, "big").hex(),
        }
    }


class Fate(Enum):
    """What the chain says of an authorization."""

    OPEN = "open"
    SETTLED = "settled"
    GONE = "gone"
    """Expired or cancelled."""


class Doubtful(NamedTuple):
    """A payment whose fate is unknown.

    `was_refused`: a gateway answered as if it had not taken it. `is_taken`: the chain shows that it took it after all.
    """

    signed: SignedPayment
    was_refused: bool = False
    is_taken: bool = False


class Doubts:
    """The payments of one payer whose fate is unknown: the next call uses one before it signs anything new."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._waiting: dict[SessionKey, list[Doubtful]] = {}

    def add(self, key: SessionKey, doubtful: Doubtful) -> None:
        """Keeps a payment for the next call, unless it is for one call alone."""
        if doubtful.signed.is_for_one:
            return
        with self._lock:
            self._waiting.setdefault(key, []).append(doubtful)

    def take(self, key: SessionKey) -> Doubtful | None:
        """A payment whose latest signature can still be used; it is handed out once."""
        with self._lock:
            waiting = self._waiting.get(key, [])
            while waiting:
                doubtful = waiting.pop()
                if time.time() < doubtful.signed.authorization.terms.deadline:
                    return doubtful
        return None

    def any_open(self) -> bool:
        """Whether a payment waits to be offered again."""
        now_s = time.time()
        with self._lock:
            return any(
                now_s < doubtful.signed.authorization.deadline
                for waiting in self._waiting.values()
                for doubtful in waiting
            )


def taken_unserved(signed: SignedPayment, *, origin: str, call_id: str) -> PaidButFailed:
    """The error for a payment that was taken without an answer."""
    return PaidButFailed(
        f"{origin} took the payment of call {signed.authorization.call_id}, which this call offered again, and served "
        "neither. Nothing else was signed. The settlement is disputed, and nothing more is paid there until you clear "
        f"it: `opengradient-x402 receipts clear-dispute {origin}`. Or use another gateway.",
        call_id=call_id,
        kind="payment",
    )


def not_served(signed: SignedPayment, *, origin: str, call_id: str, reason: str, asset: Asset) -> PaymentOutcomeUnknown:
    """The error for a payment that a gateway says, for `reason`, it did not take."""
    authorization = signed.authorization
    advice = "`opengradient-x402 doctor` checks wallet, clock, network and gateway."
    if "balance" in reason or "insufficient_funds" in reason:
        advice = f"If its reason is true: send {asset.symbol} to {authorization.payer}."
    elif "allowance" in reason:
        advice = "If its reason is true: run `opengradient-x402 approve 5` once for this wallet."
    left_s = max(0, authorization.deadline - int(time.time()))
    return PaymentOutcomeUnknown(
        f"{origin} did not serve call {call_id} after its payment had been sent: {reason}. It holds a signature that "
        f"can take up to {asset.format(authorization.amount_atomic)} for {left_s} s more; only the chain can say "
        "whether it does (`opengradient-x402 receipts reconcile`). Nothing else was signed, and the next call offers "
        f"the same payment again. {advice}",
        call_id=call_id,
        status_code=402,
        kind="payment",
    )
