"""HTTP servers in a background thread: sockets on loopback, one event loop for all of them, a clean end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from opengradient_devnet.connection import TRANSPORT

LOOPBACK = "127.0.0.1"
_START_TIMEOUT_S = 10.0
_CONNECTIONS_GRACE_S = 1


class ServerFailed(RuntimeError):
    """The HTTP servers did not come up; nothing is listening."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A bound loopback socket; it accepts connections from now on, and answers once a server runs on it."""

    socket: socket.socket = field(repr=False)
    scheme: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}"


def listen(*, port: int = 0, scheme: str = "http") -> Listener:
    """Bind a loopback port (0 picks a free one)."""
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol; without it every answer
    # on a kept connection would wait 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
    except OSError as exc:
        bound.close()
        raise ServerFailed(f"Port {port} on {LOOPBACK} cannot be used ({exc}); choose another, or 0.") from exc
    return Listener(socket=bound, scheme=scheme)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One app on one listener, with TLS when a context is given."""

    app: ASGIApp
    listener: Listener
    tls: ssl.SSLContext | None = None


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, plus a way for an app to do to its connection what HTTP does not (see `connection`)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        served = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await served({**scope, "extensions": {TRANSPORT: transport}}, receive, send)

        self.app = app


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process belongs to the program that embeds the devnet."""

    def __init__(self, site: Site) -> None:
        tls = site.tls
        super().__init__(
            uvicorn.Config(
                site.app,
                loop="asyncio",
                http=_Protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,  # `dating` writes it, and a fault can make it wrong
                proxy_headers=False,
                timeout_keep_alive=120,
                timeout_graceful_shutdown=_CONNECTIONS_GRACE_S,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )


class ServerThread:
    """Runs the sites until `stop`; `on_stop` is awaited on their loop at the end."""

    def __init__(self, sites: list[Site], *, on_stop: Callable[[], Awaitable[None]]) -> None:
        self._sites = sites
        self._on_stop = on_stop
        self._servers = [_Server(site) for site in sites]
        self._thread = threading.Thread(target=self._run, name="opengradient-devnet-http")

    def start(self) -> None:
        """Return when every site answers."""
        self._thread.start()
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not all(server.started for server in self._servers):
            if not self._thread.is_alive() or time.monotonic() > give_up_at:
                self.stop()
                raise ServerFailed("The devnet's HTTP servers did not start; see the log of uvicorn.")
            time.sleep(0.002)

    def stop(self) -> None:
        """End all connections and the thread. Streams that still run are cut after a short grace."""
        for server in self._servers:
            server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for server, site in zip(self._servers, self._sites, strict=True):
                group.create_task(server.serve(sockets=[site.listener.socket]))
        await self._on_stop()
