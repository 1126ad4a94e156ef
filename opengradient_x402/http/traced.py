"""Our connections below httpx's own transports, for processes whose tracer watches those.

OpenTelemetry makes a span of each request that passes `httpx.HTTPTransport` or `httpx.AsyncHTTPTransport`, of whatever
class below them. So these are such transports, with our connections in the place of httpx's pool: a tracer sees
them, and the speed stays. Does not import a tracer.
"""

from __future__ import annotations

from typing import Any, Final, cast

import httpcore
import httpx

_HEAD_IS_THERE: Final = "http11.receive_response_headers.complete"
"""What httpcore tells a request's `trace` when a response's head has come."""


class TracedTransport(httpx.HTTPTransport):
    """Sends through `inner`, and a tracer of httpx's transport sees it."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._pool = cast("httpcore.ConnectionPool", _Below(inner))


class AsyncTracedTransport(httpx.AsyncHTTPTransport):
    """As `TracedTransport`."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._pool = cast("httpcore.AsyncConnectionPool", _AsyncBelow(inner))


class _Below:
    """What httpx's transport takes for its pool."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        response = self._inner.handle_request(_as_httpx(request))
        if (tell := request.extensions.get("trace")) is not None:
            tell(_HEAD_IS_THERE, _head_of(response))
        return _as_httpcore(response)

    def close(self) -> None:
        self._inner.close()


class _AsyncBelow:
    """As `_Below`."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        response = await self._inner.handle_async_request(_as_httpx(request))
        if (tell := request.extensions.get("trace")) is not None:
            await tell(_HEAD_IS_THERE, _head_of(response))
        return _as_httpcore(response)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _as_httpx(request: httpcore.Request) -> httpx.Request:
    url = request.url
    return httpx.Request(
        request.method.decode("ascii"),
        httpx.URL(scheme=url.scheme.decode("ascii"), host=url.host.decode("ascii"), port=url.port, raw_path=url.target),
        headers=request.headers,
        stream=cast("httpx.SyncByteStream | httpx.AsyncByteStream", request.stream),
        extensions=request.extensions,
    )


def _as_httpcore(response: httpx.Response) -> httpcore.Response:
    return httpcore.Response(
        response.status_code,
        headers=response.headers.raw,
        content=response.stream,
        extensions=response.extensions,
    )


def _head_of(response: httpx.Response) -> dict[str, Any]:
    return {"return_value": (b"HTTP/1.1", response.status_code, b"", response.headers.raw)}
