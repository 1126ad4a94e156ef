"""The tokens that a devnet can be paid in, and amounts of them as text: read exactly, written without an exponent."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token on the devnet's chain; `name` and `version` are its EIP-712 domain."""

    address: str
    symbol: str
    decimals: int
    name: str
    version: str

    def atomic(self, amount: str | int) -> int:
        """Read an amount such as "0.1" exactly; floats and fractions of an atomic unit are refused."""
        if isinstance(amount, bool) or not isinstance(amount, str | int):
            raise TypeError(f"{self.symbol} amounts are decimal strings or whole numbers, not {type(amount).__name__}.")
        if isinstance(amount, str) and not (amount.isascii() and amount.replace(".", "", 1).isdigit()):
            raise ValueError(f'{amount!r} is not an amount of {self.symbol}; write it like "0.1".')
        atomic = Fraction(amount) * 10**self.decimals
        if atomic.denominator != 1 or atomic < 0:
            raise ValueError(f"{amount!r} {self.symbol} is not a whole number of atomic units.")
        return int(atomic)

    def text(self, amount_atomic: int) -> str:
        """An amount in whole tokens, all digits of it."""
        return decimal_text(Fraction(amount_atomic, 10**self.decimals))


# As on Base (address, EIP-712 domain); Base Sepolia's OPG says "2".
OPG_TOKEN: Final = Token(
    address="0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
    symbol="OPG",
    decimals=18,
    name="OpenGradient",
    version="1",
)
USDC_TOKEN: Final = Token(
    address="0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    symbol="USDC",
    decimals=6,
    name="USD Coin",
    version="2",
)
TOKENS: Final = {token.symbol: token for token in (OPG_TOKEN, USDC_TOKEN)}


def decimal_text(value: Fraction) -> str:
    """A finite decimal fraction as plain digits, without exponent or trailing zeros."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole, rest = divmod(int(value * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}d}" if digits else str(whole)
