"""Clients for an OpenGradient gateway: `chat` and `stream`, sync and async, over one sans-I/O `Exchange`.

There is no httpx client in between: cookies, redirects and auth flows have no place in a paid call, and cost more
than the call. Frameworks and their types are not known here.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Self, TypedDict, Unpack

import httpx

from opengradient_x402.completions import Completion
from opengradient_x402.effects import Steps, drive, drive_async
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.gateway.attestations import Attestation, AttestedGateway, attest
from opengradient_x402.gateway.connections import (
    AsyncEndpointTransport,
    EndpointTransport,
    ThroughAsyncClient,
    ThroughClient,
)
from opengradient_x402.gateway.enclave_keys import EnclaveKeys, ProofCheck
from opengradient_x402.gateway.enclaves import shared_registry
from opengradient_x402.gateway.endpoints import REGISTRY, EndpointSource, StaticGateway, checked_gateway
from opengradient_x402.gateway.exchange import Exchange, Options, ReceiptListener
from opengradient_x402.gateway.request import Listing, ModelDirectory, prepared
from opengradient_x402.gateway.streams import AsyncCompletionStream, CompletionStream
from opengradient_x402.http.additions import checked_headers, checked_query
from opengradient_x402.http.time_limits import TimeLimits, Timeout
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.proofs.attestation import VerifyTee
from opengradient_x402.settlement_mode import SettlementMode

_MOST_USUAL: Final = 64
"""How many different options of calls are kept, checked and complete, for the next calls."""


class CallOptions(TypedDict, total=False):
    """What may be said per call. `on_receipt` is called once, at the end of a call that was paid or may have been paid.

    `timeout_s` in any form of `Timeout`; `chunk_timeout_s` limits the silence between two chunks of a stream. `headers`
    and `query` go along with the request. `limits` are those of the runs that make the call.

    The ids of calls with the same `id_group` (hex digits) begin with `call_` and the group, so that the ledger finds
    them together (`Ledger.receipts_beginning`). `run` is what a framework calls the run that makes the call; the name
    of `named_run` goes before.

    `call_id` is the call's id, in place of a new one (`call_` and 24 to 64 hex digits). The nonce of a payment follows
    from it. A call that the ledger has already is refused with CallKnown, and nothing is paid, unless `earlier` is the
    authorization that was signed for it before: then it is paid under the same nonce, which settles once at most. A
    session that is still open would charge the same payment a second time: with `only_given_again` the call is sent
    only to a gateway that gives its answer again for nothing; other gateways raise CallKnown.
    """

    settlement_mode: SettlementMode | str | None
    on_receipt: ReceiptListener | None
    timeout_s: Timeout | None
    chunk_timeout_s: float | None
    headers: Mapping[str, str] | None
    query: Mapping[str, object] | None
    limits: Sequence[RunLimit]
    id_group: str
    run: str | None
    call_id: str
    earlier: Authorization | None
    only_given_again: bool


class _Client:
    """What both clients share: where calls go, and what applies to them."""

    def __init__(
        self,
        payments: Payments,
        *,
        base_url: str | None = None,
        gateway: EndpointSource | None = None,
        timeout_s: Timeout = 120.0,
        max_retries: int = 2,
        settlement_mode: SettlementMode | str = SettlementMode.BATCH,
        verify_tee: VerifyTee | str = VerifyTee.OFF,
    ) -> None:
        if max_retries < 0:
            raise ConfigurationError(
                f"max_retries={max_retries} makes no call possible. Nothing was paid. Use 0 or more."
            )
        self.payments = payments
        self.endpoints = _source(payments, base_url, gateway)
        self._defaults = Options(
            time_limits=TimeLimits().changed(timeout_s),
            max_retries=max_retries,
            settlement_mode=SettlementMode.parse(settlement_mode),
            is_blocking=isinstance(self, GatewayClient),
        )
        self._usual: dict[tuple[TimeLimits, SettlementMode], Options] = {}
        self._models = ModelDirectory(self.endpoints)
        self._verify_tee = VerifyTee(verify_tee)
        self._enclave_keys = EnclaveKeys(self.endpoints)

    def _chat(self, body: Mapping[str, Any], **call: Unpack[CallOptions]) -> Steps[Completion]:
        exchange = yield from self._exchange(body, is_stream=False, **call)
        return (yield from exchange.chat())

    def _open_stream(
        self, body: Mapping[str, Any], **call: Unpack[CallOptions]
    ) -> Steps[tuple[Exchange, httpx.Response]]:
        exchange = yield from self._exchange(body, is_stream=True, **call)
        return exchange, (yield from exchange.open_stream())

    def _exchange(self, body: Mapping[str, Any], *, is_stream: bool, **call: Unpack[CallOptions]) -> Steps[Exchange]:
        body, options = prepared(body), self._options(call)
        wire_model = yield from self._models.resolve(str(body.get("model") or ""))
        limits = tuple(call.get("limits", ()))
        if limits or self.payments.bounds_calls:
            yield from self._ask_price()
        return Exchange(
            body,
            wire_model=wire_model,
            is_stream=is_stream,
            payments=self.payments,
            endpoints=self.endpoints,
            options=options,
            on_receipt=call.get("on_receipt"),
            limits=limits,
            id_group=call.get("id_group", ""),
            run=call.get("run"),
            call_id=call.get("call_id", ""),
            earlier=call.get("earlier"),
            only_given_again=call.get("only_given_again", False),
            proof_check=(yield from self._proof_check()),
        )

    def _options(self, call: CallOptions) -> Options:
        """The options of this client, with those that the call gives. Raises ConfigurationError."""
        limits, mode = self._defaults.time_limits, self._defaults.settlement_mode
        if (asked := call.get("settlement_mode")) is not None:
            mode = SettlementMode.parse(asked)
        timeout_s, chunk_s = call.get("timeout_s"), call.get("chunk_timeout_s")
        if timeout_s is not None or chunk_s is not None:
            limits = limits.changed(timeout_s, chunk_s=chunk_s)
        options = self._defaults
        if limits is not options.time_limits or mode is not options.settlement_mode:
            options = self._usual_with(limits, mode)
        if headers := call.get("headers"):
            options = replace(options, headers=checked_headers(headers))
        if query := call.get("query"):
            options = replace(options, query=checked_query(query))
        return options

    def _usual_with(self, limits: TimeLimits, mode: SettlementMode) -> Options:
        """The options of calls that differ from the client's in these alone."""
        options = self._usual.get((limits, mode))
        if options is None:
            if len(self._usual) >= _MOST_USUAL:
                self._usual.clear()
            options = replace(self._defaults, time_limits=limits, settlement_mode=mode)
            self._usual[limits, mode] = options
        return options

    def _ask_price(self) -> Steps[None]:
        """Asks for the price of the token: the worst case of a call cannot be computed without it."""
        endpoint = yield from self.endpoints.current()
        if self.payments.gateways.wants_quote(endpoint.base_url):
            listing = yield from self._models.listing()
            self.payments.gateways.note_quote(listing.gateway, listing.opg_price_usd)

    def _proof_check(self) -> Steps[ProofCheck | None]:
        if self._verify_tee is VerifyTee.OFF:
            return None
        key, source = yield from self._enclave_keys.current()
        return ProofCheck(
            mode=self._verify_tee,
            public_key_der=key,
            key_source=source,
            on_wrong_key=self._enclave_keys.forget,
        )

    def _attest(self) -> Steps[Attestation]:
        known = self.endpoints
        endpoint = known.plain if isinstance(known, AttestedGateway) else (yield from known.current())
        return (yield from attest(endpoint, self.payments))

    def _check_given(self, transport: object | None) -> None:
        """Refuses a user's own transport where a certificate must be pinned: it has TLS settings of its own."""
        if transport is not None and not isinstance(self.endpoints, StaticGateway):
            raise ConfigurationError(
                "`http_transport` cannot be pinned to the certificates in the registry, or to an attested one (as the "
                "policy's `pcr_hashes` ask). Nothing was paid. Leave it out; or name a gateway with `base_url`, and "
                "leave out `pcr_hashes`."
            )


