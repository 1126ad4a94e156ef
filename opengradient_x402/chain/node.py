"""Asking an Ethereum node: a question yields method and parameters, a node turns each into one JSON-RPC request.

Retries, pauses and the reading of answers are steps for the two drivers, so that sync and async do the same. What
the methods mean is known in `questions`, what an answer means in `answers`. Reading a chain moves no money: a request
is repeated when that can help, and put to the next node where several are named.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, cast

import httpx

from opengradient_x402.chain.answers import Failure, Reply, Result, number_in, read_answer
from opengradient_x402.effects import Read, Send, Sleep, Steps, drive, drive_async
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError
from opengradient_x402.urls import host_of, keep_out_of_logs, secrets_in

T = TypeVar("T")

NODE_TIMEOUT_S: Final = 10.0
"""For one request, with all attempts, pauses, and nodes that are asked in turn."""
_MAX_CONNECTS: Final = 2
"""A dead node must not delay a call for long: the payment path reads balances too."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_MAX_BYTES: Final = 64 * 1024 * 1024
_MOST_CONNECTIONS: Final = 16
_DEADLINE: Final = "opengradient_deadline"
"""An httpx extension of ours: the time, on the monotonic clock, at which the response must be read to its end."""


class RpcRequest(NamedTuple):
    """One JSON-RPC call; a question that yields it receives the `result`, or RpcError is thrown into it."""

    method: str
    params: tuple[Any, ...] = ()


Question = Generator[RpcRequest | Sleep, Any, T]
"""Something to find out from a chain, as a generator: its return value is the answer."""


class Node(Protocol):
    """An object that answers JSON-RPC requests about one chain."""

    def request(self, request: RpcRequest) -> Steps[Any]:
        """The `result` of one request. Raises ChainUnavailable (RpcError when the node answered)."""


def ask(node: Node, question: Question[T]) -> Steps[T]:
    """Runs a question to its answer over one node."""
    try:
        wanted = next(question)
        while True:
            try:
                result = (yield wanted) if isinstance(wanted, Sleep) else (yield from node.request(wanted))
            except ChainUnavailable as exc:
                wanted = question.throw(exc)
            else:
                wanted = question.send(result)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    finally:
        question.close()


