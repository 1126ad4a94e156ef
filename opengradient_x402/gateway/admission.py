"""From a registered enclave to an endpoint that may be called and paid, or the reason why not.

Anybody may be able to register, so an entry is a claim: its address must not lead into the caller's own
network, its certificate must be one that TLS can be pinned to. Names are not resolved: wherever they lead,
whoever answers there must hold the registered key. Knows nothing of the chain and asks nobody.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import httpx

from opengradient_x402.chain.contracts import RegisteredTee
from opengradient_x402.errors import InsecureEndpoint
from opengradient_x402.gateway.endpoints import Endpoint
from opengradient_x402.gateway.tls import pinned_context
from opengradient_x402.networks import Network, is_loopback
from opengradient_x402.payment.policy import SpendPolicy

_PRINTABLE: Final = re.compile(r"[!-~]{1,512}")
_HOST: Final = re.compile(r"[0-9a-z._:-]+")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_NOBODY: Final = "0x" + "0" * 40


def admit(tee: RegisteredTee, *, network: Network, policy: SpendPolicy) -> Endpoint:
    """The endpoint of an enclave: pinned to its certificate, bound to its payment address.

    Raises InsecureEndpoint when it must not be called.
    """
    problem = _unfit(tee, policy) or _unsafe(tee.endpoint, network, policy)
    if problem is not None:
        raise InsecureEndpoint(f"The enclave {tee.id[:10]}… at {tee.endpoint[:80]!r} is not called: {problem}.")
    base_url = tee.endpoint.rstrip("/").removesuffix("/v1")
    policy.check_endpoint(base_url, network)
    return Endpoint(
        base_url=base_url,
        certificate_der=tee.certificate_der,
        payees=frozenset({tee.payment_address}),
        tee_id=tee.id,
        public_key_der=tee.public_key_der,
    )


def _unfit(tee: RegisteredTee, policy: SpendPolicy) -> str | None:
    if not tee.is_enabled:
        return "it is registered as disabled"
    if tee.payment_address == _NOBODY:
        return "it names nobody to pay"
    if policy.pcr_hashes is not None and tee.pcr_hash not in policy.pcr_hashes:
        return f"its image {tee.pcr_hash} is not among the policy's `pcr_hashes`"
    try:
        pinned_context(tee.certificate_der)
    except ValueError as exc:
        return f"its registered certificate cannot be used ({exc})"
    return None


def _unsafe(url: str, network: Network, policy: SpendPolicy) -> str | None:
    """What is wrong with a registered URL, before the policy looks at it as at any other."""
    try:
        host = _plain_host(url)
    except (ValueError, httpx.InvalidURL):
        host = None
    if host is None:
        return "its address is not of the form https://host[:port][/path]"
    if _is_disguised(host):
        return "its host is a number that is not written as an IP address"
    if is_loopback(host) and not (
        policy.allow_private_endpoints or is_loopback(urlsplit(network.gateway_url).hostname)
    ):
        return f"it is on this machine, and {network.name} is not a local network"
    return None


def _plain_host(url: str) -> str | None:
    """The host of an https URL of host, port and path; None or ValueError for any other text.

    httpx has to read it as we do: what is checked must be what is called.
    """
    parts, read = urlsplit(url), httpx.URL(url)
    is_plain = (
        _PRINTABLE.fullmatch(url) is not None
        and _HOST.fullmatch(parts.hostname or "") is not None
        and not (parts.username or parts.password or parts.query or parts.fragment)
        and (parts.scheme, parts.hostname, parts.port or 443) == ("https", read.host.lower(), read.port or 443)
    )
    return parts.hostname if is_plain else None


def _is_disguised(host: str) -> bool:
    """Whether resolvers may take the name for a number: `2130706433`, `0x7f.1`, `127.1` (WHATWG URL, host parsing)."""
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) is None:
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False
