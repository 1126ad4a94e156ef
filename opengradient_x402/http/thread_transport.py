"""Connections for threads: each request goes out in one write, and its response is read as it comes.

A failure says how far the request has come. Without a connection nothing of it has left: that is a ConnectError or
ConnectTimeout. Every later failure is another error, because the request counts as sent.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import httpx

from opengradient_x402.http.messages import ResponseReader, message_of
from opengradient_x402.http.places import check_resolved
from opengradient_x402.http.time_limits import for_connecting

_PIECE: Final = 64 * 1024


class ThreadTransport(httpx.BaseTransport):
    """For one host and one kind of certificate. Thread-safe. Sends nothing through proxies.

    `on_socket` gets each socket when it is made. Holds no lock: the garbage collector may close a response anywhere.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext,
        keepalive_s: float,
        most_idle: int,
        on_socket: Callable[[socket.socket], object] = lambda _: None,
        is_far: bool = False,
    ) -> None:
        """`is_far`: the host must lead into the public internet."""
        self._is_far = is_far
        self._verify = verify
        self._keepalive_s = keepalive_s
        self._most_idle = most_idle
        self._on_socket = on_socket
        self._idle: deque[_Line] = deque()
        self._is_closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request. Its time limit for reading holds for all of the response's head together."""
        limits = request.extensions.get("timeout", {})
        message = message_of(request, request.read())
        line = self._idle_line() or self._connected(request.url, for_connecting(limits))
        reader = ResponseReader()
        try:
            line.send(message, limits.get("write"))
            line.read_head(reader, limits.get("read"))
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

    def _idle_line(self) -> _Line | None:
        """An open connection, the one that was used last."""
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return None
            if not self._is_old(line) and not line.has_ended:
                return line
            line.close()

    def give_back(self, line: _Line) -> None:
        """The connection may serve another request."""
        line.used_at = time.monotonic()
        self._idle.append(line)
        with suppress(IndexError):
            while self._is_closed or len(self._idle) > self._most_idle or self._is_old(self._idle[0]):
                self._idle.popleft().close()

    def _is_old(self, line: _Line) -> bool:
        return time.monotonic() - line.used_at > self._keepalive_s

    def _connected(self, url: httpx.URL, limit_s: float | None) -> _Line:
        host = url.raw_host.decode("ascii")
        is_secure = url.scheme == "https"
        line: socket.socket | None = None
        try:
            line = socket.create_connection((host, url.port or (443 if is_secure else 80)), limit_s)
            self._on_socket(line)
            check_resolved([line.getpeername()], is_far=self._is_far, is_secure=is_secure)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_secure:
                line = self._verify.wrap_socket(line, server_hostname=host)
                self._on_socket(line)
        except (OSError, ValueError) as exc:  # ValueError: a name that no host can have
            if line is not None:
                line.close()
            kind = httpx.ConnectTimeout if isinstance(exc, TimeoutError) else httpx.ConnectError
            raise kind(str(exc) or "no connection within the time limit") from exc
        return _Line(line)

    def close(self) -> None:
        """Closes the connections that are not in use, and later those that are."""
        self._is_closed = True
        with suppress(IndexError):
            while True:
                self._idle.popleft().close()


class _Line:
    """One connection. It serves one request at a time."""

    __slots__ = ("_limit_s", "_socket", "used_at")

    def __init__(self, line: socket.socket) -> None:
        self._socket = line
        self._limit_s: float | None = -1.0
        self.used_at = time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether there is something to read before a request was sent: as a rule, the end of the connection."""
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([self._socket], [], [], 0)[0])
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, message: bytes, limit_s: float | None) -> None:
        """Sends the whole request. A server may answer before it has read all of it. Raises WriteTimeout."""
        self._limit(limit_s)
        try:
            self._socket.sendall(message)
        except TimeoutError as exc:
            raise httpx.WriteTimeout(str(exc)) from exc
        except OSError:
            pass  # reading says what there is

    def read_head(self, reader: ResponseReader, limit_s: float | None) -> None:
        """Reads until the head is there, within the time limit."""
        until = None if limit_s is None else time.monotonic() + limit_s
        while not reader.has_head:
            self.read(reader, None if until is None else until - time.monotonic())

    def read(self, reader: ResponseReader, limit_s: float | None) -> None:
        """Reads what has come, or comes next. Raises ReadTimeout, ReadError, RemoteProtocolError."""
        if limit_s is not None and limit_s <= 0:
            raise httpx.ReadTimeout("no whole response headers within the time limit")
        try:
            self._limit(limit_s)
            piece = self._socket.recv(_PIECE)
        except TimeoutError as exc:
            raise httpx.ReadTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpx.ReadError(str(exc)) from exc
        if piece:
            reader.feed(piece)
        else:
            reader.end()

    def _limit(self, limit_s: float | None) -> None:
        """How long the next send or read may take; to set it asks the system."""
        if limit_s != self._limit_s:
            self._limit_s = limit_s
            self._socket.settimeout(limit_s)

    def get_extra_info(self, name: str) -> Any:
        """As of httpcore's streams: the `socket`, and the `ssl_object` if there is one."""
        if name == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        return self._socket if name == "socket" else None

    def close(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._socket.close()


class _Body(httpx.SyncByteStream):
    """The body of a response, in the pieces in which it comes. Its own iterator, since it is read once."""

    def __init__(
        self, transport: ThreadTransport, line: _Line, reader: ResponseReader, limits: dict[str, float | None]
    ) -> None:
        self._transport = transport
        self._line = line
        self._reader = reader
        self._limits = limits
        self._held = [line]
        """Empty once the connection was given back or closed: only one of the threads that close it takes it out."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not (piece := self._reader.taken()):
            if self._reader.is_complete or not self._held:
                raise StopIteration
            self._line.read(self._reader, self._limits.get("read"))
        return piece

    def close(self) -> None:
        """Ends the connection, unless the body was read to its end: then it serves another request."""
        try:
            line = self._held.pop()
        except IndexError:
            return
        if self._reader.is_complete and self._reader.keeps_line:
            self._transport.give_back(line)
        else:
            line.close()

    def __del__(self) -> None:
        if getattr(self, "_held", ()):
            self.close()
