"""The unmodified OpenGradient SDK finds the devnet in the TEE registry, pays it, and checks its proofs.

It knows one network only, `eip155:8453`, so the devnet runs under that chain id, with a wallet that it made.
The SDK is asked everything once; each test looks at one side of what happened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from opengradient_devnet import Account, Devnet
from opengradient_devnet.contracts import OPG as TOKEN
from opengradient_devnet.contracts import PERMIT2, contract
from opengradient_devnet.gateway.pricing import load_prices
from support.payers import opg_balance

BASE = 8453
OPG = 10**18
MODEL = "openai/gpt-5"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the SDK heard, and the network afterwards, all sessions settled and batches written."""

    net: Devnet
    account: Account
    tee_id: str
    heard: dict[str, Any]


@pytest.fixture(scope="module")
def conversation(sdk, request):
    with Devnet(chain_id=BASE, unsafe_live_chain_id=True, pace_s=0.001) as net:
        account = net.account(opg="5")
        registry = net.network["registry"]
        task = {
            "private_key": account.private_key,
            "rpc_url": registry["rpc_url"],
            "registry_address": registry["address"],
            "model": MODEL,
            "prompt": "What is x402?",
            "tools_prompt": "What is the weather in Paris?",
            "tools": [TOOL],
        }
        script = request.path.parent / "scripts" / "sdk_conversation.py"
        heard = sdk.run(script, task, env={"BASE_MAINNET_RPC": net.rpc_url})
        tee_id = httpx.get(f"{net.gateway_url}/signing-key").json()["tee_id"]
        net.close_sessions()
        net.flush_batches()
        yield Conversation(net=net, account=account, tee_id=tee_id, heard=heard)


def spent(conversation):
    return 5 * OPG - opg_balance(conversation.net, conversation.account.address)


def cost_atomic(usage):
    prices = load_prices()
    tokens = {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
    return prices.cost(prices.find(MODEL), **tokens).atomic


def test_the_sdk_approves_permit2_once(conversation):
    net, heard = conversation.net, conversation.heard
    assert heard["approval"]["allowance_before"] == 0
    assert heard["approval"]["allowance_after"] == OPG * 5 // 2 == heard["approved_again"]["allowance_before"]
    assert heard["approved_again"]["tx_hash"] is None
    data = contract("OPG").encode("allowance", conversation.account.address, PERMIT2)
    allowance = int.from_bytes(net.chain.call(to=TOKEN, data=data), "big")
    assert allowance == OPG * 5 // 2 - spent(conversation)


def test_the_sdk_reaches_the_gateway_that_the_registry_names(conversation):
    (payee,) = conversation.net.network["payees"]
    for answer in ("chat", "private", "tools", "completion"):
        heard = conversation.heard[answer]
        # https with the registry's certificate as the only trust anchor
        assert heard["tee_endpoint"] == conversation.net.https_gateway_url
        assert "0x" + heard["tee_id"].removeprefix("0x") == conversation.tee_id
        assert heard["tee_payment_address"] == payee
        assert heard["tee_signature"]


def test_the_sdk_chats(conversation):
    for answer in ("chat", "private"):
        heard = conversation.heard[answer]
        assert "What is x402?" in heard["chat_output"]["content"]
        assert heard["finish_reason"] == "stop"
        assert heard["usage"]["total_tokens"] == heard["usage"]["prompt_tokens"] + heard["usage"]["completion_tokens"]
    assert "What is x402?" in conversation.heard["completion"]["completion_output"]


def test_the_sdk_streams_the_same_answer_in_several_pieces(conversation):
    stream = conversation.heard["stream"]
    assert len(stream["texts"]) > 3
    assert "".join(stream["texts"]) == conversation.heard["chat"]["chat_output"]["content"]
    assert stream["is_final"] == [False] * (len(stream["is_final"]) - 1) + [True]
    assert stream["usage"].items() <= conversation.heard["chat"]["usage"].items()
    assert stream["usage"]["total_tokens"] > 0
    assert stream["finish_reason"] == "stop"
    assert stream["tee_signature"]


@pytest.mark.parametrize("answer", ["tools", "tools_stream"])
def test_the_sdk_gets_tool_calls(conversation, answer):
    heard = conversation.heard[answer]
    (call,) = heard["tool_calls"] if answer == "tools_stream" else heard["chat_output"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert call["id"]
    assert heard["finish_reason"] == "tool_calls"


def test_the_sdks_own_verifier_accepts_the_proof_against_the_key_in_the_registry(conversation):
    proof = conversation.heard["verified"]
    assert proof["tee_id"] == conversation.tee_id
    assert len(bytes.fromhex(proof["request_hash"])) == 32


def test_the_chain_shows_one_settlement_per_session_for_exactly_what_the_calls_cost(conversation):
    net = conversation.net
    # The SDK keeps one session per endpoint: six chats in one, the text completion in another.
    chats, completion = sorted(net.settlements, key=lambda record: -record.calls)
    assert (chats.calls, completion.calls) == (6, 1)
    tools_twice = ["tools", "tools"]  # `tools_stream` asks for the same, and hides its usage
    usages = [conversation.heard[name]["usage"] for name in ("chat", "private", "stream", "verified", *tools_twice)]
    assert chats.amount_atomic == sum(map(cost_atomic, usages))
    # The completion was the same question with the same answer as the chat.
    assert completion.amount_atomic == cost_atomic(conversation.heard["chat"]["usage"])
    for record in net.settlements:
        assert net.chain.rpc("eth_getTransactionReceipt", [record.transaction])["status"] == "0x1"
    (payee,) = net.network["payees"]
    assert spent(conversation) == chats.amount_atomic + completion.amount_atomic == opg_balance(net, payee)


def test_what_the_sdk_asked_in_batch_mode_is_in_a_merkle_batch_and_what_was_private_is_not(conversation):
    (batch,) = conversation.net.batches
    assert batch.size == len(["chat", "tools", "stream", "tools_stream", "completion"])
    written = conversation.net.chain.rpc("eth_getTransactionReceipt", [batch.transaction])
    assert written["status"] == "0x1"
    assert "0x" + batch.merkle_root.hex() in [topic for log in written["logs"] for topic in log["topics"]]
