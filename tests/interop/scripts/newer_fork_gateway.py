"""A paid gateway of one's own: Flask under og-x402 2.15's middleware, until standard input ends.

Task: {facilitator_url, network, asset, pay_to, cap_atomic, cost_atomic}. Announces {url}. Each call is settled
for `cost_atomic` before its answer goes out.
"""

import json
import sys
import threading

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server
from x402.http import FacilitatorConfig, HTTPFacilitatorClientSync
from x402.http.middleware.flask import payment_middleware, set_settlement_overrides
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.upto import UptoEvmServerScheme
from x402.schemas import AssetAmount

from x402 import x402ResourceServerSync

TEXT = ["Paid ", "call ", "by call."]
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

task = json.loads(sys.stdin.readline())
app = Flask(__name__)


def choice(**more):
    return {"index": 0, "finish_reason": None, **more}


def events():
    for piece in TEXT:
        yield {"choices": [choice(delta={"role": "assistant", "content": piece})], "model": "gpt-5"}
    yield {"choices": [choice(delta={}, finish_reason="stop")], "model": "gpt-5", "usage": USAGE}


def answered():
    if request.get_json().get("stream"):
        lines = [f"data: {json.dumps(event)}\n\n" for event in events()] + ["data: [DONE]\n\n"]
        return Response(iter(lines), mimetype="text/event-stream")
    message = {"role": "assistant", "content": "".join(TEXT)}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5", "usage": USAGE}
    return jsonify({**answer, "choices": [choice(message=message, finish_reason="stop")]})


@app.post("/v1/chat/completions")
def chat():
    response = answered()
    set_settlement_overrides(response, {"amount": task["cost_atomic"]})
    return response


server = x402ResourceServerSync(HTTPFacilitatorClientSync(FacilitatorConfig(url=task["facilitator_url"])))
server.register(task["network"], UptoEvmServerScheme())
price = AssetAmount(amount=task["cap_atomic"], asset=task["asset"], extra={"name": "OpenGradient", "version": "1"})
option = PaymentOption(scheme="upto", pay_to=task["pay_to"], price=price, network=task["network"])
routes = {"POST /v1/chat/completions": RouteConfig(accepts=[option], mime_type="application/json")}
payment_middleware(app, routes, server)
http = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=http.serve_forever, daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{http.port}"}), flush=True)
sys.stdin.read()
http.shutdown()
