"""Pays with this project and with the OpenGradient SDK, in one process of one environment.

BASE_MAINNET_RPC in the environment is the paying chain (the SDK reads it when it is imported).
Task: {network, ledger, rpc_url, registry_address, ours: {private_key}, theirs: {private_key}, body}.
Answer: {files, shared_files, x402_belongs_to, ours: {content, streamed, costs_atomic}, theirs: {content, usage}}.
"""

import asyncio
import json
import sys
from functools import cache
from importlib import metadata

import opengradient as og

from opengradient_x402 import GatewayClient, Payments

PROJECT = "opengradient-integrations"
DISTRIBUTIONS = {found.metadata["Name"] for found in metadata.distributions()}


@cache
def files_of(distribution):
    return {str(path) for path in metadata.files(distribution)}


def shared_files():
    """Files that this project and any other distribution both installed."""
    return sorted(path for other in DISTRIBUTIONS - {PROJECT} for path in files_of(PROJECT) & files_of(other))


def ours(task):
    payments = Payments.open(network=task["network"], private_key=task["ours"]["private_key"], ledger=task["ledger"])
    with GatewayClient(payments) as client:
        completion = client.chat(task["body"])
        with client.stream(task["body"]) as stream:
            streamed = "".join(delta.content for delta in stream)
    payments.close()
    costs = [completion.receipt.cost_atomic, stream.receipt.cost_atomic]
    return {"content": completion.content, "streamed": streamed, "costs_atomic": costs}


async def theirs(task):
    llm = og.LLM(task["theirs"]["private_key"], rpc_url=task["rpc_url"], tee_registry_address=task["registry_address"])
    answer = await llm.chat(task["body"]["model"], task["body"]["messages"], max_tokens=200)
    await llm.close()
    return {"content": answer.chat_output["content"], "usage": answer.usage}


task = json.loads(sys.stdin.readline())
answer = {
    "shared_files": shared_files(),
    "files": len(files_of(PROJECT)),
    "x402_belongs_to": sorted(name for name in DISTRIBUTIONS if "x402/__init__.py" in files_of(name)),
    "ours": ours(task),
    "theirs": asyncio.run(theirs(task)),
}
print(json.dumps(answer))
