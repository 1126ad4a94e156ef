"""A node that fails, as public ones do: behind, limited, null, cut, dripping. The devnet itself is not fooled."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.contracts import MULTICALL3, OPG, contract
from opengradient_devnet.faults import LagNode, NodeCut, NodeDrip, NodeError, NodeNull, NodeStatus
from support.payer import Payer

TOKEN = contract("OPG")
BLOCK_NUMBER = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}


@pytest.fixture
def client(net):
    with httpx.Client(base_url=net.gateway_url, trust_env=False, timeout=20) as client:
        yield client


def ask(client: httpx.Client, method: str, *params) -> dict:
    return client.post("/rpc", json={**BLOCK_NUMBER, "method": method, "params": list(params)}).json()


def result(client: httpx.Client, method: str, *params):
    answer = ask(client, method, *params)
    assert "error" not in answer, answer
    return answer["result"]


# --- behind ---------------------------------------------------------------------------------------------------


def test_node_that_is_behind_shows_heads_states_receipts_and_logs_of_then(net, client):
    account = net.account(opg="1", approved=True)
    balance_of = {"to": OPG, "data": "0x" + TOKEN.encode("balanceOf", account.address).hex()}
    for _ in range(8):
        net.chain.rpc("evm_mine", [])
    receipt = net.chain.send(account, to=OPG, data=TOKEN.encode("transfer", OPG, 5))
    tx_hash, block = receipt["transactionHash"], int(receipt["blockNumber"], 16)
    transfers = {"address": OPG, "fromBlock": hex(block), "topics": [TOKEN.topic("Transfer")]}
    told = {
        "balance": int(result(client, "eth_call", balance_of, "latest"), 16),
        "nonce": int(result(client, "eth_getTransactionCount", account.address, "latest"), 16),
    }

    net.faults.inject(LagNode(blocks=net_depth(net, block)), times=None)
    assert int(result(client, "eth_blockNumber"), 16) < block
    assert int(result(client, "eth_getBlockByNumber", "latest", False)["number"], 16) < block
    assert result(client, "eth_getBlockByNumber", hex(block), False) is None
    assert result(client, "eth_getTransactionReceipt", tx_hash) is None
    assert result(client, "eth_getTransactionByHash", tx_hash) is None
    assert result(client, "eth_getBlockByHash", receipt["blockHash"], False) is None
    assert result(client, "eth_getLogs", transfers) == []
    assert result(client, "eth_getLogs", {**transfers, "fromBlock": "0x0", "toBlock": hex(block + 9)})
    assert "error" in ask(client, "eth_getLogs", {"blockHash": receipt["blockHash"]})
    assert ask(client, "eth_call", balance_of, hex(block))["error"]["message"] == "header not found"
    assert int(result(client, "eth_call", balance_of), 16) == told["balance"] + 5 == 10**18
    assert int(result(client, "eth_getTransactionCount", account.address, "pending"), 16) == told["nonce"] - 1

    assert net.chain.token_balance(account.address) == told["balance"], "the devnet itself is up to date"
    net.faults.clear()
    assert result(client, "eth_getTransactionReceipt", tx_hash)["status"] == "0x1"
    assert len(result(client, "eth_getLogs", transfers)) == 1


def net_depth(net: Devnet, block: int) -> int:
    """How far a node must be behind not to have seen `block`; a few more, because idle chains tick on."""
    return int(net.chain.rpc("eth_blockNumber", []), 16) - block + 4


@pytest.mark.parametrize("blocks", [0, 6])
def test_block_of_a_multicall_is_the_head_that_the_node_shows(net, client, blocks):
    for _ in range(8):
        net.chain.rpc("evm_mine", [])
    net.faults.inject(LagNode(blocks=blocks), times=None)
    function = contract("Multicall3").encode("tryBlockAndAggregate", False, [])
    before = int(result(client, "eth_blockNumber"), 16)
    seen = int(result(client, "eth_call", {"to": MULTICALL3, "data": "0x" + function.hex()}, "latest")[2:66], 16)
    after = int(result(client, "eth_blockNumber"), 16)

    assert before <= seen <= after + (blocks == 0), "at the head itself a call runs in the block to come"


def test_only_the_method_that_is_named_is_behind(net, client):
    net.faults.inject(LagNode(blocks=3, method="eth_getBlockByNumber"), times=None)
    number = int(result(client, "eth_blockNumber"), 16)

    assert int(result(client, "eth_getBlockByNumber", "latest", False)["number"], 16) in (number - 3, number - 2)


def test_node_further_behind_than_the_chain_is_long_shows_the_genesis(net, client):
    net.faults.inject(LagNode(blocks=10**6), times=None)

    assert result(client, "eth_blockNumber") == "0x0"
    assert result(client, "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"}) == []


def test_payment_goes_through_while_the_node_is_behind(net, client):
    net.faults.inject(LagNode(blocks=5), times=None)
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        assert payer.chat().status_code == 200


# --- broken ---------------------------------------------------------------------------------------------------


def test_node_can_limit_or_answer_with_a_page(net, client):
    net.faults.inject(NodeStatus(status=429, retry_after_s=3))
    limited = client.post("/rpc", json=BLOCK_NUMBER)
    net.faults.inject(NodeStatus(status=200, body="<html>Sign in</html>"))
    page = client.post("/rpc", json=BLOCK_NUMBER)

    assert (limited.status_code, limited.headers["retry-after"]) == (429, "3")
    assert (page.status_code, page.headers["content-type"], page.text) == (200, "text/html", "<html>Sign in</html>")
    assert "result" in client.post("/rpc", json=BLOCK_NUMBER).json()


def test_node_can_answer_null_or_with_an_error_about_one_method(net, client):
    net.faults.inject(NodeNull(method="eth_gasPrice"))
    net.faults.inject(NodeError(code=-32005, message="limit exceeded", has_null_result=True, method="eth_getLogs"))
    batch = [
        {**BLOCK_NUMBER, "id": number, "method": method, "params": [{}] if method == "eth_getLogs" else []}
        for number, method in enumerate(["eth_blockNumber", "eth_gasPrice", "eth_getLogs", "eth_gasPrice"])
    ]
    first, second, third, fourth = client.post("/rpc", json=batch).json()

    assert first["result"]
    assert second == {"jsonrpc": "2.0", "id": 1, "result": None}
    assert third["error"] == {"code": -32005, "message": "limit exceeded"}
    assert third["result"] is None
    assert fourth["result"]
    assert len(net.faults.struck) >= 2


def test_node_can_cut_its_json_or_its_connection(net, client):
    net.faults.inject(NodeCut(method="eth_blockNumber"))
    half = client.post("/rpc", json=BLOCK_NUMBER)
    with pytest.raises(json.JSONDecodeError):
        half.json()

    net.faults.inject(NodeCut(cuts_connection=True))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/rpc", json=BLOCK_NUMBER)
    assert client.post("/rpc", json=BLOCK_NUMBER).json()["result"]


def test_node_can_drip(net, client):
    net.faults.inject(NodeDrip(pace_s=0.01))
    begun = time.monotonic()
    answer = client.post("/rpc", json=BLOCK_NUMBER)

    assert answer.json()["result"]
    assert time.monotonic() - begun > 0.01 * (len(answer.content) - 1)
