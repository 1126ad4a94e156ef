"""Asks an enclave for its attestation document, checks it, and keeps it; a gateway at a URL that must show one.

`attest` asks with a fresh nonce and judges the answer (`proofs.nitro`). An `AttestedGateway` does so before the first
call, and from then on the connection must show the attested certificate and answers must carry the attested key: as
for an enclave of the registry. Sans-I/O.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from opengradient_x402 import strict_json
from opengradient_x402.effects import Steps
from opengradient_x402.errors import GatewayUnreachable, InsecureEndpoint
from opengradient_x402.gateway.endpoints import Endpoint, StaticGateway, fetch
from opengradient_x402.proofs.attestation import tee_id
from opengradient_x402.proofs.nitro import (
    NONCE_BYTES,
    DocumentCheck,
    DocumentVerdict,
    check_document,
    document_in,
    ledger_key,
)

if TYPE_CHECKING:
    from opengradient_x402.payment.payments import Payments

KEY_PATH: Final = "/signing-key"
ATTESTATION_PATH: Final = "/enclave/attestation"
_TIMEOUT_S: Final = 10.0
_RENEW_S: Final = 3600.0
"""An enclave is asked again after this time; its certificate and key are pinned meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """An enclave's answer to "what runs there?", and the verdict over it.

    `certificate_der` is what the connection showed (None on plain http, which is loopback only), `public_key_der` the
    key that the gateway signs answers with.
    """

    base_url: str
    asked_at: int
    nonce: bytes
    check: DocumentCheck
    content: bytes = field(default=b"", repr=False)
    """The document as it came."""
    certificate_der: bytes | None = field(default=None, repr=False)
    public_key_der: bytes | None = field(default=None, repr=False)

    @property
    def is_valid(self) -> bool:
        """Whether document, nonce, image, certificate and key all fit."""
        return self.check.is_valid

    @property
    def tee_id(self) -> str | None:
        """The enclave's name: `0x` and the hash of its signing key."""
        return None if self.public_key_der is None else tee_id(self.public_key_der)

    @property
    def pcr_hash(self) -> str | None:
        """The image (0x-hex), as `SpendPolicy.pcr_hashes` and the registry name it."""
        return None if self.check.document is None else self.check.document.pcr_hash

    def to_json(self) -> dict[str, Any]:
        """What somebody else needs to check it again: base64 of document, key and certificate; the nonce as hex."""
        return {
            "endpoint": self.base_url,
            "asked_at": self.asked_at,
            "nonce": self.nonce.hex(),
            "document": _base64(self.content),
            "public_key": None if self.public_key_der is None else _base64(self.public_key_der),
            "certificate": None if self.certificate_der is None else _base64(self.certificate_der),
        }


def attest(endpoint: Endpoint, payments: Payments) -> Steps[Attestation]:
    """Asks an endpoint for its document with a fresh nonce, and judges it; a valid one is kept in the ledger.

    The policy's `pcr_hashes` are the images that may run there. Raises GatewayUnreachable when nobody answers.
    """
    policy, root = payments.policy, payments.network.attestation_root_sha256
    key, nonce, shown = endpoint.public_key_der, os.urandom(NONCE_BYTES), _Shown()
    request = endpoint.query(f"{ATTESTATION_PATH}?nonce={nonce.hex()}", timeout_s=_TIMEOUT_S)
    try:
        if key is None:
            key = key_in((yield from fetch(endpoint.query(KEY_PATH, timeout_s=_TIMEOUT_S), timeout_s=_TIMEOUT_S)))
        response = yield from fetch(request, timeout_s=_TIMEOUT_S, on_open=shown.note)
    except httpx.TransportError as exc:
        raise GatewayUnreachable(
            f"{endpoint.base_url} did not show its attestation ({type(exc).__name__}: {exc}). Nothing was signed. "
            "Try again later, or use another gateway."
        ) from exc
    now_s = int(time.time())
    content, check = _judged(response, root, now_s, nonce, shown.certificate_der, key, policy.pcr_hashes)
    attestation = Attestation(
        base_url=endpoint.base_url,
        asked_at=now_s,
        nonce=nonce,
        check=check,
        content=content,
        certificate_der=shown.certificate_der,
        public_key_der=key,
    )
    if attestation.is_valid and attestation.tee_id is not None:
        payments.ledger.note(ledger_key(attestation.tee_id), json.dumps(attestation.to_json()))
    return attestation


