"""Takes a payment through a facilitator: the official HTTP facilitator client, with an official payload.

Task: {facilitator_url, private_key, rpc_url, requirements, extensions, take_atomic}.
Answer: {supported, verified, settled, settled_again}, each as the client read it.
"""

import asyncio
import json
import sys

from eth_account import Account
from x402 import x402Client
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC
from x402.mechanisms.evm.upto import UptoEvmClientScheme
from x402.schemas import PaymentRequired, ResourceInfo


async def main(task):
    signer = EthAccountSignerWithRPC(Account.from_key(task["private_key"]), task["rpc_url"])
    payer = x402Client()
    payer.set_spend_controls(False)
    register_exact_evm_client(payer, signer)
    payer.register("eip155:*", UptoEvmClientScheme(signer))
    asked = PaymentRequired(
        accepts=[task["requirements"]],
        resource=ResourceInfo(url="http://127.0.0.1/v1/chat/completions"),
        extensions=task["extensions"],
    )
    payload = await payer.create_payment_payload(asked)
    (wanted,) = asked.accepts
    taken = wanted.model_copy(update={"amount": task["take_atomic"]})
    async with HTTPFacilitatorClient(FacilitatorConfig(url=task["facilitator_url"])) as facilitator:
        answers = {
            "supported": facilitator.get_supported(),
            "verified": await facilitator.verify(payload, wanted),
            "settled": await facilitator.settle(payload, taken),
            "settled_again": await facilitator.settle(payload, taken),
        }
    return {name: answer.model_dump(by_alias=True, exclude_none=True) for name, answer in answers.items()}


print(json.dumps(asyncio.run(main(json.loads(sys.stdin.readline())))))
