"""Reads an AWS Nitro attestation document: which image runs in an enclave, and which keys belong to it.

A document is a COSE_Sign1 structure (RFC 9052 §4.2, ES384) around a CBOR map, signed by a certificate whose chain is in
the document and ends in a root that the verifier pins (AWS Nitro Enclaves, "Verifying the root of trust"). The user
data binds two things of OpenGradient's enclaves: the TLS certificate and the key that signs answers (docs/wire.md,
"Attestation"). All bytes here come from strangers: the result of a check is always a verdict. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.addresses import keccak256

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_DOCUMENT_BYTES: Final = 32 * 1024
"""Documents with the longest fields that AWS allows have 9 KiB."""
MAX_AGE_S: Final = 300
"""Seconds. A document that was made for our nonce is younger."""
NONCE_BYTES: Final = 20
"""What the enclaves' `/enclave/attestation?nonce=` takes, as 40 hex digits."""
_MAX_DEPTH: Final = 8
_MAX_CHAIN: Final = 8
_ES384: Final = {1: -35}
"""The only protected header: algorithm ES384 (RFC 9053 §2.1)."""
_SIGNATURE_BYTES: Final = 96
_PCR_BYTES: Final = 48
_YEAR_9999_MS: Final = 253_370_764_800_000
_TAG_18: Final = b"\xd2"
_SHA256_PREFIX: Final = b"\x12\x20"
"""Multihash: SHA-256, 32 bytes."""


class DocumentVerdict(StrEnum):
    """What the check of a document found. Anything but `valid` means: do not rely on it."""

    VALID = "valid"
    ABSENT = "absent"
    UNREADABLE = "unreadable"
    WRONG_ROOT = "wrong_root"
    WRONG_CHAIN = "wrong_chain"
    WRONG_TIME = "wrong_time"
    WRONG_SIGNATURE = "wrong_signature"
    WRONG_NONCE = "wrong_nonce"
    STALE = "stale"
    DEBUG_MODE = "debug_mode"
    WRONG_IMAGE = "wrong_image"
    WRONG_CERTIFICATE = "wrong_certificate"
    WRONG_KEY = "wrong_key"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return _SENTENCES[self]


