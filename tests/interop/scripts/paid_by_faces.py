"""One whole and one streamed call by each face that was asked for, from one wallet.

Task: {faces: ["langchain" | "llama_index"], private_key, network, ledger, prompt}.
Answer: {face: {text, streamed, receipts}}.
"""

import json
import sys


def langchain(task, payments):
    from langchain_opengradient import ChatOpenGradient, get_settlement_callback

    with ChatOpenGradient(model="openai/gpt-5", payments=payments) as model, get_settlement_callback() as heard:
        text = model.invoke(task["prompt"]).content
        streamed = "".join(chunk.content for chunk in model.stream(task["prompt"]))
    return {"text": text, "streamed": streamed, "receipts": [receipt.to_json() for receipt in heard.receipts]}


def llama_index(task, payments):
    from llama_index.llms.opengradient import OpenGradient, SettlementLedgerHandler

    llm = OpenGradient(model="openai/gpt-5", payments=payments)
    with SettlementLedgerHandler().listening() as heard:
        text = llm.complete(task["prompt"]).text
        streamed = "".join(chunk.delta for chunk in llm.stream_complete(task["prompt"]))
    llm.close()
    return {"text": text, "streamed": streamed, "receipts": [receipt.to_json() for receipt in heard.receipts]}


def main(task):
    from opengradient_x402 import Payments

    payments = Payments.open(network=task["network"], private_key=task["private_key"], ledger=task["ledger"])
    answer = {face: FACES[face](task, payments) for face in task["faces"]}
    payments.close()
    return answer


FACES = {"langchain": langchain, "llama_index": llama_index}
print(json.dumps(main(json.loads(sys.stdin.readline()))))
