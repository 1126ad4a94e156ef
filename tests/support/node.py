"""A JSON-RPC node in front of a chain that can be told to misbehave, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from opengradient_devnet.chain.chain import Chain, RpcError
from opengradient_devnet.contracts import MULTICALL3
from opengradient_x402.chain.node import NODE_TIMEOUT_S, HttpNode, Question, alook_up, ask

T = TypeVar("T")

Misbehaviour = Callable[[str, list[Any], int], "tuple[int, Any] | None"]
"""(method, params, number of the request) -> (HTTP status, body) to answer instead of the chain, or None."""


def without_multicall(method: str, params: list[Any], number: int) -> tuple[int, Any] | None:
    """Misbehaviour of a chain on which Multicall3 was never deployed."""
    if method == "eth_call" and params[0].get("to") == MULTICALL3:
        return 200, {"result": "0x"}
    return None


def behind(chain: Chain, head: int) -> Misbehaviour:
    """A node that knows the chain up to this block."""

    def misbehave(method: str, params: list[Any], number: int) -> tuple[int, Any] | None:
        if method == "eth_call" and params[-1] == "latest":
            return 200, {"result": chain.rpc(method, [params[0], hex(head)])}
        if method == "eth_getBlockByNumber":
            wanted = head if params[0] == "latest" else int(params[0], 16)
            return 200, {"result": chain.rpc(method, [hex(wanted), False]) if wanted <= head else None}
        if method in ("eth_getTransactionByHash", "eth_getTransactionReceipt"):
            found = chain.rpc(method, params)
            return (200, {"result": None}) if found is None or int(found["blockNumber"], 16) > head else None
        return None

    return misbehave


def at_rest(chain: Chain) -> Misbehaviour:
    """A node of a chain that does not change any more: each question is put to it once."""
    known: dict[str, Any] = {}

    def answer(method: str, params: list[Any], number: int) -> tuple[int, Any] | None:
        key = json.dumps([method, params])
        if key not in known:
            try:
                known[key] = chain.rpc(method, params)
            except RpcError:
                return None
        return 200, {"result": known[key]}

    return answer


async def asked(url: str, chain_id: int, question: Question[T], *, timeout_s: float = NODE_TIMEOUT_S) -> T:
    """What a coroutine is answered, over a connection of its own."""
    return await alook_up(ask(HttpNode(url, chain_id, timeout_s=timeout_s), question))


@dataclass
class Node:
    url: str = ""
    requests: list[tuple[str, list[Any]]] = field(default_factory=list)
    misbehave: Misbehaviour = lambda method, params, number: None

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _ in self.requests)


@contextmanager
def serving(chain: Chain) -> Iterator[Node]:
    node = Node()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write per answer: two would wait for each other (Nagle and delayed ACK)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            method, params = request["method"], request["params"]
            node.requests.append((method, params))
            status, body = node.misbehave(method, params, len(node.requests)) or (200, None)
            if body is None:
                try:
                    body = {"jsonrpc": "2.0", "id": request["id"], "result": chain.rpc(method, params)}
                except RpcError as exc:
                    body = {"error": {"code": exc.code, "message": exc.message, "data": exc.data}}
            if isinstance(body, dict) and body.keys() & {"result", "error"}:
                body = {"jsonrpc": "2.0", "id": request["id"]} | body
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            if status == 429:
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        node.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield node
        finally:
            server.shutdown()
            thread.join()
