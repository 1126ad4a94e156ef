"""Who signs: the `Signer` protocol, the local key, keystore files, and signers that others made.

`signer_of` takes a key in the forms in which people have one. A key stays inside closures: not
through repr, vars, copies, pickles or error messages. Also here: which address made a signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from pydantic import SecretStr

from opengradient_x402.addresses import address_of, checksum_address, keccak256
from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.keys.mistaken import GIVE_DIGITS, what_it_is, what_object_it_is

_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # SEC 2, secp256k1
SIGNATURE_BYTES: Final = 65
_HEX_KEY = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})", re.ASCII)
_AROUND_A_KEY: Final = " \t\r\n,;\"'`\u2018\u2019\u201c\u201d\u00a0\ufeff\u200b\u200c\u200d\u2060"
"""What comes with a key out of a file, a shell or a chat: blanks, quotes of any kind, the comma or semicolon behind
it, a byte order mark."""
_MOST_KEYSTORE_BYTES: Final = 64 * 1024
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
        """The one 256-bit nonce of a call, always the same, so a second signature can never settle as well."""


class LocalSigner:
    """A private key in this process. Copies are the object itself; pickling is refused.

    The key is 64 hex digits (with 0x or without, quoted or not, text or SecretStr), 32 bytes, an eth-account
    `LocalAccount` or an eth-keys `PrivateKey`. Raises InvalidPrivateKey (never with the key in it). libsecp256k1
    signs when coincurve is installed, OpenSSL otherwise, and eth-keys' pure Python where OpenSSL is too old. All are
    deterministic (RFC 6979) and give the same bytes.
    """

    __slots__ = ("__address", "__nonce", "__sign")

    def __init__(self, private_key: Any) -> None:
        secret = _secret_bytes(private_key)
        self.__sign, public_key = _fast_key(secret) or _openssl_key(secret) or _pure_key(secret)
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


@dataclass(frozen=True, slots=True)
class Keystore:
    """An encrypted keystore file (Web3 Secret Storage, as geth and eth-account write it). Opened at the first call."""

    path: str | Path
    password: SecretStr | str | None = field(default=None, repr=False)

    def open(self) -> LocalSigner:
        """The key in the file. Raises InvalidPrivateKey. Takes a second: the format makes guessing slow."""
        from eth_account import Account

        content = self._content()
        if self.password is None:
            raise InvalidPrivateKey(
                f"The keystore {self.path} needs its password. Nothing was paid. Set OG_KEYSTORE_PASSWORD, or "
                "OG_KEYSTORE_PASSWORD_FILE to the path of a file that holds it."
            )
        password = self.password.get_secret_value() if isinstance(self.password, SecretStr) else self.password
        try:
            signer = LocalSigner(bytes(Account.decrypt(content, password)))
        except ValueError as exc:
            if "MAC mismatch" in str(exc):
                problem = "the password is wrong"
            else:
                problem = f"it cannot be decrypted ({type(exc).__name__})"
            raise self._unusable(problem) from None
        except (KeyError, TypeError, NotImplementedError, ArithmeticError, AssertionError, MemoryError) as exc:
            raise self._unusable(f"it cannot be decrypted ({type(exc).__name__})") from None
        self._check_address(content.get("address"), signer)
        return signer

    def _check_address(self, named: Any, signer: LocalSigner) -> None:
        """The format's checksum leaves out some of the file: damaged there, it opens to the key of another wallet."""
        if not isinstance(named, str) or not named:
            return  # the format does not need one
        if named.lower().removeprefix("0x") != signer.address.lower().removeprefix("0x"):
            raise self._unusable("its key is not that of the address that it names, so the file is damaged")

    def _content(self) -> dict[str, Any]:
        try:
            with Path(self.path).expanduser().open("rb") as file:
                document = json.loads(file.read(_MOST_KEYSTORE_BYTES))
        except (OSError, RuntimeError) as exc:  # RuntimeError: `~` without a home directory
            reason = getattr(exc, "strerror", None) or str(exc)
            raise self._unusable(f"it cannot be read ({reason})") from exc
        except ValueError:
            raise self._unusable("it is not JSON") from None
        if not isinstance(document, dict) or not {"crypto", "Crypto"} & document.keys():
            raise self._unusable("it has no `crypto` member, as keystores have")
        return document

    def _unusable(self, problem: str) -> InvalidPrivateKey:
        return InvalidPrivateKey(
            f"The keystore {self.path} cannot be used: {problem}. Nothing was paid. Correct OG_KEYSTORE or "
            "OG_KEYSTORE_PASSWORD, or give the key itself in OG_PRIVATE_KEY."
        )