class HttpNode:
    """Nodes behind HTTP URLs (one, or several with commas between them), asked in turn until one answers.

    Before its first answer each must show that it serves the right chain. One that serves another is passed over;
    ConfigurationError when all do. `timeout_s` bounds a request with everything that belongs to it.
    """

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = NODE_TIMEOUT_S) -> None:
        self.chain_id = chain_id
        self._servers = [_Server(url) for url in urls_of(rpc_url)]
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)

    @property
    def shown(self) -> str:
        """The node in messages: host only, since paths often hold an API key."""
        return self._servers[0].shown

    @property
    def all_shown(self) -> str:
        """All of its URLs by their hosts: each answer is of one of them."""
        return " or ".join(sorted({server.shown for server in self._servers}))

    def request(self, request: RpcRequest) -> Steps[Any]:
        """The `result` of one request, asked for again when that can help."""
        deadline = time.monotonic() + self._timeout_s
        asked = list(self._servers)
        for attempt in itertools.count(1):
            outcome, failures = yield from self._round(asked, request, deadline)
            if isinstance(outcome, Result):
                return outcome.value
            if sum(failed.is_other_chain for _, failed in failures) == len(self._servers):
                raise ConfigurationError(outcome.error.message)
            asked = [server for server, failed in failures if attempt < failed.attempts]
            pause_s = min(_pause_s(failed, attempt) for _, failed in failures)
            if not asked or outcome.is_refusal or time.monotonic() + pause_s >= deadline:
                raise outcome.error
            yield Sleep(pause_s)
        raise AssertionError("unreachable")

    def _round(
        self, asked: list[_Server], request: RpcRequest, deadline: float
    ) -> Steps[tuple[Result | Failure, list[tuple[_Server, Failure]]]]:
        """Asks one node after the other. The first that answers is asked first from then on."""
        failures: list[tuple[_Server, Failure]] = []
        for position, server in enumerate(asked):
            # Each gets its share of the time that is left: the first one must not use it up.
            until = time.monotonic() + max(0.0, deadline - time.monotonic()) / (len(asked) - position)
            outcome = yield from self._attempt(server, request, until)
            if isinstance(outcome, Result):
                if server is not self._servers[0]:
                    self._servers = [server, *(other for other in self._servers if other is not server)]
                return outcome, failures
            failures.append((server, outcome))
            if outcome.is_refusal:
                return outcome, failures
        return failures[-1][1], failures

    def _attempt(self, server: _Server, request: RpcRequest, until: float) -> Steps[Result | Failure]:
        if not server.is_checked:
            shown = yield from self._posted(server, RpcRequest("eth_chainId"), until)
            if isinstance(shown, Failure):
                return shown
            if (problem := self._checked(server, shown.value)) is not None:
                return problem
        return (yield from self._posted(server, request, until))

    def _checked(self, server: _Server, answer: Any) -> Failure | None:
        try:
            chain_id = number_in(answer)
        except (TypeError, ValueError):
            text = f"{server.shown} gave no chain id. Nothing was paid. Check the network's `rpc_url`."
            return Failure(error=RpcError(text))
        if chain_id != self.chain_id:
            error = RpcError(
                f"The node {server.shown} serves chain {chain_id}, and the network is chain {self.chain_id}. "
                "Nothing was paid by asking. Correct `rpc_url` (OG_RPC_URL) or the network (OG_NETWORK)."
            )
            return Failure(error=error, is_other_chain=True)
        server.is_checked = True
        return None

    def _posted(self, server: _Server, request: RpcRequest, until: float) -> Steps[Result | Failure]:
        request_id, began = next(self._ids), time.monotonic()
        content = {"jsonrpc": "2.0", "id": request_id, "method": request.method, "params": request.params}
        body = bytearray()

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > _MAX_BYTES or time.monotonic() > until:
                raise httpx.ReadTimeout("not complete in time")

        try:
            response: httpx.Response = yield Send(_post(server.url, json.dumps(content).encode(), until))
            yield Read(response, take)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:  # UnicodeError: no URL after all
            problem: Exception = exc
        else:
            reply = Reply(response.status_code, bytes(body), response.headers.get("retry-after"))
            return read_answer(
                reply, request_id=request_id, method=request.method, node=server.shown, secrets=server.secrets
            )
        return _unanswered(server, request, problem, limit_s=until - began, is_late=time.monotonic() >= until)


