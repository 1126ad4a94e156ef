"""Asking an Ethereum node: a question yields method and parameters, a node turns each into one JSON-RPC request.

Retries, pauses and the reading of answers are steps for the two drivers, so that sync and async do the same. What
the methods mean is known in `questions`. Reading a chain moves no money: a request is repeated when that can help.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from opengradient_x402 import strict_json
from opengradient_x402.effects import Read, Send, Sleep, Steps, drive, drive_async
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_MAX_ATTEMPTS: Final = 5
_MAX_CONNECTS: Final = 2
"""A dead node must not delay a call for long: the payment path reads balances too."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_MAX_BYTES: Final = 64 * 1024 * 1024
_TOO_MANY_REQUESTS: Final = frozenset({429, 503})
_RATE_LIMIT_CODES: Final = frozenset({-32005, -32016, -32029})  # EIP-1474; Base and Alchemy use the others
_RATE_LIMIT_WORDS: Final = ("rate limit", "too many requests", "request limit")


class RpcRequest(NamedTuple):
    """One JSON-RPC call; a question that yields it receives the `result`, or RpcError is thrown into it."""

    method: str
    params: tuple[Any, ...] = ()


Question = Generator[RpcRequest | Sleep, Any, T]
"""Something to find out from a chain, as a generator: its return value is the answer."""


class Node(Protocol):
    """Whatever answers JSON-RPC requests about one chain."""

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
    """A node behind an HTTP URL. Before its first answer it must show that it serves the right chain.

    Raises ConfigurationError for another chain's node. `timeout_s` bounds each attempt.
    """

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = 10.0) -> None:
        self.rpc_url = rpc_url
        self.chain_id = chain_id
        self._timeout_s = timeout_s
        self._is_checked = False

    @property
    def shown(self) -> str:
        """The node in messages: host only, since paths often hold an API key."""
        try:
            return urlsplit(self.rpc_url).netloc.rpartition("@")[2] or "the node"
        except ValueError:
            return "at an unreadable URL"

    def request(self, request: RpcRequest) -> Steps[Any]:
        """The `result` of one request, asked for again when that can help."""
        if not self._is_checked:
            yield from self._check_chain()
        return (yield from self._answered(request))

    def _check_chain(self) -> Steps[None]:
        found = yield from self._answered(RpcRequest("eth_chainId"))
        try:
            chain_id = int(found, 16)
        except (TypeError, ValueError) as exc:
            raise RpcError(f"{self.shown} gave no chain id. Nothing was paid. Check the network's `rpc_url`.") from exc
        if chain_id != self.chain_id:
            raise ConfigurationError(
                f"The node {self.shown} serves chain {chain_id}, and the network is chain {self.chain_id}. "
                "Nothing was paid. Correct `rpc_url` or the network."
            )
        self._is_checked = True

    def _answered(self, request: RpcRequest) -> Steps[Any]:
        content = json.dumps({"jsonrpc": "2.0", "id": 1, "method": request.method, "params": request.params}).encode()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            outcome = yield from self._posted(content)
            document = _document(outcome)
            if attempt == _MAX_ATTEMPTS or not _may_pass(outcome, document, attempt):
                return self._result(request, outcome, document)
            yield Sleep(_pause_s(outcome, attempt))
        raise AssertionError("unreachable")

    def _posted(self, content: bytes) -> Steps[_Outcome]:
        import httpx

        body, deadline = bytearray(), time.monotonic() + self._timeout_s

        def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > _MAX_BYTES or time.monotonic() > deadline:
                raise httpx.ReadTimeout(f"not complete after {self._timeout_s:g} s")

        try:
            response: httpx.Response = yield Send(_post(self.rpc_url, content, self._timeout_s))
            yield Read(response, take)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return exc
        return _Reply(response.status_code, bytes(body), response.headers.get("retry-after"))

    def _result(self, request: RpcRequest, outcome: _Outcome, document: dict[str, Any]) -> Any:
        if not isinstance(outcome, _Reply):
            # A timeout may mean that the question was too large: RpcError lets the question try a smaller one.
            kind = RpcError if "ReadTimeout" in type(outcome).__name__ else ChainUnavailable
            raise kind(
                f"The node {self.shown} did not answer {request.method} ({type(outcome).__name__}). "
                "The chain was not changed by asking. Try again, or use another `rpc_url`."
            )
        if "result" in document:
            return document["result"]
        error = document.get("error")
        details: dict[str, Any] = error if isinstance(error, dict) else {}
        message = str(details.get("message", f"HTTP {outcome.status_code}"))[:300]
        code, data = details.get("code", outcome.status_code), details.get("data")
        raise RpcError(
            f"The node {self.shown} refused {request.method}: {message}.",
            code=code if isinstance(code, int) else None,
            data=data if isinstance(data, str) else None,
        )


