from __future__ import annotations

import secrets
import tracemalloc

import pytest
from eth_account import Account as EthAccount
from hypothesis import given
from hypothesis import strategies as st

from opengradient_devnet import Devnet
from opengradient_x402.chain.questions import (
    Block,
    ChainReader,
    RpcRequest,
    block,
    block_before,
    chain_time,
    logs,
    native_balance,
    receipt,
    transaction,
)
from opengradient_x402.chain.transactions import UnsignedTransaction, sign_transaction
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, RpcError
from opengradient_x402.keys.signer import LocalSigner
from support.node import asked, serving

ANYONE = "0x" + "12" * 20


@pytest.fixture
def node(net: Devnet):
    with serving(net.chain) as serving_node:
        yield serving_node


def reader(node, net) -> ChainReader:
    return ChainReader(node.url, int(net.chain.chain_id))


def answered(question, answer):
    """Drive a question without a node: `answer` maps a request to its result, or to an exception to throw."""
    try:
        request = next(question)
        while True:
            result = answer(request)
            request = question.throw(result) if isinstance(result, Exception) else question.send(result)
    except StopIteration as stop:
        return stop.value


def test_a_node_of_another_chain_is_refused_before_anything_is_asked(net, node):
    with pytest.raises(ConfigurationError, match=f"serves chain {net.chain.chain_id}, and the network is chain 8453"):
        ChainReader(node.url, 8453).ask(native_balance(ANYONE))
    assert [method for method, _ in node.requests] == ["eth_chainId"]


def test_the_chain_is_checked_once(net, node):
    chain = reader(node, net)
    chain.ask(native_balance(ANYONE))
    chain.ask(native_balance(ANYONE))
    assert node.count("eth_chainId") == 1


@pytest.mark.parametrize(
    "answer",
    [
        (429, {}),
        (503, b""),
        (502, b"<html>bad gateway</html>"),
        (200, {"error": {"code": -32005, "message": "limit exceeded"}}),
        (200, {"error": {"code": -32016, "message": "over rate limit"}}),
        (200, {"error": {"code": 1, "message": "Too Many Requests, slow down"}}),
        (200, {"error": {"code": -32000, "message": "project ID request rate exceeded"}}),
        (200, {"error": {"code": -32000, "message": "Your app has exceeded its compute units per second capacity."}}),
        (200, {"error": {"code": -32011, "message": "no backend is currently healthy to serve traffic"}}),
        (200, {"error": {"code": -32005, "message": "more than 10 requests per second"}}),
        (200, {"error": {"code": 15, "message": "Too many request, try again later"}}),
        (402, {"error": {"code": -32001, "message": "Exceeded the quota usage"}}),
    ],
    ids=range(12),
)
def test_a_node_that_is_busy_is_asked_again(net, node, answer):
    node.misbehave = lambda method, params, number: answer if number == 2 else None
    assert reader(node, net).ask(native_balance(ANYONE)) == 0
    assert node.count("eth_getBalance") == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, {"error": {"code": -32602, "message": "invalid params"}}), "refused eth_getBalance: invalid params"),
        ((200, {"error": "no"}), "not JSON-RPC 2.0 .HTTP 200"),
        ((200, {"result": "0x1", "error": None}), "not JSON-RPC 2.0"),
        ((200, {"result": "0x1", "id": 99}), "not JSON-RPC 2.0"),
        ((200, {"result": "0x1", "jsonrpc": "1.0"}), "not JSON-RPC 2.0"),
        ((200, {"result": "1"}), "is not a number"),
        ((200, {"result": "-0x1"}), "is not a number"),
        ((404, b"not found"), "HTTP 404"),
        ((401, {}), "HTTP 401"),
        ((200, b"<html>"), "HTTP 200"),
        ((200, b"[" * 5000), "HTTP 200"),
        ((200, [1]), "HTTP 200"),
        ((200, {"result": None}), "is not a number"),
        ((200, {"result": "zero"}), "is not a number"),
        ((200, {"result": {"a": 1}}), "is not a number"),
    ],
    ids=range(15),
)
def test_a_node_that_answers_nonsense_is_an_error_and_not_asked_again(net, node, answer, reason):
    node.misbehave = lambda method, params, number: answer if number > 1 else None
    with pytest.raises(RpcError, match=reason):
        reader(node, net).ask(native_balance(ANYONE))
    assert node.count("eth_getBalance") == 1


