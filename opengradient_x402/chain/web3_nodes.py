"""A user's own `Web3` or `AsyncWeb3` as the node that answers questions: WebSocket, IPC, middleware, fallbacks.

Both are asked beside the driver, in a thread or on the event loop that the connection belongs to, so that sync and
async calls can use either. Middleware may have changed results: they are made plain JSON again. Errors are those of
this package. The user's own code has imported web3; this module never does so before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.chain.answers import number_in
from opengradient_x402.chain.node import Node, RpcRequest
from opengradient_x402.effects import Steps, Wait, in_thread
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError
from opengradient_x402.loop_thread import LoopThread

if TYPE_CHECKING:
    from web3 import AsyncWeb3, Web3

_TIMEOUT_S: Final = 20.0
"""For one request, retries of the provider included."""


def web3_node(web3: Web3 | AsyncWeb3[Any], chain_id: int, *, timeout_s: float = _TIMEOUT_S) -> Node:
    """The node behind a user's object. An AsyncWeb3 with a lasting connection is given on its own event loop.

    Raises ConfigurationError for anything else, and from its requests when it serves another chain.
    """
    from web3 import AsyncWeb3, Web3

    if isinstance(web3, AsyncWeb3):
        return AsyncWeb3Node(web3, chain_id, timeout_s=timeout_s)
    if isinstance(web3, Web3):
        return Web3Node(web3, chain_id, timeout_s=timeout_s)
    raise ConfigurationError(
        f"`web3` is a {type(web3).__name__}. Nothing was paid. Give a `Web3` or an `AsyncWeb3` of web3.py, or the "
        "URL of a node."
    )


class Web3Node:
    """Asks a `Web3`, in a thread of its own for each request."""

    def __init__(self, web3: Web3, chain_id: int, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.chain_id = chain_id
        self._web3 = web3
        self._timeout_s = timeout_s
        self._is_checked = False

    def request(self, request: RpcRequest) -> Steps[Any]:
        """The `result` of one request. Raises ChainUnavailable (RpcError when the node answered)."""
        if not self._is_checked:
            _check_chain((yield from self._answered(RpcRequest("eth_chainId"))), self.chain_id)
            self._is_checked = True
        return (yield from self._answered(request))

    def _answered(self, request: RpcRequest) -> Steps[Any]:
        try:
            return _plain((yield Wait(self._asked(request), self._timeout_s)))
        except Exception as exc:
            raise _error(exc, request, self._timeout_s) from exc

    def _asked(self, request: RpcRequest) -> Future[Any]:
        method: Any = request.method
        return in_thread(
            lambda: self._web3.manager.request_blocking(method, _parameters(request)), name="opengradient-web3"
        )


class AsyncWeb3Node(Web3Node):
    """Asks an `AsyncWeb3`: on the loop of its lasting connection, or else on a loop in a thread of its own."""

    def __init__(self, web3: AsyncWeb3[Any], chain_id: int, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.chain_id = chain_id
        self._async_web3 = web3
        self._timeout_s = timeout_s
        self._is_checked = False
        self._loop = _loop_of_connection(web3)
        self._own_loop = LoopThread("opengradient-web3")

    def _asked(self, request: RpcRequest) -> Future[Any]:
        method: Any = request.method
        asked = self._async_web3.manager.coro_request(method, _parameters(request))
        return (
            self._own_loop.begin(asked) if self._loop is None else asyncio.run_coroutine_threadsafe(asked, self._loop)
        )


def _loop_of_connection(web3: AsyncWeb3[Any]) -> asyncio.AbstractEventLoop | None:
    """The running loop, for a WebSocket or a pipe that is connected there; HTTP connects anywhere."""
    from web3.providers.persistent import PersistentConnectionProvider

    if not isinstance(web3.provider, PersistentConnectionProvider):
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError as exc:
        raise ConfigurationError(
            f"An AsyncWeb3 over {type(web3.provider).__name__} belongs to one event loop, and none is running here. "
            "Nothing was paid. Pass it from a coroutine of that loop, or give a `Web3`."
        ) from exc


def _check_chain(answer: Any, chain_id: int) -> None:
    try:
        found = number_in(answer)
    except (TypeError, ValueError) as exc:
        raise RpcError("The `web3` object gave no chain id. Nothing was paid. Check its provider.") from exc
    if found != chain_id:
        raise ConfigurationError(
            f"The `web3` object serves chain {found}, and the network is chain {chain_id}. Nothing was paid. "
            "Give one that is connected to the network's chain."
        )


def _parameters(request: RpcRequest) -> list[Any]:
    """The parameters, in the one of two forms that web3's middleware takes: a filter's address stands in a list."""
    if request.method != "eth_getLogs":
        return list(request.params)
    (query,) = request.params
    return [query | {"address": [query["address"]]}] if isinstance(query.get("address"), str) else [query]


def _plain(value: Any) -> Any:
    """The value as JSON-RPC has it: middleware turns it into other mappings, bytes and numbers."""
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, bytes | bytearray):
        return "0x" + bytes(value).hex()
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    return value


def _error(exc: Exception, request: RpcRequest, timeout_s: float) -> ChainUnavailable | ConfigurationError:
    """Our error for one that the object, its provider or its middleware raised."""
    if isinstance(exc, ChainUnavailable | ConfigurationError):
        return exc
    response = getattr(exc, "rpc_response", None)  # web3.exceptions.Web3RPCError
    error = response.get("error") if isinstance(response, Mapping) else None
    if error is not None:
        details: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": str(error)}
        code, data = details.get("code"), details.get("data")
        return RpcError(
            f"The node of the `web3` object refused {request.method}: {str(details.get('message', error))[:300]}. "
            "The chain was not changed by asking. Try again later, or use another provider.",
            code=code if isinstance(code, int) else None,
            data=data if isinstance(data, str) else None,
        )
    if isinstance(exc, TimeoutError):
        return ChainUnavailable(
            f"The `web3` object did not answer {request.method} in {timeout_s:g} s. The chain was not changed by "
            "asking. Try again; on the event loop of an AsyncWeb3's own connection, use the async methods."
        )
    return ChainUnavailable(
        f"The `web3` object did not answer {request.method} ({type(exc).__name__}). The chain was not changed by "
        "asking. Try again, or use another provider."
    )
