"""Connection pools, one for each endpoint, under the certificate that the endpoint must show.

An enclave makes its own certificate, and the registry publishes it: that certificate is then the only one trusted,
and host names do not matter. Other endpoints are checked against the public authorities. There is no TLS context here
that trusts everybody. The request says which endpoint it is for; a request for none is refused.

All transports of a process, or of an event loop, share one pool for equal endpoints, whichever client they belong
to; a pool is closed when nobody holds it any more. After a fork the child has no connection: what it inherited is
cut, and nothing that it does reaches the parent's.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast
from urllib.request import getproxies, proxy_bypass

import httpx

from opengradient_x402.errors import ConfigurationError, InsecureEndpoint
from opengradient_x402.gateway.endpoints import Endpoint
from opengradient_x402.http.loop_transport import LoopTransport
from opengradient_x402.http.thread_transport import ThreadTransport
from opengradient_x402.http.time_limits import LimitedAsyncTransport, LimitedTransport
from opengradient_x402.http.traced import AsyncTracedTransport, TracedTransport
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.telemetry.spans import HTTP_TRACER

_KEEPALIVE_S: Final = 4.0
"""Idle connections are dropped before common servers (uvicorn: 5 s) close them under a request."""
_MOST_IDLE: Final = 64
_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=_MOST_IDLE, keepalive_expiry=_KEEPALIVE_S)
_UNUSED_S = 3600.0
"""Enclaves come and go. When a transport opens a pool, it releases those that it has not used for this many seconds."""

T = TypeVar("T")


class _Pool(Generic[T]):
    """The connections to one endpoint, and who uses them."""

    def __init__(self, make: Callable[[Callable[[Any], None]], T]) -> None:
        self.used_at = time.monotonic()
        self.holders: weakref.WeakSet[object] = weakref.WeakSet()
        self._sockets: dict[int, Any] = {}
        self.transport = make(self.note_socket)

    def note_socket(self, socket: Any) -> None:
        """Remembers a socket of these connections."""
        self._sockets[socket.fileno()] = socket

    def cut(self) -> None:
        """Ends the inherited connections for this process alone. Nothing is sent to the other side."""
        null = os.open(os.devnull, os.O_RDWR)
        for number, socket in self._sockets.items():
            if socket.fileno() == number:
                # The socket object keeps its descriptor, so that closing it later closes nothing else.
                os.dup2(null, number, inheritable=False)
        os.close(null)


class _Pools(Resident, Generic[T]):
    """One pool for each endpoint that somebody holds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_endpoint: dict[Endpoint, _Pool[T]] = {}
        self._inherited: list[_Pool[T]] = []
        belongs(self, Ending.CONNECTIONS)

    def __len__(self) -> int:
        return len(self._by_endpoint)

    def held(self, endpoint: Endpoint, holder: object) -> _Pool[T] | None:
        """The pool for `endpoint`, if there is one."""
        with self._lock:
            if (pool := self._by_endpoint.get(endpoint)) is not None:
                pool.holders.add(holder)
            return pool

    def hold(self, endpoint: Endpoint, holder: object, make: Callable[[Callable[[Any], None]], T]) -> _Pool[T]:
        """The pool for `endpoint`, made if there is none; `make` gets a function that takes each of its sockets."""
        with self._lock:
            pool = self._by_endpoint.get(endpoint)
            if pool is None:
                pool = self._by_endpoint[endpoint] = _Pool(make)
            pool.holders.add(holder)
            return pool

    def let_go(self, endpoint: Endpoint, holder: object) -> list[T]:
        """Ends the holder's use of the pool; returns the transports that nobody holds, to be closed now."""
        with self._lock:
            if (pool := self._by_endpoint.get(endpoint)) is not None:
                pool.holders.discard(holder)
            unheld = [known for known, pool in self._by_endpoint.items() if not pool.holders]
            return [self._by_endpoint.pop(known).transport for known in unheld]

    def taken(self) -> list[T]:
        """All transports; the pools are gone."""
        with self._lock:
            pools, self._by_endpoint = self._by_endpoint, {}
            return [pool.transport for pool in pools.values()]

    def _renew(self) -> None:
        """A child has no connection. The inherited objects are kept: those of a loop must not be collected here."""
        self._lock = threading.RLock()
        self._inherited += self._by_endpoint.values()
        self._by_endpoint = {}
        for pool in self._inherited:
            pool.cut()


class _SyncPools(_Pools[httpx.BaseTransport]):
    def _end(self, _timeout_s: float, /) -> None:
        """At the end of the process: closes all connections."""
        for transport in self.taken():
            transport.close()


_POOLS: Final = _SyncPools()
_LOOPS: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools[httpx.AsyncBaseTransport]]] = (
    weakref.WeakKeyDictionary()
)


