"""x402 v2 payments as a facilitator receives them: JSON in, frozen objects out.

It refuses JSON that does not have the protocol's shape. `checks` decides whether a well-formed payment is good; so
numbers and addresses for which the protocol has a reason code stay text until then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import is_hex_address

X402_VERSION = 2
UINT256_MAX = 2**256 - 1
EIP2612_EXTENSION = "eip2612GasSponsoring"  # x402 extension: a permit in place of an approval
ERC20_APPROVAL_EXTENSION = "erc20ApprovalGasSponsoring"  # x402 extension: a signed approval for the facilitator to send

_DECIMAL = re.compile(r"[0-9]{1,78}", re.ASCII)
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)


class PaymentMalformed(ValueError):
    """Payload or requirements do not have the shape of x402 v2; nothing was sent. `reason` is a reason code."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What the seller asks for (x402 v2 `PaymentRequirements`)."""

    scheme: str
    network: str
    asset: str
    amount: str
    pay_to: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit2Payment:
    """A Permit2 witness authorization. `facilitator` is None in the exact scheme, whose witness has none."""

    payer: str
    token: str
    amount: str
    spender: str
    nonce: str
    deadline: str
    to: str
    valid_after: str
    facilitator: str | None
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Eip3009Payment:
    """A `transferWithAuthorization` (EIP-3009)."""

    payer: str
    to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SponsoredPermit:
    """An EIP-2612 permit for Permit2 that came along with a payment, its fields still as they came."""

    owner: str
    asset: str
    spender: str
    amount: str
    deadline: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SponsoredApproval:
    """A signed `approve` transaction that came along with a payment, its fields still as they came."""

    owner: str
    asset: str
    spender: str
    amount: str
    signed_transaction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One parsed payment payload. `accepted_*` are the terms that the payer says it accepted."""

    accepted_scheme: str
    accepted_network: str
    authorization: Permit2Payment | Eip3009Payment
    permit: SponsoredPermit | None
    approval: SponsoredApproval | None = None


def decimal(text: str) -> int | None:
    """A uint256 in decimal, or None: no signs, spaces, exponents or digits of other scripts."""
    if _DECIMAL.fullmatch(text) is None or int(text) > UINT256_MAX:
        return None
    return int(text)


def _bad_payload(message: str) -> PaymentMalformed:
    return PaymentMalformed(message, reason="invalid_payload")


def _object(container: dict[str, Any], key: str) -> dict[str, Any]:
    value = container.get(key)
    if not isinstance(value, dict):
        raise _bad_payload(f"{key} must be an object")
    return value


def _text(container: dict[str, Any], key: str) -> str:
    value = container.get(key)
    if not isinstance(value, str):
        raise _bad_payload(f"{key} must be a string")
    return value


def _address(container: dict[str, Any], key: str) -> str:
    value = _text(container, key)
    if not is_hex_address(value):
        raise _bad_payload(f"{key} is not an address")
    return value


def _bytes(container: dict[str, Any], key: str) -> bytes:
    value = container.get(key) or "0x"
    if not isinstance(value, str) or _HEX.fullmatch(value) is None:
        raise _bad_payload(f"{key} must be 0x-hex")
    return bytes.fromhex(value[2:])


def _number(container: dict[str, Any], key: str) -> int:
    value = decimal(_text(container, key))
    if value is None:
        raise _bad_payload(f"{key} must be an unsigned decimal number of at most 256 bits")
    return value


def parse_requirements(raw: Any) -> Requirements:
    try:
        if not isinstance(raw, dict):
            raise _bad_payload("paymentRequirements must be an object")
        _number(raw, "amount")
        return Requirements(
            scheme=_text(raw, "scheme"),
            network=_text(raw, "network"),
            asset=_address(raw, "asset"),
            amount=raw["amount"],
            pay_to=_address(raw, "payTo"),
            extra=raw["extra"] if isinstance(raw.get("extra"), dict) else {},
        )
    except PaymentMalformed as exc:
        raise PaymentMalformed(str(exc), reason="invalid_payment_requirements") from exc


def parse_payment(raw: Any) -> Payment:
    if not isinstance(raw, dict):
        raise _bad_payload("paymentPayload must be an object")
    version = raw.get("x402Version")
    if version != X402_VERSION or isinstance(version, bool):
        message = f"x402Version must be {X402_VERSION}, it is {version!r}"
        raise PaymentMalformed(message, reason="invalid_x402_version")
    accepted, payload = _object(raw, "accepted"), _object(raw, "payload")
    return Payment(
        accepted_scheme=_text(accepted, "scheme"),
        accepted_network=_text(accepted, "network"),
        authorization=_parse_authorization(payload),
        permit=parse_permit(raw.get("extensions")),
        approval=parse_approval(raw.get("extensions")),
    )


def _parse_authorization(payload: dict[str, Any]) -> Permit2Payment | Eip3009Payment:
    if "permit2Authorization" in payload:
        return _parse_permit2(payload)
    if "authorization" in payload:
        return _parse_eip3009(payload)
    raise _bad_payload("payload has neither permit2Authorization nor authorization")


def _parse_permit2(payload: dict[str, Any]) -> Permit2Payment:
    authorization = _object(payload, "permit2Authorization")
    permitted, witness = _object(authorization, "permitted"), _object(authorization, "witness")
    return Permit2Payment(
        payer=_address(authorization, "from"),
        token=_text(permitted, "token"),
        amount=_text(permitted, "amount"),
        spender=_text(authorization, "spender"),
        nonce=_text(authorization, "nonce"),
        deadline=_text(authorization, "deadline"),
        to=_text(witness, "to"),
        valid_after=_text(witness, "validAfter"),
        facilitator=_text(witness, "facilitator") if "facilitator" in witness else None,
        signature=_bytes(payload, "signature"),
    )


def _parse_eip3009(payload: dict[str, Any]) -> Eip3009Payment:
    authorization = _object(payload, "authorization")
    nonce = _bytes(authorization, "nonce")
    if len(nonce) != 32:
        raise _bad_payload(f"nonce must have 32 bytes, it has {len(nonce)}")
    return Eip3009Payment(
        payer=_address(authorization, "from"),
        to=_address(authorization, "to"),
        value=_number(authorization, "value"),
        valid_after=_number(authorization, "validAfter"),
        valid_before=_number(authorization, "validBefore"),
        nonce=nonce,
        signature=_bytes(payload, "signature"),
    )


def _extension(extensions: Any, name: str, fields: tuple[str, ...]) -> dict[str, str] | None:
    """An extension's info. One that is not complete counts as absent, as their specifications have it."""
    extension = extensions.get(name) if isinstance(extensions, dict) else None
    info = extension.get("info") if isinstance(extension, dict) else None
    if not isinstance(info, dict) or not all(isinstance(info.get(field), str) for field in fields):
        return None
    return info


def parse_permit(extensions: Any) -> SponsoredPermit | None:
    """The EIP-2612 permit among a payment's extensions."""
    fields = ("from", "asset", "spender", "amount", "nonce", "deadline", "signature")
    info = _extension(extensions, EIP2612_EXTENSION, fields)
    if info is None:
        return None
    return SponsoredPermit(
        owner=info["from"],
        asset=info["asset"],
        spender=info["spender"],
        amount=info["amount"],
        deadline=info["deadline"],
        signature=info["signature"],
    )


def parse_approval(extensions: Any) -> SponsoredApproval | None:
    """The signed `approve` transaction among a payment's extensions."""
    fields = ("from", "asset", "spender", "amount", "signedTransaction")
    info = _extension(extensions, ERC20_APPROVAL_EXTENSION, fields)
    if info is None:
        return None
    return SponsoredApproval(
        owner=info["from"],
        asset=info["asset"],
        spender=info["spender"],
        amount=info["amount"],
        signed_transaction=info["signedTransaction"],
    )
