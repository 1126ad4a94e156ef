"""The time limits of a call, and the one for sending a request and receiving all of its response's headers.

httpx limits each read; a gateway that sends a header line now and then would never exceed such a limit. Bodies
are limited where they are read (`answer`).
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import httpcore
import httpx

from opengradient_x402.errors import ConfigurationError

Timeout = float | tuple[float | None, float | None] | httpx.Timeout
"""Seconds for a call; or for connecting and for the rest; or as httpx has it. None in its place: the default."""
_CONNECT_S: Final = 10.0
_LONGEST_S: Final = 1_000_000
"""Eleven days; sockets and locks fail at some number above."""

_now_waiting = threading.local()


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Seconds until a call is given up: until it is connected, until it is answered, between chunks of a stream."""

    call_s: float = 120.0
    connect_s: float | None = None
    chunk_s: float | None = None

    def changed(self, timeout: object = None, *, chunk_s: float | None = None) -> TimeLimits:
        """These limits, with those that are given. Raises ConfigurationError for a value that is not a time."""
        connect_s, call_s = _parted(timeout)
        for value in (connect_s, call_s, chunk_s):
            if value is not None and not _is_time(value):
                raise _no_time(value)
        return TimeLimits(
            call_s=self.call_s if call_s is None else float(call_s),
            connect_s=self.connect_s if connect_s is None else float(connect_s),
            chunk_s=self.chunk_s if chunk_s is None else float(chunk_s),
        )

    @cached_property
    def for_httpx(self) -> Mapping[str, float]:
        """As a request carries them."""
        connect_s = min(self.call_s, _CONNECT_S) if self.connect_s is None else min(self.call_s, self.connect_s)
        return {"connect": connect_s, "read": self.call_s, "write": self.call_s, "pool": self.call_s}

    @cached_property
    def between_chunks_s(self) -> float:
        """How long a stream may be silent."""
        return self.call_s if self.chunk_s is None else min(self.call_s, self.chunk_s)


def for_connecting(limits: Mapping[str, float | None]) -> float | None:
    """How long a request that carries these limits may wait for its connection."""
    return min((limit for name in ("connect", "read") if (limit := limits.get(name)) is not None), default=None)


def _parted(timeout: object) -> tuple[Any, Any]:
    if isinstance(timeout, httpx.Timeout):
        return timeout.connect, timeout.read
    if isinstance(timeout, tuple | list):
        if len(timeout) != 2:
            raise _no_time(timeout)
        return timeout[0], timeout[1]
    return None, timeout


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST_S


def _no_time(value: object) -> ConfigurationError:
    return ConfigurationError(
        f"{value!r} is no time limit. Nothing was paid. Give `timeout` in seconds above 0 and up to 1,000,000, as "
        "(seconds to connect, seconds for the answer), or as an httpx.Timeout.",
        kind="invalid_request",
    )


@contextmanager
def _limited(request: httpx.Request) -> Iterator[None]:
    """What this thread reads inside must have come by the request's read limit. Raises httpx.ReadTimeout."""
    limit_s = _limit_of(request)
    _now_waiting.until = None if limit_s is None else time.monotonic() + limit_s
    try:
        yield
    finally:
        _now_waiting.until = None


class LimitedTransport(httpx.HTTPTransport):
    """httpx's transport through a proxy, whose responses have their head within the request's read limit.

    `on_socket` gets sockets.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        limits: httpx.Limits,
        proxy: httpx.Proxy,
        on_socket: Callable[[Any], object] = lambda _: None,
    ) -> None:
        super().__init__(verify=verify, limits=limits)
        # httpx passes no network backend on; the pool is the one that it would make.
        self._pool = httpcore.ConnectionPool(
            ssl_context=verify,
            proxy=_as_httpcore(proxy),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )
        self._on_socket = on_socket

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx's. Raises httpx.ReadTimeout."""
        with _limited(request):
            response = super().handle_request(request)
        _note(response, self._on_socket)
        return response


class LimitedAsyncTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, with the same time limit for a task."""

    def __init__(self, *, on_socket: Callable[[Any], object] = lambda _: None, **options: Any) -> None:
        super().__init__(**options)
        self._on_socket = on_socket

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx's. Raises httpx.ReadTimeout."""
        limit_s = _limit_of(request)
        try:
            async with asyncio.timeout(limit_s) as scope:
                response = await super().handle_async_request(request)
        except TimeoutError as exc:
            if not scope.expired():
                raise
            raise httpx.ReadTimeout(f"no whole response headers after {limit_s:g} s", request=request) from exc
        _note(response, self._on_socket)
        return response


def _note(response: httpx.Response, on_socket: Callable[[Any], object]) -> None:
    line = response.extensions.get("network_stream")
    if line is not None and (socket := line.get_extra_info("socket")) is not None:
        on_socket(socket)


def _as_httpcore(proxy: httpx.Proxy) -> httpcore.Proxy:
    return httpcore.Proxy(
        url=httpcore.URL(
            scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=proxy.url.raw_path
        ),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = getattr(_now_waiting, "until", None)
        if until is not None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise httpcore.ReadTimeout("no whole response headers within the time limit")
            timeout = left_s if timeout is None else min(timeout, left_s)
        return self._inner.read(max_bytes, timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))


def _limit_of(request: httpx.Request) -> float | None:
    limit: float | None = request.extensions.get("timeout", {}).get("read")
    return limit
