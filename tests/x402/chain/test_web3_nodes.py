"""A user's own Web3 and AsyncWeb3 answer every question as the small node does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from web3 import AsyncHTTPProvider, AsyncWeb3, HTTPProvider, Web3
from web3.middleware import PythonicMiddleware
from web3.providers.persistent import WebSocketProvider
from websockets.asyncio.server import serve

from opengradient_x402.chain.node import alook_up, ask, look_up
from opengradient_x402.chain.questions import (
    allowance,
    balance_of,
    block,
    chain_time,
    logs,
    native_balance,
    receipt,
    transaction,
)
from opengradient_x402.chain.readers import ChainReader
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.chain.web3_nodes import web3_node
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError
from opengradient_x402.settlement.recognition import TRANSFER
from support.node import asked, serving
from support.payers import network_of
from support.settling import new_payer

ANYONE = "0x" + "12" * 20


def objects_of(url: str):
    spoiled = Web3(HTTPProvider(url))
    spoiled.middleware_onion.add(PythonicMiddleware)
    return {
        "Web3": Web3(HTTPProvider(url)),
        "Web3 with pythonic middleware": spoiled,
        "AsyncWeb3": AsyncWeb3(AsyncHTTPProvider(url)),
    }


KINDS = list(objects_of("http://127.0.0.1:1"))


@pytest.fixture(params=KINDS)
def node(request, net):
    web3 = objects_of(net.rpc_url)[request.param]
    node = web3_node(web3, net.chain.chain_id)
    yield node
    close(web3, node)


def questions_of(net, sent: str):
    asset = network_of(net).asset.address
    head = int(net.chain.rpc("eth_blockNumber", []), 16)
    return [
        lambda: balance_of(asset, ANYONE),
        lambda: allowance(asset, ANYONE, ANYONE),
        lambda: native_balance(ANYONE),
        lambda: block(head),
        lambda: logs(asset, [TRANSFER], from_block=max(0, head - 20), to_block=head),
        lambda: receipt(sent),
        lambda: transaction(sent),
        lambda: receipt("0x" + "00" * 32),
        lambda: transaction("0x" + "00" * 32),
    ]


async def test_every_question_has_the_answer_of_the_small_node(net, node):
    sent = net.chain.send(net.account(opg="1"), to=ANYONE, value=5)["transactionHash"]
    small = ChainReader(net.rpc_url, net.chain.chain_id)
    for question in questions_of(net, sent):
        expected = small.ask(question())
        assert look_up(ask(node, question())) == expected
        assert await alook_up(ask(node, question())) == expected
    assert abs(look_up(ask(node, chain_time())) - small.ask(chain_time())) < 60


def test_a_transaction_is_sent_and_awaited_through_it(net, node):
    payer = new_payer(net)
    call = send_transaction(payer.network, payer.signer, to=payer.network.asset.address, data=APPROVE, what="It")
    assert look_up(ask(node, call)).startswith("0x")
    assert look_up(ask(node, allowance(payer.network.asset.address, payer.account.address, ANYONE))) == 7


APPROVE = bytes.fromhex("095ea7b3" + ANYONE[2:].rjust(64, "0") + f"{7:064x}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "kind_of_error", "reason"),
    [
        ((200, {"jsonrpc": "2.0", "id": 0, "error": {"code": -32602, "message": "invalid params"}}), RpcError,
         "refused eth_getBalance: invalid params"),
        ((502, b"<html>bad gateway</html>"), ChainUnavailable, "did not answer eth_getBalance"),
        ((200, b"<html>"), ChainUnavailable, "did not answer eth_getBalance"),
        ((200, {"jsonrpc": "2.0", "id": 0, "result": None}), RpcError, "is not a number"),
    ],
    ids=["error", "502", "page", "null"],
)  # fmt: skip
def test_what_the_object_raises_becomes_an_error_of_ours(net, kind, answer, kind_of_error, reason):
    with serving(net.chain) as proxy:
        proxy.misbehave = lambda method, params, number: answer if method == "eth_getBalance" else None
        web3 = objects_of(proxy.url)[kind]
        if kind != "AsyncWeb3":
            web3.provider.exception_retry_configuration = None
        node = web3_node(web3, net.chain.chain_id)
        with pytest.raises(kind_of_error, match=reason):
            look_up(ask(node, native_balance(ANYONE)))
        close(web3, node)


def close(web3, node):
    if isinstance(web3, AsyncWeb3):  # what the loop of the node's own thread opened
        node._own_loop.begin(web3.provider.disconnect()).result(10)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_of_another_chain_is_refused_before_anything_is_asked(net, kind):
    web3 = objects_of(net.rpc_url)[kind]
    node = web3_node(web3, 8453)
    with pytest.raises(ConfigurationError, match=f"serves chain {net.chain.chain_id}, and"):
        look_up(ask(node, native_balance(ANYONE)))
    close(web3, node)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_whose_node_is_dead_is_an_error(kind):
    web3 = objects_of("http://127.0.0.1:1")[kind]
    node = web3_node(web3, 1, timeout_s=10)
    with pytest.raises(ChainUnavailable, match="did not answer eth_chainId"):
        look_up(ask(node, native_balance(ANYONE)))
    close(web3, node)


def test_what_is_no_web3_is_refused():
    with pytest.raises(ConfigurationError, match="`web3` is a str"):
        web3_node("https://mainnet.base.org", 8453)


async def test_a_websocket_is_asked_on_the_loop_that_it_belongs_to(net):
    async def relay(connection):
        async for message in connection:
            question = json.loads(message)
            answer = await asyncio.to_thread(net.chain.rpc, question["method"], question["params"])
            await connection.send(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": answer}))

    async with (
        serve(relay, "127.0.0.1", 0) as server,
        AsyncWeb3(WebSocketProvider(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as web3,
    ):
        node = web3_node(web3, net.chain.chain_id)
        expected = ChainReader(net.rpc_url, net.chain.chain_id).ask(native_balance(ANYONE))
        assert await alook_up(ask(node, native_balance(ANYONE))) == expected
        # A sync call from another thread is served by this loop, too.
        assert await asyncio.to_thread(lambda: look_up(ask(node, native_balance(ANYONE)))) == expected


def test_a_lasting_connection_without_its_loop_is_refused():
    with pytest.raises(ConfigurationError, match="belongs to one event loop"):
        web3_node(AsyncWeb3(WebSocketProvider("ws://127.0.0.1:1")), 1)


async def test_the_small_node_imports_nothing_of_web3(net):
    assert await asked(net.rpc_url, net.chain.chain_id, native_balance(ANYONE)) >= 0
    program = (
        "import sys; from opengradient_x402.chain.readers import ChainReader;"
        "import opengradient_x402.chain.questions as q, opengradient_x402.chain.web3_nodes;"
        f"ChainReader({net.rpc_url!r}, {net.chain.chain_id}).ask(q.native_balance({ANYONE!r}));"
        "print([m for m in ('web3', 'eth_account', 'eth_abi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
