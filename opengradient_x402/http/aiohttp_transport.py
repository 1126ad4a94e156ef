"""An httpx transport over aiohttp: what async calls go through, since httpx's own slows down with each open connection.

Failures are told apart by one fact, and not by aiohttp's words for them: whether the request had a connection. Without
one, nothing of it has left, and the failure is a ConnectError or ConnectTimeout. From then on it is none of these,
whatever it is called: the request counts as sent.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
import httpx
import yarl

_LARGEST_HEAD: Final = 100 * 1024
"""Of a response; httpx's transport has the same bound. A challenge is one header of several kilobytes."""
_IN_ONE_PIECE: Final = 1024 * 1024
"""A larger request is sent in pieces, so that the loop goes on meanwhile."""
_QUIET_S: Final = 0.5
"""After such a pause a connection may have been ended by the other side, and the loop not have seen it yet."""
_NOT_ADDED: Final = ("accept", "accept-encoding", "content-type", "user-agent")


class _Sending:
    """How far one request has come."""

    __slots__ = ("has_connection",)

    def __init__(self) -> None:
        self.has_connection = False


_sending: ContextVar[_Sending] = ContextVar("opengradient_sending")


class _Connector(aiohttp.TCPConnector):
    """Notes which request it gave a connection to. Unlike aiohttp's, it may be forgotten together with its loop."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109  (aiohttp's signature)
        connection = await super().connect(req, traces, timeout)
        _sending.get().has_connection = True
        return connection

    def __del__(self, *_: Any) -> None:
        """Loops that ended without shutting down leave connections; their sockets close themselves."""


class AiohttpTransport(httpx.AsyncBaseTransport):
    """For one event loop, in which it must be made, and one kind of certificate. Sends nothing through proxies.

    `on_socket` gets each socket when it is made.
    """

    def __init__(
        self, *, verify: Any, keepalive_s: float, on_socket: Callable[[socket.socket], object] = lambda _: None
    ) -> None:
        def make(address: Any) -> socket.socket:
            family, kind, protocol, _, _ = address
            made = socket.socket(family, kind, protocol)
            on_socket(made)
            return made

        connector = _Connector(
            ssl=verify,
            limit=0,
            keepalive_timeout=keepalive_s,
            resolver=aiohttp.ThreadedResolver(),  # the system's, also where aiodns is installed
            socket_factory=make,
            timeout_ceil_threshold=float("inf"),  # to the second, not rounded up
        )
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # httpx does it
            skip_auto_headers=_NOT_ADDED,
            max_line_size=_LARGEST_HEAD,
            max_field_size=_LARGEST_HEAD,
        )
        self._used_at = self._loop.time()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request. Its time limit for reading holds for all of the response's head together."""
        content = await request.aread()
        limits = request.extensions.get("timeout", {})
        head_s: float | None = limits.get("read")
        now = self._loop.time()
        if now - self._used_at > _QUIET_S:
            for _ in range(2):  # the loop sees the end of a connection, and then its protocol does
                await asyncio.sleep(0)
        self._used_at = now
        sending = _Sending()
        token = _sending.set(sending)
        try:
            async with asyncio.timeout(head_s):
                response = await self._session.request(
                    request.method,
                    yarl.URL(str(request.url), encoded=True),
                    headers=request.headers.multi_items(),
                    data=content if len(content) < _IN_ONE_PIECE else io.BytesIO(content),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=limits.get("connect"), sock_read=head_s),
                )
        except (aiohttp.ClientError, OSError, ValueError) as exc:  # TimeoutError is an OSError
            raise _problem(exc, request, has_connection=sending.has_connection, head_s=head_s) from exc
        finally:
            _sending.reset(token)
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_Body(response, self._loop), request=request
        )

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._session.close()

    def __del__(self) -> None:
        # The loop has ended without shutting down: nothing can be closed any more, and nothing need be said.
        if (session := getattr(self, "_session", None)) is not None and not session.closed:
            session.detach()


class _Body(httpx.AsyncByteStream):
    """The body of a response, in the pieces in which it comes. Its own iterator, since it is read once."""

    def __init__(self, response: aiohttp.ClientResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._response = response
        self._loop = loop
        self._read = response.content.readany

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._read()
        except (aiohttp.ClientError, OSError) as exc:
            raise _broken(exc) from exc
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Ends the connection, unless the body was read to its end: then it serves the next request already."""
        self._response.close()

    def __del__(self) -> None:
        response = getattr(self, "_response", None)
        if response is not None and not response.closed:
            with suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(response.close)


def _problem(
    exc: Exception, request: httpx.Request, *, has_connection: bool, head_s: float | None
) -> httpx.TransportError:
    """What httpx would call a failure before the head of the response was there."""
    if not has_connection:
        if isinstance(exc, TimeoutError):
            return httpx.ConnectTimeout(str(exc) or "no connection within the time limit", request=request)
        if isinstance(exc, OSError):
            return httpx.ConnectError(str(exc), request=request)
        return httpx.LocalProtocolError(str(exc), request=request)
    if isinstance(exc, TimeoutError):
        return httpx.ReadTimeout(f"no whole response headers after {head_s or 0:g} s", request=request)
    return _broken(exc)


def _broken(exc: Exception) -> httpx.TransportError:
    """What httpx would call a failure on an open connection."""
    if isinstance(exc, TimeoutError):
        return httpx.ReadTimeout(str(exc))
    if isinstance(exc, OSError):
        return httpx.ReadError(str(exc))
    return httpx.RemoteProtocolError(str(exc))
