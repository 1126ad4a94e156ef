"""Records of individual settlements: three public forms are read, and whatever contradicts the event is found."""

from __future__ import annotations

import base64
import json

import pytest

from opengradient_devnet.gateway.proofs.tee import output_hash, request_hash
from opengradient_x402.chain.contracts import IndividualSettlement
from opengradient_x402.chain.questions import Log
from opengradient_x402.proofs.blobs import differences

SIGNATURE = b"s" * 256
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "What is x402?"}], "temperature": 0.5}
TEXT = "A way to pay."
CALLS = [{"id": "c", "type": "function", "function": {"name": "pay", "arguments": "{}"}}]
HASHED, ANSWERED = request_hash(REQUEST), output_hash(text=TEXT, tool_calls=(), finish_reason="stop")
CALLED = output_hash(text="", tool_calls=CALLS, finish_reason="tool_calls")


def event(output=ANSWERED):
    return IndividualSettlement(
        tee_id="0x" + "33" * 32,
        payer="0x" + "44" * 20,
        input_hash=HASHED,
        output_hash=output,
        timestamp_s=5,
        blob_id="b",
        signature=SIGNATURE,
        log=Log(address="0x", topics=(), data=b"", block_number=1, block_hash="0x", tx_hash="0x", log_index=0),
    )


PLAIN = {
    "teeSignature": base64.b64encode(SIGNATURE).decode(),
    "teeId": "0x" + "33" * 32,
    "timestamp": 5,
    "ethAddress": "0x" + "44" * 20,
}
COMPLETION = {"choices": [{"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]}
FORMS = {
    "camelCase": PLAIN
    | {"input": REQUEST, "output": COMPLETION, "inputHash": "0x" + HASHED.hex(), "outputHash": "0x" + ANSWERED.hex()},
    "hashes inside output": {
        "input": REQUEST,
        "output": COMPLETION
        | {
            "tee_request_hash": HASHED.hex(),
            "tee_output_hash": ANSWERED.hex(),
            "tee_signature": PLAIN["teeSignature"],
            "tee_id": PLAIN["teeId"],
            "tee_timestamp": "5",
        },
        "eth_address": PLAIN["ethAddress"],
    },
    "older, without hashes": PLAIN | {"input": REQUEST, "output": {"content": TEXT}},
    "text as output": PLAIN | {"input": REQUEST, "output": TEXT},
    "signature as hex": PLAIN | {"teeSignature": "0x" + SIGNATURE.hex(), "input": {}, "output": {}},
}


@pytest.mark.parametrize("form", FORMS)
def test_public_forms_of_an_honest_record_agree_with_the_event(form):
    assert differences(json.dumps(FORMS[form]).encode(), event()) == []


def test_an_answer_of_tool_calls_is_hashed_as_such():
    message = {"role": "assistant", "content": "", "tool_calls": CALLS}
    record = PLAIN | {"input": REQUEST, "output": {"choices": [{"message": message, "finish_reason": "tool_calls"}]}}
    assert differences(json.dumps(record).encode(), event(CALLED)) == []
    record["output"]["choices"][0]["message"]["tool_calls"] = [CALLS[0] | {"id": "other"}]
    assert differences(json.dumps(record).encode(), event(CALLED)) == ["answer"]


WRONG = {
    "signature": {"teeSignature": base64.b64encode(b"t" * 256).decode()},
    "enclave": {"teeId": "0x" + "34" * 32},
    "time": {"timestamp": 6},
    "payer": {"ethAddress": "0x" + "45" * 20},
    "request hash": {"inputHash": "0x" + "00" * 32},
    "output hash": {"outputHash": "0x" + "00" * 32},
    "request": {"input": REQUEST | {"model": "a cheaper one"}},
    "answer": {"output": TEXT + "!"},
}


@pytest.mark.parametrize("part", WRONG)
def test_every_part_that_contradicts_the_event_is_named(part):
    assert differences(json.dumps(FORMS["camelCase"] | WRONG[part]).encode(), event()) == [part]


STRANGE = [
    b"",
    b"[]",
    b"null",
    b"{}",
    b"[" * 600,
    json.dumps(PLAIN | {"teeSignature": 7}).encode(),
    json.dumps(PLAIN | {"teeSignature": "***"}).encode(),
    json.dumps(PLAIN | {"timestamp": True}).encode(),
    json.dumps(PLAIN | {"timestamp": "later"}).encode(),
    json.dumps(PLAIN | {"input": {"messages": 7}}).encode(),
    json.dumps(PLAIN | {"input": {"messages": ["x"]}}).encode(),
    json.dumps(PLAIN | {"input": REQUEST | {"temperature": "hot"}}).encode(),
    json.dumps(PLAIN | {"output": {"choices": 7}}).encode(),
    json.dumps(PLAIN | {"output": {"choices": ["x"]}}).encode(),
    json.dumps(PLAIN | {"output": {"tool_calls": 7}}).encode(),
    json.dumps(PLAIN | {"output": "\ud800"}).encode(),
]


@pytest.mark.parametrize("content", STRANGE)
def test_a_strangers_json_is_refused_and_ends_nothing(content):
    with pytest.raises((ValueError, TypeError)):
        differences(content, event())
