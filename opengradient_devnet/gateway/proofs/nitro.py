"""Attestation documents in the form of AWS Nitro's, under a root that this devnet makes for itself.

A document is COSE_Sign1 (ES384) around a CBOR map (AWS Nitro Enclaves, "Verifying the root of trust"). Nothing is
measured here: the PCRs are those of an image that does not exist. Who trusts the root, trusts this process.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID
from eth_utils.crypto import keccak

from opengradient_devnet.faults import ForgeAttestation

NONCE_DIGITS = 40
_PROTECTED = cbor2.dumps({1: -35})  # the algorithm ES384 (RFC 9053 §2.1)
_MULTIHASH_SHA256 = b"\x12\x20"
_LIFETIME = dt.timedelta(days=30)
_EARLIER = dt.timedelta(hours=2)
_STALE_BY_S = 3600


def _measured(what: str) -> bytes:
    return hashlib.sha384(f"opengradient devnet: {what}".encode()).digest()


PCRS = {number: _measured(what) for number, what in enumerate(("image", "kernel", "application"))} | {
    number: bytes(48) for number in range(3, 16)
}
"""The registers as a hypervisor reports them; those above 2 say nothing about the image."""


def pcr_hash(pcrs: Mapping[int, bytes] = PCRS) -> bytes:
    """How the TEE registry names an image: keccak256 of PCR0, PCR1 and PCR2."""
    return keccak(b"".join(pcrs[number] for number in range(3)))


class _Authority:
    """A certificate with its key. Without an issuer it is a root."""

    def __init__(self, name: str, *, issuer: _Authority | None = None, is_authority: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        above = self if issuer is None else issuer
        now = dt.datetime.now(dt.UTC)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(above.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    key_cert_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
            .sign(above.key, hashes.SHA384())
        )
        self.der = certificate.public_bytes(serialization.Encoding.DER)


class Hypervisor:
    """What signs the documents of one enclave; a root, an authority and a signer, new for every run."""

    def __init__(self, *, certificate_der: bytes, public_key_der: bytes) -> None:
        self._root = _Authority("opengradient-devnet.nitro-enclaves")
        self._zone = _Authority("zone.opengradient-devnet.nitro-enclaves", issuer=self._root)
        self._signer = _Authority("enclave.opengradient-devnet", issuer=self._zone, is_authority=False)
        self._certificate_der = certificate_der
        self._public_key_der = public_key_der

    @property
    def root_sha256(self) -> str:
        """The fingerprint of the root, 64 hex digits: what clients pin."""
        return hashlib.sha256(self._root.der).hexdigest()

    def document(self, *, nonce: bytes, timestamp_s: int, fault: ForgeAttestation | None = None) -> bytes:
        """A document for this nonce; with a fault, one that is wrong in that way."""
        if fault is not None and fault.part == "root":
            other = Hypervisor(certificate_der=self._certificate_der, public_key_der=self._public_key_der)
            return other.document(nonce=nonce, timestamp_s=timestamp_s)
        said: dict[str, Any] = {
            "module_id": "i-0devnet-enc0devnet",
            "digest": "SHA384",
            "timestamp": timestamp_s * 1000,
            "pcrs": PCRS,
            "certificate": self._signer.der,
            "cabundle": [self._root.der, self._zone.der],
            "public_key": None,
            "user_data": _bound(self._certificate_der, self._public_key_der),
            "nonce": nonce,
        }
        content = self._signed(cbor2.dumps(said if fault is None else said | self._wrong(fault, said)))
        if fault is not None and fault.part == "signature":
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    def _signed(self, payload: bytes) -> bytes:
        signed = cbor2.dumps(["Signature1", _PROTECTED, b"", payload])
        r, s = utils.decode_dss_signature(self._signer.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return cbor2.dumps([_PROTECTED, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])

    def _wrong(self, fault: ForgeAttestation, said: Mapping[str, Any]) -> dict[str, Any]:
        wrong: dict[str, dict[str, Any]] = {
            "nonce": {"nonce": bytes(len(said["nonce"]))},
            "stale": {"timestamp": said["timestamp"] - _STALE_BY_S * 1000},
            "debug": {"pcrs": dict.fromkeys(PCRS, bytes(48))},
            "image": {"pcrs": PCRS | {0: _measured("another image")}},
            "certificate": {"user_data": _bound(b"another certificate", self._public_key_der)},
            "key": {"user_data": _bound(self._certificate_der, b"another key")},
            "chain": {"cabundle": [self._root.der, _Authority("nobody", issuer=self._root).der]},
        }
        return wrong.get(fault.part, {})


def _bound(certificate_der: bytes, public_key_der: bytes) -> bytes:
    """The user data: what binds the enclave's TLS certificate and signing key to the document."""
    return b"".join(_MULTIHASH_SHA256 + hashlib.sha256(der).digest() for der in (certificate_der, public_key_der))
