"""Calls a paid endpoint with the official x402 client.

Task: {url, private_key, network, asset, limit_atomic, body, http: "httpx" | "requests", calls, rpc_url}. With an
`rpc_url` it can use payment channels.
Answer: {answers: [{status, session, payment_response, body}]}, `body` as text.
"""

import asyncio
import base64
import json
import sys

from eth_account import Account
from x402 import x402Client, x402ClientSync
from x402.http.clients.httpx import x402HttpxClient
from x402.http.clients.requests import x402_requests
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme, BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.upto import UptoEvmClientScheme

HEADERS = {"Authorization": "Bearer any", "X-SETTLEMENT-TYPE": "batch"}


def prepared(client, task):
    account = Account.from_key(task["private_key"])
    register_exact_evm_client(client, account, networks=task["network"])
    client.register(task["network"], UptoEvmClientScheme(account))
    if task.get("rpc_url"):
        options = BatchSettlementEvmSchemeOptions(rpc_url=task["rpc_url"])
        client.register(task["network"], BatchSettlementEvmScheme(account, options))
    # OPG is no default asset of the SDK: it has to be allowed by name, up to a limit.
    asset = {"network": task["network"], "asset": task["asset"], "max_amount_per_payment": task["limit_atomic"]}
    return client.set_spend_controls({"allowed_assets": [asset]})


def described(response):
    header = response.headers.get("PAYMENT-RESPONSE")
    return {
        "status": response.status_code,
        "session": response.headers.get("X-Upto-Session"),
        "payment_response": json.loads(base64.b64decode(header)) if header else None,
        "body": response.text,
    }


async def with_httpx(task):
    async with x402HttpxClient(prepared(x402Client(), task)) as http:
        return [
            described(await http.post(task["url"], json=task["body"], headers=HEADERS)) for _ in range(task["calls"])
        ]


def with_requests(task):
    with x402_requests(prepared(x402ClientSync(), task)) as http:
        return [described(http.post(task["url"], json=task["body"], headers=HEADERS)) for _ in range(task["calls"])]


task = json.loads(sys.stdin.readline())
answers = asyncio.run(with_httpx(task)) if task["http"] == "httpx" else with_requests(task)
print(json.dumps({"answers": answers}))
