"""A forward proxy on loopback: tunnels for https, requests passed on for http."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """Where it is, and the first lines of what was asked of it."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def proxying() -> Iterator[Proxy]:
    """A proxy that lives as long as the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            start(_serve, client, proxy)

    def start(work: object, *arguments: object) -> None:
        threads.append(threading.Thread(target=work, args=arguments, daemon=True))  # type: ignore[arg-type]
        threads[-1].start()

    start(accept)
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join(timeout=10)


def _serve(client: socket.socket, proxy: Proxy) -> None:
    with client, suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        first, rest = head.split(b"\r\n", 1)
        proxy.asked.append(first.decode())
        method, target, version = first.decode().split()
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            begin = b""
        else:
            parts = urlsplit(target)
            host, port = parts.hostname or "", str(parts.port or 80)
            begin = f"{method} {parts.path} {version}\r\n".encode() + rest
        with socket.create_connection((host, int(port))) as server:
            server.sendall(begin)
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join(timeout=10)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
