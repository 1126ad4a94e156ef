"""The gateway clients of one model: made on first use, shared by its copies, one set per route.

Frameworks copy models freely, some once per call, and change their fields; a `Connections` is what all copies
share, and with it the paid sessions and the budget. What a call needs is looked up by value, so that a copy with
another key or gateway never pays with the first one's.

Making a client opens the ledger and may load certificates: async callers have it done in a thread. Does not read
the environment (a route is complete), does not know models or messages, and never closes what was passed in.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import SecretStr

from opengradient_x402.errors import InvalidPrivateKey
from opengradient_x402.settings import Settings

if TYPE_CHECKING:
    from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.networks import Network
    from opengradient_x402.payment.payments import Payments
    from opengradient_x402.payment.policy import SpendPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Whose money is spent, on which network, under which rules, and which gateway serves the calls.

    The first four are what `Payments.open` takes. Nothing is left to the environment: whoever makes a route has
    read it. `base_url` None takes the network's own gateway.
    """

    private_key: SecretStr | None = None
    network: str | Path | Network | None = None
    policy: SpendPolicy | None = None
    ledger: Ledger | str | Path | None = field(default=None, repr=False)  # a URL may hold a password
    payments: Payments | None = None
    """Payments that are open already; they replace the four above and are never closed here."""
    base_url: str | None = None
    max_retries: int = 2
    verify_tee: str = "off"

    def __post_init__(self) -> None:
        if self.payments is None and (self.network is None or self.ledger is None):
            raise TypeError("A route needs `payments`, or else a network and a ledger.")


@dataclass(slots=True)
class _Opened:
    """What there is to close; apart from `Connections`, whose finalizer must not keep it alive."""

    payments: dict[Hashable, Payments] = field(default_factory=dict)
    clients: dict[Route, GatewayClient] = field(default_factory=dict)
    async_clients: dict[Route, AsyncGatewayClient] = field(default_factory=dict)

    def close(self) -> None:
        self.async_clients.clear()  # their sockets belong to their loops, and close with them
        while self.clients:
            self.clients.popitem()[1].close()
        while self.payments:
            self.payments.popitem()[1].close()

    def release(self) -> None:
        """As `close`, for a model that nobody holds any more: its receipts may live on and ask their ledger."""
        self.async_clients.clear()
        while self.clients:
            self.clients.popitem()[1].close()
        while self.payments:
            self.payments.popitem()[1].ledger.flush()  # it ends with its last receipt


class Connections:
    """The clients of one model and its copies. Thread-safe; serves any number of event loops.

    A copy of it is the same one; a pickle of it is an empty one, because another process opens its own. What is
    left open when it is collected, or at exit, is closed: no socket stays open and no receipt unwritten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened = _Opened()
        weakref.finalize(self, self._opened.release)

    def client(self, route: Route) -> GatewayClient:
        """The sync client for `route`."""
        found = self._opened.clients.get(route)
        return found if found is not None else self._open(route)

    async def async_client(self, route: Route) -> AsyncGatewayClient:
        """The async client for `route`, on whichever loop it is used."""
        found = self._opened.async_clients.get(route)
        return found if found is not None else await asyncio.to_thread(self._open_async, route)

    def close(self) -> None:
        """Close the sync clients, and the payments opened here. The next call opens them again."""
        with self._lock:
            self._opened.close()

    async def aclose(self) -> None:
        """`close`, and the running loop's connections. Those of other loops close with their loops."""
        with self._lock:
            async_clients = list(self._opened.async_clients.values())
        for client in async_clients:
            await client.aclose()
        await asyncio.to_thread(self.close)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Connections], tuple[()]]:
        return Connections, ()

    def _open(self, route: Route) -> GatewayClient:
        from opengradient_x402.gateway.client import GatewayClient

        with self._lock:
            if (found := self._opened.clients.get(route)) is not None:
                return found
            payments, options = self._prepare(route)
            made = self._opened.clients[route] = GatewayClient(payments, **options)
        return made

    def _open_async(self, route: Route) -> AsyncGatewayClient:
        from opengradient_x402.gateway.client import AsyncGatewayClient

        with self._lock:
            if (found := self._opened.async_clients.get(route)) is not None:
                return found
            payments, options = self._prepare(route)
            made = self._opened.async_clients[route] = AsyncGatewayClient(payments, **options)
        return made

    def _prepare(self, route: Route) -> tuple[Payments, dict[str, Any]]:
        """The payments and the options of a client. Holds the lock: two threads must not open two ledgers."""
        if (payments := route.payments) is None:
            wallet = (route.private_key, route.network, route.policy, route.ledger)
            payments = self._opened.payments.get(wallet)
            if payments is None:
                payments = self._opened.payments[wallet] = _open_payments(route)
        return payments, {
            "base_url": route.base_url,
            "max_retries": route.max_retries,
            "verify_tee": route.verify_tee,
        }


def _open_payments(route: Route) -> Payments:
    from opengradient_x402.payment.payments import Payments

    if route.private_key is None:
        raise InvalidPrivateKey(
            "This model has no private key to pay with. Nothing was paid. Pass `private_key`, or set OG_PRIVATE_KEY "
            "(in the environment or in .env) before the model is made. A devnet hands out funded keys: "
            "`opengradient-devnet`."
        )
    return Payments.open(
        network=route.network,
        private_key=route.private_key,
        policy=route.policy,
        ledger=route.ledger,
        settings=Settings(),  # complete as it is: the environment was read when the model was made
    )
