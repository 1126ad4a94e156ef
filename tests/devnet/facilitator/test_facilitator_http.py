"""The facilitator over HTTP, as the official clients speak to it, and data settlement."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from eth_utils.crypto import keccak

from opengradient_devnet.chain.pyevm import PyEvmChain
from opengradient_devnet.contracts import RELAY, contract
from opengradient_devnet.facilitator.api import MAX_BODY_BYTES, facilitator_app
from opengradient_devnet.facilitator.data_settlement import leaf, parse_record
from opengradient_devnet.facilitator.facilitator import Facilitator
from support.chain_parties import funded_party, new_party, permit2_payment, requirements
from support.loopback_server import serving


@pytest.fixture(scope="module")
def chain():
    return PyEvmChain()


@pytest.fixture(scope="module")
def facilitator(chain):
    return Facilitator(chain, account=funded_party(chain, opg_atomic=0))


@pytest.fixture(scope="module")
def payer(chain):
    return funded_party(chain, approved=True)


@pytest.fixture(scope="module")
def client(facilitator):
    with serving(facilitator_app(facilitator)) as url, httpx.Client(base_url=url) as http:
        yield http


@pytest.fixture
def terms(chain, facilitator):
    return requirements(chain, payee=new_party().address, facilitator=facilitator.address)


def body(payment, terms):
    return {"x402Version": 2, "paymentPayload": payment, "paymentRequirements": terms}


def test_supported_names_schemes_network_and_signer(client, facilitator):
    answer = client.get("/supported").json()
    network = "eip155:31402"
    assert answer["kinds"] == [
        {
            "x402Version": 2,
            "scheme": "upto",
            "network": network,
            "extra": {"facilitatorAddress": facilitator.address},
        },
        {"x402Version": 2, "scheme": "exact", "network": network},
        {
            "x402Version": 2,
            "scheme": "batch-settlement",
            "network": network,
            "extra": {"receiverAuthorizer": facilitator.address},
        },
    ]
    assert answer["signers"] == {"eip155:*": [facilitator.address]}
    assert answer["extensions"] == ["eip2612GasSponsoring", "erc20ApprovalGasSponsoring"]


def test_verify_and_settle_answer_in_the_protocols_words(client, chain, payer, terms):
    payment = permit2_payment(chain, payer, terms)
    verified = client.post("/verify", json=body(payment, terms))
    assert (verified.status_code, verified.json()) == (200, {"isValid": True, "payer": payer.address})
    settled = client.post("/settle", json=body(payment, {**terms, "amount": "5"})).json()
    receipt = chain.rpc("eth_getTransactionReceipt", [settled["transaction"]])
    assert receipt["status"] == "0x1"
    assert settled == {
        "success": True,
        "payer": payer.address,
        "transaction": receipt["transactionHash"],
        "network": terms["network"],
        "amount": "5",
    }
    assert chain.token_balance(terms["payTo"]) == 5


def test_a_payment_that_fails_is_an_answer_and_not_an_http_error(client, chain, payer, terms):
    payment = permit2_payment(chain, payer, terms, deadline="5")
    verified = client.post("/verify", json=body(payment, terms))
    reason = "permit2_deadline_expired"
    assert verified.status_code == 200
    assert verified.json() == {"isValid": False, "invalidReason": reason, "payer": payer.address}
    settled = client.post("/settle", json=body(payment, terms))
    assert settled.status_code == 200
    assert settled.json() == {
        "success": False,
        "errorReason": reason,
        "payer": payer.address,
        "transaction": "",
        "network": terms["network"],
    }


@pytest.mark.parametrize("path", ["/verify", "/settle"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b'{"paymentPayload": 5, "paymentRequirements": 5}',
        b'{"paymentPayload": {"x402Version": 2, "accepted": {}, "payload": {}}, "paymentRequirements": {}}',
        b" " * (MAX_BODY_BYTES + 1),
    ],
)
def test_a_request_that_is_no_payment_gets_a_400_with_a_reason(client, path, content):
    answer = client.post(path, content=content)
    assert answer.status_code == 400
    said = answer.json()
    assert said["error"]
    reason = said["invalidReason"] if path == "/verify" else said["errorReason"]
    assert reason.startswith("invalid_")
    assert said.get("isValid", said.get("success")) is False


def test_an_old_protocol_version_gets_a_400(client, chain, payer, terms):
    payment = {**permit2_payment(chain, payer, terms), "x402Version": 1}
    answer = client.post("/verify", json=body(payment, terms))
    assert (answer.status_code, answer.json()["invalidReason"]) == (400, "invalid_x402_version")


# Data settlement

RECORD = {
    "inputHash": "0x" + keccak(text="input").hex(),
    "outputHash": "0x" + keccak(text="output").hex(),
    "teeSignature": base64.b64encode(b"s" * 256).decode(),
    "teeId": "0x" + keccak(text="tee").hex(),
    "timestamp": "1795000000",
    "ethAddress": "0x" + "AB" * 20,
    "input": {"prompt": "hello"},
    "output": "world",
}


def settle_data(client, kind, record):
    encoded = record if isinstance(record, str) else base64.b64encode(json.dumps(record).encode()).decode()
    headers = {"x-settlement-type": kind} | ({} if record is None else {"x-settlement-data": encoded})
    return client.post("/settle_data", headers=headers, json={})


def test_an_individual_record_is_put_on_chain_whole(client, chain):
    answer = settle_data(client, "individual", RECORD)
    assert answer.status_code == 202
    job = answer.json()["settlementJob"]
    assert (job["status"], job["settlementType"]) == ("succeeded", "individual")
    assert job["jobId"].startswith("settlement-")
    receipt = chain.rpc("eth_getTransactionReceipt", [job["result"]["transactionHash"]])
    (log,) = receipt["logs"]
    event = contract("Relay").decode_log(log)
    assert log["address"] == RELAY
    assert event["event"] == "IndividualSettlement"
    assert (event["teeId"], event["inputHash"]) == (keccak(text="tee"), keccak(text="input"))
    assert (event["outputHash"], event["signature"]) == (keccak(text="output"), b"s" * 256)
    assert (event["timestamp"], event["ethAddress"]) == (1795000000, RECORD["ethAddress"].lower())


def test_a_batch_entry_is_put_on_chain_as_a_batch_of_one(client, chain):
    job = settle_data(client, "batch", RECORD).json()["settlementJob"]
    receipt = chain.rpc("eth_getTransactionReceipt", [job["result"]["transactionHash"]])
    event = contract("Relay").decode_log(receipt["logs"][0])
    header = base64.b64encode(json.dumps(RECORD).encode()).decode()
    assert (event["event"], event["batchSize"]) == ("BatchSettlement", 1)
    assert event["merkleRoot"] == leaf(parse_record("batch", header))


def test_older_gateways_batch_without_enclave_and_time(client):
    older = {key: RECORD[key] for key in ("inputHash", "outputHash")} | {"teeSignature": "batch-signature-1"}
    assert settle_data(client, "batch", older).json()["settlementJob"]["status"] == "succeeded"


def test_a_private_call_leaves_nothing_on_chain(client, chain):
    before = len(chain.rpc("eth_getLogs", [{"fromBlock": "0x0", "address": RELAY}]))
    answer = settle_data(client, "private", None)
    assert (answer.status_code, answer.json()["settlementJob"]) == (202, None)
    assert len(chain.rpc("eth_getLogs", [{"fromBlock": "0x0", "address": RELAY}])) == before


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("", RECORD),
        ("weekly", RECORD),
        ("batch", None),
        ("batch", "not base64!"),
        ("batch", base64.b64encode(b"{").decode()),
        ("batch", base64.b64encode(b"[]").decode()),
        ("batch", RECORD | {"inputHash": "0x12"}),
        ("batch", RECORD | {"outputHash": 5}),
        ("batch", RECORD | {"teeSignature": None}),
        ("batch", RECORD | {"teeSignature": "0x" + "00" * 1025}),
        ("individual", RECORD | {"teeId": None}),
        ("individual", RECORD | {"timestamp": "-5"}),
        ("individual", RECORD | {"timestamp": True}),
        ("individual", RECORD | {"timestamp": 2**64}),
        ("individual", RECORD | {"ethAddress": "0x12"}),
        ("individual", {key: value for key, value in RECORD.items() if key != "input"}),
    ],
)
def test_a_data_settlement_that_is_none_gets_a_400_with_a_reason(client, kind, record):
    answer = settle_data(client, kind, record)
    assert answer.status_code == 400
    assert answer.json()["error"]