_SENTENCES: Final[Mapping[DocumentVerdict, str]] = {
    DocumentVerdict.VALID: "the document is signed under the pinned root, and fits",
    DocumentVerdict.ABSENT: "the gateway shows no attestation document",
    DocumentVerdict.UNREADABLE: "the attestation document cannot be read",
    DocumentVerdict.WRONG_ROOT: "the document's certificates lead to another root than the pinned one",
    DocumentVerdict.WRONG_CHAIN: "the document's certificates do not sign each other as they must",
    DocumentVerdict.WRONG_TIME: "a certificate of the document was not valid at that time",
    DocumentVerdict.WRONG_SIGNATURE: "the document's signature does not fit",
    DocumentVerdict.WRONG_NONCE: "the document was made for another question than ours",
    DocumentVerdict.STALE: "the document was made at another time than it was asked for",
    DocumentVerdict.DEBUG_MODE: "the enclave runs in debug mode, in which its memory can be read from outside",
    DocumentVerdict.WRONG_IMAGE: "the enclave runs another image than those that are allowed",
    DocumentVerdict.WRONG_CERTIFICATE: "the document names another TLS certificate than the connection showed",
    DocumentVerdict.WRONG_KEY: "the document names another signing key than the enclave's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """What a document says. Times are Unix seconds; PCRs are 48 bytes each, by number."""

    module_id: str
    timestamp_s: int
    pcrs: Mapping[int, bytes]
    nonce: bytes | None
    user_data: bytes | None
    certificate: bytes = field(repr=False)
    cabundle: tuple[bytes, ...] = field(repr=False)
    """From the root to the issuer of `certificate`; all DER."""

    @property
    def pcr_hash(self) -> str:
        """The image, as the registry names it: keccak256 of PCR0, PCR1 and PCR2 (0x-hex)."""
        return "0x" + keccak256(b"".join(self.pcrs[number] for number in range(3))).hex()

    @property
    def is_debug(self) -> bool:
        """Whether the enclave was started in debug mode: PCR0 to PCR2 are zero then."""
        return not any(any(self.pcrs[number]) for number in range(3))

    @property
    def bound_hashes(self) -> tuple[bytes, bytes] | None:
        """SHA-256 of the TLS certificate and of the signing key (both DER); None for user data of another form."""
        data = self.user_data or b""
        if len(data) != 68 or data[:2] != _SHA256_PREFIX or data[34:36] != _SHA256_PREFIX:
            return None
        return data[2:34], data[36:]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCheck:
    """The verdict over a document, and what it says as far as it could be read."""

    verdict: DocumentVerdict
    why: str
    document: NitroDocument | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the document may be relied on, for everything that was asked."""
        return self.verdict is DocumentVerdict.VALID


class _Refused(Exception):
    def __init__(self, verdict: DocumentVerdict, why: str = "") -> None:
        super().__init__(why)
        self.verdict = verdict
        self.why = why


def check_document(
    content: bytes,
    *,
    root_sha256: str,
    now_s: int | None = None,
    nonce: bytes | None = None,
    certificate_der: bytes | None = None,
    public_key_der: bytes | None = None,
    pcr_hashes: Collection[str] | None = None,
) -> DocumentCheck:
    """Whether a document holds, and fits what is expected of it; None leaves an expectation out.

    `root_sha256` is the fingerprint of the root (64 hex digits). With `now_s` the document must have been made within
    `MAX_AGE_S` of that time; without it, certificates are checked at the document's own time, as for evidence that is
    kept. `certificate_der` is the TLS certificate, `public_key_der` the signing key (SubjectPublicKeyInfo), and
    `pcr_hashes` are the allowed images. Debug mode is always refused.
    """
    document: NitroDocument | None = None
    try:
        protected, payload, signature = _cose_sign1(content)
        document = _document(payload)
        _check_chain(document, root_sha256, now_s)
        _check_signature(document.certificate, protected, payload, signature)
        _check_said(document, now_s, nonce, pcr_hashes)
        _check_bound(document, certificate_der, public_key_der)
    except _Refused as refused:
        why = refused.verdict.sentence + (f": {refused.why}" if refused.why else "")
        return DocumentCheck(verdict=refused.verdict, why=why, document=document)
    return DocumentCheck(verdict=DocumentVerdict.VALID, why=DocumentVerdict.VALID.sentence, document=document)


def ledger_key(tee_id: str) -> str:
    """Under which name the ledger keeps the last valid attestation of an enclave (`Ledger.noted`), as JSON."""
    return f"attestation {tee_id.lower()}"


def document_in(body: bytes) -> bytes:
    """The document in the body of an HTTP answer, which is base64 text. Raises ValueError for anything else."""
    if len(body) > 2 * MAX_DOCUMENT_BYTES:
        raise ValueError("the answer is longer than any attestation document")
    try:
        return base64.b64decode(body.strip(), validate=True)
    except binascii.Error as exc:
        raise ValueError("the answer is not base64 text") from exc


# -- reading


def _cose_sign1(content: bytes) -> tuple[bytes, bytes, bytes]:
    if len(content) > MAX_DOCUMENT_BYTES:
        raise _Refused(DocumentVerdict.UNREADABLE, f"it has more than {MAX_DOCUMENT_BYTES} bytes")
    match _decoded(content.removeprefix(_TAG_18)):
        case [bytes(protected), {} as unprotected, bytes(payload), bytes(signature)] if not unprotected:
            pass
        case _:
            raise _Refused(DocumentVerdict.UNREADABLE, "it is not a COSE_Sign1 structure")
    if len(signature) != _SIGNATURE_BYTES or not content.endswith(signature):
        raise _Refused(DocumentVerdict.UNREADABLE, "its signature has another length than ES384's")
    if _decoded(protected) != _ES384:
        raise _Refused(DocumentVerdict.UNREADABLE, "it is not signed with ES384")
    return protected, payload, signature


def _document(payload: bytes) -> NitroDocument:
    said = _decoded(payload)
    if not isinstance(said, dict) or said.get("digest") != "SHA384":
        raise _Refused(DocumentVerdict.UNREADABLE, "its content is not an attestation")
    module_id, timestamp_ms, certificate = said.get("module_id"), said.get("timestamp"), said.get("certificate")
    cabundle, pcrs = said.get("cabundle"), said.get("pcrs")
    if not isinstance(module_id, str) or type(timestamp_ms) is not int or not isinstance(certificate, bytes):
        raise _Refused(DocumentVerdict.UNREADABLE, "a field is missing or of another kind")
    if not 0 < timestamp_ms < _YEAR_9999_MS:
        raise _Refused(DocumentVerdict.UNREADABLE, "its time is no time")
    if (
        not isinstance(cabundle, list)
        or not 1 <= len(cabundle) <= _MAX_CHAIN
        or not all(isinstance(one, bytes) for one in cabundle)
    ):
        raise _Refused(DocumentVerdict.UNREADABLE, "its chain of certificates is missing or too long")
    return NitroDocument(
        module_id=module_id[:256],
        timestamp_s=timestamp_ms // 1000,
        pcrs=_pcrs(pcrs),
        nonce=_optional_bytes(said, "nonce"),
        user_data=_optional_bytes(said, "user_data"),
        certificate=certificate,
        cabundle=tuple(cabundle),
    )


def _pcrs(said: object) -> dict[int, bytes]:
    if (
        not isinstance(said, dict)
        or not {0, 1, 2} <= said.keys()
        or not all(type(number) is int and 0 <= number < 32 for number in said)
        or not all(isinstance(value, bytes) and len(value) == _PCR_BYTES for value in said.values())
    ):
        raise _Refused(DocumentVerdict.UNREADABLE, "its PCRs are missing, or are not of 48 bytes")
    return dict(said)


def _optional_bytes(said: Mapping[Any, Any], name: str) -> bytes | None:
    value = said.get(name)
    if value is not None and not isinstance(value, bytes):
        raise _Refused(DocumentVerdict.UNREADABLE, f"its {name} is not bytes")
    return value


def _decoded(content: bytes) -> Any:
    """One CBOR value without tags, of limited depth, every key once."""
    import cbor2

    decoder = cbor2.CBORDecoder(
        BytesIO(content),
        semantic_decoders=_NoTags(),
        max_depth=_MAX_DEPTH,
        allow_duplicate_keys=False,
    )
    try:
        return decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, ArithmeticError) as exc:
        raise _Refused(DocumentVerdict.UNREADABLE, "it is not plain CBOR") from exc


