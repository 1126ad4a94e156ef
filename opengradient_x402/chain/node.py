"""Asking an Ethereum node: questions are generators that yield requests, two thin clients answer them.

Retries, pauses and the reading of answers are in neither colour, so that sync and async say the same. Knows
JSON-RPC and HTTP; what the methods mean is `chain`'s business. Reading a chain moves no money: a request is
repeated when that can help.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from opengradient_x402 import strict_json
from opengradient_x402.driving import drive, drive_async
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_MAX_ATTEMPTS: Final = 5
_MAX_CONNECTS: Final = 2
"""A dead node must not hold up a call for long: the payment path reads balances too."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_TOO_MANY_REQUESTS: Final = frozenset({429, 503})
_RATE_LIMIT_CODES: Final = frozenset({-32005, -32016, -32029})  # EIP-1474; Base and Alchemy use the others
_RATE_LIMIT_WORDS: Final = ("rate limit", "too many requests", "request limit")


@dataclass(frozen=True, slots=True)
class RpcRequest:
    """One JSON-RPC call; a question that yields it receives the `result`, or RpcError is thrown into it."""

    method: str
    params: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on."""

    seconds: float


Question = Generator[RpcRequest | Pause, Any, T]
"""Something to find out from a chain, as a generator: its return value is the answer."""


@dataclass(frozen=True, slots=True)
class _Post:
    content: bytes


@dataclass(frozen=True, slots=True)
class _Reply:
    status_code: int
    content: bytes
    retry_after: str | None


_Outcome = _Reply | Exception | None
_Conversation = Generator[_Post | Pause, _Outcome, T]


class ChainReader:
    """Answers questions over one node, in threads. Reading starts by checking that it is the right chain.

    As a context manager it keeps its connection; otherwise every question opens one and closes it.
    Raises ChainUnavailable (RpcError when the node answered), ConfigurationError for another chain's node.
    """

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = 10.0) -> None:
        self._node = _Node(rpc_url, chain_id, timeout_s)
        self._kept: httpx.Client | None = None

    def __enter__(self) -> ChainReader:
        self._kept = self._connected()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def ask(self, question: Question[T]) -> T:
        """Run a question to its answer."""
        if self._kept is not None:
            return self._run(question, self._kept)
        with self._connected() as client:
            return self._run(question, client)

    def _run(self, question: Question[T], client: httpx.Client) -> T:
        def perform(effect: _Post | Pause) -> _Outcome:
            if isinstance(effect, _Post):
                return self._posted(client, effect)
            time.sleep(effect.seconds)
            return None

        return drive(self._node.conversation(question), perform)

    def _connected(self) -> httpx.Client:
        import httpx

        return httpx.Client(**self._node.client_options)

    def _posted(self, client: httpx.Client, post: _Post) -> _Reply | Exception:
        import httpx

        try:
            return _reply(client.post(self._node.rpc_url, content=post.content, headers=_HEADERS))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return exc


class AsyncChainReader:
    """As `ChainReader`, for coroutines. Holds no connection between questions, so it serves any event loop."""

    def __init__(self, rpc_url: str, chain_id: int, *, timeout_s: float = 10.0) -> None:
        self._node = _Node(rpc_url, chain_id, timeout_s)

    async def ask(self, question: Question[T]) -> T:
        """Run a question to its answer."""
        import anyio
        import httpx

        async with httpx.AsyncClient(**self._node.client_options) as client:

            async def perform(effect: _Post | Pause) -> _Outcome:
                if isinstance(effect, _Post):
                    return await self._posted(client, effect)
                await anyio.sleep(effect.seconds)
                return None

            return await drive_async(self._node.conversation(question), perform)

    async def _posted(self, client: httpx.AsyncClient, post: _Post) -> _Reply | Exception:
        import httpx

        try:
            return _reply(await client.post(self._node.rpc_url, content=post.content, headers=_HEADERS))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return exc


_HEADERS: Final = {"content-type": "application/json"}


def _reply(response: httpx.Response) -> _Reply:
    return _Reply(response.status_code, response.content, response.headers.get("retry-after"))


class _Node:
    """One node's URL and what was learned about it; the conversation with it, without the I/O."""

    def __init__(self, rpc_url: str, chain_id: int, timeout_s: float) -> None:
        self.rpc_url = rpc_url
        self.chain_id = chain_id
        # Certificates are loaded (20 ms) only where TLS is spoken.
        self.client_options: dict[str, Any] = {"timeout": timeout_s, "verify": rpc_url.startswith("https:")}
        self._is_checked = False

    @property
    def shown(self) -> str:
        """The node in messages: host only, since paths often hold an API key."""
        try:
            return urlsplit(self.rpc_url).netloc.rpartition("@")[2] or "the node"
        except ValueError:
            return "at an unreadable URL"

    def conversation(self, question: Question[T]) -> _Conversation[T]:
        try:
            if not self._is_checked:
                yield from self._check_chain()
            effect = next(question)
            while True:
                if isinstance(effect, Pause):
                    yield effect
                    effect = next(question)
                    continue
                try:
                    result = yield from self._answered(effect)
                except ChainUnavailable as exc:
                    effect = question.throw(exc)
                else:
                    effect = question.send(result)
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        finally:
            question.close()

    def _check_chain(self) -> _Conversation[None]:
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

    def _answered(self, request: RpcRequest) -> _Conversation[Any]:
        content = json.dumps({"jsonrpc": "2.0", "id": 1, "method": request.method, "params": request.params}).encode()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            outcome = yield _Post(content)
            document = _document(outcome)
            if attempt == _MAX_ATTEMPTS or not _may_pass(outcome, document, attempt):
                return self._result(request, outcome, document)
            yield Pause(_pause_s(outcome, attempt))
        raise AssertionError("unreachable")

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
