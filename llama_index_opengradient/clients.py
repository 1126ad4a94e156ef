"""The gateway clients of one model, opened at first use. Thread-safe. Does not know models or messages."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opengradient_x402.gateway import AsyncGatewayClient, GatewayClient
    from opengradient_x402.payments import Payments


@dataclass(slots=True)
class _Opened:
    """What there is to close."""

    payments: Payments | None = None
    client: GatewayClient | None = None
    async_client: AsyncGatewayClient | None = None


class Clients:
    """A sync and an async client around one `Payments`.

    `open_payments` is called at most once; the payments are closed here only if `is_owner`. `options` are the
    keyword arguments of the gateway clients. What a dropped model leaves open is closed when it is collected.
    """

    def __init__(self, open_payments: Callable[[], Payments], *, is_owner: bool, options: dict[str, Any]) -> None:
        self._open_payments = open_payments
        self._is_owner = is_owner
        self._options = options
        self._lock = threading.Lock()
        self._opened = _Opened()
        weakref.finalize(self, _close, self._opened, close_payments=is_owner)

    def payments(self) -> Payments:
        """The paying side, opened now if it was not."""
        with self._lock:
            if self._opened.payments is None:
                self._opened.payments = self._open_payments()
            return self._opened.payments

    def client(self) -> GatewayClient:
        """The client for sync calls."""
        payments = self.payments()
        with self._lock:
            if self._opened.client is None:
                from opengradient_x402.gateway import GatewayClient

                self._opened.client = GatewayClient(payments, **self._options)
            return self._opened.client

    async def async_client(self) -> AsyncGatewayClient:
        """The client for async calls, on whichever loop they run."""
        client = self._opened.async_client
        # opening reads `.env` and perhaps a network file: not on the loop
        return client if client is not None else await asyncio.to_thread(self._open_async)

    def _open_async(self) -> AsyncGatewayClient:
        payments = self.payments()
        with self._lock:
            if self._opened.async_client is None:
                from opengradient_x402.gateway import AsyncGatewayClient

                self._opened.async_client = AsyncGatewayClient(payments, **self._options)
            return self._opened.async_client

    def close(self) -> None:
        """Close the sync client and, if they were opened here, the payments."""
        with self._lock:
            _close(self._opened, close_payments=self._is_owner)

    async def aclose(self) -> None:
        """`close`, and the running loop's connections. Those of other loops close with their loops."""
        with self._lock:
            client, self._opened.async_client = self._opened.async_client, None
        if client is not None:
            await client.aclose()
        await asyncio.to_thread(self.close)


def _close(opened: _Opened, *, close_payments: bool) -> None:
    client, opened.client = opened.client, None
    payments, opened.payments = opened.payments, None
    if client is not None:
        client.close()
    if payments is not None and close_payments:
        payments.close()
