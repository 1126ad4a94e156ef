"""signatures only, the body follows"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opengradient_devnet.chain import Chain, KeyHolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a facilitator says of a payment before any money moves. `reason` is a protocol reason code."""

    is_valid: bool
    payer: str | None
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The end of a payment on chain; `transaction` is "" when none was sent."""

    success: bool
    transaction: str
    block_number: int | None
    amount_atomic: int | None
    payer: str | None
    network: str
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettlement:
    """The end of a data settlement (what was asked and answered, not what was paid)."""

    success: bool
    transaction: str
    block_number: int | None
    settlement_type: str
    reason: str | None = None


class PaymentMalformed(ValueError):
    """The payload or requirements do not have the shape of x402 v2; nothing was sent."""


class Facilitator:
    def __init__(self, chain: Chain, *, account: KeyHolder) -> None:
        self.address: str = account.address
        raise NotImplementedError

    def supported(self) -> dict[str, Any]:
        raise NotImplementedError

    def verify(self, payload: dict[str, Any], requirements: dict[str, Any]) -> Verification:
        """`payload` is the whole decoded PAYMENT-SIGNATURE object ({x402Version, payload, accepted, …})."""
        raise NotImplementedError

    def settle(
        self, payload: dict[str, Any], requirements: dict[str, Any], amount_atomic: int | None = None
    ) -> Settlement:
        """`amount_atomic` (upto only): what to take, at most the signed amount; None takes requirements["amount"]."""
        raise NotImplementedError

    def settle_batch(self, *, merkle_root: bytes, batch_size: int, blob_id: bytes) -> DataSettlement:
        raise NotImplementedError

    def settle_individual(
        self,
        *,
        tee_id: bytes,
        input_hash: bytes,
        output_hash: bytes,
        timestamp: int,
        payer: str,
        blob_id: bytes,
        signature: bytes,
    ) -> DataSettlement:
        raise NotImplementedError
