"""Ethereum addresses as text: validated, and written the way EIP-55 says.

Knows nothing about what lives at an address.
"""

from __future__ import annotations

import re
from functools import lru_cache

from opengradient_x402.keccak import keccak256

_HEX_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)


@lru_cache(maxsize=4096)
def checksum_address(address: str) -> str:
    """The EIP-55 form of an address.

    Raises ValueError when the text is not `0x` and 40 hex digits, or is written in mixed case with a
    checksum that does not fit: a typing error in an address sends money to nobody.
    """
    if _HEX_ADDRESS.fullmatch(address) is None:
        raise ValueError(f"{address[:60]!r} is not an address (0x and 40 hex digits).")
    digits = address[2:]
    lower = digits.lower()
    nibbles = keccak256(lower.encode("ascii")).hex()
    checksummed = "".join(
        digit.upper() if nibble >= "8" else digit for digit, nibble in zip(lower, nibbles, strict=False)
    )
    if digits not in (lower, digits.upper(), checksummed):
        raise ValueError(f"{address} is mistyped: its EIP-55 checksum does not fit (0x{checksummed} would).")
    return "0x" + checksummed


def same_address(left: str, right: str) -> bool:
    """Whether two texts name one address, whatever their case."""
    return left.lower() == right.lower()


def address_word(address: str) -> bytes:
    """The 32-byte ABI word of an address (left-padded with zeros)."""
    return bytes.fromhex(address[2:]).rjust(32, b"\0")
