"""Connections for an event loop: as `thread_transport`, and as fast with many connections.

httpx's own pool looks at all of its connections for each request; a hundred concurrent calls wait for that.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import httpx
from aiohappyeyeballs import start_connection

from opengradient_x402.http.messages import ResponseReader, message_of
from opengradient_x402.http.places import check_resolved
from opengradient_x402.http.time_limits import for_connecting

_IN_ONE_PIECE: Final = 1024 * 1024
"""A larger request is sent in pieces, so that the loop goes on meanwhile."""
_MOST_WAITING: Final = 256 * 1024
"""Reading pauses when this many bytes of a body wait to be taken."""
_QUIET_S: Final = 0.5
"""Seconds of silence after which the server may have closed a connection before the loop has noticed."""
_SAME_ADDRESS_S: Final = 10.0
_HAPPY_EYEBALLS_S: Final = 0.25  # RFC 8305, "Connection Attempt Delay"


class LoopTransport(httpx.AsyncBaseTransport):
    """For one event loop, in which it must be made, one host and one kind of certificate. Sends through no proxies.

    `on_socket` gets each socket when it is made.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        keepalive_s: float,
        on_socket: Callable[[socket.socket], object] = lambda _: None,
        is_far: bool = False,
    ) -> None:
        """`is_far`: the host must lead into the public internet."""
        self._is_far = is_far
        self._verify = verify
        self._keepalive_s = keepalive_s
        self._on_socket = on_socket
        self.loop = asyncio.get_running_loop()
        self._open: set[_Line] = set()
        self._idle: deque[_Line] = deque()
        self._pruning: asyncio.TimerHandle | None = None
        self._asked: asyncio.Task[list[Any]] | None = None
        self._asked_at = 0.0
        self._is_closed = False
        self._used_at = self.loop.time()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request. Its time limit for reading holds for all of the response's head together."""
        limits = request.extensions.get("timeout", {})
        message = message_of(request, await request.aread())
        line = await self._idle_line() or await self._connected(request.url, limits)
        reader = ResponseReader()
        try:
            async with asyncio.timeout(limits.get("read")):
                await line.ask(message, reader)
        except TimeoutError as exc:
            line.close()
            raise httpx.ReadTimeout("no whole response headers within the time limit") from exc
        except BaseException:
            line.close()
            raise
        return httpx.Response(
            reader.status,
            headers=reader.headers,
            stream=_Body(self, line, reader, limits),
            request=request,
            extensions={"network_stream": line},
        )

    async def _idle_line(self) -> _Line | None:
        """An open connection, the one that was used last."""
        now = self.loop.time()
        if now - self._used_at > _QUIET_S:
            for _ in range(2):  # the loop sees the end of a connection, and then its protocol does
                await asyncio.sleep(0)
        self._used_at = now
        while self._idle:
            line = self._idle.pop()
            if not line.has_ended and now - line.used_at <= self._keepalive_s:
                return line
            line.close()
        return None

    def give_back(self, line: _Line) -> None:
        """The connection may serve another request."""
        if self._is_closed:
            line.close()
            return
        line.used_at = self.loop.time()
        self._idle.append(line)
        if self._pruning is None:
            self._pruning = self.loop.call_later(self._keepalive_s, self._prune)

    def _prune(self) -> None:
        """Ends connections that nobody has used for long."""
        self._pruning = None
        oldest = self.loop.time() - self._keepalive_s
        while self._idle and (self._idle[0].has_ended or self._idle[0].used_at <= oldest):
            self._idle.popleft().close()
        if self._idle:
            self._pruning = self.loop.call_at(self._idle[0].used_at + self._keepalive_s, self._prune)

    async def _connected(self, url: httpx.URL, limits: dict[str, float | None]) -> _Line:
        host = url.raw_host.decode("ascii")
        is_secure = url.scheme == "https"
        try:
            async with asyncio.timeout(for_connecting(limits)):
                port = url.port or (443 if is_secure else 80)
                addresses = await self._addresses(host, port)
                found = [address for *_, address in addresses]
                check_resolved(found, is_far=self._is_far, is_secure=is_secure)
                made = await start_connection(
                    addresses,
                    loop=self.loop,
                    happy_eyeballs_delay=_HAPPY_EYEBALLS_S,
                    interleave=1,
                    socket_factory=self._made,
                )
                _, line = await self.loop.create_connection(
                    lambda: _Line(self.loop, self._open),
                    sock=made,
                    ssl=self._verify if is_secure else None,
                    server_hostname=host if is_secure else None,
                )
        except (OSError, ValueError) as exc:  # TimeoutError is an OSError; ValueError: a name that no host can have
            kind = httpx.ConnectTimeout if isinstance(exc, TimeoutError) else httpx.ConnectError
            raise kind(str(exc) or "no connection within the time limit") from exc
        return line

    async def _addresses(self, host: str, port: int) -> list[Any]:
        """Where the host is. Many connections that are made together ask once."""
        with suppress(socket.gaierror):  # it is a name
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        asked = self._asked
        is_old = self.loop.time() - self._asked_at > _SAME_ADDRESS_S
        if asked is None or is_old or (asked.done() and (asked.cancelled() or asked.exception() is not None)):
            asked = self.loop.create_task(self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._asked, self._asked_at = asked, self.loop.time()
        return await asyncio.shield(asked)  # others wait for it, too

    def _made(self, address: Any) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        self._on_socket(made)
        return made

    async def aclose(self) -> None:
        """Closes all connections: none may outlive its loop."""
        self._is_closed = True
        if self._pruning is not None:
            self._pruning.cancel()
        self._idle.clear()
        for line in list(self._open):
            line.close()
        await asyncio.sleep(0)  # the loop closes their sockets


class _Line(asyncio.Protocol):
    """One connection. It serves one request at a time, of one task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, among: set[_Line]) -> None:
        self._loop = loop
        self._among = among
        self._reader: ResponseReader | None = None
        self._problem: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_full = False
        self._is_paused = False
        self.has_ended = False
        self.used_at = loop.time()

    async def ask(self, message: bytes, reader: ResponseReader) -> None:
        """Sends the request, and reads until the response's head is there. Raises ReadError, RemoteProtocolError."""
        self._reader = reader
        for start in range(0, len(message), _IN_ONE_PIECE):
            self._transport.write(message[start : start + _IN_ONE_PIECE])
            while self._is_full and not reader.has_head:
                await self._news()
            if reader.has_head and start + _IN_ONE_PIECE < len(message):
                self.has_ended = True  # answered before it has all of the request: no other one can follow
                break
        while not reader.has_head:
            await self._news()

    async def more(self, limit_s: float | None) -> None:
        """Until more of the response has come. Raises ReadTimeout, ReadError, RemoteProtocolError."""
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        try:
            async with asyncio.timeout(limit_s):
                await self._news()
        except TimeoutError as exc:
            raise httpx.ReadTimeout("nothing more of the response within the time limit") from exc

    async def _news(self) -> None:
        if self._problem is not None:
            raise self._problem
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def get_extra_info(self, name: str) -> Any:
        """As of httpcore's streams: the `socket`, and the `ssl_object` if there is one."""
        return self._transport.get_extra_info(name)

    def close(self) -> None:
        """Ends the connection. Nothing is sent first: the other side sees the end."""
        self.has_ended = True
        with suppress(RuntimeError):  # the loop is closed, and its connections with it
            self._transport.abort()

    # -- asyncio's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._among.add(self)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None or reader.is_complete:
            self.close()  # nothing was asked that this could answer
            return
        try:
            reader.feed(data)
        except httpx.RemoteProtocolError as exc:
            self._fail(exc)
        if reader.waiting > _MOST_WAITING and not (reader.is_complete or self._is_paused):
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.has_ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_ended = True
        self._is_full = False
        self._among.discard(self)
        if self._reader is not None and self._problem is None:
            try:
                self._reader.end()
            except httpx.RemoteProtocolError as ended:
                self._fail(ended if exc is None else httpx.ReadError(str(exc)))
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    def _fail(self, problem: httpx.TransportError) -> None:
        self._problem = problem
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Body(httpx.AsyncByteStream):
    """The body of a response, in the pieces in which it comes. Its own iterator, since it is read once."""

    def __init__(
        self, transport: LoopTransport, line: _Line, reader: ResponseReader, limits: dict[str, float | None]
    ) -> None:
        self._transport = transport
        self._line = line
        self._reader = reader
        self._limits = limits
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not (piece := self._reader.taken()):
            if self._reader.is_complete or self._is_closed:
                raise StopAsyncIteration
            await self._line.more(self._limits.get("read"))
        return piece

    async def aclose(self) -> None:
        """Ends the connection, unless the body was read to its end: then it serves another request."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._reader.is_complete and self._reader.keeps_line and not self._line.has_ended:
            self._transport.give_back(self._line)
        else:
            self._line.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            with suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._transport.loop.call_soon_threadsafe(self._line.close)
