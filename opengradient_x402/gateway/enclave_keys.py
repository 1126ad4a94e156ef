"""Which public key an answer must be signed with, and what to do when it is not.

A key from the on-chain registry, or from a verified attestation, is evidence; a key that the gateway itself serves
(`/signing-key`) shows only that answers come from the holder of that key, and is noted as such on the receipt.
Sans-I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from opengradient_x402.completions import Completion
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.attestations import KEY_PATH, key_in
from opengradient_x402.gateway.endpoints import Endpoint, EndpointSource, fetch
from opengradient_x402.proofs.attestation import (
    Verdict,
    VerifyTee,
    check_completion,
    request_hashes,
    uncovered_parts,
)

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The verdict over one answer, and where the key came from: `registry`, `attestation`, `gateway` or `none`."""

    verdict: Verdict
    key_source: str
    uncovered: tuple[str, ...] = ()
    """What of a verified call the signature does not cover."""

    def __str__(self) -> str:
        return f"{self.verdict.value} (key from the {self.key_source})"


@dataclass(slots=True, kw_only=True)
class ProofCheck:
    """The check of one call: the key that is trusted for it, and the request as sent."""

    mode: VerifyTee
    public_key_der: bytes | None
    key_source: str
    on_wrong_key: Callable[[], None]
    request: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def take(self, request: Mapping[str, Any]) -> None:
        """The request as it will be sent. Raises ConfigurationError for one that no enclave could sign."""
        try:
            request_hashes(request)
        except (AttributeError, TypeError, ValueError) as exc:
            raise ConfigurationError(
                f"The request is not one that an enclave's proof can be checked for ({exc}). Nothing was sent or paid. "
                "Give messages and tool calls as OpenAI has them, and a number as temperature.",
                kind="invalid_request",
            ) from exc
        self.request = request

    def trust(self, endpoint: Endpoint) -> None:
        """Notes the endpoint of the call: where its key is registered or attested, no other one counts."""
        if endpoint.public_key_der is not None:
            self.public_key_der, self.key_source = endpoint.public_key_der, endpoint.key_source

    def check(self, completion: Completion) -> Checked:
        """The verdict over the whole answer."""
        verdict = check_completion(
            completion, request=self.request, public_key_der=self.public_key_der, now_s=int(time.time())
        )
        if verdict is Verdict.WRONG_KEY:
            self.on_wrong_key()  # the gateway may have a new enclave: the next call looks
        uncovered = uncovered_parts(completion, self.request) if verdict is Verdict.VERIFIED else ()
        return Checked(verdict=verdict, key_source=self.key_source, uncovered=uncovered)


class EnclaveKeys:
    """The key of the gateway that the next call goes to, asked for once. Thread-safe: the worst race asks twice."""

    def __init__(self, endpoints: EndpointSource) -> None:
        self._endpoints = endpoints
        self._served: bytes | None = None

    def current(self) -> Steps[tuple[bytes | None, str]]:
        """The key to check with (DER), and its source. A registered key needs no request."""
        endpoint = yield from self._endpoints.current()
        if endpoint.public_key_der is not None:
            return endpoint.public_key_der, endpoint.key_source
        if self._served is None:
            request = endpoint.query(KEY_PATH, timeout_s=_TIMEOUT_S)
            try:
                self._served = key_in((yield from fetch(request, timeout_s=_TIMEOUT_S)))
            except httpx.TransportError:
                return None, "none"
        return self._served, "gateway" if self._served is not None else "none"

    def forget(self) -> None:
        """The next call asks again: an answer was signed by another enclave than the one we know."""
        self._served = None
        self._endpoints.doubt()
