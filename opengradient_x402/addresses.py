"""Ethereum addresses as text, in one spelling (EIP-55), and Keccak-256, the hash that this spelling needs.

An address is given this spelling where it enters: from the user, a signer, the wire, a node or the database. From
there on, equal text is equal address, and no other module compares addresses in a way of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from opengradient_x402.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

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


def address_of(content: bytes) -> str:
    """The EIP-55 form of 20 bytes, or of a 32-byte word or a hash that ends with them."""
    return checksum_address("0x" + content[-20:].hex())


def is_in_one_case(address: str) -> bool:
    """Whether an address is written without a checksum, all lower or all upper case."""
    return _HEX_ADDRESS.fullmatch(address) is not None and address[2:] in (address[2:].lower(), address[2:].upper())


def address_word(address: str) -> bytes:
    """The 32-byte ABI word of an address (left-padded with zeros)."""
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


def uint_word(value: int) -> bytes:
    """A number as a 32-byte ABI word."""
    return value.to_bytes(32, "big")


@cache
def _implementation() -> ModuleType:
    # pycryptodome takes 3 µs for a hash and 70 ms for its import, so it is imported at the first hash.
    from Crypto.Hash import keccak

    return keccak


def keccak256(data: bytes) -> bytes:
    """The 32-byte Keccak-256 digest of `data` (not SHA3-256: the padding differs)."""
    digest: Any = _implementation().new(data=data, digest_bits=256)
    return bytes(digest.digest())


def allow_list(name: str, addresses: Collection[str]) -> frozenset[str]:
    if isinstance(addresses, str):
        addresses = (addresses,)
    try:
        return frozenset(checksum_address(address) for address in addresses)
    except ValueError as exc:
        raise ConfigurationError(f"`{name}`: {exc} Nothing was paid.") from exc
