"""What a gateway can do wrong before a payment: the challenge and its terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTerms:
    """Offer other terms; None leaves a field as it is. The gateway honours what it has offered.

    `amount` is text so that a test can send "٣", "-5" or "0.5". `facilitator` is extra.facilitatorAddress.
    """

    amount: str | None = None
    pay_to: str | None = None
    asset: str | None = None
    network: str | None = None
    scheme: str | None = None
    facilitator: str | None = None
    max_timeout_s: int | None = None

    def apply(self, offer: dict[str, Any]) -> dict[str, Any]:
        """The altered copy of one `accepts` entry."""
        renamed = {
            "amount": self.amount,
            "payTo": self.pay_to,
            "asset": self.asset,
            "network": self.network,
            "scheme": self.scheme,
            "maxTimeoutSeconds": self.max_timeout_s,
        }
        altered = offer | {field: value for field, value in renamed.items() if value is not None}
        if self.facilitator is not None:
            altered["extra"] = offer["extra"] | {"facilitatorAddress": self.facilitator}
        return altered


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterChallenge:
    """Change the challenge around its offers: another version (v1 downgrade), another resource URL.

    `entries` are put before the gateway's own in `accepts`; with `only_entries` they replace them.
    """

    entries: Sequence[object] = ()
    only_entries: bool = False
    x402_version: int | None = None
    resource_url: str | None = None
    error: str | None = None

    def apply(self, challenge: dict[str, Any]) -> dict[str, Any]:
        """The altered copy of the PAYMENT-REQUIRED content."""
        altered = dict(challenge)
        altered["accepts"] = [*self.entries, *([] if self.only_entries else challenge["accepts"])]
        if self.x402_version is not None:
            altered["x402Version"] = self.x402_version
        if self.error is not None:
            altered["error"] = self.error
        if self.resource_url is not None:
            altered["resource"] = challenge["resource"] | {"url": self.resource_url}
        return altered


@dataclass(frozen=True, slots=True, kw_only=True)
class RawChallenge:
    """Send exactly this PAYMENT-REQUIRED header (None: none at all), `copies` times."""

    header: str | None
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HugeChallenge:
    """A 402 whose body is enormous, sent in pieces with a pause between them."""

    body_bytes: int = 200 * MEBIBYTE
    pace_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusePayment:
    """Answer a good payment with another 402: each time, or as if its settlement had timed out."""

    error: str = "Payment required"
