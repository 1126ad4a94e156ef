"""Where calls go: an endpoint says how to reach a gateway, what its TLS must show, and who may be paid there.

A source hands out endpoints: `StaticGateway` the one that the user named, `enclaves.RegistryGateway`
the enclaves of the on-chain registry. Sans-I/O; does not know connections or payments.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

import httpx

from opengradient_x402.effects import Read, Send, Steps
from opengradient_x402.parameters import checked_base_url
from opengradient_x402.payment.policy import SpendPolicy

EXTENSION: Final = "opengradient.endpoint"
"""The request extension that holds the endpoint, for the transports."""
MAX_PUBLIC_BYTES: Final = 4 * 1024 * 1024
"""Lists of models and keys stay far below."""
REGISTRY: Final = "registry"
"""What users write for `base_url` to have endpoints taken from the network's registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One gateway. Equal endpoints may share connections.

    `certificate_der`: the only certificate that is trusted; None trusts the public authorities. `payees`: the
    only addresses that may be paid; None leaves it to the allow-lists of network and policy. `tee_id` and
    `public_key_der` are set for enclaves whose signing key is registered or attested.
    """

    base_url: str
    certificate_der: bytes | None = field(default=None, repr=False)
    payees: frozenset[str] | None = None
    tee_id: str | None = None
    public_key_der: bytes | None = field(default=None, repr=False)
    key_source: str = "registry"
    """Where `public_key_der` was confirmed: `registry` or `attestation`."""
    is_far: bool = False
    """Whether its name must lead into the public internet: the user did not name it."""

    @classmethod
    def of(cls, request: httpx.Request) -> Endpoint | None:
        """The endpoint that a request was built for; None for requests of other clients."""
        endpoint = request.extensions.get(EXTENSION)
        return endpoint if isinstance(endpoint, cls) else None

    def request(self, method: str, path: str, *, extensions: dict[str, Any], **options: Any) -> httpx.Request:
        """A request to this endpoint, which says so to the transports below."""
        url = _url(self.base_url + path)
        return httpx.Request(method, url, extensions={EXTENSION: self, **extensions}, **options)

    def post(self, path: str, *, headers: httpx.Headers, content: bytes, **options: Any) -> httpx.Request:
        """A POST request with exactly these headers, `Host` and `Content-Length`."""
        sent = httpx.Headers(headers)
        sent["host"] = _url(self.base_url + path).netloc.decode("ascii")
        sent["content-length"] = str(len(content))
        return self.request("POST", path, headers=sent, stream=httpx.ByteStream(content), **options)

    def query(self, path: str, *, timeout_s: float) -> httpx.Request:
        """A request for public data of this endpoint."""
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        return self.request("GET", path, extensions={"timeout": timeouts})


@lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    return httpx.URL(text)


_log = logging.getLogger(__name__)
T = TypeVar("T")


class EndpointSource(Protocol):
    """Hands out endpoints. Thread-safe; slow work is yielded as `Wait`."""

    def current(self) -> Steps[Endpoint]:
        """The endpoint for the next call. Raises NotPaid when there is none."""
        ...

    def after(self, tried: Collection[Endpoint]) -> Steps[Endpoint | None]:
        """Another one, when no connection could be made to those tried; None when there is no other."""
        ...

    def failed(self, endpoint: Endpoint) -> None:
        """No connection could be made to this endpoint: prefer others."""
        ...

    def doubt(self) -> None:
        """What is known about the endpoints may be out of date: look again before long."""
        ...


class StaticGateway:
    """The one gateway at a given URL, trusted through the public certificate authorities."""

    def __init__(self, base_url: str) -> None:
        self._endpoint = Endpoint(base_url=base_url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1"))

    @property
    def base_url(self) -> str:
        """The gateway's URL, without `/v1`."""
        return self._endpoint.base_url

    def current(self) -> Steps[Endpoint]:
        """Always the same one."""
        yield from ()  # a generator, like the other sources
        return self._endpoint

    def after(self, tried: Collection[Endpoint]) -> Steps[Endpoint | None]:  # noqa: ARG002  (there is no other)
        """None: there is no other one."""
        yield from ()
        return None

    def failed(self, endpoint: Endpoint) -> None:
        """Does nothing: there is no other gateway."""

    def doubt(self) -> None:
        """Does nothing: the user named the gateway."""


def reach(source: EndpointSource, attempt: Callable[[Endpoint], Steps[T]], *, until: float = math.inf) -> Steps[T]:
    """Runs `attempt` at one endpoint after another until a connection can be made: before that, nothing has left.

    `until` (on the monotonic clock) ends the search. Raises the last failure to connect.
    """
    endpoint = yield from source.current()
    tried: list[Endpoint] = []
    while True:
        try:
            return (yield from attempt(endpoint))
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            source.failed(endpoint)
            tried.append(endpoint)
            following = None if time.monotonic() > until else (yield from source.after(tried))
            if following is None:
                raise
            _log.warning("No connection to %s (%s); calling %s.", endpoint.base_url, exc, following.base_url)
            endpoint = following


def checked_gateway(base_url: str, *, policy: SpendPolicy) -> StaticGateway:
    """A static gateway that the policy allows to pay at.

    Raises InsecureEndpoint, or ConfigurationError for a URL with a secret in it.
    """
    checked_base_url(base_url)
    gateway = StaticGateway(base_url)
    policy.check_endpoint(gateway.base_url)
    return gateway


def fetch(
    request: httpx.Request, *, timeout_s: float, on_open: Callable[[httpx.Response], None] | None = None
) -> Steps[httpx.Response]:
    """Public data, read to its end within the time limit and without paying. Raises httpx.TransportError.

    `on_open` sees the response while its connection is still open.
    """
    deadline = time.monotonic() + timeout_s
    body = bytearray()

    def take(piece: bytes) -> None:
        body.extend(piece)
        if len(body) > MAX_PUBLIC_BYTES:
            raise httpx.ReadError(f"more than {MAX_PUBLIC_BYTES} bytes")
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout(f"not complete after {timeout_s:g} s")

    response: httpx.Response = yield Send(request)
    if on_open is not None:
        on_open(response)
    response.headers.pop("content-encoding", None)  # no encoding was asked for, so nothing is unpacked
    yield Read(response, take)
    return httpx.Response(response.status_code, content=bytes(body), request=request)
