"""The gateway clients of a process: made on first use, shared by value by all models of both faces.

Web handlers, graph nodes and reruns of pages make a model for each request, and frameworks copy models freely. So
what pays is looked up by what it is: models of one payer, network, policy and ledger share payments, sessions and
budget, and models that differ in one of them share none of it. A `Connections` stands for one model and its copies;
as long as it lives, what it uses stays open. After that everything stays for a while, for the model of the next
request, and is closed then; no model closes what another one uses.

Making a client opens the ledger and may load certificates: async callers have it done in a thread. Does not read
the environment (a route is complete), does not know models or messages, and never closes what was passed in.
"""

from __future__ import annotations

import asyncio
import copy
import math
import queue
import threading
import time
import weakref
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import SecretStr

from opengradient_x402.errors import InvalidPrivateKey
from opengradient_x402.process import Ending, Resident, belongs

if TYPE_CHECKING:
    from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
    from opengradient_x402.keys.signer import Keystore, Signer
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.networks import Network
    from opengradient_x402.payment.payments import Payments
    from opengradient_x402.payment.policy import SpendPolicy

REST_S: Final = 3.0
"""Seconds that unused connections and an unused ledger's thread stay: idle connections last little longer."""
LINGER_S: Final = 120.0
"""Seconds that unused sessions are remembered: twice as long as gateways keep an idle session."""
UNUSED_S: Final = 3600.0
"""Seconds without a call after which a wallet is closed, even if a model that could use it still lives."""
MOST_WALLETS: Final = 256
"""Above this number, those that were not used for longest are closed first, `LINGER_S` or not."""
_IN_USE_S: Final = 600.0
_RECHECK_S: Final = 5.0
_PUBLISHED_S: Final = 60.0
"""A network that is published under a URL is read again for a new model when the last reading is older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Whose money is spent, on which network, under which rules, and which gateway serves the calls.

    The first four are what `Payments.open` takes. The environment is not read here: the maker of a
    route has read it. `base_url` None takes the network's own gateway.
    """

    private_key: SecretStr | Keystore | Signer | None = None
    network: str | Path | Network | None = None
    policy: SpendPolicy | None = None
    ledger: Ledger | str | Path | None = field(default=None, repr=False)  # a URL may hold a password
    rpc_url: SecretStr | None = None
    web3: object | None = field(default=None, repr=False)
    payments: Payments | None = None
    """Payments that are open already; they replace the four above and are never closed here."""
    base_url: str | None = None
    max_retries: int = 2
    verify_tee: str = "off"
    http_client: object | None = field(default=None, repr=False)
    """An httpx client or transport of the user's for sync calls, which sends what is paid; never closed here."""
    http_async_client: object | None = field(default=None, repr=False)
    """The same for async calls."""

    def __post_init__(self) -> None:
        if self.payments is None and (self.network is None or self.ledger is None):
            raise TypeError("A route needs `payments`, or else a network and a ledger.")

    @property
    def options(self) -> tuple[Hashable, ...]:
        """What differs between the clients of one wallet."""
        return self.base_url, self.max_retries, self.verify_tee, self.http_client, self.http_async_client


class _Wallet:
    """What models share that pay from one wallet on one network, under one policy, into one ledger."""

    def __init__(self, payments: Payments, *, owns_ledger: bool) -> None:
        self.payments = payments
        self.owns_ledger = owns_ledger
        self.clients: dict[Hashable, GatewayClient] = {}
        self.async_clients: dict[Hashable, AsyncGatewayClient] = {}
        self.users: weakref.WeakSet[Connections] = weakref.WeakSet()
        self.used_at = time.monotonic()
        self.is_open = True
        self.is_resting = False
        """Whether it has no connections and no thread: nothing is to be closed until it is used again."""

    @property
    def is_usable(self) -> bool:
        """Whether new models may use it: it is open, and nobody has closed the ledger that was opened for it."""
        if self.is_open and self.owns_ledger and self.payments.ledger.is_closed:
            self.is_open = False
        return self.is_open

    def client(self, route: Route) -> GatewayClient:
        """The sync client for the route."""
        from opengradient_x402.gateway.client import GatewayClient

        found = self.clients.get(route.options)
        return found or self.clients.setdefault(
            route.options, GatewayClient(self.payments, **_options(route, route.http_client))
        )

    def async_client(self, route: Route) -> AsyncGatewayClient:
        """The async client for the route."""
        from opengradient_x402.gateway.client import AsyncGatewayClient

        found = self.async_clients.get(route.options)
        if found is None:
            made = AsyncGatewayClient(self.payments, **_options(route, route.http_async_client))
            found = self.async_clients.setdefault(route.options, made)
        return found

    def is_idle(self) -> bool:
        """Whether no call is under way."""
        clients: list[GatewayClient | AsyncGatewayClient] = [*self.clients.values(), *self.async_clients.values()]
        return all(client.is_idle for client in clients)

    def disconnect(self) -> None:
        """Closes the connections of clients that have no call under way; the next call opens them again."""
        for client in list(self.clients.values()):
            if client.is_idle:
                client.close()
        for async_client in list(self.async_clients.values()):
            if async_client.is_idle:
                async_client.retire()


