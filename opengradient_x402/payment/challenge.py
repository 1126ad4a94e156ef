"""PAYMENT-REQUIRED bytes -> a validated `Challenge`. Pure and strict (x402 v2, HTTP transport §4).

Everything here comes from a stranger who wants money: sizes, depths, types and ranges are checked before a
value is used, and nothing is repaired. Each entry of `accepts` is judged for itself: one that this client cannot pay
is set aside with its reason, and does not spoil another one. Does not know what is acceptable to the payer; that is
`policy`. A 402 without the header is not for this module either.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Literal

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import ChallengeInvalid
from opengradient_x402.money import MAX_UINT256
from opengradient_x402.strict_json import check_depth

CHALLENGE_HEADER: Final = "PAYMENT-REQUIRED"
SIGNATURE_HEADER: Final = "PAYMENT-SIGNATURE"
RESPONSE_HEADER: Final = "PAYMENT-RESPONSE"
MAX_HEADER_CHARS: Final = 64 * 1024
MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 4096
MAX_TERMS: Final = 64
MAX_TEXT_CHARS: Final = 4096
MAX_TIMEOUT_S: Final = 2**32
"""Longer than any policy allows; a bound so that `now + timeout` stays a sane uint256."""
IDENTIFIER: Final = "payment-identifier"
"""An extension of gateways that give an answer again for one payment (docs/wire.md, "Answers that are given again")."""

Scheme = Literal["upto", "exact", "batch-settlement"]
TransferMethod = Literal["permit2", "eip3009"]
MIN_DELAY_S: Final = 900
MAX_DELAY_S: Final = 2_592_000
"""Of a withdrawal from a channel, by its contract (docs/wire.md, "Channels")."""

_ASCII_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_CAIP2_EVM = re.compile(r"eip155:([1-9][0-9]{0,18})", re.ASCII)
_ESCROW_WORDS: Final = frozenset({"upfront", "escrow", "deposit", "prepaid", "prepay"})
"""Flows that take the money before the service (threat 30): refused wherever a term names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTerms:
    """What a payment channel must be like: who may claim, how long a withdrawal waits, the least deposit."""

    receiver_authorizer: str
    withdraw_delay_s: int
    min_deposit_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentTerms:
    """One way to pay that a gateway accepts: an entry of `accepts`, validated. Addresses are EIP-55."""

    scheme: Scheme
    network: str
    chain_id: int
    asset: str
    amount_atomic: int
    pay_to: str
    max_timeout_s: int
    transfer_method: TransferMethod
    facilitator: str | None
    asset_name: str | None
    asset_version: str | None
    channel: ChannelTerms | None = None
    """Of `batch-settlement` alone."""
    raw: dict[str, Any] = field(repr=False)
    """The entry verbatim: a payment must give it back unchanged. Never edit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedTerms:
    """An entry of `accepts` that this client cannot use, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a gateway asks for: at least one usable set of terms, the resource, and the rest, unchanged."""

    terms: tuple[PaymentTerms, ...]
    skipped: tuple[SkippedTerms, ...] = ()
    resource_url: str
    resource: dict[str, Any] = field(repr=False)
    error: str | None
    extensions: dict[str, Any] = field(repr=False)

    @property
    def gives_again(self) -> bool:
        """Whether the gateway gives the answer of an identified payment once more, without another payment."""
        return isinstance(self.extensions.get(IDENTIFIER), dict)

    def identified(self, payment_id: str) -> dict[str, Any]:
        """The extension by which a gateway knows this payment again; empty where the gateway does not offer it."""
        if not self.gives_again:
            return {}
        offered = self.extensions[IDENTIFIER]
        info = offered.get("info")
        return {IDENTIFIER: {**offered, "info": {**(info if isinstance(info, dict) else {}), "id": payment_id}}}


class _Unusable(Exception):
    """Why the challenge, or one entry of it, cannot be used."""


def parse_challenge(header: str) -> Challenge:
    """Read the value of a PAYMENT-REQUIRED header.

    Raises ChallengeInvalid, with the reason, for everything that is not a safe x402 v2 challenge with at
    least one usable entry.
    """
    try:
        return _challenge(_decoded(header))
    except _Unusable as exc:
        raise ChallengeInvalid(
            f"The gateway's payment challenge was refused: {exc}. Nothing was signed and nothing was paid. "
            "If you trust this gateway, report it there; otherwise use another one."
        ) from exc


def _challenge(document: dict[str, Any]) -> Challenge:
    _check_version(document)
    resource = _object(document.get("resource"), "resource")
    resource_url = _text(resource.get("url"), "resource.url")
    extensions = _object(document.get("extensions") or {}, "extensions")
    error = document.get("error")
    terms, skipped = _usable(document.get("accepts"))
    return Challenge(
        terms=terms,
        skipped=skipped,
        resource_url=resource_url,
        resource=resource,
        error=error[:MAX_TEXT_CHARS] if isinstance(error, str) else None,
        extensions=extensions,
    )


def _decoded(header: str) -> dict[str, Any]:
    if len(header) > MAX_HEADER_CHARS:
        raise _Unusable(f"the PAYMENT-REQUIRED header has {len(header)} characters (limit {MAX_HEADER_CHARS})")
    try:
        content = base64.b64decode(header.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise _Unusable("the PAYMENT-REQUIRED header is not base64") from exc
    try:
        check_depth(content)
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except ValueError as exc:
        raise _Unusable("the PAYMENT-REQUIRED header does not hold valid JSON") from exc
    _check_shape(document)
    return _object(document, "the challenge")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two values under one key: we would check one of them, and somebody else would use the other.
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):  # 1e999 would come back as Infinity, which is not JSON
        raise ValueError("a number is out of range")
    return number


def _check_shape(document: Any) -> None:
    """Bound nesting and the number of values, iteratively: deep input must not use our stack."""
    seen = 0
    pending: list[tuple[Any, int]] = [(document, 1)]
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise _Unusable(f"the challenge is nested deeper than {MAX_DEPTH} levels")
        if seen > MAX_ITEMS:
            raise _Unusable(f"the challenge holds more than {MAX_ITEMS} values")
        if isinstance(value, dict):
            pending.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            pending.extend((item, depth + 1) for item in value)


def _check_version(document: Mapping[str, Any]) -> None:
    version = document.get("x402Version")
    if isinstance(version, bool) or version != 2 or not isinstance(version, int):
        reason = (
            "it speaks x402 version 1, which cannot bind the facilitator"
            if version == 1 and not isinstance(version, bool)
            else f"its x402Version is {_shown(version)}"
        )
        raise _Unusable(f"{reason}; only version 2 is accepted")


def _usable(accepts: Any) -> tuple[tuple[PaymentTerms, ...], tuple[SkippedTerms, ...]]:
    if not isinstance(accepts, list) or not accepts:
        raise _Unusable("`accepts` is not a list with at least one entry")
    if len(accepts) > MAX_TERMS:
        raise _Unusable(f"`accepts` has {len(accepts)} entries (limit {MAX_TERMS})")
    terms: list[PaymentTerms] = []
    skipped: list[SkippedTerms] = []
    for index, entry in enumerate(accepts):
        try:
            terms.append(_terms(_object(entry, "it")))
        except _Unusable as exc:
            skipped.append(SkippedTerms(index=index, reason=str(exc)))
    if not terms:
        reasons = "; ".join(f"accepts[{skip.index}]: {skip.reason}" for skip in skipped)
        raise _Unusable(f"none of its entries can be used ({reasons})")
    return tuple(terms), tuple(skipped)


def _terms(raw: dict[str, Any]) -> PaymentTerms:
    scheme, network = raw.get("scheme"), raw.get("network")
    if scheme not in ("upto", "exact", "batch-settlement"):
        raise _Unusable(f"scheme {_shown(scheme)} is not supported")
    if isinstance(network, str) and not network.startswith("eip155:"):
        raise _Unusable(f"network {_shown(network)} is not an EVM chain")
    match = _CAIP2_EVM.fullmatch(network) if isinstance(network, str) else None
    if not isinstance(network, str) or match is None:
        raise _Unusable(f"network is {_shown(network)}, not a CAIP-2 chain such as eip155:8453")
    extra = _object({} if raw.get("extra") is None else raw["extra"], "extra")
    _refuse_escrow(raw, extra)
    facilitator = extra.get("facilitatorAddress")
    if facilitator is None and scheme == "upto":
        raise _Unusable("it is an upto payment without facilitatorAddress: anybody could settle it")
    return PaymentTerms(
        scheme=scheme,
        network=network,
        chain_id=int(match[1]),
        asset=_address(raw.get("asset"), "asset"),
        amount_atomic=_amount(raw.get("amount"), "amount"),
        pay_to=_address(raw.get("payTo"), "payTo"),
        max_timeout_s=_timeout(raw.get("maxTimeoutSeconds")),
        transfer_method=_transfer_method(extra.get("assetTransferMethod"), scheme),
        facilitator=None if facilitator is None else _address(facilitator, "extra.facilitatorAddress"),
        asset_name=_optional_text(extra.get("name"), "extra.name"),
        asset_version=_optional_text(extra.get("version"), "extra.version"),
        channel=_channel_terms(extra) if scheme == "batch-settlement" else None,
        raw=raw,
    )


def _channel_terms(extra: Mapping[str, Any]) -> ChannelTerms:
    authorizer = _address(extra.get("receiverAuthorizer"), "extra.receiverAuthorizer")
    delay_s = extra.get("withdrawDelay")
    if int(authorizer, 16) == 0:
        raise _Unusable("its receiverAuthorizer is the zero address, so nobody could claim or refund")
    if isinstance(delay_s, bool) or not isinstance(delay_s, int) or not MIN_DELAY_S <= delay_s <= MAX_DELAY_S:
        raise _Unusable(f"its withdrawDelay is {_shown(delay_s)}, not {MIN_DELAY_S} to {MAX_DELAY_S} seconds")
    least = extra.get("minDeposit")
    return ChannelTerms(
        receiver_authorizer=authorizer,
        withdraw_delay_s=delay_s,
        min_deposit_atomic=0 if least is None else _amount(least, "extra.minDeposit"),
    )


def _refuse_escrow(raw: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    for key in ("flow", "paymentFlow", "mode", "settlement"):
        for holder in (raw, extra):
            value = holder.get(key)
            if isinstance(value, str) and value.lower() in _ESCROW_WORDS:
                raise _pays_first(value.lower())
    for key in (*raw, *extra):
        if key.lower() in _ESCROW_WORDS:
            raise _pays_first(key.lower())


def _pays_first(flow: str) -> _Unusable:
    return _Unusable(f"it asks for the {flow} flow: the money would go before the answer")


def _transfer_method(method: Any, scheme: Scheme) -> TransferMethod:
    if method is None:
        return "permit2" if scheme == "upto" else "eip3009"
    if method == "permit2":
        return "permit2"
    if method == "eip3009" and scheme != "upto":
        return "eip3009"
    raise _Unusable(f"it wants assetTransferMethod {_shown(method)}, which this client cannot pay by {scheme}")


def _amount(value: Any, where: str) -> int:
    if not isinstance(value, str) or _ASCII_DECIMAL.fullmatch(value) is None:
        raise _Unusable(f"{where} is {_shown(value)}, not a decimal string of atomic units")
    amount = int(value)
    if amount > MAX_UINT256:
        raise _Unusable(f"{where} is above 2^256 - 1")
    return amount


def _timeout(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_TIMEOUT_S:
        raise _Unusable(f"maxTimeoutSeconds is {_shown(value)}, not a positive number of seconds")
    return value


def _address(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{where} is {_shown(value)}, not an address")
    try:
        return checksum_address(value)
    except ValueError as exc:
        raise _Unusable(f"{where}: {exc}") from exc


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unusable(f"{where} is {_shown(value)}, not an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARS or _has_surrogates(value):
        raise _Unusable(f"{where} is {_shown(value)}, not a short text")
    return value


def _has_surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)  # JSON allows them, UTF-8 does not


def _optional_text(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a huge number"  # str() of it would raise beyond 4300 digits
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
