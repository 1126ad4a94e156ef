"""A paid gateway of one's own: Flask under og-x402's middleware, until standard input ends.

Task: {facilitator_url, network, asset, pay_to, cap_atomic, cost_atomic, sessions, scheme?}. Announces {url}. With
sessions, every session is settled when the gateway ends, for `cost_atomic` a call. A newer middleware has none, and
settles each call for `cost_atomic` before its answer goes out; by `batch-settlement` it charges a channel with that,
and claims when the gateway ends. A request with tools is answered by a call of the first one.
"""

import json
import sys
import threading
import time

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server
from x402 import x402ResourceServerSync
from x402.http import FacilitatorConfig, HTTPFacilitatorClientSync
from x402.http.middleware import flask as fork
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.upto import UptoEvmServerScheme
from x402.schemas import AssetAmount

IDLE_S = 1
TEXT = ["Paid ", "by ", "our client."]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
PROOF = {
    "tee_id": "0x" + "11" * 32,
    "tee_signature": "c2lnbmF0dXJl",
    "tee_timestamp": int(time.time()),
    "tee_request_hash": "22" * 32,
    "tee_output_hash": "33" * 32,
}

task = json.loads(sys.stdin.readline())
by_channel = task.get("scheme") == "batch-settlement"
app = Flask(__name__)


def choice(**more):
    return {"index": 0, "finish_reason": None, **more}


def tool_calls(asked):
    function = {"name": asked["tools"][0]["function"]["name"], "arguments": '{"symbol": "OPG"}'}
    return [{"index": 0, "id": "call_1", "type": "function", "function": function}]


def events(asked):
    deltas = [{"tool_calls": tool_calls(asked)}] if asked.get("tools") else [{"content": piece} for piece in TEXT]
    for delta in deltas:
        yield {"choices": [choice(delta={"role": "assistant", **delta})], "model": "gpt-5"}
    reason = "tool_calls" if asked.get("tools") else "stop"
    yield {"choices": [choice(delta={}, finish_reason=reason)], "model": "gpt-5", "usage": USAGE, **PROOF}


def answered(asked):
    if asked.get("stream"):
        lines = [f"data: {json.dumps(event)}\n\n" for event in events(asked)] + ["data: [DONE]\n\n"]
        return Response(iter(lines), mimetype="text/event-stream")
    message, reason = {"role": "assistant", "content": "".join(TEXT)}, "stop"
    if asked.get("tools"):
        message, reason = {"role": "assistant", "content": None, "tool_calls": tool_calls(asked)}, "tool_calls"
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5", "usage": USAGE}
    return jsonify({**answer, "choices": [choice(message=message, finish_reason=reason)], **PROOF})


@app.post("/v1/chat/completions")
def chat():
    response = answered(request.get_json())
    if not task["sessions"] and not by_channel:
        fork.set_settlement_overrides(response, {"amount": task["cost_atomic"]})
    return response


def session_options():
    from x402.session import SessionStore

    cost = int(task["cost_atomic"])
    return {"session_store": SessionStore(), "cost_per_request": cost, "session_idle_timeout": IDLE_S}


def charge(_context):
    return task["cost_atomic"]


facilitator = HTTPFacilitatorClientSync(FacilitatorConfig(url=task["facilitator_url"]))
server = x402ResourceServerSync(facilitator)
server.register(task["network"], UptoEvmServerScheme())
options, extra = {}, {"name": "OpenGradient", "version": "1"}
if by_channel:
    from x402.mechanisms.evm.batch_settlement import server as batch

    channels = batch.BatchSettlementEvmScheme(task["pay_to"])
    server.register(task["network"], channels)
    options, extra = {"streaming_cost_calculator": charge}, extra | {"assetTransferMethod": task["method"]}
elif task["sessions"]:
    options = session_options()
price = AssetAmount(amount=task["cap_atomic"], asset=task["asset"], extra=extra)
scheme = task.get("scheme", "upto")
option = PaymentOption(scheme=scheme, pay_to=task["pay_to"], price=price, network=task["network"])
routes = {"POST /v1/chat/completions": RouteConfig(accepts=[option], mime_type="application/json")}
middleware = fork.payment_middleware(app, routes, server, **options)
http = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=http.serve_forever, daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{http.port}"}), flush=True)
sys.stdin.read()
if task["sessions"]:
    time.sleep(IDLE_S + 0.1)  # the last flush takes idle sessions only
    middleware.shutdown()
http.shutdown()
if by_channel:
    names = {"receiver": task["pay_to"], "token": task["asset"], "network": task["network"]}
    config = batch.ChannelManagerConfigSync(scheme=channels, facilitator=facilitator, **names)
    batch.BatchSettlementChannelManagerSync(config).claim_and_settle()
