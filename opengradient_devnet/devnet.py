"""`Devnet`: an OpenGradient-like network in this process, from chain to paid gateway, on loopback.

It puts the parts together and owns their threads. All keys are new for every run: faucet, facilitator, payee, operator
and enclave. Closing it ends connections, settles open sessions, writes batches and stops every thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from opengradient_devnet.chain.accounts import (
    LIVE_CHAIN_IDS,
    WALLET_GAS_WEI,
    Account,
    Wallets,
    new_account,
)
from opengradient_devnet.chain.chain import PRIVATE_CHAIN_ID, Chain
from opengradient_devnet.chain.rpc import rpc_app
from opengradient_devnet.explorer.routes import Explorer
from opengradient_devnet.facilitator.api import facilitator_app
from opengradient_devnet.faults import Faults
from opengradient_devnet.gateway.dating import dated
from opengradient_devnet.gateway.gateway import Gateway
from opengradient_devnet.gateway.housekeeper import Housekeeper
from opengradient_devnet.gateway.jobs import Jobs
from opengradient_devnet.gateway.menu import Menu
from opengradient_devnet.gateway.payment.challenge import (
    APPROVAL_SPONSORING,
    PERMIT_SPONSORING,
    PaymentTerms,
    Scheme,
)
from opengradient_devnet.gateway.payment.channels import ChannelBook, ChannelRecord
from opengradient_devnet.gateway.payment.collector import Collector, HouseFacilitator
from opengradient_devnet.gateway.payment.door import Door
from opengradient_devnet.gateway.payment.repeats import DECLARATION, Repeats
from opengradient_devnet.gateway.payment.served import ServedCalls
from opengradient_devnet.gateway.payment.sessions import SessionBook, SettlementRecord
from opengradient_devnet.gateway.pricing import load_prices
from opengradient_devnet.gateway.profile import HELPFUL, GatewayProfile, profile_named
from opengradient_devnet.gateway.proofs.batches import BatchRecord, BlobStore, DataSettler
from opengradient_devnet.gateway.proofs.certificates import make_certificate
from opengradient_devnet.gateway.proofs.nitro import Hypervisor, pcr_hash
from opengradient_devnet.gateway.proofs.registry import register_gateway
from opengradient_devnet.gateway.proofs.tee import CanonicalStyle, Enclave
from opengradient_devnet.gateway.service import ModelService
from opengradient_devnet.gateway.unpaid import unpaid_app
from opengradient_devnet.guard import UNPAID_BODIES, guarded
from opengradient_devnet.model.protocol import Model
from opengradient_devnet.model.upstream import open_model
from opengradient_devnet.money import OPG_TOKEN, TOKENS, Token
from opengradient_devnet.network_file import describe_network, remove_network_file, write_network_file
from opengradient_devnet.public import PublicRoutes
from opengradient_devnet.server import ServerThread, Site, listen

SESSION_CAP_OPG = "0.1"
EXACT_PRICE_OPG = "0.01"
CLAIM_INTERVAL_S = 60.0
_SLOWEST_BEAT_S = 1.0
_FASTEST_BEAT_S = 0.02


class LiveChainRefused(ValueError):
    """A devnet may not use a live chain id unless it is told so explicitly."""


class Devnet:
    """A running network, as a context manager or between `start` and `close`.

    `upstream` is who answers: "rules" ("rules:raw" leaves out what live gateways do), "openai:URL" of any
    OpenAI-compatible server (Ollama: "openai:http://127.0.0.1:11434/v1"; `upstream_key` is its bearer token),
    "langchain:module:attribute" of any LangChain chat model, or an object of your own with `complete`, `stream`
    and `aclose`.
    `prices` replaces the price list (path, or parsed; see `pricing`), `opg_usd` only its price of OPG. Without
    `prices`, an upstream sells everything; what is not in the built-in list has one default price. With `prices`,
    it sells what they name.
    `behaves_like` is how the gateway behaves where gateways differ: "helpful", "gateway-2026-04", or a
    `GatewayProfile`; `idle_timeout_s`, `max_timeout_s`, `batch_size`, `batch_interval_s` and `quotes_costs` replace
    what it says.
    `asset` is the token that it is paid in: "OPG", or "USDC" (6 decimals, at 1 USD), which has no quotes and no
    explorer. All amounts are in whole tokens of it.
    `sessions=False` settles every call on its own. `gives_answers_again` has the gateway offer x402's
    `payment-identifier`: the same payment, sent again, gets the same answer.
    `schemes` are what the gateway offers; `session_cap_opg` and `exact_price_opg` are the offers' amounts (a call on a
    channel costs at most `session_cap_opg`, too).
    `claim_interval_s` is how often it claims what it charged to channels.
    `fault_route=True` serves `POST /faults` and `POST /reorganise` to clients that send `devnet.fault_token` as
    `X-Fault-Token` (random, or the `fault_token` that is given); `faults` can be injected in Python in any case.
    """

    def __init__(
        self,
        *,
        chain_id: int = PRIVATE_CHAIN_ID,
        engine: Literal["pyevm", "anvil"] = "pyevm",
        upstream: str | Model = "rules",
        upstream_key: str | None = None,
        behaves_like: str | GatewayProfile = HELPFUL.name,
        idle_timeout_s: float | None = None,
        network_file: str | Path | None = None,
        port: int = 0,
        sessions: bool = True,
        gives_answers_again: bool = False,
        unsafe_live_chain_id: bool = False,
        prices: str | Path | Mapping[str, Any] | None = None,
        opg_usd: str | None = None,
        asset: Literal["OPG", "USDC"] = "OPG",
        faults: Faults | None = None,
        fault_route: bool = False,
        fault_token: str | None = None,
        schemes: Sequence[Scheme] = (Scheme.UPTO,),
        session_cap_opg: str = SESSION_CAP_OPG,
        exact_price_opg: str = EXACT_PRICE_OPG,
        claim_interval_s: float = CLAIM_INTERVAL_S,
        max_timeout_s: int | None = None,
        pace_s: float = 0.0,
        batch_size: int | None = None,
        batch_interval_s: float | None = None,
        quotes_costs: bool | None = None,
        canonical_style: CanonicalStyle = CanonicalStyle.STRINGIFIED,
    ) -> None:
        if chain_id in LIVE_CHAIN_IDS and not unsafe_live_chain_id:
            raise LiveChainRefused(
                f"Chain id {chain_id} is a live network, and what is signed for it here is valid there. Leave "
                "chain_id alone, or set unsafe_live_chain_id (--unsafe-live-chain-id): then only wallets that "
                "this devnet made are served."
            )
        self._chain_id = chain_id
        self._engine = engine
        own: dict[str, Any] = {
            "idle_timeout_s": idle_timeout_s,
            "max_timeout_s": max_timeout_s,
            "batch_size": batch_size,
            "batch_interval_s": batch_interval_s,
            "quotes_costs": quotes_costs,
        }
        profile = profile_named(behaves_like) if isinstance(behaves_like, str) else behaves_like
        self._profile = replace(profile, **{name: value for name, value in own.items() if value is not None})
        self._port = port
        self._has_sessions = sessions
        self._gives_again = gives_answers_again
        self._prices = load_prices(Path(prices) if isinstance(prices, str) else prices or self._profile.prices)
        self._has_own_prices = prices is not None
        if not self._has_own_prices and isinstance(upstream, str) and not upstream.startswith("rules"):
            self._prices = self._prices.with_anything_else()
        if opg_usd is not None:
            self._prices = self._prices.at(opg_usd)
        self._token: Token = TOKENS[asset]
        if self._token is not OPG_TOKEN:
            self._prices = self._prices.in_token(self._token, usd="1")
            self._profile = replace(self._profile, quotes_costs=False)
        self._model = (
            open_model(upstream, api_key=upstream_key, exact_names=self._prices.models.keys())
            if isinstance(upstream, str)
            else upstream
        )
        if fault_token is not None and not fault_token:
            raise ValueError("fault_token is empty: then anybody could damage this devnet.")
        self.fault_token = fault_token or (secrets.token_urlsafe() if fault_route else None)
        self._schemes = [Scheme(scheme) for scheme in schemes]
        self._session_cap_atomic = self._token.atomic(session_cap_opg)
        self._exact_price_atomic = self._token.atomic(exact_price_opg)
        self._claim_interval_s = claim_interval_s
        self._pace_s = pace_s
        self._canonical_style = canonical_style
        self._cleanup = ExitStack()
        self.network_file = None if network_file is None else Path(network_file)
        self.faults = faults if faults is not None else Faults()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Bring everything up; returns when all ports answer and the gateway is registered."""
        with ExitStack() as cleanup, ThreadPoolExecutor(max_workers=1) as beside:
            # Finding RSA primes takes as long as the genesis: they go side by side.
            making_enclave = beside.submit(Enclave, style=self._canonical_style)
            self.chain = _start_chain(self._engine, self._chain_id)
            self.chain.token = self._token
            cleanup.callback(self.chain.close)
            self._compose(making_enclave.result(), cleanup)
            self._cleanup = cleanup.pop_all()

    def _compose(self, enclave: Enclave, cleanup: ExitStack) -> None:
        facilitator_account, payee, operator = new_account(), new_account(), new_account()
        for account in (facilitator_account, operator):
            self.chain.fund(account.address, native_wei=1000 * WALLET_GAS_WEI)
        self._wallets = Wallets(self.chain)
        facilitator = HouseFacilitator(self.chain, account=facilitator_account, wallets=self._wallets)
        collector = Collector(facilitator, faults=self.faults, wallets=self._wallets)
        blobs, profile = BlobStore(), self._profile
        jobs = None if profile.settlement_delay_s is None else Jobs(delay_s=profile.settlement_delay_s)
        self._jobs = jobs
        self._data_settler = DataSettler(
            facilitator,
            blobs=blobs,
            batch_size=profile.batch_size,
            batch_interval_s=profile.batch_interval_s,
            batch_idle_s=profile.batch_idle_s,
            jobs=jobs,
        )
        housekeeper = Housekeeper(beat_s=min(_SLOWEST_BEAT_S, max(_FASTEST_BEAT_S, profile.idle_timeout_s / 4)))
        self._sessions = SessionBook(
            collector,
            idle_timeout_s=profile.idle_timeout_s,
            max_age_s=profile.max_age_s,
            closes_in_use=profile.closes_sessions_in_use,
            closes_at_cap=profile.closes_sessions_at_cap,
            jobs=jobs,
            on_work=housekeeper.wake,
        )
        # What is called last is registered first: no calls, no chores, then settle, then write the rest.
        cleanup.callback(self._data_settler.flush)
        cleanup.callback(self._sessions.close, wait_s=0)
        cleanup.callback(housekeeper.stop)
        menu = Menu(model=self._model, prices=self._prices, is_own=self._has_own_prices)
        self._channels = ChannelBook(
            facilitator.channels,
            network=f"eip155:{self._chain_id}",
            faults=self.faults,
            claim_interval_s=self._claim_interval_s,
        )
        cleanup.callback(self._channels.claim_all)
        certificate = make_certificate()
        hypervisor = Hypervisor(certificate_der=certificate.der, public_key_der=enclave.public_key_der)
        http, https, unpaid = (
            cleanup.enter_context(listen(port=port, scheme=scheme))
            for port, scheme in [(self._port, "http"), (0, "https"), (0, "http")]
        )
        self.gateway_url, self.https_gateway_url = http.url, https.url
        self.network_url = f"{http.url}/network"
        """Where clients read what this network is; `network=` of both faces takes the devnet itself as well."""
        self.rpc_url = f"{http.url}/rpc"
        self.explorer_url = f"{http.url}/explorer"
        self.unpaid_url = f"{unpaid.url}/v1"
        self.network = describe_network(
            chain_id=self._chain_id,
            gateway_url=http.url,
            https_gateway_url=https.url,
            payees=[payee.address],
            facilitators=[facilitator.address],
            token=self._token,
            session_idle_s=profile.idle_timeout_s,
            attestation_root_sha256=hypervisor.root_sha256,
        )
        register_gateway(
            self.chain,
            operator=operator,
            payment_address=payee.address,
            endpoint=https.url,
            public_key_der=enclave.public_key_der,
            certificate_der=certificate.der,
            pcr_hash=pcr_hash(),
        )
        door = Door(
            collector,
            offers=self._offers(pay_to=payee.address, facilitator_address=facilitator.address),
            sessions=self._sessions if self._has_sessions else None,
            channels=self._channels,
            records=self._sessions,
            faults=self.faults,
            jobs=jobs,
            extensions=APPROVAL_SPONSORING
            | ({} if self._token is OPG_TOKEN else PERMIT_SPONSORING)
            | (DECLARATION if self._gives_again else {}),
        )
        self._door = door
        served = ServedCalls()
        gateway = Gateway(
            door=door,
            service=ModelService(
                model=self._model,
                enclave=enclave,
                data_settler=self._data_settler,
                profile=profile,
                faults=self.faults,
                on_work=housekeeper.wake,
                served=served,
            ),
            menu=menu,
            enclave=enclave,
            hypervisor=hypervisor,
            operator_address=operator.address,
            repeats=Repeats() if self._gives_again else None,
            profile=profile,
            faults=self.faults,
            pace_s=self._pace_s,
        )
        public = PublicRoutes(
            chain=self.chain,
            wallets=self._wallets,
            blobs=blobs,
            network=self.network,
            faults=self.faults,
            fault_token=self.fault_token,
        )
        explorer = Explorer(chain=self.chain, sessions=self._sessions, served=served, blobs=blobs, network=self.network)
        routes: list[BaseRoute] = [*gateway.routes(), *public.routes()]
        if self._token is OPG_TOKEN:
            routes += explorer.routes()
        routes.append(Mount("/facilitator", facilitator_app(facilitator)))
        app = dated(
            guarded(_with_rpc(Starlette(routes=routes), rpc_app(self.chain, faults=self.faults))), faults=self.faults
        )
        unpaid_site = dated(guarded(unpaid_app(menu), bodies=UNPAID_BODIES), faults=Faults())
        server = ServerThread(
            [
                Site(app=app, listener=http),
                Site(app=app, listener=https, tls=certificate.server_context),
                Site(app=unpaid_site, listener=unpaid),
            ],
            on_stop=self._model.aclose,
        )
        cleanup.callback(server.stop)
        server.start()
        chores = [self._sessions.settle_due, self._channels.claim_due, self._data_settler.flush_due]
        housekeeper.start(chores if jobs is None else [*chores, jobs.run_due])
        if self.network_file is not None:
            write_network_file(self.network_file, network=self.network)
            cleanup.callback(remove_network_file, self.network_file, network=self.network)

    def _offers(self, *, pay_to: str, facilitator_address: str) -> list[dict[str, Any]]:
        terms = PaymentTerms(
            network=f"eip155:{self._chain_id}",
            asset=self._token.address,
            asset_name=self._token.name,
            asset_version=self._token.version,
            pay_to=pay_to,
            facilitator_address=facilitator_address,
            max_timeout_s=self._profile.max_timeout_s,
        )
        exact = (Scheme.EXACT_PERMIT2, Scheme.EXACT_EIP3009)
        return [
            terms.offer(scheme, amount_atomic=self._exact_price_atomic if scheme in exact else self._session_cap_atomic)
            for scheme in self._schemes
        ]

    def close(self) -> None:
        """End connections, settle what is open, flush what waits, stop all threads. Closing twice is fine."""
        self._cleanup.close()

    def account(self, *, opg: str | int = "10", approved: bool = False) -> Account:
        """A fresh wallet with gas money and `opg` whole tokens; `approved` lets Permit2 move them already."""
        return self._wallets.make(opg=opg, approved=approved)

    @property
    def settlements(self) -> list[SettlementRecord]:
        """Every settlement of a payment so far."""
        return self._sessions.settlements

    @property
    def channels(self) -> list[ChannelRecord]:
        """The payment channels that were used at the gateway."""
        return self._channels.records

    def claim_channels(self) -> None:
        """Claim now what was charged to channels, and have it paid out."""
        self._channels.claim_all()

    def refund_channels(self) -> None:
        """Have the gateway give back what is left in idle channels, though nobody asked for it."""
        self._channels.refund_all()

    def forget_channels(self) -> None:
        """Have the gateway lose what it knows of channels, as after a restart without its storage."""
        self._channels.forget()

    @property
    def batches(self) -> list[BatchRecord]:
        """Every batch of data settlements so far."""
        return self._data_settler.batches

    @property
    def open_sessions(self) -> list[str]:
        """The ids of the sessions that still take calls."""
        return self._sessions.open_sessions

    def close_sessions(self, *, wait_s: float = 5.0) -> list[SettlementRecord]:
        """Settle all open sessions now, and return every settlement so far.

        Waits for calls in flight, at most `wait_s`; sessions that are busy even then settle when they end.
        """
        self._sessions.close(wait_s=wait_s)
        return self.settlements

    def settle_hoarded(self) -> list[SettlementRecord]:
        """Settle in full what `faults.DemandAnew` has kept; return how each of these payments ended."""
        return self._door.hoard.settle()

    def flush_batches(self) -> list[BatchRecord]:
        """Write the batch that waits, and single calls that wait for their job; return every batch so far."""
        if self._jobs is not None:
            self._jobs.run_all()
        self._data_settler.flush()
        return self.batches


def _start_chain(engine: str, chain_id: int) -> Chain:
    match engine:
        case "pyevm":
            from opengradient_devnet.chain.pyevm import PyEvmChain

            return PyEvmChain(chain_id=chain_id)
        case "anvil":
            from opengradient_devnet.chain.anvil import AnvilChain

            return AnvilChain(chain_id=chain_id)
        case _:
            raise ValueError(f"Engine {engine!r} is unknown; there are pyevm and anvil.")


def _with_rpc(app: ASGIApp, rpc: ASGIApp) -> ASGIApp:
    # A Mount would answer POST /rpc with a redirect to /rpc/, which JSON-RPC clients do not follow.
    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        await (rpc if scope["path"].rstrip("/") == "/rpc" else app)(scope, receive, send)

    return routed