class GatewayClient(_Client):
    """Paid chat completions, synchronously. Thread-safe; works inside a running event loop too."""

    def __init__(
        self, payments: Payments, *, http_transport: httpx.BaseTransport | httpx.Client | None = None, **options: Any
    ) -> None:
        """`http_transport` sends the requests, which may be an httpx client; `options` are those of the class above:
        `base_url` ("registry": the enclaves of the network's registry) or `gateway`, `timeout_s`, `max_retries`,
        `settlement_mode`, `verify_tee`."""
        super().__init__(payments, **options)
        self._check_given(http_transport)
        if isinstance(http_transport, httpx.Client):
            http_transport = ThroughClient(http_transport)
        self._wire = http_transport or EndpointTransport()
        self._owns_wire = http_transport is None

    def chat(self, body: Mapping[str, Any], **call: Unpack[CallOptions]) -> Completion:
        """One answer to an OpenAI-shaped request body (without `stream`).

        Raises NotPaid, PaymentOutcomeUnknown or PaidButFailed; the latter two carry the receipt.
        """
        return drive(self._chat(body, **call), self._wire.handle_request)

    def stream(self, body: Mapping[str, Any], **call: Unpack[CallOptions]) -> CompletionStream:
        """The answer piece by piece; the response is open when this returns. Close it, or use `with`."""
        return CompletionStream(*drive(self._open_stream(body, **call), self._wire.handle_request))

    def attest(self) -> Attestation:
        """What runs in the gateway's enclave: its attestation document, asked for with a fresh nonce, and judged.

        Valid ones are kept in the ledger. Raises GatewayUnreachable when there is no answer.
        """
        return drive(self._attest(), self._wire.handle_request)

    def models(self) -> Listing:
        """The models that the gateway lists (one request, unpaid); empty when it does not answer."""
        return drive(self._models.listing(), self._wire.handle_request)

    @property
    def is_idle(self) -> bool:
        """Whether no response is open on connections that were made here."""
        return not isinstance(self._wire, EndpointTransport) or self._wire.is_idle

    def close(self) -> None:
        """Closes connections that no other client uses.

        Payments, and a transport that was passed in, stay open: they are the caller's.
        """
        if self._owns_wire:
            self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGatewayClient(_Client, Resident):
    """Paid chat completions over asyncio. One instance serves any number of event loops, one after another."""

    def __init__(
        self,
        payments: Payments,
        *,
        http_transport: httpx.AsyncBaseTransport | httpx.AsyncClient | None = None,
        **options: Any,
    ) -> None:
        """`http_transport` sends the requests, which may be an httpx client; `options` are those of the class above:
        `base_url` ("registry": the enclaves of the network's registry) or `gateway`, `timeout_s`, `max_retries`,
        `settlement_mode`, `verify_tee`."""
        super().__init__(payments, **options)
        self._check_given(http_transport)
        if isinstance(http_transport, httpx.AsyncClient):
            http_transport = ThroughAsyncClient(http_transport)
        self._given = http_transport
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = weakref.WeakKeyDictionary()
        self._inherited: list[object] = []
        belongs(self, Ending.CONNECTIONS)

    async def chat(self, body: Mapping[str, Any], **call: Unpack[CallOptions]) -> Completion:
        """See `GatewayClient.chat`."""
        line = await self._line()
        return await drive_async(self._chat(body, **call), line.wire.handle_async_request)

    async def stream(self, body: Mapping[str, Any], **call: Unpack[CallOptions]) -> AsyncCompletionStream:
        """See `GatewayClient.stream`."""
        line = await self._line()
        opened = await drive_async(self._open_stream(body, **call), line.wire.handle_async_request)
        return AsyncCompletionStream(*opened)

    async def attest(self) -> Attestation:
        """See `GatewayClient.attest`."""
        line = await self._line()
        return await drive_async(self._attest(), line.wire.handle_async_request)

    async def models(self) -> Listing:
        """See `GatewayClient.models`."""
        line = await self._line()
        return await drive_async(self._models.listing(), line.wire.handle_async_request)

    async def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            line = self._lines.setdefault(loop, _Line(self._given or AsyncEndpointTransport()))
            if self._given is None:
                await line.close_with_loop()
        return line

    async def aclose(self) -> None:
        """Closes this loop's connections. Payments, and a transport that was passed in, stay open."""
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None and self._given is None:
            await line.wire.aclose()

    def retire(self) -> None:
        """Makes every loop that still runs close its connections of this client. May be called from any thread."""
        for loop, line in list(self._lines.items()):
            self._lines.pop(loop, None)
            if self._given is None:
                line.close_on(loop)

    @property
    def is_idle(self) -> bool:
        """Whether no response is open on connections that were made here."""
        wires = [line.wire for line in list(self._lines.values())]
        return all(wire.is_idle for wire in wires if isinstance(wire, AsyncEndpointTransport))

    def _renew(self) -> None:
        """A child has only the loops that it starts. The parent's loops must not be collected, and act, here."""
        self._inherited.append(self._lines)
        self._lines = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Line:
    """The connections of one event loop."""

    def __init__(self, wire: httpx.AsyncBaseTransport) -> None:
        self.wire = wire
        self._guard: AsyncGenerator[None, None] | None = None
        self._closing: list[asyncio.Task[None]] = []

    def close_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes the connections on their loop, from another thread; a loop that ends, or has ended, does so itself."""

        def close() -> None:
            if self._guard is not None:
                self._closing.append(loop.create_task(self.wire.aclose()))

        with suppress(RuntimeError):
            loop.call_soon_threadsafe(close)

    async def close_with_loop(self) -> None:
        """Closes the connections when the loop shuts down: `asyncio.run` ends open async generators first.

        Without this, idle sockets would stay after their loop, and nothing could close them.
        """
        if self._guard is None:
            self._guard = self._until_shutdown()
            await anext(self._guard)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._guard = None  # it refers to the loop, and would keep it alive
            await self.wire.aclose()
            await asyncio.gather(*self._closing, return_exceptions=True)  # no task may outlive the loop


def _source(payments: Payments, base_url: str | None, gateway: EndpointSource | None) -> EndpointSource:
    if gateway is None:
        if base_url == REGISTRY:
            return shared_registry(payments)
        url = payments.network.gateway_at(base_url)
        gateway = checked_gateway(url, policy=payments.policy)
    elif base_url is not None:
        raise ConfigurationError("`base_url` and `gateway` both say where calls go: give one. Nothing was paid.")
    if payments.policy.pcr_hashes is not None and isinstance(gateway, StaticGateway):
        return AttestedGateway(gateway, payments)
    return gateway
