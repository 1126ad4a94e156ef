"""The official x402 facilitator over HTTP, until standard input ends.

Task: {private_key, rpc_url, network}. Announces {url, address}.
"""

import json
import socket
import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from x402 import x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.mechanisms.evm.upto import UptoEvmFacilitatorScheme
from x402.schemas import PaymentPayload, PaymentRequirements

task = json.loads(sys.stdin.readline())
signer = FacilitatorWeb3Signer(private_key=task["private_key"], rpc_url=task["rpc_url"])
facilitator = x402FacilitatorSync()
register_exact_evm_facilitator(facilitator, signer, networks=task["network"])
facilitator.register([task["network"]], UptoEvmFacilitatorScheme(signer))
authorizer = LocalAuthorizerSigner(task["private_key"])
facilitator.register([task["network"]], BatchSettlementEvmFacilitator(signer, authorizer))
sending = threading.Lock()  # the signer reserves nonces under a lock, but sends outside of it
app = FastAPI()


def read(body: dict[str, Any]) -> tuple[PaymentPayload, PaymentRequirements]:
    return (
        PaymentPayload.model_validate(body["paymentPayload"]),
        PaymentRequirements.model_validate(body["paymentRequirements"]),
    )


@app.get("/supported")
def supported():
    return facilitator.get_supported().model_dump(by_alias=True, exclude_none=True)


@app.post("/verify")
def verify(body: dict[str, Any]):
    return facilitator.verify(*read(body)).model_dump(by_alias=True, exclude_none=True)


@app.post("/settle")
def settle(body: dict[str, Any]):
    with sending:
        return facilitator.settle(*read(body)).model_dump(by_alias=True, exclude_none=True)


def stop_with_stdin(server):
    sys.stdin.read()
    server.should_exit = True


listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
threading.Thread(target=stop_with_stdin, args=[server], daemon=True).start()
print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "address": signer.address}), flush=True)
server.run(sockets=[listener])
