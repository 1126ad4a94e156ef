"""JSON-RPC 2.0 over HTTP for a chain: single calls, batches, notifications, and errors in JSON.

It reads and writes the envelope; `Chain.rpc` answers the method. The faults of nodes are carried out here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opengradient_devnet.bounded_json import JsonRefused, parse_json
from opengradient_devnet.chain.chain import Chain, ChainTimeout, RpcError
from opengradient_devnet.chain.lagging import LaggingNode, Node
from opengradient_devnet.connection import transport_of
from opengradient_devnet.faults import Faults, LagNode, NodeCut, NodeDrip, NodeError, NodeNull, NodeStatus

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
SERVER_ERROR = -32000
RESPONSE_TOO_LARGE = -32003  # geth's code
MAX_BATCH = 1000
MAX_ANSWER_BYTES = 25 * 2**20  # of a batch; geth's limit


def _failed(request_id: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def answer_one(node: Node, request: Any, *, faults: Faults | None = None) -> dict[str, Any] | None:
    """The answer to one parsed request; None for a notification, which gets none."""
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return _failed(None, INVALID_REQUEST, "a request is an object with a method")
    request_id, params = request.get("id"), request.get("params", [])
    if not isinstance(params, list):
        return _failed(request_id, INVALID_PARAMS, "invalid params: they must be a list")
    answer = None if faults is None else _faulty(request_id, request["method"], faults)
    if answer is None:
        answer = _answered(node, request_id, request["method"], params)
    return answer if "id" in request else None


def _answered(node: Node, request_id: Any, method: str, params: list[Any]) -> dict[str, Any]:
    try:
        return {"jsonrpc": "2.0", "id": request_id, "result": node.rpc(method, params)}
    except RpcError as exc:
        return _failed(request_id, exc.code, exc.message, exc.data)
    except ChainTimeout as exc:
        return _failed(request_id, SERVER_ERROR, str(exc))


def _faulty(request_id: Any, method: str, faults: Faults) -> dict[str, Any] | None:
    """What a broken node answers in place of the truth, if it is to be broken."""
    if faults.take(NodeNull, where=lambda fault: fault.method in (None, method)):
        return {"jsonrpc": "2.0", "id": request_id, "result": None}
    error = faults.take(NodeError, where=lambda fault: fault.method in (None, method))
    if error is None:
        return None
    answer = _failed(request_id, error.code, error.message)
    return {**answer, "result": None} if error.has_null_result else answer


def answer_body(node: Node, body: bytes, *, faults: Faults | None = None) -> Any:
    """The answer to a whole HTTP body; None when nothing is to be said."""
    try:
        parsed = parse_json(body)
    except JsonRefused as exc:
        return _failed(None, PARSE_ERROR, f"parse error: {exc}")
    if not isinstance(parsed, list):
        return answer_one(node, parsed, faults=faults)
    if not 0 < len(parsed) <= MAX_BATCH:
        return _failed(None, INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests")
    return _answer_batch(node, parsed, faults=faults) or None


def _answer_batch(node: Node, requests: list[Any], *, faults: Faults | None) -> list[dict[str, Any]]:
    answers, left_bytes = [], MAX_ANSWER_BYTES
    for request in requests:
        answer = answer_one(node, request, faults=faults)
        if answer is None:
            continue
        left_bytes -= len(json.dumps(answer))
        if left_bytes < 0:
            # The rest is not even asked for, as with geth: a batch costs no more than its answer may be long.
            answers.append(_failed(answer["id"], RESPONSE_TOO_LARGE, "response too large"))
            return answers
        answers.append(answer)
    return answers


def rpc_app(chain: Chain, *, faults: Faults | None = None) -> ASGIApp:
    """An ASGI app that answers POST on any path it is mounted at. The chain works in threads."""

    async def respond(request: Request) -> Response:
        if request.method != "POST":
            error = _failed(None, INVALID_REQUEST, "POST a JSON-RPC 2.0 request here")
            return JSONResponse(error, status_code=405, headers={"allow": "POST"})
        body = await request.body()
        if faults is not None:
            return await _respond_with_faults(chain, body, faults=faults)
        answer = await run_in_threadpool(answer_body, chain, body)
        return Response(status_code=204) if answer is None else JSONResponse(answer)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await respond(Request(scope, receive))
            await response(scope, receive, send)

    return app


async def _respond_with_faults(chain: Chain, body: bytes, *, faults: Faults) -> Response:
    asked = _methods(body)

    def strikes(fault: LagNode | NodeStatus | NodeCut | NodeDrip) -> bool:
        return fault.method is None or fault.method in asked

    status = faults.take(NodeStatus, where=strikes)
    if status is not None:
        retry_after = {} if status.retry_after_s is None else {"retry-after": str(status.retry_after_s)}
        return Response(status.body, status.status, headers={"content-type": status.content_type, **retry_after})
    lag = faults.take(LagNode, where=strikes)
    node: Node = chain if lag is None else LaggingNode(chain, blocks=lag.blocks)
    answer = await run_in_threadpool(partial(answer_body, node, body, faults=faults))
    if answer is None:
        return Response(status_code=204)
    content = json.dumps(answer, separators=(",", ":")).encode()
    cut, drip = faults.take(NodeCut, where=strikes), faults.take(NodeDrip, where=strikes)
    said = content if cut is None else content[: len(content) // 2]
    length_bytes = len(content if cut is not None and cut.cuts_connection else said)
    pieces = _pieces(said, pace_s=None if drip is None else drip.pace_s)
    return _NodeAnswer(pieces, length_bytes=length_bytes, is_cut=length_bytes > len(said))


def _methods(body: bytes) -> set[str]:
    try:
        parsed = parse_json(body)
    except JsonRefused:
        return set()
    requests = parsed if isinstance(parsed, list) else [parsed]
    return {str(request.get("method")) for request in requests if isinstance(request, dict)}


async def _pieces(content: bytes, *, pace_s: float | None) -> AsyncGenerator[bytes, None]:
    if pace_s is None:
        yield content
        return
    for position in range(len(content)):
        await asyncio.sleep(pace_s)
        yield content[position : position + 1]


class _NodeAnswer(StreamingResponse):
    """Bytes of JSON-RPC, under a length that may be more than there is."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], *, length_bytes: int, is_cut: bool) -> None:
        headers = {"content-length": str(length_bytes)}
        super().__init__(pieces, headers=headers, media_type="application/json")
        self._is_cut = is_cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_drop(message: Message) -> None:
            if self._is_cut and message["type"] == "http.response.body" and not message.get("more_body"):
                transport_of(scope).close()
                return
            await send(message)

        await super().__call__(scope, receive, send_and_drop)