class EndpointTransport(httpx.BaseTransport, Resident):
    """For threads. Thread-safe."""

    def __init__(self) -> None:
        self._pools: dict[Endpoint, _Pool[httpx.BaseTransport]] = {}
        self._flights: weakref.WeakSet[_Flight] = weakref.WeakSet()
        belongs(self, Ending.CONNECTIONS)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends over a connection that showed the endpoint's certificate."""
        endpoint = _endpoint_of(request)
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._opened(endpoint)
        pool.used_at = time.monotonic()
        flight = _Flight(self)
        self._flights.add(flight)
        try:
            response = pool.transport.handle_request(request)
        except BaseException:
            self._flights.discard(flight)
            raise
        response.stream = flight.carrying(cast("httpx.SyncByteStream", response.stream))
        return response

    def _opened(self, endpoint: Endpoint) -> _Pool[httpx.BaseTransport]:
        for unused in _unused(self._pools):
            self._let_go(unused)
        pool = self._pools[endpoint] = _POOLS.hold(endpoint, self, _maker(endpoint))
        return pool

    def _let_go(self, endpoint: Endpoint) -> None:
        self._pools.pop(endpoint, None)
        for transport in _POOLS.let_go(endpoint, self):
            transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether none of its requests waits for a response, or has one that is open."""
        return not self._flights

    def close(self) -> None:
        """Closes the connections that no other transport uses."""
        for endpoint in list(self._pools):
            self._let_go(endpoint)

    def _renew(self) -> None:
        """A child opens its own."""
        self._pools, self._flights = {}, weakref.WeakSet()


class AsyncEndpointTransport(httpx.AsyncBaseTransport, Resident):
    """For one event loop."""

    def __init__(self) -> None:
        self._pools: dict[Endpoint, _Pool[httpx.AsyncBaseTransport]] = {}
        self._flights: weakref.WeakSet[_AsyncFlight] = weakref.WeakSet()
        belongs(self, Ending.CONNECTIONS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends over a connection that showed the endpoint's certificate."""
        endpoint = _endpoint_of(request)
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = await self._opened(endpoint)
        pool.used_at = time.monotonic()
        flight = _AsyncFlight(self)
        self._flights.add(flight)
        try:
            response = await pool.transport.handle_async_request(request)
        except BaseException:
            self._flights.discard(flight)
            raise
        response.stream = flight.carrying(cast("httpx.AsyncByteStream", response.stream))
        return response

    async def _opened(self, endpoint: Endpoint) -> _Pool[httpx.AsyncBaseTransport]:
        for unused in _unused(self._pools):
            await self._let_go(unused)
        pools = _pools_of(asyncio.get_running_loop())
        pool = pools.held(endpoint, self)
        if pool is None:
            pool = pools.hold(endpoint, self, await asyncio.to_thread(_async_maker, endpoint))
        self._pools[endpoint] = pool
        return pool

    async def _let_go(self, endpoint: Endpoint) -> None:
        self._pools.pop(endpoint, None)
        loop = asyncio.get_running_loop()
        if (pools := _LOOPS.get(loop)) is not None:
            for transport in pools.let_go(endpoint, self):
                await transport.aclose()
            if not pools:
                _LOOPS.pop(loop, None)

    @property
    def is_idle(self) -> bool:
        """Whether none of its requests waits for a response, or has one that is open."""
        return not self._flights

    async def aclose(self) -> None:
        """Closes the connections that no other transport of this loop uses."""
        for endpoint in list(self._pools):
            await self._let_go(endpoint)

    def _renew(self) -> None:
        """A child opens its own."""
        self._pools, self._flights = {}, weakref.WeakSet()


class ThroughClient(httpx.BaseTransport):
    """Sends through an httpx client of the user's: its proxies, mounts, certificates and event hooks.

    Without its redirects and its authentication: a paid request goes to one place, once. It is never closed here.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.Client.send`."""
        return self._client.send(request, stream=True, auth=None, follow_redirects=False)


class ThroughAsyncClient(httpx.AsyncBaseTransport):
    """As `ThroughClient`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncClient.send`."""
        return await self._client.send(request, stream=True, auth=None, follow_redirects=False)


class _Flight(httpx.SyncByteStream):
    """A request on its way, and then the body of its response, until that is closed.

    It keeps its transport alive, and so the pool that it uses. It adds no work for a piece of the body.
    """

    def __init__(self, transport: EndpointTransport) -> None:
        self._transport = transport

    def carrying(self, body: httpx.SyncByteStream) -> _Flight:
        """The response has come."""
        self._body = body
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        self._transport._flights.discard(self)
        self._body.close()


class _AsyncFlight(httpx.AsyncByteStream):
    """As `_Flight`."""

    def __init__(self, transport: AsyncEndpointTransport) -> None:
        self._transport = transport

    def carrying(self, body: httpx.AsyncByteStream) -> _AsyncFlight:
        """The response has come."""
        self._body = body
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._body)

    async def aclose(self) -> None:
        self._transport._flights.discard(self)
        await self._body.aclose()