class _NoTags(dict[int, Any]):
    """Refuses every tag: a document has none, and some are costly to decode (big numbers, regular expressions)."""

    def get(self, _tag: int, _default: object = None) -> Any:
        return _no_tag

    def __getitem__(self, _tag: int) -> Any:
        return _no_tag

    def __contains__(self, _tag: object) -> bool:
        return True


def _no_tag(*_: object) -> Any:
    raise ValueError("a tag, where none belongs")


# -- certificates and signature (AWS Nitro Enclaves, "Verifying the root of trust")


def _check_chain(document: NitroDocument, root_sha256: str, now_s: int | None) -> None:
    from cryptography import x509

    if not hmac.compare_digest(sha256(document.cabundle[0]).hexdigest(), root_sha256.lower()):
        raise _Refused(DocumentVerdict.WRONG_ROOT)
    try:
        chain = [x509.load_der_x509_certificate(one) for one in (*document.cabundle, document.certificate)]
    except _problems() as exc:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "a certificate cannot be read") from exc
    for depth, (issuer, issued) in enumerate(pairwise(chain)):
        _check_issued(issuer, issued, below=len(chain) - depth - 2)
    # Only what the root has signed is read any further.
    at = datetime.fromtimestamp(document.timestamp_s, UTC)
    times = [at] if now_s is None else [at, datetime.fromtimestamp(now_s, UTC)]
    for certificate in chain:
        if any(not certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc for time in times):
            raise _Refused(DocumentVerdict.WRONG_TIME, certificate.subject.rfc4514_string()[:200])
    usage = _extensions(chain[-1])[1]
    if usage is None or not usage.digital_signature:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "the last certificate may not sign documents")


def _check_issued(issuer: Certificate, issued: Certificate, *, below: int) -> None:
    """`below` is how many authorities stand between the two and the signer of the document."""
    constraints, usage = _extensions(issuer)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "an issuer is not an authority")
    if constraints.path_length is not None and constraints.path_length < below:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "an authority may not have so many below it")
    try:
        issued.verify_directly_issued_by(issuer)
    except _problems() as exc:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "a certificate is not signed by the one before it") from exc


def _extensions(certificate: Certificate) -> tuple[Any, Any]:
    from cryptography import x509

    found: list[Any] = []
    for kind in (x509.BasicConstraints, x509.KeyUsage):
        try:
            found.append(certificate.extensions.get_extension_for_class(kind).value)
        except x509.ExtensionNotFound:
            found.append(None)
        except _problems() as exc:
            raise _Refused(DocumentVerdict.WRONG_CHAIN, "a certificate's extensions cannot be read") from exc
    return found[0], found[1]


def _problems() -> tuple[type[Exception], ...]:
    """What reading or checking a stranger's certificate can raise."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    of_x509 = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
    return ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, *of_x509


def _check_signature(certificate: bytes, protected: bytes, payload: bytes, signature: bytes) -> None:
    import cbor2
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except _problems() as exc:
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "the signer's key cannot be read") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _Refused(DocumentVerdict.WRONG_CHAIN, "the signer's key is not on P-384")
    half = _SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    try:
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as exc:
        raise _Refused(DocumentVerdict.WRONG_SIGNATURE) from exc


# -- what is expected


def _check_said(
    document: NitroDocument, now_s: int | None, nonce: bytes | None, pcr_hashes: Collection[str] | None
) -> None:
    if nonce is not None and not hmac.compare_digest(document.nonce or b"", nonce):
        raise _Refused(DocumentVerdict.WRONG_NONCE)
    if now_s is not None and abs(now_s - document.timestamp_s) > MAX_AGE_S:
        raise _Refused(DocumentVerdict.STALE, f"{abs(now_s - document.timestamp_s)} s lie between")
    if document.is_debug:
        raise _Refused(DocumentVerdict.DEBUG_MODE)
    if pcr_hashes is not None and document.pcr_hash not in pcr_hashes:
        raise _Refused(DocumentVerdict.WRONG_IMAGE, document.pcr_hash)


def _check_bound(document: NitroDocument, certificate_der: bytes | None, public_key_der: bytes | None) -> None:
    expected: Sequence[tuple[DocumentVerdict, bytes | None]] = (
        (DocumentVerdict.WRONG_CERTIFICATE, certificate_der),
        (DocumentVerdict.WRONG_KEY, public_key_der),
    )
    bound = document.bound_hashes or (b"", b"")
    for (verdict, der), hashed in zip(expected, bound, strict=True):
        if der is not None and not hmac.compare_digest(sha256(der).digest(), hashed):
            raise _Refused(verdict)