class Memory(Protocol):
    """What keeps a nonce secret from one process to the next: a `Ledger`."""

    def noted(self, key: str) -> Future[str | None]: ...
    def pin(self, key: str, value: str) -> Future[str]: ...


class ForeignSigner:
    """A signer that somebody else made: an object with `address`, and with `sign_digest` or `sign_typed_data`.

    `sign_digest(digest)` signs 32 bytes; `sign_typed_data(full_message=…)` signs EIP-712 data, as eth-account's
    accounts do. Signatures may be bytes, 0x-hex, or have a `signature` attribute; each one is checked against
    `address` before it is used. Without a `nonce_for` of its own, nonces are derived from one signature, which is
    asked for once per wallet and ledger.
    """

    def __init__(self, wallet: Any) -> None:
        try:
            self.address = checksum_address(wallet.address)
        except (AttributeError, TypeError, ValueError) as exc:
            raise _bad_key(f"it is a {type(wallet).__name__} whose `address` is no address") from exc
        self._wallet = wallet
        self._memory: Memory | None = None
        self._nonce: Callable[[str], int] | None = getattr(wallet, "nonce_for", None)

    def __repr__(self) -> str:
        return f"ForeignSigner({self.address})"

    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignSigner:
        return self  # a device or a connection cannot be copied

    def remember_in(self, memory: Memory) -> None:
        """Keeps the nonce secret there."""
        self._memory = memory

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes: r, s (low) and v (27 or 28), 65 bytes together."""
        if not hasattr(self._wallet, "sign_digest"):
            raise ConfigurationError(
                f"The signer of {self.address} signs typed data only, and this (a transaction, or a text) is none. "
                "Nothing was signed and nothing was sent. Approve with the wallet itself, or with a signer that has "
                "`sign_digest`; export bundles unsigned."
            )
        return self._checked(self._wallet.sign_digest(digest), digest)

    def sign_typed(self, digest: bytes, document: Callable[[], Mapping[str, Any]]) -> bytes:
        """Sign EIP-712 data whose digest is known, in the way that the wallet has."""
        if hasattr(self._wallet, "sign_digest"):
            return self.sign_digest(digest)
        return self._checked(self._wallet.sign_typed_data(full_message=document()), digest)

    def nonce_for(self, call_id: str) -> int:
        """The one 256-bit nonce of a call. The first time, the wallet may have to sign for it."""
        if self._nonce is None:
            self._nonce = _nonce_function(self._nonce_secret())
        return self._nonce(call_id)

    def _nonce_secret(self) -> bytes:
        key = f"nonce secret {self.address}"
        known = None if self._memory is None else self._memory.noted(key).result()
        if known is None:
            known = hmac.digest(self._sign_for_nonces(), _NONCE_DOMAIN, hashlib.sha256).hex()
            if self._memory is not None:
                known = self._memory.pin(key, known).result()  # of two processes, the first one decides
        return bytes.fromhex(known)

    def _sign_for_nonces(self) -> bytes:
        if hasattr(self._wallet, "sign_digest"):
            return _signature_bytes(self._wallet.sign_digest(text_digest(_NONCE_PURPOSE)))
        return _signature_bytes(self._wallet.sign_typed_data(full_message=_nonce_document(self.address)))

    def _checked(self, signature: Any, digest: bytes) -> bytes:
        canonical = _canonical(_signature_bytes(signature))
        if recover_address(digest, canonical) != self.address:
            raise ConfigurationError(
                f"The signature of {type(self._wallet).__name__} is not that of {self.address}. Nothing was sent. "
                "Use a signer that holds the key of its address (contract wallets cannot pay this way)."
            )
        return canonical


_NONCE_PURPOSE: Final = "opengradient-x402: derive the nonces of payments. This signature moves no money."


def _nonce_document(address: str) -> dict[str, Any]:
    text = {"name": "purpose", "type": "string"}
    return {
        "domain": {"name": "opengradient-x402"},
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}],
            "NonceSecret": [text, {"name": "wallet", "type": "address"}],
        },
        "primaryType": "NonceSecret",
        "message": {"purpose": _NONCE_PURPOSE, "wallet": address},
    }


def signer_of(key: Any) -> Signer:
    """The signer of a key in any form: text, bytes, an eth-account `LocalAccount`, a `Keystore`, a signer.

    Raises InvalidPrivateKey, with what it is and what to give instead.
    """
    if isinstance(key, LocalSigner | ForeignSigner):
        return key
    if isinstance(key, Keystore):
        return key.open()
    if _raw_key(key) is None and (hasattr(key, "sign_digest") or hasattr(key, "sign_typed_data")):
        is_complete = all(hasattr(key, name) for name in ("address", "sign_digest", "nonce_for"))
        found: Signer = key if is_complete and ForeignSigner(key).address == key.address else ForeignSigner(key)
        return found
    return LocalSigner(key)


def with_hidden_secrets(fields: dict[str, Any]) -> dict[str, Any]:
    """A model's fields, with what may be secret as fields hold it: hidden, hashable, and no key opened yet.

    To be called before validation, whose errors show their input. Raises InvalidPrivateKey.
    """
    for name in ("api_key", "private_key", "rpc_url"):
        value = fields.get(name)
        if isinstance(value, str):
            fields[name] = SecretStr(value)
        elif value is not None and name != "rpc_url" and not isinstance(value, SecretStr | Keystore):
            fields[name] = signer_of(value)
    return fields


def sign_typed(signer: Signer, digest: bytes, document: Callable[[], Mapping[str, Any]]) -> bytes:
    """Sign EIP-712 data: by its digest, or as `document` where the signer takes nothing else."""
    return signer.sign_typed(digest, document) if isinstance(signer, ForeignSigner) else signer.sign_digest(digest)


# -- keys as people have them


def _secret_bytes(private_key: Any) -> bytes:
    value = private_key.get_secret_value() if isinstance(private_key, SecretStr) else private_key
    secret = _raw_key(value)
    if secret is None or (len(secret) > 32 and secret.isascii()):
        text = value if secret is None else secret.decode("ascii")  # a file's bytes, say: they hold the digits
        if not isinstance(text, str):
            raise _bad_key(*what_object_it_is(value))
        secret = _from_text(text)
    if len(secret) != 32:
        raise _bad_key(f"it has {len(secret)} bytes, and a key has 32")
    if not 0 < int.from_bytes(secret, "big") < _CURVE_ORDER:
        raise _bad_key("it is zero, or not below the order of secp256k1")
    return secret


def _raw_key(value: Any) -> bytes | None:
    """The bytes of a key that is not text: bytes, eth-account's LocalAccount, eth-keys' PrivateKey."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if type(value).__module__.startswith("eth_keys."):
        return bytes(value.to_bytes())
    key = getattr(value, "key", None) if type(value).__module__.startswith("eth_account.") else None
    return bytes(key) if isinstance(key, bytes) else None