class AttestedGateway:
    """The gateway at a URL, called only while an allowed image is proven to run there (`EndpointSource`).

    Thread-safe: the worst race asks twice.
    """

    def __init__(self, gateway: StaticGateway, payments: Payments) -> None:
        self.plain = Endpoint(base_url=gateway.base_url)
        self._payments = payments
        self._attested: Endpoint | None = None
        self._renew_at = 0.0

    @property
    def base_url(self) -> str:
        """The gateway's URL, without `/v1`."""
        return self.plain.base_url

    def current(self) -> Steps[Endpoint]:
        """The endpoint, pinned to the attested certificate and key. Raises InsecureEndpoint: nothing was signed."""
        endpoint = self._attested
        if endpoint is None or time.monotonic() > self._renew_at:
            endpoint = yield from self._ask()
            self._attested, self._renew_at = endpoint, time.monotonic() + _RENEW_S
        return endpoint

    def after(self, tried: Collection[Endpoint]) -> Steps[Endpoint | None]:
        """The same gateway, if it shows another certificate now, and attests that one."""
        if self.plain in tried or len(tried) > 1:
            return None
        endpoint = yield from self._ask()
        self._attested, self._renew_at = endpoint, time.monotonic() + _RENEW_S
        return None if endpoint in tried else endpoint

    def failed(self, endpoint: Endpoint) -> None:  # noqa: ARG002  (there is one)
        """No connection could be made: the enclave is asked again before the next call."""
        self._attested = None

    def doubt(self) -> None:
        """Another key signed an answer: the enclave is asked again before the next call."""
        self._attested = None

    def _ask(self) -> Steps[Endpoint]:
        attestation = yield from attest(self.plain, self._payments)
        if not attestation.is_valid:
            raise InsecureEndpoint(
                f"{self.base_url} is not called: the policy allows certain enclave images only (`pcr_hashes`), and "
                f"{attestation.check.why}. Nothing was signed. Use another gateway, or add its image to `pcr_hashes` "
                "if you have audited it."
            )
        return Endpoint(
            base_url=self.base_url,
            certificate_der=attestation.certificate_der,
            tee_id=attestation.tee_id,
            public_key_der=attestation.public_key_der,
            key_source="attestation",
        )


def key_in(response: httpx.Response) -> bytes | None:
    """The signing key (DER) that a gateway shows at `KEY_PATH`; None when the answer holds none that can be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if response.status_code != httpx.codes.OK:
        return None
    try:
        pem = strict_json.loads(response.content)["public_key"]
        key = serialization.load_pem_public_key(str(pem).encode())
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        return None
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class _Shown:
    """The certificate of the connection that brought an answer."""

    certificate_der: bytes | None = None

    def note(self, response: httpx.Response) -> None:
        line = response.extensions.get("network_stream")
        tls = None if line is None else line.get_extra_info("ssl_object")
        self.certificate_der = None if tls is None else tls.getpeercert(True)  # noqa: FBT003  (a keyword is not taken)


def _judged(
    response: httpx.Response,
    root_sha256: str,
    now_s: int,
    nonce: bytes,
    certificate_der: bytes | None,
    public_key_der: bytes | None,
    pcr_hashes: Collection[str] | None,
) -> tuple[bytes, DocumentCheck]:
    if response.status_code != httpx.codes.OK:
        verdict = DocumentVerdict.ABSENT
        return b"", DocumentCheck(verdict=verdict, why=f"{verdict.sentence} (HTTP {response.status_code})")
    try:
        content = document_in(response.content)
    except ValueError as exc:
        verdict = DocumentVerdict.UNREADABLE
        return b"", DocumentCheck(verdict=verdict, why=f"{verdict.sentence}: {exc}")
    check = check_document(
        content,
        root_sha256=root_sha256,
        now_s=now_s,
        nonce=nonce,
        certificate_der=certificate_der,
        public_key_der=public_key_der,
        pcr_hashes=pcr_hashes,
    )
    if check.is_valid and public_key_der is None:
        verdict = DocumentVerdict.WRONG_KEY
        check = DocumentCheck(verdict=verdict, why="the gateway shows no signing key", document=check.document)
    if check.is_valid and certificate_der is None and response.request.url.scheme == "https":
        verdict = DocumentVerdict.WRONG_CERTIFICATE
        check = DocumentCheck(verdict=verdict, why="the connection shows no certificate", document=check.document)
    return content, check


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
