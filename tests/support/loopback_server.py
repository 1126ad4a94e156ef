"""An ASGI app on a real loopback socket, in a thread, for the time of a test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn


@contextmanager
def serving(
    app: Any, *, lifespan: Literal["on", "off"] = "off", http: type[asyncio.Protocol] | Literal["auto"] = "auto"
) -> Iterator[str]:
    """The base URL of `app`; the server has ended when the block ends. `http` is what reads a connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=http, log_level="warning", lifespan=lifespan, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()
