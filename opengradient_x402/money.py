"""Amounts of a token: decimal text in, integer atomic units inside, decimal text out.

Knows nothing about prices, budgets or chains. There is no float anywhere: `0.1` has no exact binary form,
and an amount that is off by one unit is a different amount to a signature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

from opengradient_x402.errors import ConfigurationError

MAX_UINT256: Final = 2**256 - 1
"""The largest amount that an EVM token can express (`uint256`, Solidity ABI)."""

QUOTED_IN: Final = "OPG"
"""The token that gateways quote costs and prices in (docs/wire.md, "Quotes"): they say nothing about another one."""

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


def units_of(address: str) -> str:
    """The name of an amount of a token whose decimals are not known: `units of 0xFbC2…f5eB`."""
    return f"units of {address[:6]}…{address[-4:]}"


class PaidIn(Protocol):
    """A record that says in which token its amounts are."""

    @property
    def asset(self) -> str: ...
    @property
    def asset_symbol(self) -> str | None: ...
    @property
    def asset_decimals(self) -> int | None: ...


def amount_in(record: PaidIn, amount_atomic: int) -> str:
    """An amount of the record's token for people: `"0.5 OPG"`; atomic units where its decimals are not known."""
    if record.asset_decimals is None:
        return f"{amount_atomic} atomic units of {record.asset_symbol or record.asset}"
    return f"{format_amount(amount_atomic, decimals=record.asset_decimals)} {record.asset_symbol or record.asset}"


Amounts = Sequence[tuple[PaidIn, int]]
"""An amount for each token, beside any record that is in it."""


def shown(amounts: Amounts) -> str:
    """The amounts for people: `"0.5 OPG"`, or `"0.5 OPG + 0.01 USDC"`; `"0"` for none."""
    return " + ".join(amount_in(record, amount) for record, amount in amounts) or "0"


def only(amounts: Amounts) -> int:
    """The one amount in atomic units, 0 for none. Raises ValueError where there are two tokens: no number is both."""
    if len(amounts) > 1:
        raise ValueError(f"These calls were paid in more than one token ({shown(amounts)}): look at `spent`.")
    return sum(amount for _, amount in amounts)


def parse_amount(amount: str | int | Decimal, *, decimals: int) -> int:
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


def format_amount(amount_atomic: int, *, decimals: int) -> str:
    """Write atomic units as an exact decimal without trailing zeros: `10**17` with 18 decimals -> `"0.1"`."""
    sign = "-" if amount_atomic < 0 else ""
    whole, fraction = divmod(abs(amount_atomic), 10**decimals)
    digits = str(fraction).zfill(decimals).rstrip("0") if fraction else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


Limit = str | int
"""Text is an amount in whole tokens of the network (`"0.5"`); an int counts atomic units."""


def limit_atomic(limit: Limit, asset: Asset) -> int:
    if isinstance(limit, int):
        return limit
    try:
        return parse_amount(limit, decimals=asset.decimals)
    except ValueError as exc:
        raise ConfigurationError(f"A limit cannot be kept in {asset.symbol}: {exc} Nothing was paid.") from exc


def check_limit(name: str, limit: object) -> None:
    if isinstance(limit, int) and not isinstance(limit, bool):
        if limit >= 0:
            return
        raise ConfigurationError(f"`{name}` is {limit}; a limit cannot be negative. Nothing was paid.")
    if not isinstance(limit, str):
        raise ConfigurationError(
            f"`{name}` is {limit!r}. Nothing was paid. Give a limit as text in whole tokens "
            '("0.5" is half a token), or as an int in atomic units; a float cannot hold money exactly.'
        )
    try:
        # The asset is not known here: whether it has so many decimals is checked where it is.
        parse_amount(limit, decimals=len(limit.partition(".")[2]))
    except ValueError as exc:
        raise ConfigurationError(f"`{name}`: {exc} Nothing was paid.") from exc