async def test_coroutines_are_told_the_same(net, node):
    node.misbehave = lambda method, params, number: (429, {}) if number == 2 else None
    assert await asked(node.url, net.chain.chain_id, native_balance(ANYONE)) == 0
    assert node.count("eth_getBalance") == 2
    with pytest.raises(ChainUnavailable, match="ConnectError"):
        await asked("http://127.0.0.1:1", 1, native_balance(ANYONE))


def test_a_node_that_is_not_there_is_an_error_without_the_key_in_its_url():
    with pytest.raises(ChainUnavailable) as caught:
        ChainReader("http://user:hunter2@127.0.0.1:1/v3/apikey", 1).ask(native_balance(ANYONE))
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "apikey" not in str(caught.value)


def test_a_question_that_is_too_slow_is_an_error_and_not_repeated(net):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        chain = ChainReader(f"http://127.0.0.1:{silent.getsockname()[1]}", 1, timeout_s=0.1)
        with pytest.raises(RpcError, match=r"no whole answer in 0\.1 s"):
            chain.ask(native_balance(ANYONE))


def test_blocks_transactions_and_receipts_are_read(net, node):
    tx_hash = net.chain.send(net.account(opg="0"), to=ANYONE, value=5)["transactionHash"]
    with reader(node, net) as chain:
        done = chain.ask(receipt(tx_hash))
        assert done is not None
        assert done.is_success
        assert done.tx_hash == tx_hash
        mined = chain.ask(block(done.block_number))
        assert (mined.number, mined.hash) == (done.block_number, done.block_hash)
        assert mined.timestamp_s <= chain.ask(chain_time())
        found = chain.ask(transaction(tx_hash))
        assert found is not None
        assert found.input == b""
        assert chain.ask(receipt("0x" + "00" * 32)) is None
        assert chain.ask(transaction("0x" + "00" * 32)) is None
        with pytest.raises(RpcError, match="is not a block"):
            chain.ask(block(10**9))


def test_the_time_of_the_last_block_will_do_where_the_evm_cannot_be_asked(net, node):
    node.misbehave = lambda method, params, number: (
        (200, {"error": {"code": -32000, "message": "no creation calls"}}) if method == "eth_call" else None
    )
    head = net.chain.rpc("eth_getBlockByNumber", ["latest", False])
    assert reader(node, net).ask(chain_time()) == int(head["timestamp"], 16)


@given(
    gaps=st.lists(st.integers(0, 12), min_size=1, max_size=2000),
    wanted=st.integers(-10, 30_000),
)
def test_the_block_before_a_time_is_older_than_it_and_near(gaps, wanted):
    times, now = [], 0
    for gap in gaps:
        times.append(now := now + gap)

    def answer(request: RpcRequest):
        number = int(request.params[0], 16)
        return {"number": hex(number), "hash": "0x" + "00" * 32, "timestamp": hex(times[number])}

    head = Block(number=len(times) - 1, hash="0x0", timestamp_s=times[-1])
    found = answered(block_before(wanted, head=head), answer)
    first_not_older = next((i for i, time_s in enumerate(times) if time_s >= wanted), len(times))
    assert found == 0 or times[found] < wanted
    assert first_not_older - found <= 64 or found >= head.number - 64


