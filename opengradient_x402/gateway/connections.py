"""Connections to endpoints, a pool for each, under its own TLS context: httpx transports below the paying ones.

The request says which endpoint it is for; a request for none is refused rather than sent over a line that
nobody vouches for. Knows nothing of payments.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx

from opengradient_x402.errors import InsecureEndpoint
from opengradient_x402.gateway.endpoints import Endpoint
from opengradient_x402.gateway.tls import context_for

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0)
"""Idle connections are dropped before common servers (uvicorn: 5 s) close them under a request."""
_UNUSED_S = 3600.0
"""Enclaves come and go. A pool that no call has used for so long is closed when another one is opened."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Pool(Generic[T]):
    transport: T
    used_at: float = field(default_factory=time.monotonic)


class EndpointTransport(httpx.BaseTransport):
    """For threads. Thread-safe."""

    def __init__(self) -> None:
        self._pools: dict[Endpoint, _Pool[httpx.HTTPTransport]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends over a connection that the endpoint's certificate vouches for."""
        endpoint = _endpoint_of(request)
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._opened(endpoint)
        pool.used_at = time.monotonic()
        return pool.transport.handle_request(request)

    def _opened(self, endpoint: Endpoint) -> _Pool[httpx.HTTPTransport]:
        for unused in _taken_unused(self._pools):
            unused.close()
        made = _Pool(httpx.HTTPTransport(verify=context_for(endpoint), limits=_LIMITS))
        return self._pools.setdefault(endpoint, made)  # of two that race, the one left out holds no connection

    def close(self) -> None:
        """Closes all connections."""
        while self._pools:
            self._pools.popitem()[1].transport.close()


class AsyncEndpointTransport(httpx.AsyncBaseTransport):
    """For one event loop."""

    def __init__(self) -> None:
        self._pools: dict[Endpoint, _Pool[httpx.AsyncHTTPTransport]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends over a connection that the endpoint's certificate vouches for."""
        endpoint = _endpoint_of(request)
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = await self._opened(endpoint)
        pool.used_at = time.monotonic()
        return await pool.transport.handle_async_request(request)

    async def _opened(self, endpoint: Endpoint) -> _Pool[httpx.AsyncHTTPTransport]:
        for unused in _taken_unused(self._pools):
            await unused.aclose()
        # A thread of its own costs more than the empty context that plain http gets.
        is_light = endpoint.base_url.startswith("http://")
        context = context_for(endpoint) if is_light else await asyncio.to_thread(context_for, endpoint)
        made = _Pool(httpx.AsyncHTTPTransport(verify=context, limits=_LIMITS))
        return self._pools.setdefault(endpoint, made)

    async def aclose(self) -> None:
        """Closes all connections."""
        while self._pools:
            await self._pools.popitem()[1].transport.aclose()


def _endpoint_of(request: httpx.Request) -> Endpoint:
    endpoint = Endpoint.of(request)
    if endpoint is None:
        raise InsecureEndpoint(
            f"The request to {request.url.host} names no endpoint, so nothing says which certificate to trust. "
            "It was not sent, and nothing was paid. Build requests with `Endpoint.request`."
        )
    return endpoint


def _taken_unused(pools: dict[Endpoint, _Pool[T]]) -> list[T]:
    too_old = time.monotonic() - _UNUSED_S
    unused = [endpoint for endpoint, pool in list(pools.items()) if pool.used_at < too_old]
    return [pool.transport for endpoint in unused if (pool := pools.pop(endpoint, None)) is not None]
