"""Amounts of OPG and their text: read exactly, and written without an exponent."""

from __future__ import annotations

from fractions import Fraction

OPG_DECIMALS = 18
ATOMIC_PER_OPG = 10**OPG_DECIMALS


def opg_to_atomic(amount: str | int) -> int:
    """Read an amount of OPG such as "0.1" exactly; floats and fractions of a wei are refused."""
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise TypeError(f"OPG amounts are decimal strings or whole numbers, not {type(amount).__name__}.")
    if isinstance(amount, str) and not (amount.isascii() and amount.replace(".", "", 1).isdigit()):
        raise ValueError(f'{amount!r} is not an amount of OPG; write it like "0.1".')
    atomic = Fraction(amount) * ATOMIC_PER_OPG
    if atomic.denominator != 1 or atomic < 0:
        raise ValueError(f"{amount!r} OPG is not a whole number of wei.")
    return int(atomic)


def decimal_text(value: Fraction) -> str:
    """A finite decimal fraction as plain digits, without exponent or trailing zeros."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole, rest = divmod(int(value * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}d}" if digits else str(whole)
