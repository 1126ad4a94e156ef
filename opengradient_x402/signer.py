"""Signing payments: a `Signer`, the local key, and `authorize`, which turns accepted terms into a payload.

Does not decide whether to pay (`policy`), remember that it did (`ledger`), or send anything. A key never
leaves the closures in which it lives: not through repr, vars, copies, pickles or error messages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol, assert_never

from pydantic import SecretStr

from opengradient_x402.addresses import address_of, keccak256
from opengradient_x402.chain.eip712 import exact_permit_digest, transfer_authorization_digest, upto_permit_digest
from opengradient_x402.errors import InvalidPrivateKey, PolicyRefused
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import PaymentTerms

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A signed promise to pay up to `amount_atomic` until `deadline_s` (Unix time). It can move money."""

    payer: str
    nonce: int
    signed_at_s: int
    deadline_s: int
    amount_atomic: int
    terms: PaymentTerms
    payload: dict[str, Any] = field(repr=False)  # holds the signature: never logged
    digest: bytes

    @property
    def authorization_id(self) -> str:
        """The digest as hex: names this authorization everywhere, reveals nothing."""
        return "0x" + self.digest.hex()


def authorize(terms: PaymentTerms, *, signer: Signer, network: Network, nonce: int, now_s: int) -> Authorization:
    """Sign the terms (x402 v2, schemes upto and exact on EVM). The policy must have accepted them.

    Raises PolicyRefused when the terms are for another chain than the network's: a signature is valid
    wherever its chain id says, whatever the caller believed.
    """
    if terms.chain_id != network.chain_id:
        raise PolicyRefused(
            f"The terms are for chain {terms.chain_id}, the client pays on {network.caip2} only. Nothing was signed."
        )
    deadline_s = now_s + terms.max_timeout_s
    if terms.transfer_method == "eip3009":
        digest, payload = _eip3009(terms, signer.address, network, nonce, deadline_s)
    elif terms.scheme == "upto":
        digest, payload = _upto(terms, signer.address, network, nonce, deadline_s)
    elif terms.scheme == "exact":
        digest, payload = _exact(terms, signer.address, network, nonce, deadline_s)
    else:
        assert_never(terms.scheme)
    payload["signature"] = "0x" + signer.sign_digest(digest).hex()
    return Authorization(
        payer=signer.address,
        nonce=nonce,
        signed_at_s=now_s,
        deadline_s=deadline_s,
        amount_atomic=terms.amount_atomic,
        terms=terms,
        payload=payload,
        digest=digest,
    )


def payment_header(
    authorization: Authorization,
    *,
    resource: Mapping[str, Any],
    extensions: Mapping[str, Any] | None = None,
) -> str:
    """The value of PAYMENT-SIGNATURE: base64 of compact JSON (x402 v2). It is worth money: never log it."""
    document: dict[str, Any] = {
        "x402Version": 2,
        "payload": authorization.payload,
        "accepted": authorization.terms.raw,
        "resource": resource,
    }
    if extensions:
        document["extensions"] = extensions
    content = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(content.encode("ascii")).decode("ascii")


def _upto(
    terms: PaymentTerms, payer: str, network: Network, nonce: int, deadline_s: int
) -> tuple[bytes, dict[str, Any]]:
    if terms.facilitator is None:
        raise ValueError("upto terms without a facilitator")  # challenge.py never lets these through
    digest = upto_permit_digest(
        chain_id=network.chain_id,
        permit2=network.permit2,
        token=terms.asset,
        amount_atomic=terms.amount_atomic,
        spender=network.upto_proxy,
        nonce=nonce,
        deadline_s=deadline_s,
        pay_to=terms.pay_to,
        facilitator=terms.facilitator,
    )
    witness = {"to": terms.pay_to, "facilitator": terms.facilitator, "validAfter": "0"}
    return digest, _permit_payload(terms, payer, network.upto_proxy, nonce, deadline_s, witness)


def _exact(
    terms: PaymentTerms, payer: str, network: Network, nonce: int, deadline_s: int
) -> tuple[bytes, dict[str, Any]]:
    digest = exact_permit_digest(
        chain_id=network.chain_id,
        permit2=network.permit2,
        token=terms.asset,
        amount_atomic=terms.amount_atomic,
        spender=network.exact_proxy,
        nonce=nonce,
        deadline_s=deadline_s,
        pay_to=terms.pay_to,
    )
    witness = {"to": terms.pay_to, "validAfter": "0"}
    return digest, _permit_payload(terms, payer, network.exact_proxy, nonce, deadline_s, witness)


def _permit_payload(
    terms: PaymentTerms, payer: str, spender: str, nonce: int, deadline_s: int, witness: dict[str, str]
) -> dict[str, Any]:
    return {
        "permit2Authorization": {
            "from": payer,
            "permitted": {"token": terms.asset, "amount": str(terms.amount_atomic)},
            "spender": spender,
            "nonce": str(nonce),
            "deadline": str(deadline_s),
            "witness": witness,
        }
    }


def _eip3009(
    terms: PaymentTerms, payer: str, network: Network, nonce: int, deadline_s: int
) -> tuple[bytes, dict[str, Any]]:
    digest = transfer_authorization_digest(
        chain_id=network.chain_id,
        token=terms.asset,
        token_name=network.asset.name if terms.asset_name is None else terms.asset_name,
        token_version=network.asset.version if terms.asset_version is None else terms.asset_version,
        payer=payer,
        pay_to=terms.pay_to,
        amount_atomic=terms.amount_atomic,
        nonce=nonce,
        valid_before_s=deadline_s,
    )
    authorization = {
        "from": payer,
        "to": terms.pay_to,
        "value": str(terms.amount_atomic),
        "validAfter": "0",
        "validBefore": str(deadline_s),
        "nonce": "0x" + nonce.to_bytes(32, "big").hex(),
    }
    return digest, {"authorization": authorization}


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
