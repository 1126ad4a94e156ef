"""What a gateway can say wrong about a price, and then takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InflateCost:
    """Quote, and settle, this many times what a call costs by its usage and the price list."""

    factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterOpgPrice:
    """Quote, and settle by, another price of one OPG in USD: at a tenth of it, a call costs ten times the OPG."""

    opg_usd: str