class _Server:
    """One of the URLs, and whether it has shown its chain."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = host_of(url)
        self.secrets = secrets_in(url)
        self.is_checked = False
        keep_out_of_logs(url)


def urls_of(rpc_url: str) -> list[str]:
    """The URLs in a setting that may name several, with commas between them."""
    return [url for part in rpc_url.split(",") if (url := part.strip())] or [rpc_url]


def _unanswered(server: _Server, request: RpcRequest, exc: Exception, *, limit_s: float, is_late: bool) -> Failure:
    is_late = is_late or isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout)
    why = f"no whole answer in {limit_s:.2g} s" if is_late else type(exc).__name__
    # A timeout may mean that the question was too large: RpcError lets the question try a smaller one.
    kind = RpcError if is_late else ChainUnavailable
    error = kind(
        f"The node {server.shown} did not answer {request.method} ({why}). "
        "The chain was not changed by asking. Try again, or use another `rpc_url`."
    )
    # After a timeout the next attempt would take as long.
    return Failure(error=error, attempts=1 if is_late else _MAX_CONNECTS)


def _pause_s(failed: Failure, attempt: int) -> float:
    if failed.pause_s is not None:
        return failed.pause_s
    # 0.2, 0.4, 0.8, 1.6 s. One client asks one thing at a time: no jitter needed.
    return float(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S))


def _post(url: str, content: bytes, until: float) -> httpx.Request:
    headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate"}
    limits = limited_to(max(0.001, until - time.monotonic()))
    return httpx.Request("POST", _parsed(url), headers=headers, content=content, extensions=limits)


@lru_cache(maxsize=32)
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)


def limited_to(seconds: float) -> dict[str, Any]:
    """The extensions of a request that a line gives up after this time, also while its body is read."""
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
    return {"timeout": timeouts, _DEADLINE: time.monotonic() + seconds}


# -- asking at once


class Line:
    """Sends the requests of look-ups, in threads. A context manager: its connections close with it.

    httpx bounds each read of a socket, and a node may send a byte now and then. So a request with a deadline has its
    connections cut when the time is up.
    """

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.Client] = {}
        self._streams: list[Any] = []

    def send(self, request: httpx.Request) -> httpx.Response:
        """The response, its body unread."""
        is_secure = request.url.scheme == "https"  # certificates are loaded (20 ms) only where TLS is spoken
        if is_secure not in self._clients:
            self._clients[is_secure] = httpx.Client(verify=is_secure)
        until = request.extensions.get(_DEADLINE)
        if until is None:
            return self._clients[is_secure].send(request, stream=True)
        request.extensions["trace"] = self._note
        cutter = threading.Timer(max(0.0, until - time.monotonic()), self._cut)
        cutter.daemon = True
        cutter.start()
        try:
            response = self._clients[is_secure].send(request, stream=True)
        except BaseException:
            cutter.cancel()
            raise
        response.stream = _Timed(cast("httpx.SyncByteStream", response.stream), cutter)
        return response

    def _note(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._streams = [*self._streams[-_MOST_CONNECTIONS:], info["return_value"]]

    def _cut(self) -> None:
        for stream in self._streams:
            found = stream.get_extra_info("socket")
            with suppress(OSError):  # closed already
                # Not the method of an SSL socket, which would take the state from under the thread that reads.
                socket.socket.shutdown(found, socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._clients:
            self._clients.popitem()[1].close()


class _Timed(httpx.SyncByteStream):
    """A body. Once it is closed, its connection is not cut any more."""

    def __init__(self, body: httpx.SyncByteStream, cutter: threading.Timer) -> None:
        self._body, self._cutter = body, cutter

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        self._cutter.cancel()
        self._body.close()


class AsyncLine:
    """As `Line`, for coroutines."""

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.AsyncClient] = {}

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The response, its body unread."""
        is_secure = request.url.scheme == "https"
        if is_secure not in self._clients:
            self._clients[is_secure] = httpx.AsyncClient(verify=is_secure)
        until = request.extensions.get(_DEADLINE)
        if until is None:
            return await self._clients[is_secure].send(request, stream=True)
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                response = await self._clients[is_secure].send(request, stream=True)
        except TimeoutError as exc:
            raise httpx.ReadTimeout("no response in time", request=request) from exc
        response.stream = _AsyncTimed(cast("httpx.AsyncByteStream", response.stream), until)
        return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._clients:
            await self._clients.popitem()[1].aclose()


class _AsyncTimed(httpx.AsyncByteStream):
    """A body that must come to its end in time."""

    def __init__(self, body: httpx.AsyncByteStream, until: float) -> None:
        self._body, self._until = body, until

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._body)
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError as exc:
                raise httpx.ReadTimeout("not complete in time") from exc
            yield piece

    async def aclose(self) -> None:
        await self._body.aclose()


def look_up(steps: Steps[T]) -> T:
    """The result of reading chains, documents and the ledger. Raises ChainUnavailable, LedgerUnavailable."""
    with Line() as line:
        return drive(steps, line.send)


async def alook_up(steps: Steps[T]) -> T:
    """As `look_up`, for coroutines."""
    async with AsyncLine() as line:
        return await drive_async(steps, line.send)


class Place(Protocol):
    """A chain, and the URL of a node that serves it: a `Network`, a `ChainContract`."""

    @property
    def rpc_url(self) -> str: ...
    @property
    def chain_id(self) -> int: ...
