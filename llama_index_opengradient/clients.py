"""The gateway clients of one model, opened at first use. Thread-safe. Does not know models or messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opengradient_x402.gateway import AsyncGatewayClient, GatewayClient
    from opengradient_x402.payments import Payments


class Clients:
    """A sync and an async client around one `Payments`.

    `open_payments` is called at most once; the payments are closed here only if `is_owner`. `options` are the
    keyword arguments of the gateway clients.
    """

    def __init__(self, open_payments: Callable[[], Payments], *, is_owner: bool, options: dict[str, Any]) -> None:
        self._open_payments = open_payments
        self._is_owner = is_owner
        self._options = options
        self._lock = threading.Lock()
        self._payments: Payments | None = None
        self._client: GatewayClient | None = None
        self._async_client: AsyncGatewayClient | None = None

    def payments(self) -> Payments:
        """The paying side, opened now if it was not."""
        with self._lock:
            if self._payments is None:
                self._payments = self._open_payments()
            return self._payments

    def client(self) -> GatewayClient:
        """The client for sync calls."""
        payments = self.payments()
        with self._lock:
            if self._client is None:
                from opengradient_x402.gateway import GatewayClient

                self._client = GatewayClient(payments, **self._options)
            return self._client

    async def async_client(self) -> AsyncGatewayClient:
        """The client for async calls, on whichever loop they run."""
        if self._async_client is None:
            # opening reads `.env` and perhaps a network file: not on the loop
            await asyncio.to_thread(self._open_async)
        if self._async_client is None:
            raise RuntimeError("The model was closed while it was opening. Nothing was paid. Call again.")
        return self._async_client

    def _open_async(self) -> None:
        payments = self.payments()
        with self._lock:
            if self._async_client is None:
                from opengradient_x402.gateway import AsyncGatewayClient

                self._async_client = AsyncGatewayClient(payments, **self._options)

    def close(self) -> None:
        """Close the sync client and, if they were opened here, the payments."""
        with self._lock:
            client, self._client = self._client, None
            payments, self._payments = self._payments, None
        if client is not None:
            client.close()
        if payments is not None and self._is_owner:
            payments.close()

    async def aclose(self) -> None:
        """`close`, and the running loop's connections. Those of other loops close with their loops."""
        with self._lock:
            client, self._async_client = self._async_client, None
        if client is not None:
            await client.aclose()
        await asyncio.to_thread(self.close)