def _from_text(text: str) -> bytes:
    text = text.strip(_AROUND_A_KEY)
    match = _HEX_KEY.fullmatch(text)
    if match is None:
        raise _bad_key(*what_it_is(text))
    return bytes.fromhex(match[1])


def _bad_key(reason: str, remedy: str = GIVE_DIGITS) -> InvalidPrivateKey:
    return InvalidPrivateKey(f"The private key cannot be used: {reason}. Nothing was paid. {remedy}")


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


def _openssl_key(secret: bytes) -> tuple[Callable[[bytes], bytes], bytes] | None:
    """OpenSSL through cryptography (less than 1 ms a signature), if it knows this curve and signs by RFC 6979."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    number, curve = int.from_bytes(secret, "big"), ec.SECP256K1()
    try:
        key = ec.derive_private_key(number, curve)
        algorithm = ec.ECDSA(utils.Prehashed(SHA256()), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return None

    def sign(digest: bytes) -> bytes:
        r, s = utils.decode_dss_signature(key.sign(digest, algorithm))
        # v says which of two points has the coordinate r (SEC 1, 4.1.6): that of the signature's own random number.
        chosen = pow(s, -1, _CURVE_ORDER) * (int.from_bytes(digest, "big") + r * number) % _CURVE_ORDER
        parity = point(ec.derive_private_key(chosen, curve).public_key())[-1] & 1
        return _canonical(r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((27 + parity,)))

    def point(public_key: ec.EllipticCurvePublicKey) -> bytes:
        numbers = public_key.public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    return sign, point(key.public_key())


def _pure_key(secret: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    """eth-keys' pure Python (a few ms a signature): everywhere, and the same bytes."""
    from eth_keys.backends.native.main import NativeECCBackend
    from eth_keys.datatypes import PrivateKey

    key = PrivateKey(secret, backend=NativeECCBackend())

    def sign(digest: bytes) -> bytes:
        v, r, s = key.sign_msg_hash(digest).vrs
        return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((v + 27,))

    return sign, key.public_key.to_bytes()


