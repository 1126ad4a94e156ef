"""The payment dialogue of x402 v2: writes what a gateway asks for (402), and reads what a payer sends back.

Offers are the `accepts` entries; a payment quotes one of them verbatim as `accepted`. Matching is as strict as
on the live gateways: scheme, network, amount, asset (case-sensitive), payTo and maxTimeoutSeconds must be equal,
and `extra` may only be a superset. Signatures are not verified here: the facilitator does that.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

X402_VERSION = 2
PAYMENT_REQUIRED = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE = "PAYMENT-RESPONSE"

_MATCHED_EXACTLY = ("scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds")

_FIELDS = {
    "from": ("^0x[a-fA-F0-9]{40}$", "The address of the sender."),
    "asset": ("^0x[a-fA-F0-9]{40}$", "The ERC-20 token contract address to approve."),
    "spender": ("^0x[a-fA-F0-9]{40}$", "The address of the spender (Canonical Permit2)."),
    "amount": ("^[0-9]+$", "Approval amount (uint256)."),
    "nonce": ("^[0-9]+$", "The sender's next permit nonce."),
    "deadline": ("^[0-9]+$", "When the permit ends, in Unix seconds."),
    "signature": ("^0x[a-fA-F0-9]+$", "The permit's 65-byte signature (r, s, v)."),
    "signedTransaction": ("^0x[a-fA-F0-9]+$", "RLP-encoded signed transaction calling ERC20.approve()."),
    "version": ("^[0-9]+(\\.[0-9]+)*$", "Schema version identifier."),
}


def _extension(description: str, *fields: str) -> dict[str, Any]:
    """A declaration of an extension: what it is, and the schema of what a payer sends for it."""
    names = ("from", "asset", "spender", "amount", *fields, "version")
    properties = {
        name: {"type": "string", "pattern": _FIELDS[name][0], "description": _FIELDS[name][1]} for name in names
    }
    return {
        "info": {"description": description, "version": "1"},
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": list(names),
        },
    }


# Advertised by the gateways beside every challenge, and supported (see `sponsored_approval`).
APPROVAL_SPONSORING = {
    "erc20ApprovalGasSponsoring": _extension(
        "The facilitator accepts a raw signed approval transaction and will sponsor the gas fees.", "signedTransaction"
    )
}
# What gateways outside of OpenGradient's network advertise for tokens that have permits.
PERMIT_SPONSORING = {
    "eip2612GasSponsoring": _extension(
        "The facilitator sends a permit that lets Permit2 take the payment.", "nonce", "deadline", "signature"
    )
}


class Scheme(StrEnum):
    """The ways to pay that a gateway can offer."""

    UPTO = "upto"
    """Permit2, settled for what the calls cost, at most the signed amount."""
    EXACT_PERMIT2 = "exact-permit2"
    """Permit2, settled for exactly the signed amount."""
    EXACT_EIP3009 = "exact-eip3009"
    """The token's own transferWithAuthorization, settled for exactly the signed amount."""
    BATCH_SETTLEMENT = "batch-settlement"
    """A channel: one deposit over Permit2, and a voucher for each call, claimed later."""
    BATCH_SETTLEMENT_EIP3009 = "batch-settlement-eip3009"
    """The same, with the deposit by the token's own receiveWithAuthorization."""

    @property
    def name_on_wire(self) -> str:
        """The `scheme` of an offer."""
        return self.value.removesuffix("-permit2").removesuffix("-eip3009")


_DEPOSIT_FACTOR = 10
"""A channel's first deposit is at least this many calls' worth, as x402's own servers ask for."""
WITHDRAW_DELAY_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentTerms:
    """What every offer of one gateway has in common."""

    network: str
    asset: str
    asset_name: str
    asset_version: str
    pay_to: str
    facilitator_address: str
    max_timeout_s: int

    def offer(self, scheme: Scheme, *, amount_atomic: int) -> dict[str, Any]:
        """One `accepts` entry, in the field order of the live gateways."""
        extra: dict[str, Any] = {"name": self.asset_name, "version": self.asset_version}
        if scheme is not Scheme.EXACT_EIP3009:
            by_token = scheme is Scheme.BATCH_SETTLEMENT_EIP3009
            extra["assetTransferMethod"] = "eip3009" if by_token else "permit2"
        if scheme is Scheme.UPTO:
            extra["facilitatorAddress"] = self.facilitator_address
        if scheme.name_on_wire == Scheme.BATCH_SETTLEMENT:
            extra["receiverAuthorizer"] = self.facilitator_address
            extra["withdrawDelay"] = WITHDRAW_DELAY_S
            extra["minDeposit"] = str(_DEPOSIT_FACTOR * amount_atomic)
        return {
            "scheme": scheme.name_on_wire,
            "network": self.network,
            "asset": self.asset,
            "amount": str(amount_atomic),
            "payTo": self.pay_to,
            "maxTimeoutSeconds": self.max_timeout_s,
            "extra": extra,
        }


def in_scheme(offer: Mapping[str, Any], scheme: Scheme, *, facilitator_address: str | None) -> dict[str, Any]:
    """`offer`, to be paid in another way."""
    terms = PaymentTerms(
        network=offer["network"],
        asset=offer["asset"],
        asset_name=offer["extra"]["name"],
        asset_version=offer["extra"]["version"],
        pay_to=offer["payTo"],
        facilitator_address=facilitator_address or "",
        max_timeout_s=offer["maxTimeoutSeconds"],
    )
    return terms.offer(scheme, amount_atomic=int(offer["amount"]))


def encode_header(content: Mapping[str, Any]) -> str:
    """JSON in base64, the form of all three x402 headers."""
    return base64.b64encode(json.dumps(content, separators=(",", ":")).encode()).decode()


def decode_header(header: str) -> dict[str, Any] | None:
    """The JSON object in a base64 header; None when it is anything else."""
    try:
        content = json.loads(base64.b64decode(header, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def challenge(
    *,
    resource_url: str,
    offers: Iterable[Mapping[str, Any]],
    error: str = "Payment required",
    extensions: Mapping[str, Any] = APPROVAL_SPONSORING,
) -> dict[str, Any]:
    """The content of PAYMENT-REQUIRED (x402 v2 §5.1)."""
    return {
        "x402Version": X402_VERSION,
        "error": error,
        "resource": {
            "url": resource_url,
            "description": "Chat completion",
            "mimeType": "application/json",
        },
        "accepts": [dict(offer) for offer in offers],
        "extensions": dict(extensions),
    }


def parse_payment(header: str) -> dict[str, Any] | None:
    """The content of PAYMENT-SIGNATURE when it has the form of an x402 v2 payment, else None."""
    payment = decode_header(header)
    if payment is None or payment.get("x402Version") != X402_VERSION:
        return None
    if not isinstance(payment.get("payload"), dict) or not isinstance(payment.get("accepted"), dict):
        return None
    return payment


def matching_offer(accepted: Mapping[str, Any], offers: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The offer that `accepted` quotes, or None."""
    return next((offer for offer in offers if _quotes(accepted, offer)), None)


def _quotes(accepted: Mapping[str, Any], offer: Mapping[str, Any]) -> bool:
    if any(accepted.get(field) != offer[field] for field in _MATCHED_EXACTLY):
        return False
    extra = accepted.get("extra")
    return isinstance(extra, dict) and all(extra.get(key) == value for key, value in offer["extra"].items())
