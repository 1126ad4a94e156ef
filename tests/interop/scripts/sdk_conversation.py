"""Talks to the network with the OpenGradient SDK, as its documentation shows.

BASE_MAINNET_RPC in the environment is the paying chain (the SDK reads it when it is imported).
Task: {private_key, rpc_url, registry_address, model, prompt, tools_prompt, tools}. Answer: see the end of `main`.
"""

import asyncio
import dataclasses
import json
import sys

import opengradient as og


async def streamed(llm, task, **options):
    chunks = [chunk async for chunk in await llm.chat(task["model"], stream=True, max_tokens=200, **options)]
    return {
        "texts": [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content],
        "tool_calls": [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []],
        "finish_reason": chunks[-1].choices[0].finish_reason,
        "is_final": [chunk.is_final for chunk in chunks],
        "usage": chunks[-1].usage and dataclasses.asdict(chunks[-1].usage),
        "tee_id": chunks[-1].tee_id,
        "tee_signature": chunks[-1].tee_signature,
    }


async def verified(llm, task, messages):
    """One call over the SDK's pinned connection, checked by the SDK's verifier against the registry's key."""
    tee = llm.resolve_tee_connection()
    registry = og.TEERegistry(rpc_url=task["rpc_url"], registry_address=task["registry_address"])
    (entry,) = registry.get_active_tees_by_type(0)
    body = {"model": task["model"].split("/")[1], "messages": messages, "max_tokens": 50, "temperature": 0.5}
    wire, canonical = og.build_inner_request(body)
    headers = {"Authorization": "Bearer any", "X-SETTLEMENT-TYPE": "private"}
    response = await tee.http_client.post(tee.endpoint + "/v1/chat/completions", json=wire, headers=headers)
    content = response.json()
    proof = og.verify_response(
        canonical_request=canonical,
        response_body=content,
        response_content=content["choices"][0]["message"]["content"],
        signing_key_pem=og.client.tee_verify.pem_from_der(entry.signing_public_key_der),
        expected_tee_id=entry.tee_id,
    )
    return {"request_hash": proof.request_hash, "tee_id": proof.tee_id, "usage": content["usage"]}


async def main(task):
    llm = og.LLM(task["private_key"], rpc_url=task["rpc_url"], tee_registry_address=task["registry_address"])
    approval = llm.ensure_opg_approval(min_allowance=1.0, approve_amount=2.5)
    approved_again = llm.ensure_opg_approval(min_allowance=1.0)
    messages = [{"role": "user", "content": task["prompt"]}]
    tools_messages = [{"role": "user", "content": task["tools_prompt"]}]
    private = og.x402SettlementMode.PRIVATE
    answers = {
        "approval": dataclasses.asdict(approval),
        "approved_again": dataclasses.asdict(approved_again),
        "chat": dataclasses.asdict(await llm.chat(task["model"], messages, max_tokens=200)),
        "private": dataclasses.asdict(await llm.chat(task["model"], messages, x402_settlement_mode=private)),
        "tools": dataclasses.asdict(await llm.chat(task["model"], tools_messages, tools=task["tools"])),
        "stream": await streamed(llm, task, messages=messages),
        "tools_stream": await streamed(llm, task, messages=tools_messages, tools=task["tools"]),
        "verified": await verified(llm, task, messages),
        "completion": dataclasses.asdict(await llm.completion(task["model"], task["prompt"])),
    }
    await llm.close()
    return answers


print(json.dumps(asyncio.run(main(json.loads(sys.stdin.readline())))))