# -- who signed


def text_digest(text: str) -> bytes:
    """What a wallet signs when it is asked to sign a text (EIP-191, version 0x45)."""
    content = text.encode("utf-8")
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(content)).encode() + content)


def recover_address(digest: bytes, signature: bytes) -> str | None:
    """The address whose key made this signature (r, s, v; v 27 or 28) over 32 bytes; None when nobody can have.

    Signatures with a high s are refused: each has a twin, and only one of the two is canonical (EIP-2).
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > _CURVE_ORDER // 2:
        return None
    from eth_keys.datatypes import Signature
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    try:
        made = Signature(signature[:64] + bytes([signature[64] - 27]))
        return address_of(keccak256(bytes(made.recover_public_key_from_msg_hash(digest).to_bytes())))
    except (BadSignature, ValidationError, ValueError):
        return None


def _signature_bytes(signature: Any) -> bytes:
    value = getattr(signature, "signature", signature)
    try:
        content = bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else bytes(value)
    except (TypeError, ValueError):
        content = b""
    if len(content) != SIGNATURE_BYTES:
        raise ConfigurationError(
            f"The signer gave {len(content)} bytes in place of a signature of {SIGNATURE_BYTES}. Nothing was sent. "
            "Use a signer that holds a key (contract wallets cannot pay this way)."
        )
    return content


def _canonical(signature: bytes) -> bytes:
    """With v 27 or 28, and a low s: devices and KMS give the other forms too."""
    s, parity = int.from_bytes(signature[32:64], "big"), signature[64] - (27 if signature[64] >= 27 else 0)
    if s > _CURVE_ORDER // 2:
        s, parity = _CURVE_ORDER - s, 1 - parity
    if s < 0 or parity not in (0, 1):
        return signature  # not one of ours: its address will not fit
    return signature[:32] + s.to_bytes(32, "big") + bytes([27 + parity])
