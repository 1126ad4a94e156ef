"""The connection under a request, for answers that HTTP does not know: dropped in the middle, or written by hand.

`server` puts the transport into the ASGI scope.
"""

from __future__ import annotations

import asyncio

from starlette.types import Scope

TRANSPORT = "opengradient.transport"


def transport_of(scope: Scope) -> asyncio.Transport:
    """The transport that a request came by."""
    transport: asyncio.Transport = scope["extensions"][TRANSPORT]
    return transport


def hang_up(scope: Scope) -> None:
    """Drop the connection of a request at once, whatever has been sent on it."""
    transport_of(scope).abort()
