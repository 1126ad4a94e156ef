"""A model's gateway clients: made on first use, shared by its copies, one set per payer and endpoint.

Making them opens the ledger and may load certificates, so async callers have it done in a thread. Copies of a
model (`configurable_fields` makes one per call) share one `Connections`, and with it the paid sessions.
It does not know messages, and it never closes what was passed in.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import SecretStr

if TYPE_CHECKING:
    from opengradient_x402.gateway import AsyncGatewayClient, GatewayClient
    from opengradient_x402.ledger import Ledger
    from opengradient_x402.networks import Network
    from opengradient_x402.payments import Payments
    from opengradient_x402.policy import SpendPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """Whose money is spent, where, and under which rules."""

    private_key: SecretStr | None
    network: str | Path | Network | None
    policy: SpendPolicy | None
    ledger: Ledger | str | Path | None
    payments: Payments | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Which gateway serves a wallet's calls."""

    wallet: Wallet
    base_url: str | None
    max_retries: int
    verify_tee: str


class Connections:
    """The clients of one model and its copies. Thread-safe; serves any number of event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payments: dict[Wallet, Payments] = {}
        self._clients: dict[Endpoint, GatewayClient] = {}
        self._async_clients: dict[Endpoint, AsyncGatewayClient] = {}
        # A model that is dropped, or alive at exit, leaves no socket open and no receipt unwritten.
        weakref.finalize(self, _close_all, self._clients, self._payments)

    def client(self, endpoint: Endpoint) -> GatewayClient:
        """The sync client for `endpoint`."""
        found = self._clients.get(endpoint)
        return found if found is not None else self._open(endpoint)

    async def async_client(self, endpoint: Endpoint) -> AsyncGatewayClient:
        """The async client for `endpoint`."""
        found = self._async_clients.get(endpoint)
        return found if found is not None else await asyncio.to_thread(self._open_async, endpoint)

    def close(self) -> None:
        """Close the sync clients, and the ledgers opened here. The next call opens them again."""
        with self._lock:
            self._async_clients.clear()
            _close_all(self._clients, self._payments)

    async def aclose(self) -> None:
        """Close the async clients of the running loop, and then everything else."""
        with self._lock:
            async_clients = list(self._async_clients.values())
        for client in async_clients:
            await client.aclose()
        await asyncio.to_thread(self.close)

    def __deepcopy__(self, memo: object) -> Self:
        return self  # sockets, locks and paid sessions cannot be copied, and need not be

    def __reduce__(self) -> tuple[type[Connections], tuple[()]]:
        return Connections, ()  # another process opens its own

    def _open(self, endpoint: Endpoint) -> GatewayClient:
        from opengradient_x402.gateway import GatewayClient

        with self._lock:
            if (found := self._clients.get(endpoint)) is not None:
                return found
            made = self._clients[endpoint] = GatewayClient(
                self._paying(endpoint.wallet),
                base_url=endpoint.base_url,
                max_retries=endpoint.max_retries,
                verify_tee=endpoint.verify_tee,
            )
        return made

    def _open_async(self, endpoint: Endpoint) -> AsyncGatewayClient:
        from opengradient_x402.gateway import AsyncGatewayClient

        with self._lock:
            if (found := self._async_clients.get(endpoint)) is not None:
                return found
            made = self._async_clients[endpoint] = AsyncGatewayClient(
                self._paying(endpoint.wallet),
                base_url=endpoint.base_url,
                max_retries=endpoint.max_retries,
                verify_tee=endpoint.verify_tee,
            )
        return made

    def _paying(self, wallet: Wallet) -> Payments:
        from opengradient_x402.payments import Payments

        if wallet.payments is not None:
            return wallet.payments
        if (found := self._payments.get(wallet)) is None:
            found = self._payments[wallet] = Payments.open(
                network=wallet.network,
                private_key=wallet.private_key,
                policy=wallet.policy,
                ledger=wallet.ledger,
            )
        return found


def _close_all(clients: dict[Endpoint, GatewayClient], payments: dict[Wallet, Payments]) -> None:
    while clients:
        clients.popitem()[1].close()
    while payments:
        payments.popitem()[1].close()
