"""Keccak-256, the hash of Ethereum (not SHA3-256: the padding differs).

Knows nothing about what is hashed. pycryptodome computes it in about 3 µs; its import takes 70 ms, so it
happens at the first hash and never with the package.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


@cache
def _implementation() -> ModuleType:
    from Crypto.Hash import keccak

    return keccak


def keccak256(data: bytes) -> bytes:
    """The 32-byte Keccak-256 digest of `data`."""
    digest: Any = _implementation().new(data=data, digest_bits=256)
    return bytes(digest.digest())
