"""signatures only, the body follows"""

from __future__ import annotations

from starlette.types import ASGIApp

from opengradient_devnet.chain import Chain


def rpc_app(chain: Chain) -> ASGIApp:
    """An ASGI app that answers POST (JSON-RPC 2.0, single and batch) on any path it is mounted at."""
    raise NotImplementedError
