"""What a gateway can do wrong with a payment channel; what it claims on chain is in `settlement` (SettleAtCap)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LieAboutCharge:
    """Say another charge, or another sum of charges, than was made; both in atomic units beside the true ones."""

    charge: str = "0"
    cumulative: str = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeCorrection:
    """Answer a good voucher as one with a wrong sum, and send a state that is not the channel's.

    `signature`: a voucher for more, signed by somebody else. `charge`: more charged than was signed.
    `below`: less charged than the chain shows as claimed.
    """

    how: Literal["signature", "charge", "below"] = "signature"
