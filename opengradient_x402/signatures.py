"""Who made a secp256k1 signature; and signatures over text, as wallets make them (EIP-191).

Pure. Does not hold keys (`signer`), and does not know what is signed.
"""

from __future__ import annotations

from typing import Final

from opengradient_x402.addresses import address_of, keccak256

_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # SEC 2, secp256k1; EIP-2
SIGNATURE_BYTES: Final = 65


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
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        return None
    public_key = _recovered(digest, signature)
    return None if public_key is None else address_of(keccak256(public_key))


def _recovered(digest: bytes, signature: bytes) -> bytes | None:
    compact = signature[:64] + bytes([signature[64] - 27])
    try:
        from coincurve import PublicKey
    except ImportError:
        return _recovered_slowly(digest, compact)
    try:
        return PublicKey.from_signature_and_message(compact, digest, hasher=None).format(compressed=False)[1:]
    except ValueError:
        return None


def _recovered_slowly(digest: bytes, compact: bytes) -> bytes | None:
    from eth_keys.backends.native.main import NativeECCBackend
    from eth_keys.datatypes import Signature
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    try:
        signature = Signature(compact, backend=NativeECCBackend())
        return bytes(signature.recover_public_key_from_msg_hash(digest).to_bytes())
    except (BadSignature, ValidationError, ValueError):
        return None
