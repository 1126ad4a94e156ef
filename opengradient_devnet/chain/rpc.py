"""JSON-RPC 2.0 over HTTP for a chain: single calls, batches, notifications, and errors in JSON.

It reads and writes the envelope; `Chain.rpc` answers the method.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from opengradient_devnet.bounded_json import JsonRefused, parse_json
from opengradient_devnet.chain.chain import Chain, ChainTimeout, RpcError

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


def answer_one(chain: Chain, request: Any) -> dict[str, Any] | None:
    """The answer to one parsed request; None for a notification, which gets none."""
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return _failed(None, INVALID_REQUEST, "a request is an object with a method")
    request_id, params = request.get("id"), request.get("params", [])
    if not isinstance(params, list):
        return _failed(request_id, INVALID_PARAMS, "invalid params: they must be a list")
    try:
        answer = {"jsonrpc": "2.0", "id": request_id, "result": chain.rpc(request["method"], params)}
    except RpcError as exc:
        answer = _failed(request_id, exc.code, exc.message, exc.data)
    except ChainTimeout as exc:
        answer = _failed(request_id, SERVER_ERROR, str(exc))
    return answer if "id" in request else None


def answer_body(chain: Chain, body: bytes) -> Any:
    """The answer to a whole HTTP body; None when nothing is to be said."""
    try:
        parsed = parse_json(body)
    except JsonRefused as exc:
        return _failed(None, PARSE_ERROR, f"parse error: {exc}")
    if not isinstance(parsed, list):
        return answer_one(chain, parsed)
    if not 0 < len(parsed) <= MAX_BATCH:
        return _failed(None, INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests")
    return _answer_batch(chain, parsed) or None


def _answer_batch(chain: Chain, requests: list[Any]) -> list[dict[str, Any]]:
    answers, left_bytes = [], MAX_ANSWER_BYTES
    for request in requests:
        answer = answer_one(chain, request)
        if answer is None:
            continue
        left_bytes -= len(json.dumps(answer))
        if left_bytes < 0:
            # The rest is not even asked for, as with geth: a batch costs no more than its answer may be long.
            answers.append(_failed(answer["id"], RESPONSE_TOO_LARGE, "response too large"))
            return answers
        answers.append(answer)
    return answers


def rpc_app(chain: Chain) -> ASGIApp:
    """An ASGI app that answers POST on any path it is mounted at. The chain works in threads."""

    async def respond(request: Request) -> Response:
        if request.method != "POST":
            error = _failed(None, INVALID_REQUEST, "POST a JSON-RPC 2.0 request here")
            return JSONResponse(error, status_code=405, headers={"allow": "POST"})
        answer = await run_in_threadpool(answer_body, chain, await request.body())
        return Response(status_code=204) if answer is None else JSONResponse(answer)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            response = await respond(Request(scope, receive))
            await response(scope, receive, send)

    return app
