"""Endpoints from the on-chain registry of enclaves: admitted, pinned, renewed, and left when they do not answer.

Anybody may be able to register, so an entry is a claim: its address must not lead into the caller's own network, and
its certificate must be one that TLS can be pinned to. What its name resolves to is looked at when a connection is made.

One enclave serves until no connection to it can be made, because paid sessions are bound to an endpoint. The
registry is read in a thread: in the background while what is known is fresh enough, and before a call only
when it is not.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import SystemRandom
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpx

from opengradient_x402.chain.contracts import RegisteredTee, active_tees
from opengradient_x402.chain.readers import ChainReader
from opengradient_x402.effects import Steps, Wait, in_thread
from opengradient_x402.errors import (
    ChainUnavailable,
    ConfigurationError,
    GatewayUnreachable,
    InsecureEndpoint,
    NotPaid,
)
from opengradient_x402.gateway.connections import pinned_context
from opengradient_x402.gateway.endpoints import Endpoint
from opengradient_x402.networks import ChainContract, Network, is_loopback
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.process import Ending, Resident, belongs

if TYPE_CHECKING:
    from opengradient_x402.payment.payments import Payments

_log = logging.getLogger(__name__)
_LONGEST_READ_S = 30.0
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Listing:
    """What one reading gave: endpoints in order of preference, and why others were left out."""

    endpoints: tuple[Endpoint, ...]
    refused: tuple[str, ...]
    read_at: float


class RegistryGateway(Resident):
    """An `EndpointSource` over a network's TEE registry. Thread-safe; share one among the clients of a payer.

    `max_age_s` bounds how old the listing behind a call can be; it is renewed in the background from half of that age.
    After a failure it is read again, at most every `min_age_s`. `shuffle` spreads clients over the enclaves. Raises
    ConfigurationError for a network without a registry.
    """

    def __init__(
        self,
        network: Network,
        *,
        policy: SpendPolicy | None = None,
        max_age_s: float = 600.0,
        min_age_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        shuffle: Callable[[list[Endpoint]], None] | None = None,
    ) -> None:
        self._network = network
        self._contract = _contract_of(network)
        self._policy = policy if policy is not None else SpendPolicy()
        self._max_age_s = max_age_s
        self._min_age_s = min_age_s
        self._clock = clock
        self._shuffle = shuffle if shuffle is not None else SystemRandom().shuffle
        self._chain = ChainReader.at(self._contract)
        self._lock = threading.Lock()
        self._listing: _Listing | None = None
        self._reading: Future[_Listing] | None = None
        self._renew_at = 0.0
        self._is_doubted = False
        self._keys: dict[str, bytes] = {}
        belongs(self, Ending.CONNECTIONS)

    def _renew(self) -> None:
        """In a child: the thread that was reading the registry is in the parent."""
        self._lock = threading.Lock()
        self._reading = None

    def public_key(self, tee_id: str) -> bytes | None:
        """The signing key (DER) of an enclave that has been listed, also after it has gone; None for others."""
        return self._keys.get(tee_id.lower())

    def current(self) -> Steps[Endpoint]:
        """The enclave for the next call.

        Raises ChainUnavailable when the registry cannot be read, InsecureEndpoint when nothing in it may be
        called, GatewayUnreachable when it is empty.
        """
        listing = self._listing
        if listing is None or self._clock() >= self._renew_at:
            listing = yield from self._renewed(listing)
        if not listing.endpoints:
            raise self._nobody(listing)
        return listing.endpoints[0]

    def after(self, tried: Collection[Endpoint]) -> Steps[Endpoint | None]:
        """The next enclave that was not tried; an enclave with a new certificate counts as another one."""
        following = self._untried(tried)
        listing = self._listing
        if following is not None or listing is None or self._clock() - listing.read_at < self._min_age_s:
            return following
        yield from self._reread(listing)
        return self._untried(tried)

    def failed(self, endpoint: Endpoint) -> None:
        """Puts the enclave behind all others, and has the registry read again before long."""
        with self._lock:
            if (listing := self._listing) is not None and endpoint in listing.endpoints:
                others = tuple(known for known in listing.endpoints if known != endpoint)
                self._listing = replace(listing, endpoints=(*others, endpoint))
                self._renew_at = min(self._renew_at, listing.read_at + self._min_age_s)

    def doubt(self) -> None:
        """Has the registry read again before the next call, which must not fail for the same reason."""
        with self._lock:
            if self._listing is not None:
                self._is_doubted = True
                self._renew_at = min(self._renew_at, self._listing.read_at + self._min_age_s)

    def _renewed(self, listing: _Listing | None) -> Steps[_Listing]:
        if listing is None or not listing.endpoints or self._clock() - listing.read_at >= self._max_age_s:
            return (yield from self._read())
        if self._is_doubted:
            return (yield from self._reread(listing))
        self._start_reading()
        return listing

    def _reread(self, listing: _Listing) -> Steps[_Listing]:
        """A new listing, or the one there is when the registry does not answer."""
        try:
            return (yield from self._read())
        except NotPaid as exc:
            _log.warning("Going on with what is known: %s", exc)
            return listing

    def _read(self) -> Steps[_Listing]:
        try:
            listing: _Listing = yield Wait(self._start_reading(), _LONGEST_READ_S)
            return listing
        except TimeoutError as exc:
            raise self._unreadable(f"no answer within {_LONGEST_READ_S:g} s") from exc
        except NotPaid as exc:
            # A new error for each waiting call: errors carry the call that they ended.
            kind = ConfigurationError if isinstance(exc, ConfigurationError) else ChainUnavailable
            raise self._unreadable(exc.message, kind) from exc

    def _start_reading(self) -> Future[_Listing]:
        with self._lock:
            if self._reading is None or self._reading.done():
                if self._listing is not None:  # in case that this reading fails; too old stays too old
                    too_old = self._listing.read_at + self._max_age_s
                    self._renew_at = min(self._clock() + self._min_age_s, too_old)
                self._reading = in_thread(self._look, name="opengradient-registry")
                self._reading.add_done_callback(_report_failure)
            return self._reading

    def _look(self) -> _Listing:
        tees = self._chain.ask(active_tees(self._contract.address))
        endpoints: list[Endpoint] = []
        refused: list[str] = []
        for tee in tees:
            try:
                endpoints.append(admit(tee, network=self._network, policy=self._policy))
            except InsecureEndpoint as exc:
                refused.append(exc.message)
        return self._take(tees, endpoints, tuple(refused))

    def _take(self, tees: tuple[RegisteredTee, ...], found: list[Endpoint], refused: tuple[str, ...]) -> _Listing:
        now = self._clock()
        with self._lock:
            before = () if self._listing is None else self._listing.endpoints
            # Who serves goes on serving, and who failed stays behind.
            kept = [endpoint for endpoint in before if endpoint in found]
            new = [endpoint for endpoint in found if endpoint not in before]
            self._shuffle(new)
            listing = _Listing((*kept, *new), refused, now)
            self._listing = listing
            self._is_doubted = False
            self._renew_at = now + (self._max_age_s / 2 if listing.endpoints else self._min_age_s)
            self._keys.update({tee.id: tee.public_key_der for tee in tees})
        if listing.endpoints and refused:
            _log.info("Some registered enclaves are not called: %s", " | ".join(refused[:_SHOWN]))
        return listing

    def _untried(self, tried: Collection[Endpoint]) -> Endpoint | None:
        known = () if self._listing is None else self._listing.endpoints
        return next((endpoint for endpoint in known if endpoint not in tried), None)

    def _nobody(self, listing: _Listing) -> NotPaid:
        if not listing.refused:
            return GatewayUnreachable(
                f"The TEE registry of {self._network.name} lists no active enclave. Nothing was signed. "
                "Try again later, or name a gateway with `base_url`."
            )
        return InsecureEndpoint(
            f"None of the {len(listing.refused)} enclaves in the TEE registry of {self._network.name} may be "
            f"called. Nothing was signed. {' | '.join(listing.refused[:_SHOWN])}"
        )

    def _unreadable(self, why: str, kind: type[NotPaid] = ChainUnavailable) -> NotPaid:
        return kind(
            f"The TEE registry of {self._network.name} cannot be read, so it is not known whom to call and to pay: "
            f"{why} Nothing was signed. Try again, or name a gateway with `base_url`."
        )


_shared: weakref.WeakKeyDictionary[Payments, RegistryGateway] = weakref.WeakKeyDictionary()
_sharing = threading.Lock()


def shared_registry(payments: Payments) -> RegistryGateway:
    """The enclaves of the network's registry, read once for all clients of one payer.

    Raises ConfigurationError for a network that has none.
    """
    with _sharing:
        if payments not in _shared:
            _shared[payments] = RegistryGateway(payments.network, policy=payments.policy)
        return _shared[payments]


def _contract_of(network: Network) -> ChainContract:
    if network.registry is None:
        raise ConfigurationError(
            f"The network {network.name} has no TEE registry. Nothing was paid. Name a gateway with `base_url`, "
            "or add `registry` to the network's description."
        )
    parts = urlsplit(network.registry.rpc_url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise InsecureEndpoint(
            f"The registry's node {parts.scheme}://{parts.hostname} is not https: somebody in between could "
            "name other enclaves and payees. Nothing was paid. Use https (plain http is fine on loopback)."
        )
    return network.registry


def _report_failure(reading: Future[_Listing]) -> None:
    if (error := reading.exception()) is not None:
        _log.warning("The TEE registry could not be read: %s", error)


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
    policy.check_endpoint(base_url)
    return Endpoint(
        base_url=base_url,
        certificate_der=tee.certificate_der,
        payees=frozenset({tee.payment_address}),
        tee_id=tee.id,
        public_key_der=tee.public_key_der,
        is_far=not _may_be_near(network, policy),
    )


def _may_be_near(network: Network, policy: SpendPolicy) -> bool:
    return policy.allow_private_endpoints or is_loopback(urlsplit(network.gateway_url).hostname)


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
    if is_loopback(host) and not _may_be_near(network, policy):
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
