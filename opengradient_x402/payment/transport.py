"""Two httpx transports that pay, to put under any `httpx.Client` or `httpx.AsyncClient`.

They sit below redirects on purpose, and wrap any other transport. What is paid is decided by `handshake`. The
gateway clients need neither: they run the handshake themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import cast

import httpx

from opengradient_x402.effects import drive, drive_async
from opengradient_x402.errors import ConfigurationError, OpenGradientError
from opengradient_x402.payment.call import Call, despite_signals
from opengradient_x402.payment.handshake import pay
from opengradient_x402.payment.payments import Payments
from opengradient_x402.process import Ending, Resident, belongs


class X402Transport(httpx.BaseTransport, Resident):
    """Pays what `wrapped` is asked to pay for. Thread-safe as far as `wrapped` is."""

    def __init__(self, payments: Payments, *, wrapped: httpx.BaseTransport | None = None) -> None:
        self._payments = _held(payments)
        self._wrapped = wrapped if wrapped is not None else httpx.HTTPTransport()
        self._inherited: list[httpx.BaseTransport] = []
        if wrapped is None:
            belongs(self, Ending.CONNECTIONS)

    def _renew(self) -> None:
        """A child opens connections of its own; a transport that was given is its owner's to renew."""
        self._inherited.append(self._wrapped)
        self._wrapped = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends, and pays when asked to. Raises httpx errors before a signature, and our errors after it."""
        call = Call.of(request, is_blocking=True)
        request.read()
        try:
            response = drive(pay(request, call=call, payments=self._payments), self._wrapped.handle_request)
        except BaseException as exc:
            _end(self._payments, call, exc)
            raise
        response.stream = _Stream(cast("httpx.SyncByteStream", response.stream), self._payments, call)
        return response

    def close(self) -> None:
        """Closes the wrapped transport. Open sessions settle on their own."""
        self._wrapped.close()


class AsyncX402Transport(httpx.AsyncBaseTransport, Resident):
    """`X402Transport` over asyncio. One per event loop; any number may share one `Payments`."""

    def __init__(self, payments: Payments, *, wrapped: httpx.AsyncBaseTransport | None = None) -> None:
        self._payments = _held(payments)
        self._wrapped = wrapped if wrapped is not None else httpx.AsyncHTTPTransport()
        self._inherited: list[httpx.AsyncBaseTransport] = []
        if wrapped is None:
            belongs(self, Ending.CONNECTIONS)

    def _renew(self) -> None:
        """As of an `X402Transport`."""
        self._inherited.append(self._wrapped)
        self._wrapped = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends, and pays when asked to. Raises httpx errors before a signature, and our errors after it."""
        call = Call.of(request, is_blocking=False)
        await request.aread()
        try:
            steps = pay(request, call=call, payments=self._payments)
            response = await drive_async(steps, self._wrapped.handle_async_request)
        except BaseException as exc:
            _end(self._payments, call, exc)
            raise
        response.stream = _AsyncStream(cast("httpx.AsyncByteStream", response.stream), self._payments, call)
        return response

    async def aclose(self) -> None:
        """Closes the wrapped transport. Open sessions settle on their own."""
        await self._wrapped.aclose()


def _held(payments: Payments) -> Payments:
    """These payments. Raises ConfigurationError when a transport alone cannot keep their policy."""
    if payments.policy.pcr_hashes is not None:
        raise ConfigurationError(
            "The policy allows certain enclave images only (`pcr_hashes`), and a bare transport does not know which "
            "image answers. Nothing was paid. Use GatewayClient, which asks for the attestation, or leave `pcr_hashes` "
            "out of this policy."
        )
    return payments


def _end(payments: Payments, call: Call, exc: BaseException) -> None:
    """Ends a call that failed before it had a response."""
    despite_signals(lambda: payments.finish(call, outcome="failed", error=type(exc).__name__))
    if isinstance(exc, OpenGradientError):
        exc.receipt = exc.receipt or call.receipt
        payments.refused(call, exc)


class _Stream(httpx.SyncByteStream):
    """The response body; closing it ends the call."""

    def __init__(self, inner: httpx.SyncByteStream, payments: Payments, call: Call) -> None:
        self._inner, self._payments, self._call = inner, payments, call
        self._is_read = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner
        self._is_read = True

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            outcome = "ok" if self._is_read else "abandoned"
            despite_signals(lambda: self._payments.finish(self._call, outcome=outcome))


class _AsyncStream(httpx.AsyncByteStream):
    """The response body; closing it ends the call."""

    def __init__(self, inner: httpx.AsyncByteStream, payments: Payments, call: Call) -> None:
        self._inner, self._payments, self._call = inner, payments, call
        self._is_read = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk
        self._is_read = True

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            outcome = "ok" if self._is_read else "abandoned"
            despite_signals(lambda: self._payments.finish(self._call, outcome=outcome))