def log_entry(number: int) -> dict[str, object]:
    word = "0x" + "00" * 32
    return {
        "address": ANYONE,
        "topics": [word],
        "data": "0x",
        "blockNumber": hex(number),
        "blockHash": word,
        "transactionHash": word,
        "logIndex": "0x0",
    }


@given(
    first=st.integers(0, 100),
    length=st.integers(0, 20_000),
    limit=st.integers(40, 5000),
    events=st.sets(st.integers(0, 20_000), max_size=20),
)
def test_every_log_of_a_range_is_read_once_whatever_the_node_refuses(first, length, limit, events):
    asked = []

    def answer(request: RpcRequest):
        (query,) = request.params
        start, end = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        asked.append((start, end))
        assert len(asked) < 3 * (length // limit + 20)
        if end - start + 1 > limit:
            return RpcError("range too large")
        return [log_entry(number) for number in sorted(events) if start <= number <= end]

    found = answered(logs(ANYONE, [None], from_block=first, to_block=first + length, window=2000), answer)
    assert [log.block_number for log in found] == sorted(n for n in events if first <= n <= first + length)


def test_a_node_that_refuses_even_one_block_stops_the_scan():
    refusals = []

    def answer(request: RpcRequest):
        refusals.append(request)
        return RpcError("no logs here")

    with pytest.raises(RpcError, match="no logs here"):
        answered(logs(ANYONE, [None], from_block=0, to_block=10_000), answer)
    assert len(refusals) < 15


def test_malformed_logs_are_an_error():
    with pytest.raises(RpcError, match="is not a list of logs"):
        answered(logs(ANYONE, [None], from_block=0, to_block=1), lambda request: [{"address": None}])


def test_numbers_that_no_chain_has_are_an_error():
    huge = "0x" + "f" * 64
    shown = {"number": "0x1", "hash": huge, "timestamp": "0x1"}
    for member in ("number", "timestamp"):
        with pytest.raises(RpcError, match="is not a block"):
            answered(block(), lambda request, member=member: shown | {member: huge})
    log = {"address": ANYONE, "topics": [], "data": "0x", "transactionHash": huge, "blockHash": huge, "logIndex": "0x0"}
    done = {"transactionHash": huge, "blockNumber": huge, "blockHash": huge, "status": "0x1"}
    with pytest.raises(RpcError, match="is not a receipt of this transaction"):
        answered(receipt(huge), lambda request: done | {"logs": [log | {"blockNumber": huge}]})


def test_an_answer_of_millions_of_members_is_refused_before_it_fills_the_memory(net, node):
    chain = reader(node, net)
    chain.ask(native_balance(ANYONE))
    node.misbehave = lambda *_: (200, b'{"jsonrpc": "2.0", "id": 2, "result": [' + b"{}," * 8_000_000 + b"{}]}")
    tracemalloc.start()
    with pytest.raises(RpcError, match="not JSON-RPC"):
        chain.ask(native_balance(ANYONE))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 * 1024 * 1024


@pytest.mark.parametrize("data", [b"", b"\x01", secrets.token_bytes(300)])
def test_transactions_are_byte_identical_to_eth_account(data):
    key = "0x" + "42" * 32
    unsigned = UnsignedTransaction(
        chain_id=8453,
        nonce=0,
        max_priority_fee_wei=10**6,
        max_fee_wei=10**9,
        gas=60_000,
        to="0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
        data=data,
        value_wei=1,
    )
    signed = sign_transaction(unsigned, signer=LocalSigner(key))
    theirs = EthAccount.sign_transaction(
        {
            "type": 2,
            "chainId": 8453,
            "nonce": 0,
            "maxPriorityFeePerGas": 10**6,
            "maxFeePerGas": 10**9,
            "gas": 60_000,
            "to": unsigned.to,
            "data": data,
            "value": 1,
        },
        key,
    )
    assert signed.raw == bytes(theirs.raw_transaction)
    assert signed.tx_hash == "0x" + bytes(theirs.hash).hex()
