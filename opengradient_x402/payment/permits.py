"""From accepted terms to a signed payment (x402 v2, EVM).

Whether to pay is decided by `policy`, and the ledger has the authorization before anything is signed here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT, payment_digest, payment_document
from opengradient_x402.errors import PolicyRefused
from opengradient_x402.keys.signer import Signer, sign_typed
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import PaymentTerms


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
