"""The enclave's hashes and signatures, against what a real gateway signed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from eth_utils.crypto import keccak

from opengradient_devnet.faults import ForgeProof
from opengradient_devnet.gateway.proofs.forgery import forge
from opengradient_devnet.gateway.proofs.tee import (
    CanonicalStyle,
    Enclave,
    canonical_request,
    output_hash,
    request_hash,
)
from support.answers import answer_of, proof_of, verify_proof

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "gateway_responses.json").read_text())
CAPTURED = {response["name"]: response for response in VECTORS["responses"]}
PUBLIC_KEY = VECTORS["signing_key"]["public_key"]


@pytest.mark.parametrize("name", CAPTURED)
def test_hashes_of_a_captured_call_are_recomputed_from_what_was_asked_and_answered(name):
    text, tool_calls, final = answer_of(CAPTURED[name]["body"])
    finish_reason = final["choices"][0]["finish_reason"]

    assert request_hash(CAPTURED[name]["request"]).hex() == final["tee_request_hash"]
    answered = output_hash(text=text, tool_calls=tool_calls, finish_reason=finish_reason)
    assert answered.hex() == final["tee_output_hash"]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_signature_verifies_and_stops_doing_so_when_anything_is_changed(name):
    proof = proof_of(answer_of(CAPTURED[name]["body"])[2])

    assert verify_proof(proof, public_key_pem=PUBLIC_KEY)
    for changed in (
        dataclasses.replace(proof, timestamp_s=proof.timestamp_s + 1),
        dataclasses.replace(proof, request_hash=keccak(b"other")),
        dataclasses.replace(proof, output_hash=keccak(b"other")),
        dataclasses.replace(proof, tee_id=keccak(b"other")),
        dataclasses.replace(proof, signature=proof.signature[::-1]),
    ):
        assert not verify_proof(changed, public_key_pem=PUBLIC_KEY)


@pytest.mark.parametrize("name", CAPTURED)
def test_a_proof_is_written_in_the_members_and_order_of_the_captured_one(name):
    final = answer_of(CAPTURED[name]["body"])[2]
    written = proof_of(final).fields()

    assert written == {member: value for member, value in final.items() if member.startswith("tee_")}


def test_headers_of_an_individual_settlement_are_those_captured():
    captured = CAPTURED["individual"]
    headers = proof_of(json.loads(captured["body"])).headers()

    assert {name.lower(): value for name, value in headers.items()} == {
        name: value for name, value in captured["headers"].items() if name.startswith("x-tee-")
    }


def test_a_new_enclave_has_a_key_of_its_own_and_proves_with_it():
    one, other = Enclave(), Enclave()
    request = CAPTURED["plain"]["request"]
    proof = one.prove(request, text="4", tool_calls=[], finish_reason="stop", timestamp_s=1_795_000_000)

    assert one.tee_id != other.tee_id
    assert proof.tee_id == keccak(one.public_key_der)
    assert verify_proof(proof, public_key_pem=one.public_key_pem)
    assert not verify_proof(proof, public_key_pem=other.public_key_pem)


def test_user_parts_are_hashed_as_text_by_older_gateways_and_without_attachments_by_newer_ones():
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAA"}},
    ]
    request = {"model": "gpt-5", "messages": [{"role": "user", "content": parts}]}

    older = canonical_request(request, style=CanonicalStyle.STRINGIFIED)
    newer = canonical_request(request, style=CanonicalStyle.ATTACHMENTS_STRIPPED)

    assert older["messages"] == [{"role": "user", "content": str(parts)}]
    assert newer["messages"][0]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url"},
        {"type": "file", "filename": "a.pdf"},
    ]


def test_only_what_the_gateway_hashes_is_canonical():
    request = {
        "model": "gpt-5",
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": "ops"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c", "name": "f"},
        ],
        "temperature": 1,
        "top_p": 0.5,
        "stream": True,
        "web_search": True,
        "stop": None,
    }

    assert canonical_request(request) == {
        "model": "gpt-5",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ],
        "temperature": 1.0,
        "web_search": True,
    }


@pytest.mark.parametrize("part", ["key", "signature", "timestamp"])
def test_a_forged_signature_does_not_verify(part):
    enclave = Enclave()
    proof = enclave.sign(request_hash=keccak(b"q"), output_hash=keccak(b"a"), timestamp_s=1_795_000_000)
    forged = forge(proof, ForgeProof(part=part), enclave=enclave)

    assert forged is not None
    assert not verify_proof(forged, public_key_pem=enclave.public_key_pem)


@pytest.mark.parametrize("part", ["stale", "request_hash", "output_hash"])
def test_a_proof_of_something_else_is_signed_correctly(part):
    enclave = Enclave()
    proof = enclave.sign(request_hash=keccak(b"q"), output_hash=keccak(b"a"), timestamp_s=1_795_000_000)
    forged = forge(proof, ForgeProof(part=part), enclave=enclave)

    assert forged is not None
    assert verify_proof(forged, public_key_pem=enclave.public_key_pem)
    assert forged != proof
