"""Who signs: the `Signer` protocol, and the local key.

A key never leaves the closures in which it lives: not through repr, vars, copies, pickles or error messages.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

from pydantic import SecretStr

from opengradient_x402.addresses import address_of, keccak256
from opengradient_x402.errors import InvalidPrivateKey

_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # SEC 2, secp256k1
_HEX_KEY = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_NONCE_DOMAIN: Final = b"opengradient-x402/nonce/v1"
"""Separates the nonce key from every other use of the private key. Changing it changes every nonce."""


class Signer(Protocol):
    """Something that holds a secp256k1 key: a local key, a KMS, a hardware wallet."""

    @property
    def address(self) -> str:
        """The EIP-55 address whose money this signer moves."""

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes: r, s (low) and v (27 or 28), 65 bytes together."""

    def nonce_for(self, call_id: str) -> int:
        """The one 256-bit nonce of a call, the same for ever: a second signature can never settle too."""


class LocalSigner:
    """A private key in this process. Copies are the object itself; pickling is refused.

    Raises InvalidPrivateKey (never with the key in it). libsecp256k1 signs when coincurve is installed,
    eth-keys' pure Python otherwise; both are deterministic (RFC 6979) and give the same bytes.
    """

    __slots__ = ("__address", "__nonce", "__sign")

    def __init__(self, private_key: str | SecretStr) -> None:
        secret = _secret_bytes(private_key)
        self.__sign, public_key = _fast_key(secret) or _pure_key(secret)
        self.__address = address_of(keccak256(public_key))
        self.__nonce = _nonce_function(secret)

    @property
    def address(self) -> str:
        """The EIP-55 address of the key."""
        return self.__address

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes: r, s (low) and v (27 or 28), 65 bytes together."""
        if len(digest) != 32:
            raise ValueError(f"A digest has 32 bytes, not {len(digest)}.")
        return self.__sign(digest)

    def nonce_for(self, call_id: str) -> int:
        """The one 256-bit nonce of a call: HMAC-SHA256 of its id, unpredictable without the key."""
        return self.__nonce(call_id)

    def __repr__(self) -> str:
        return f"LocalSigner({self.__address})"

    def __copy__(self) -> LocalSigner:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalSigner:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "A LocalSigner cannot be pickled: its private key would be written out in the clear. "
            "Make a new one in the other process, from its own OG_PRIVATE_KEY."
        )


def _secret_bytes(private_key: str | SecretStr) -> bytes:
    text = private_key.get_secret_value() if isinstance(private_key, SecretStr) else private_key
    if not isinstance(text, str):
        raise _bad_key(f"it is a {type(text).__name__}, not text")
    match = _HEX_KEY.fullmatch(text.strip())
    if match is None:
        raise _bad_key(f"it has {len(text.strip())} characters, or some that are not hex digits")
    secret = bytes.fromhex(match[1])
    if not 0 < int.from_bytes(secret, "big") < _CURVE_ORDER:
        raise _bad_key("it is zero, or not below the order of secp256k1")
    return secret


def _bad_key(reason: str) -> InvalidPrivateKey:
    return InvalidPrivateKey(
        f"The private key cannot be used: {reason}. Nothing was paid. Give 64 hex digits, with or without "
        "0x, as `private_key` or in OG_PRIVATE_KEY."
    )


def _nonce_function(secret: bytes) -> Callable[[str], int]:
    key = hmac.digest(secret, _NONCE_DOMAIN, hashlib.sha256)

    def nonce_for(call_id: str) -> int:
        return int.from_bytes(hmac.digest(key, call_id.encode("utf-8"), hashlib.sha256), "big")

    return nonce_for


def _fast_key(secret: bytes) -> tuple[Callable[[bytes], bytes], bytes] | None:
    """libsecp256k1 through coincurve (50 µs a signature), if it is installed."""
    try:
        from coincurve import PrivateKey
    except ImportError:
        return None
    key = PrivateKey(secret)

    def sign(digest: bytes) -> bytes:
        signature: bytes = key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    return sign, key.public_key.format(compressed=False)[1:]


def _pure_key(secret: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    """eth-keys' pure Python (a few ms a signature): everywhere, and the same bytes."""
    from eth_keys.backends.native.main import NativeECCBackend
    from eth_keys.datatypes import PrivateKey

    key = PrivateKey(secret, backend=NativeECCBackend())

    def sign(digest: bytes) -> bytes:
        v, r, s = key.sign_msg_hash(digest).vrs
        return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((v + 27,))

    return sign, key.public_key.to_bytes()
