"""A paid gateway of one's own: Flask under og-x402's middleware, with sessions, until standard input ends.

Task: {facilitator_url, network, asset, pay_to, cap_atomic, cost_atomic}. Announces {url}. When it ends, every
session is settled for `cost_atomic` a call.
"""

import json
import sys
import threading
import time

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server
from x402.http import FacilitatorConfig, HTTPFacilitatorClientSync
from x402.http.middleware.flask import payment_middleware
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.upto import UptoEvmServerScheme
from x402.schemas import AssetAmount
from x402.session import SessionStore

from x402 import x402ResourceServerSync

IDLE_S = 1
TEXT = ["Paid ", "with ", "a session."]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
PROOF = {
    "tee_id": "0x" + "11" * 32,
    "tee_signature": "c2lnbmF0dXJl",
    "tee_timestamp": int(time.time()),
    "tee_request_hash": "22" * 32,
    "tee_output_hash": "33" * 32,
}

task = json.loads(sys.stdin.readline())
app = Flask(__name__)


def choice(**more):
    return {"index": 0, "finish_reason": None, **more}


def events():
    for piece in TEXT:
        yield {"choices": [choice(delta={"role": "assistant", "content": piece})], "model": "gpt-5"}
    yield {"choices": [choice(delta={}, finish_reason="stop")], "model": "gpt-5", "usage": USAGE, **PROOF}


@app.post("/v1/chat/completions")
def chat():
    if request.get_json().get("stream"):
        lines = [f"data: {json.dumps(event)}\n\n" for event in events()] + ["data: [DONE]\n\n"]
        return Response(iter(lines), mimetype="text/event-stream")
    message = {"role": "assistant", "content": "".join(TEXT)}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5", "usage": USAGE}
    return jsonify({**answer, "choices": [choice(message=message, finish_reason="stop")], **PROOF})


server = x402ResourceServerSync(HTTPFacilitatorClientSync(FacilitatorConfig(url=task["facilitator_url"])))
server.register(task["network"], UptoEvmServerScheme())
price = AssetAmount(amount=task["cap_atomic"], asset=task["asset"], extra={"name": "OpenGradient", "version": "1"})
option = PaymentOption(scheme="upto", pay_to=task["pay_to"], price=price, network=task["network"])
middleware = payment_middleware(
    app,
    {"POST /v1/chat/completions": RouteConfig(accepts=[option], mime_type="application/json")},
    server,
    session_store=SessionStore(),
    cost_per_request=int(task["cost_atomic"]),
    session_idle_timeout=IDLE_S,
)
http = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=http.serve_forever, daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{http.port}"}), flush=True)
sys.stdin.read()
time.sleep(IDLE_S + 0.1)  # the last flush takes idle sessions only
middleware.shutdown()
http.shutdown()
