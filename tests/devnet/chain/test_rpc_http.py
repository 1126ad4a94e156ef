"""JSON-RPC over HTTP: the envelope, and web3.py doing its everyday work through it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from web3 import Web3
from web3.exceptions import ContractCustomError, ContractLogicError, TransactionNotFound

from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.chain.rpc import rpc_app
from opengradient_devnet.contracts import OPG, UPTO_PROXY, contract
from support.chain_parties import funded_party, new_party
from support.loopback_server import serving

TOKEN = contract("OPG")


@pytest.fixture(scope="module")
def chain():
    return PyEvmChain()


@pytest.fixture(scope="module")
def url(chain):
    with serving(rpc_app(chain)) as base_url:
        yield base_url


@pytest.fixture
def post(url):
    with httpx.Client(base_url=url) as client:
        yield lambda body: client.post("/rpc", content=body)


@pytest.fixture
def w3(url):
    provider = Web3.HTTPProvider(url)
    try:
        yield Web3(provider)
    finally:
        provider._request_session_manager.session_cache.clear()


def request(method, *params, request_id=1):
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": list(params)}


def test_a_call_is_answered_with_its_id(url):
    answer = httpx.post(url, json=request("eth_chainId", request_id="seven"))
    assert answer.json() == {"jsonrpc": "2.0", "id": "seven", "result": hex(31402)}
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("eth_unheardOf", [], -32601),
        ("__class__", [], -32601),
        ("eth_getBalance", [], -32602),
        ("eth_getBalance", ["0x12"], -32602),
        ("eth_getBalance", [OPG, "soon"], -32602),
        ("eth_getBalance", [OPG, "latest", 1], -32602),
        ("eth_getBalance", [OPG, hex(10**9)], -32000),
        ("eth_call", ["x"], -32602),
        ("eth_call", [{"to": OPG, "data": "0xz"}], -32602),
        ("eth_call", [{"to": OPG, "value": "-0x1"}], -32602),
        ("eth_call", [{"to": OPG}, "latest", {OPG: 5}], -32602),
        ("eth_sendRawTransaction", ["hello"], -32602),
        ("eth_getTransactionReceipt", ["0x12"], -32602),
        ("eth_getLogs", [[]], -32602),
        ("eth_getLogs", [{"topics": "x"}], -32602),
        ("eth_getLogs", [{"topics": ["0x12"]}], -32602),
        ("eth_getLogs", [{"blockHash": "0x" + "00" * 32}], -32000),
        ("eth_getLogs", [{"blockHash": "0x" + "00" * 32, "fromBlock": "0x0"}], -32602),
        ("eth_getStorageAt", [OPG, "0x" + "1" * 65], -32602),
        ("eth_feeHistory", ["x", "latest"], -32602),
    ],
)
def test_what_is_wrong_with_a_call_is_said_by_its_code(url, method, params, code):
    answer = httpx.post(url, json=request(method, *params)).json()
    assert answer["error"]["code"] == code
    assert answer["id"] == 1
    assert "result" not in answer


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"", -32700),
        (b"\xff", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"5", -32600),
        (b'{"id": 1}', -32600),
        (b'{"id": 1, "method": 5}', -32600),
        (b'{"id": 1, "method": "eth_chainId", "params": {"a": 1}}', -32602),
    ],
)
def test_a_body_that_is_no_request_is_answered_in_json(post, body, code):
    answer = post(body)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == code


def test_a_batch_is_answered_call_by_call_and_notifications_are_not_answered(url):
    batch = [
        request("eth_chainId", request_id=1),
        request("eth_unheardOf", request_id=2),
        {"jsonrpc": "2.0", "method": "eth_chainId", "params": []},
        5,
        request("net_version", request_id=3),
    ]
    answers = httpx.post(url, json=batch).json()
    assert [answer["id"] for answer in answers] == [1, 2, None, 3]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32601, -32600, None]
    silent = httpx.post(url, json=[{"jsonrpc": "2.0", "method": "eth_chainId"}])
    assert (silent.status_code, silent.content) == (204, b"")


def test_everything_but_post_is_refused_and_no_browser_may_read_an_answer(url):
    for method in ("GET", "OPTIONS", "PUT"):
        refused = httpx.request(method, url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, -32600)
    for response in (refused, httpx.post(url, json=request("eth_chainId"))):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_web3_sends_waits_reads_events_and_balances(chain, w3):
    party, receiver = funded_party(chain), new_party().address
    token = w3.eth.contract(OPG, abi=TOKEN.abi)
    transaction = token.functions.transfer(receiver, 5).build_transaction(
        {"from": party.address, "nonce": w3.eth.get_transaction_count(party.address)}
    )
    assert transaction["maxFeePerGas"] > 0
    signed = w3.eth.account.sign_transaction(transaction, party.private_key)
    tx_hash = w3.eth.send_raw_transaction(signed.raw_transaction)
    receipt = w3.eth.wait_for_transaction_receipt(tx_hash)
    assert (receipt["status"], receipt["type"]) == (1, 2)
    (event,) = token.events.Transfer().process_receipt(receipt)
    assert event["args"] == {"from": party.address, "to": receiver, "value": 5}
    assert token.functions.balanceOf(receiver).call() == 5
    block = receipt["blockNumber"]
    assert token.functions.balanceOf(receiver).call(block_identifier=block - 1) == 0
    (found,) = token.events.Transfer().get_logs(from_block=block, argument_filters={"to": receiver})
    assert found["transactionHash"] == tx_hash
    assert w3.eth.get_transaction(tx_hash)["from"] == party.address
    whole = w3.eth.get_block(block, full_transactions=True)
    assert whole["transactions"][0]["hash"] == tx_hash
    assert w3.eth.fee_history(2, "latest", [50])["baseFeePerGas"]
    assert w3.eth.max_priority_fee >= 0
    assert w3.is_connected()


def test_web3_recovers_the_sender_of_every_transaction_it_reads(chain, w3):
    party = funded_party(chain)
    receipt = chain.send(party, to=OPG, data=TOKEN.encode("approve", OPG, 1))
    raw = w3.eth.get_transaction(receipt["transactionHash"])
    assert raw["yParity"] in (0, 1)
    assert raw["chainId"] == 31402
    assert raw["maxFeePerGas"] >= raw["gasPrice"] >= raw["maxPriorityFeePerGas"]


def test_web3_sees_reverts_as_its_own_errors_with_their_data(chain, w3):
    token = w3.eth.contract(OPG, abi=TOKEN.abi)
    with pytest.raises(ContractLogicError, match="transfer amount exceeds balance"):
        token.functions.transfer(OPG, 1).call({"from": new_party().address})
    proxy = w3.eth.contract(UPTO_PROXY, abi=contract("UptoProxy").abi)
    permit = ((OPG, 1), 1, 1)
    with pytest.raises(ContractCustomError) as reverted:
        proxy.functions.settle(permit, 2, OPG, (OPG, OPG, 0), b"").call()
    assert reverted.value.data == "0xfe64b4c7"
    with pytest.raises(TransactionNotFound):
        w3.eth.get_transaction_receipt("0x" + "12" * 32)


def test_web3_batches_are_one_http_request(w3):
    with w3.batch_requests() as batch:
        batch.add(w3.eth.get_block("latest"))
        batch.add(w3.eth.get_block(0))
        newest, genesis = batch.execute()
    assert genesis["number"] == 0
    assert newest["number"] >= 0


def test_many_clients_at_once_are_served(chain, url):
    party = funded_party(chain)
    data = "0x" + TOKEN.encode("balanceOf", party.address).hex()

    def ask(_):
        return httpx.post(url, json=request("eth_call", {"to": OPG, "data": data}, "latest")).json()["result"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(40)))
    assert {int(answer, 16) for answer in answers} == {100 * 10**18}