class _Reply(NamedTuple):
    status_code: int
    content: bytes
    retry_after: str | None


_Outcome = _Reply | Exception


def _post(url: str, content: bytes, timeout_s: float) -> httpx.Request:
    import httpx

    headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate"}
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
    return httpx.Request("POST", url, headers=headers, content=content, extensions={"timeout": timeouts})


def _document(outcome: _Outcome) -> dict[str, Any]:
    if not isinstance(outcome, _Reply):
        return {}
    try:
        document = strict_json.loads(outcome.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _may_pass(outcome: _Outcome, document: dict[str, Any], attempt: int) -> bool:
    """Whether asking again can help: no connection, a rate limit, a busy server."""
    if not isinstance(outcome, _Reply):
        # After a timeout the next attempt would take as long.
        return attempt < _MAX_CONNECTS and "ReadTimeout" not in type(outcome).__name__
    if outcome.status_code in _TOO_MANY_REQUESTS:
        return True
    if outcome.status_code >= 500:
        return not document
    error = document.get("error")
    if not isinstance(error, dict):
        return False
    message = str(error.get("message", "")).lower()
    return error.get("code") in _RATE_LIMIT_CODES or any(words in message for words in _RATE_LIMIT_WORDS)


def _pause_s(outcome: _Outcome, attempt: int) -> float:
    retry_after = outcome.retry_after if isinstance(outcome, _Reply) else None
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), _LONGEST_PAUSE_S)
    # 0.2, 0.4, 0.8, 1.6 s. One client asks one thing at a time: no jitter needed.
    return float(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S))


# -- asking at once


class Line:
    """Sends the requests of look-ups, in threads. A context manager: its connections close with it."""

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.Client] = {}

    def send(self, request: httpx.Request) -> httpx.Response:
        """The response, its body unread."""
        import httpx

        is_secure = request.url.scheme == "https"  # certificates are loaded (20 ms) only where TLS is spoken
        if is_secure not in self._clients:
            self._clients[is_secure] = httpx.Client(verify=is_secure)
        return self._clients[is_secure].send(request, stream=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._clients:
            self._clients.popitem()[1].close()


class AsyncLine:
    """As `Line`, for coroutines."""

    def __init__(self) -> None:
        self._clients: dict[bool, httpx.AsyncClient] = {}

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The response, its body unread."""
        import httpx

        is_secure = request.url.scheme == "https"
        if is_secure not in self._clients:
            self._clients[is_secure] = httpx.AsyncClient(verify=is_secure)
        return await self._clients[is_secure].send(request, stream=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._clients:
            await self._clients.popitem()[1].aclose()


def look_up(steps: Steps[T]) -> T:
    """The result of reading chains, documents and the ledger. Raises ChainUnavailable, LedgerUnavailable."""
    with Line() as line:
        return drive(steps, line.send)


async def alook_up(steps: Steps[T]) -> T:
    """As `look_up`, for coroutines."""
    async with AsyncLine() as line:
        return await drive_async(steps, line.send)


class ChainReader:
    """Answers questions over one node, in threads.

    As a context manager it keeps its connection; otherwise every question opens one and closes it.
    Raises ChainUnavailable (RpcError when the node answered), ConfigurationError for another chain's node.
    """

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = 10.0) -> None:
        self._node = HttpNode(rpc_url, chain_id, timeout_s=timeout_s)
        self._kept: Line | None = None

    def __enter__(self) -> Self:
        self._kept = Line()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kept is not None:
            self._kept.__exit__(*exc_info)
            self._kept = None

    def ask(self, question: Question[T]) -> T:
        """Run a question to its answer."""
        steps = ask(self._node, question)
        return look_up(steps) if self._kept is None else drive(steps, self._kept.send)


class AsyncChainReader:
    """As `ChainReader`, for coroutines. Holds no connection between questions, so it serves any event loop."""

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = 10.0) -> None:
        self._node = HttpNode(rpc_url, chain_id, timeout_s=timeout_s)

    async def ask(self, question: Question[T]) -> T:
        """Run a question to its answer."""
        return await alook_up(ask(self._node, question))
