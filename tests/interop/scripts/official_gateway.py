"""A paid endpoint of one's own: FastAPI under the official x402 middleware, until standard input ends.

Task: {facilitator_url, network, asset, pay_to, scheme, method, cap_atomic, cost_atomic}. Announces {url}. What was
charged to channels is claimed when the gateway ends.
"""

import asyncio
import json
import socket
import sys
import threading

import uvicorn
from fastapi import FastAPI, Response
from x402 import x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.middleware.fastapi import PaymentMiddlewareASGI, set_settlement_overrides
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.batch_settlement.server import (
    BatchSettlementChannelManager,
    BatchSettlementEvmScheme,
    ChannelManagerConfig,
)
from x402.mechanisms.evm.exact import register_exact_evm_server
from x402.mechanisms.evm.upto import UptoEvmServerScheme
from x402.schemas import AssetAmount

task = json.loads(sys.stdin.readline())
app = FastAPI()


@app.post("/v1/chat/completions")
def chat(response: Response):
    if task["scheme"] != "exact":
        set_settlement_overrides(response, {"amount": task["cost_atomic"]})
    choice = {"index": 0, "message": {"role": "assistant", "content": "Paid."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5"}
    return {**answer, "choices": [choice], "usage": usage}


def stop_with_stdin(server):
    sys.stdin.read()
    server.should_exit = True


def facilitator():
    return HTTPFacilitatorClient(FacilitatorConfig(url=task["facilitator_url"]))


channels = BatchSettlementEvmScheme(task["pay_to"])
resources = x402ResourceServer(facilitator())
register_exact_evm_server(resources, networks=task["network"])
resources.register(task["network"], UptoEvmServerScheme())
resources.register(task["network"], channels)
extra = {"name": "OpenGradient", "version": "1", "assetTransferMethod": task["method"]}
price = AssetAmount(amount=task["cap_atomic"], asset=task["asset"], extra=extra)
option = PaymentOption(scheme=task["scheme"], pay_to=task["pay_to"], price=price, network=task["network"])
routes = {"POST /v1/chat/completions": RouteConfig(accepts=[option], mime_type="application/json")}
app.add_middleware(PaymentMiddlewareASGI, routes=routes, server=resources)
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
threading.Thread(target=stop_with_stdin, args=[server], daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
server.run(sockets=[listener])
if task["scheme"] == "batch-settlement":
    names = {"receiver": task["pay_to"], "token": task["asset"], "network": task["network"]}
    manager = BatchSettlementChannelManager(ChannelManagerConfig(scheme=channels, facilitator=facilitator(), **names))
    asyncio.run(manager.claim_and_settle())