def _maker(endpoint: Endpoint) -> Callable[[Callable[[Any], None]], httpx.BaseTransport]:
    """How to make the connections to an endpoint.

    Through a proxy, httpx's own transport makes them: it keeps what a proxy must show apart from the endpoint's TLS.
    Where a tracer makes spans of what httpx sends, our transport is below one that the tracer sees.
    """
    context, proxy = context_for(endpoint), proxy_for(endpoint)
    if proxy is not None:
        return lambda note: LimitedTransport(verify=context, limits=_LIMITS, proxy=proxy, on_socket=note)

    def made(note: Callable[[Any], None]) -> httpx.BaseTransport:
        ours = ThreadTransport(
            verify=context, keepalive_s=_KEEPALIVE_S, most_idle=_MOST_IDLE, on_socket=note, is_far=endpoint.is_far
        )
        return TracedTransport(ours) if HTTP_TRACER in sys.modules else ours

    return made


def _async_maker(endpoint: Endpoint) -> Callable[[Callable[[Any], None]], httpx.AsyncBaseTransport]:
    """As `_maker`. Slow work is done here, outside the loop; the rest must be done in the loop."""
    context, proxy = context_for(endpoint), proxy_for(endpoint)
    if proxy is not None:
        return lambda note: LimitedAsyncTransport(verify=context, limits=_LIMITS, proxy=proxy, on_socket=note)

    def made(note: Callable[[Any], None]) -> httpx.AsyncBaseTransport:
        ours = LoopTransport(verify=context, keepalive_s=_KEEPALIVE_S, on_socket=note, is_far=endpoint.is_far)
        return AsyncTracedTransport(ours) if HTTP_TRACER in sys.modules else ours

    return made


def _pools_of(loop: asyncio.AbstractEventLoop) -> _Pools[httpx.AsyncBaseTransport]:
    """The pools of one loop. Loops that were closed without shutting down are forgotten, with their sockets."""
    found = _LOOPS.get(loop)
    if found is None:
        with suppress(RuntimeError):  # another thread added its loop meanwhile, and looks itself
            for known in [known for known in _LOOPS if known.is_closed()]:
                _LOOPS.pop(known, None)
        found = _LOOPS.setdefault(loop, _Pools())
    return found


def _endpoint_of(request: httpx.Request) -> Endpoint:
    endpoint = Endpoint.of(request)
    if endpoint is None:
        raise InsecureEndpoint(
            f"The request to {request.url.host} names no endpoint, so nothing says which certificate to trust. "
            "It was not sent, and nothing was paid. Build requests with `Endpoint.request`."
        )
    return endpoint


def _unused(pools: dict[Endpoint, _Pool[T]]) -> list[Endpoint]:
    too_old = time.monotonic() - _UNUSED_S
    return [endpoint for endpoint, pool in list(pools.items()) if pool.used_at < too_old]


def proxy_for(endpoint: Endpoint) -> httpx.Proxy | None:
    """The proxy that the environment names for an endpoint (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), as httpx has
    it. A pinned certificate is checked through the proxy, too: it only passes on a tunnel.
    """
    url, proxies = httpx.URL(endpoint.base_url), getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
        return None
    address = address if "://" in address else f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"The environment names a {address.partition(':')[0]} proxy for {endpoint.base_url}, and paid calls go "
            "through http and https proxies only. Nothing was sent or paid. Set HTTPS_PROXY to such a one, or name the "
            "gateway in NO_PROXY."
        )
    return httpx.Proxy(address)


def context_for(endpoint: Endpoint) -> ssl.SSLContext:
    """The TLS context for connections to an endpoint. Loading the public authorities takes about 20 ms."""
    if endpoint.certificate_der is not None:
        return pinned_context(endpoint.certificate_der)
    if endpoint.base_url.startswith("http://"):
        # Loopback only (the policy sees to it): an empty context trusts nothing and loads no files.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.create_ssl_context()


def pinned_context(certificate_der: bytes) -> ssl.SSLContext:
    """A context that accepts this certificate only. Raises ValueError when it is not one X.509 certificate."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # verify_mode stays CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The certificate itself is the anchor, whether or not it is self-signed or marked as an authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        x509.load_der_x509_certificate(certificate_der)  # OpenSSL would take several, one after another
        context.load_verify_locations(cadata=certificate_der)
    except x509.InvalidVersion as exc:
        raise ValueError(str(exc)) from exc
    except ssl.SSLError as exc:
        raise ValueError(f"not an X.509 certificate ({exc.reason or 'unreadable'})") from exc
    # An anchor may also sign other certificates. Those are not registered, so the match is exact.
    context.sslsocket_class, context.sslobject_class = _exact(certificate_der)
    return context


def _exact(certificate_der: bytes) -> tuple[type[ssl.SSLSocket], type[ssl.SSLObject]]:
    """What the context makes of a connection, for threads and for event loops: both end the handshake so."""

    def check(shown: bytes | None) -> None:
        if shown != certificate_der:
            raise ssl.SSLCertVerificationError(1, "certificate verify failed: it is not the registered one")

    class ExactSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  (as ssl has it)
            super().do_handshake(block)
            check(self.getpeercert(binary_form=True))

    class ExactObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self.getpeercert(binary_form=True))

    return ExactSocket, ExactObject


def is_certificate_failure(exc: BaseException) -> bool:
    """Whether a connection failed because the other side showed a certificate that is not trusted."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