class Registry(Resident):
    """All wallets of a process. Thread-safe.

    A thread ends connections and ledgers that no model uses any more, `rest_s` after the last call, and lives as long
    as there are some. Then only sessions are remembered: they are forgotten `linger_s` after the last call, when the
    next wallet is used.
    """

    def __init__(self, *, rest_s: float = REST_S, linger_s: float = LINGER_S, most_wallets: int = MOST_WALLETS) -> None:
        self._rest_s = rest_s
        self._linger_s = linger_s
        self._most_wallets = most_wallets
        self._wallets: dict[Hashable, _Wallet] = {}
        self._spellings: dict[Hashable, tuple[_Wallet, float]] = {}
        """The same wallets by what users wrote (a key, a network or a path has several forms), and until when."""
        self._renew()
        belongs(self, Ending.CONNECTIONS)

    def __len__(self) -> int:
        return len(self._wallets)

    def _renew(self) -> None:
        """In a forked child: the wallets stay, their sessions and connections are new, and nobody opens one now."""
        self._lock = threading.RLock()
        self._opening: dict[Hashable, Future[_Wallet]] = {}
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None

    def known(self, route: Route, user: Connections) -> _Wallet | None:
        """The wallet for `route`, if it is open; from now on `user` uses it. Never waits for long."""
        wallet, until = self._spellings.get(_spelling(route), (None, 0.0))
        return wallet if wallet is not None and time.monotonic() < until and self._is_leased(wallet, user) else None

    def wallet(self, route: Route, user: Connections) -> _Wallet:
        """The wallet for `route`, opened if need be; from now on `user` uses it.

        Of many that ask at once, one opens it. Raises ConfigurationError.
        """
        spelling = _spelling(route)
        while True:
            if (wallet := self.known(route, user)) is not None:
                return wallet
            with self._lock:
                opening = self._opening.get(spelling)
                is_mine = opening is None
                if opening is None:
                    opening = self._opening[spelling] = Future()
            if not is_mine:
                if (problem := opening.exception()) is not None:
                    raise copy.copy(problem) from problem  # each call has an error of its own
                continue
            try:
                wallet = self._opened(route, spelling)
            except BaseException as exc:
                self._opening.pop(spelling, None)
                opening.set_exception(exc)
                raise
            self._opening.pop(spelling, None)
            opening.set_result(wallet)

    def release(self, user: Connections, wallets: Iterable[_Wallet]) -> list[_Wallet]:
        """`user` is closed. Returns the wallets that nobody uses any more, for `close_unused`."""
        with self._lock:
            for wallet in wallets:
                wallet.users.discard(user)
            return [wallet for wallet in wallets if not wallet.users]

    def close_unused(self, wallets: Iterable[_Wallet]) -> None:
        """Ends the connections and the ledger's thread of these wallets; their sessions are remembered for a while."""
        for wallet in wallets:
            wallet.used_at = time.monotonic()
            wallet.disconnect()
            self._rest(wallet)
        self.look()

    def look(self) -> None:
        """Wakes the thread, which closes what is not used any more. Safe in a finalizer: takes no lock."""
        self._wake.put(None)

    def _is_leased(self, wallet: _Wallet, user: Connections) -> bool:
        with self._lock:
            if not wallet.is_usable:
                return False
            wallet.used_at = time.monotonic()
            wallet.users.add(user)
            wallet.is_resting = False
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="opengradient-keeper", daemon=True)
                self._keeper.start()
            return True

    # -- opening

    def _opened(self, route: Route, spelling: Hashable) -> _Wallet:
        from opengradient_x402.ledger.shared import OF_THE_PROCESS

        made, identity = self._made(route)
        with self._lock:
            wallet = self._wallets.get(identity)
            if wallet is None or not wallet.is_usable:
                wallet = self._wallets[identity] = made
                if wallet.owns_ledger:
                    OF_THE_PROCESS.used(wallet.payments.ledger)
            is_published = "://" in str(route.network)
            self._spellings[spelling] = wallet, time.monotonic() + (_PUBLISHED_S if is_published else math.inf)
        if len(self._wallets) > self._most_wallets:
            self.look()
        return wallet

    def _made(self, route: Route) -> tuple[_Wallet, Hashable]:
        """A wallet, and the value by which it is shared. Opens only a network's file or URL so far."""
        if route.payments is not None:
            return _Wallet(route.payments, owns_ledger=False), id(route.payments)
        from opengradient_x402.keys.signer import signer_of
        from opengradient_x402.ledger.ledger import Ledger
        from opengradient_x402.ledger.shared import OF_THE_PROCESS
        from opengradient_x402.networks import load_network, with_node
        from opengradient_x402.payment.payments import Payments
        from opengradient_x402.payment.policy import SpendPolicy

        if route.private_key is None:
            raise InvalidPrivateKey(
                "This model has no private key to pay with. Nothing was paid. Pass `private_key`, or set "
                "OG_PRIVATE_KEY (in the environment or in .env) before the model is made. A devnet hands out funded "
                "keys: `opengradient-devnet`."
            )
        assert route.network is not None and route.ledger is not None  # noqa: S101, PT018  (see Route)
        signer = signer_of(route.private_key)
        network = with_node(load_network(route.network), rpc_url=route.rpc_url, web3=route.web3)
        policy = route.policy if route.policy is not None else SpendPolicy()
        ledger = route.ledger if isinstance(route.ledger, Ledger) else OF_THE_PROCESS.found(route.ledger)
        payments = Payments(network=network, signer=signer, policy=policy, ledger=ledger)
        wallet = _Wallet(payments, owns_ledger=ledger is not route.ledger)
        return wallet, (signer.address, network, policy, id(ledger))

    # -- closing

    def _keep(self) -> None:
        while (pause_s := self._looked_after()) is not None:
            with suppress(queue.Empty):
                self._wake.get(timeout=pause_s)
                time.sleep(min(0.05, pause_s))  # many models may be forgotten at once
            while not self._wake.empty():
                self._wake.get_nowait()

    def _looked_after(self) -> float | None:
        """Ends what is due; returns the seconds until more may be, or None when nothing is left to end."""
        now = time.monotonic()
        with self._lock:
            ended = self._forgotten(now)
            for wallet in self._wallets.values():
                if not wallet.users and not wallet.is_resting and wallet.used_at + self._rest_s <= now:
                    wallet.is_resting = wallet.is_idle()
                    ended += [wallet] if wallet.is_resting else []
            due = [
                wallet.used_at + (UNUSED_S if wallet.users else self._rest_s)
                for wallet in self._wallets.values()
                if not wallet.is_resting
            ]
            if not due:
                self._keeper = None
        for wallet in ended:
            wallet.disconnect()
            self._rest(wallet)
        return max(min(due) - now, min(self._rest_s, _RECHECK_S)) if due else None

    def _forgotten(self, now: float) -> list[_Wallet]:
        """Takes out what was not used for long, and the oldest of too many, unless the next call needs it."""
        from opengradient_x402.ledger.shared import OF_THE_PROCESS

        forgotten = []
        surplus = len(self._wallets) - self._most_wallets
        for identity, wallet in sorted(self._wallets.items(), key=lambda item: item[1].used_at):
            unused_s = now - wallet.used_at
            is_surplus = surplus > 0 and unused_s > (_IN_USE_S if wallet.users else self._rest_s)
            is_old = unused_s >= (UNUSED_S if wallet.users else self._linger_s)
            # A payment in doubt is offered again by the next call, so that nothing new is signed.
            if (is_surplus or is_old) and wallet.is_idle() and not wallet.payments.doubts.any_open():
                surplus -= 1
                wallet.is_open = False
                del self._wallets[identity]
                forgotten.append(wallet)
                if wallet.owns_ledger:
                    OF_THE_PROCESS.left(wallet.payments.ledger)
        if forgotten:
            self._spellings = {key: kept for key, kept in self._spellings.items() if kept[0].is_open}
        return forgotten

    def _rest(self, wallet: _Wallet) -> None:
        """Ends the thread of a ledger that no other wallet uses; a receipt that asks it later begins it again."""
        ledger = wallet.payments.ledger
        with self._lock:
            is_used = any(other.users and other.payments.ledger is ledger for other in self._wallets.values())
        if wallet.owns_ledger and not is_used:
            ledger.rest()


