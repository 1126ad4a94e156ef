"""Amounts of a token: decimal text in, integer atomic units inside, decimal text out.

Knows nothing about prices, budgets or chains. There is no float anywhere: `0.1` has no exact binary form,
and an amount that is off by one unit is a different amount to a signature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

MAX_UINT256: Final = 2**256 - 1
"""The largest amount that an EVM token can express (`uint256`, Solidity ABI)."""

_DECIMAL_TEXT = re.compile(r"([0-9]{1,78})(?:\.([0-9]{1,78}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A token that payments are made in.

    `name` and `version` are the token's EIP-712 domain (EIP-3009 and EIP-2612 signatures need them).
    """

    address: str
    symbol: str
    decimals: int
    name: str
    version: str

    def parse(self, amount: str | int | Decimal) -> int:
        """Atomic units of an amount in whole tokens: `"0.5"` -> `500000000000000000`."""
        return parse_amount(amount, decimals=self.decimals)

    def format(self, amount_atomic: int) -> str:
        """An amount for people: `"0.5 OPG"`."""
        return f"{format_amount(amount_atomic, decimals=self.decimals)} {self.symbol}"


def parse_amount(amount: str | int | Decimal, *, decimals: int = 18) -> int:
    """Turn an amount in whole tokens (`"0.1"`, `5`, `Decimal("0.1")`) into atomic units.

    Raises TypeError for floats and booleans, ValueError for anything that is not a plain, non-negative,
    ASCII decimal which fits the token's decimals and a uint256.
    """
    if isinstance(amount, float):
        raise TypeError(
            f'The amount {amount!r} is a float, and floats cannot hold money exactly. Write it as text: "{amount!r}".'
        )
    if isinstance(amount, bool) or not isinstance(amount, str | int | Decimal):
        raise TypeError(f"An amount is text, an int or a Decimal, not {type(amount).__name__}.")
    text = format(amount, "f") if isinstance(amount, Decimal) else str(amount)
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f'{_shown(text)} is not an amount. Write digits and at most one point: "0.25".')
    whole, fraction = match[1], (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"{_shown(text)} has more than the {decimals} decimals that the token has.")
    atomic = int(whole + fraction.ljust(decimals, "0"))
    if atomic > MAX_UINT256:
        raise ValueError(f"{_shown(text)} is more than a token can express (2^256 - 1 atomic units).")
    return atomic


def format_amount(amount_atomic: int, *, decimals: int = 18) -> str:
    """Write atomic units as an exact decimal without trailing zeros: `10**17` -> `"0.1"`."""
    sign = "-" if amount_atomic < 0 else ""
    whole, fraction = divmod(abs(amount_atomic), 10**decimals)
    digits = str(fraction).zfill(decimals).rstrip("0") if fraction else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