_OF_THE_PROCESS: Final = Registry()


class Connections:
    """The clients of one model and its copies. Thread-safe; serves any number of event loops.

    A copy of it is the same one; a pickle of it is an empty one, because another process opens its own.
    """

    def __init__(self, registry: Registry = _OF_THE_PROCESS) -> None:
        self._registry = registry
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._clients: dict[Route, tuple[_Wallet, GatewayClient]] = {}
        self._async_clients: dict[Route, tuple[_Wallet, AsyncGatewayClient]] = {}

    def client(self, route: Route) -> GatewayClient:
        """The sync client for `route`."""
        found = self._clients.get(route)
        if found is not None and found[0].is_usable:
            found[0].used_at = time.monotonic()
            return found[1]
        wallet = self._registry.wallet(route, self)
        client = wallet.client(route)
        self._keep(self._clients, route, (wallet, client))
        return client

    async def async_client(self, route: Route) -> AsyncGatewayClient:
        """The async client for `route`. It can be used on any event loop."""
        found = self._async_clients.get(route)
        if found is not None and found[0].is_usable:
            found[0].used_at = time.monotonic()
            return found[1]
        wallet = self._registry.known(route, self)
        if wallet is None:
            wallet = await asyncio.to_thread(self._registry.wallet, route, self)
        client = wallet.async_client(route)
        self._keep(self._async_clients, route, (wallet, client))
        return client

    def close(self) -> None:
        """Close the connections that no other model uses. The next call opens them again."""
        self._registry.close_unused(self._registry.release(self, self._taken()))

    async def aclose(self) -> None:
        """`close`, and wait until the running loop's connections are closed."""
        unused = self._registry.release(self, self._taken())
        for wallet in unused:
            for client in list(wallet.async_clients.values()):
                await client.aclose()
        await asyncio.to_thread(self._registry.close_unused, unused)

    def _keep(self, kept: dict[Route, Any], route: Route, found: tuple[_Wallet, Any]) -> None:
        for known, (wallet, _) in list(kept.items()):
            if not wallet.is_open:  # copies may have had many keys
                kept.pop(known, None)
        kept[route] = found
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, self._registry.look)
            self._finalizer.atexit = False

    def _taken(self) -> set[_Wallet]:
        held = [*self._clients.values(), *self._async_clients.values()]
        self._clients, self._async_clients = {}, {}
        return {wallet for wallet, _ in held}

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Connections], tuple[()]]:
        return Connections, ()


def _spelling(route: Route) -> Hashable:
    """The text that users wrote, with the working directory where the meaning depends on it."""
    if route.payments is not None:
        return id(route.payments)
    from opengradient_x402.networks import PRESETS, default_devnet_file

    ledger = route.ledger
    if isinstance(ledger, str | Path):
        from opengradient_x402.ledger.place import location

        ledger = location(ledger)
    network = route.network
    state = None
    if isinstance(network, str | Path) and network not in PRESETS and "://" not in str(network):
        path = default_devnet_file() if network == "devnet" else Path(network).absolute()
        with suppress(OSError):  # the reader of the file says what is wrong
            state = path.stat().st_mtime_ns  # a devnet that was started again wrote another network
        network = path
    return route.private_key, network, state, route.rpc_url, route.web3, route.policy, ledger


def _options(route: Route, http_transport: object | None) -> dict[str, Any]:
    return {
        "base_url": route.base_url,
        "max_retries": route.max_retries,
        "verify_tee": route.verify_tee,
        "http_transport": http_transport,
    }
