"""Enclave proofs: those of a real gateway hold, and nothing else does."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from opengradient_devnet.gateway.proofs.tee import CanonicalStyle, canonical_request
from opengradient_x402.addresses import keccak256
from opengradient_x402.completions import StreamAccumulator, parse_completion
from opengradient_x402.gateway.answer import DONE, EventDecoder
from opengradient_x402.proofs.attestation import (
    TeeProof,
    Verdict,
    check_completion,
    check_proof,
    is_signed_by,
    request_hashes,
    tee_id,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "gateway_responses.json").read_text())
CAPTURED = VECTORS["responses"]
KEY = serialization.load_pem_public_key(VECTORS["signing_key"]["public_key"].encode()).public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)


def completion_of(response):
    if not response["request"].get("stream"):
        return parse_completion(json.loads(response["body"]))
    accumulator = StreamAccumulator()
    for payload in EventDecoder().feed(response["body"].encode()):
        if payload != DONE:
            accumulator.feed(json.loads(payload))
    return accumulator.finish()


@pytest.mark.parametrize("response", CAPTURED, ids=lambda r: r["name"])
def test_every_captured_response_of_a_real_gateway_verifies(response):
    completion = completion_of(response)
    verdict = check_completion(
        completion, request=response["request"], public_key_der=KEY, now_s=completion.raw["tee_timestamp"]
    )
    assert verdict is Verdict.VERIFIED


@pytest.mark.parametrize("response", CAPTURED, ids=lambda r: r["name"])
def test_any_bit_flip_in_the_signature_is_found(response):
    proof = TeeProof.from_fields(completion_of(response).raw)
    for position in range(0, len(proof.signature) * 8, 97):
        flipped = bytearray(proof.signature)
        flipped[position // 8] ^= 1 << position % 8
        assert not is_signed_by(replace(proof, signature=bytes(flipped)), KEY)
    assert not is_signed_by(replace(proof, timestamp_s=proof.timestamp_s + 1), KEY)


@pytest.mark.parametrize("response", CAPTURED, ids=lambda r: r["name"])
def test_another_request_or_another_answer_is_found(response):
    completion = completion_of(response)
    request = response["request"]

    def verdict(**changes):
        return check_completion(
            changes.get("completion", completion), request=changes.get("request", request), public_key_der=KEY
        )

    for change in (
        {"model": "gpt-5-mini"},
        {"temperature": 0.7},
        {"messages": [{"role": "user", "content": "Something else"}]},
        {"max_tokens": 51},
    ):
        assert verdict(request={**request, **change}) is Verdict.OTHER_REQUEST, change
    calls = tuple(replace(call, arguments='{"symbol": "BTC"}') for call in completion.tool_calls)
    tampered = replace(completion, served_text=completion.served_text + ".", tool_calls=calls)
    assert verdict(completion=tampered) is Verdict.OTHER_OUTPUT


@pytest.mark.parametrize("style", CanonicalStyle)
def test_what_some_gateways_leave_out_of_the_request_is_no_other_request(style):
    whole = {**CAPTURED[0]["request"], "max_tokens": 0, "web_search": True}
    for left_out in ((), ("max_tokens",), ("web_search",), ("max_tokens", "web_search")):
        hashed = {name: value for name, value in whole.items() if name not in left_out}
        digest = keccak256(json.dumps(canonical_request(hashed, style=style), sort_keys=True).encode())
        assert digest in request_hashes(whole), left_out
    never_asked = {name: value for name, value in whole.items() if name != "web_search"}
    searched = keccak256(json.dumps(canonical_request(whole, style=style), sort_keys=True).encode())
    assert searched not in request_hashes(never_asked)


def test_a_proof_of_another_enclave_is_found():
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    response = CAPTURED[0]
    assert (
        check_completion(completion_of(response), request=response["request"], public_key_der=other)
        is Verdict.WRONG_KEY
    )


def test_a_replayed_proof_is_stale_and_a_missing_or_mangled_one_is_said_so():
    response = CAPTURED[0]
    completion = completion_of(response)
    ask = {"request": response["request"], "public_key_der": KEY}
    late = completion.raw["tee_timestamp"] + 3600
    assert check_completion(completion, **ask, now_s=late) is Verdict.STALE
    assert check_completion(replace(completion, raw={}), **ask) is Verdict.ABSENT
    for mangled in (
        {"tee_signature": "***"},
        {"tee_id": "nobody"},
        {"tee_timestamp": -1},
        {"tee_timestamp": 2**256},
        {"tee_timestamp": float("inf")},
    ):
        answer = replace(completion, raw=completion.raw | mangled)
        assert check_completion(answer, **ask) is Verdict.MALFORMED, mangled
    assert check_completion(completion, request=ask["request"], public_key_der=None) is Verdict.UNKNOWN_KEY


def test_a_key_that_is_no_key_verifies_nothing():
    proof = TeeProof.from_fields(completion_of(CAPTURED[0]).raw)
    garbage = b"not a key"
    claimed = replace(proof, tee_id=tee_id(garbage))
    assert (
        check_proof(claimed, public_key_der=garbage, request={}, text="", tool_calls=(), finish_reason="stop")
        is Verdict.UNUSABLE_KEY
    )
    assert base64.b64encode(proof.signature)


def signed_with(key):
    """A proof by this key over one request and answer, checked with it."""
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    proof = TeeProof(
        tee_id=tee_id(der),
        signature=b"",
        request_hash=request_hashes(request)[0],
        output_hash=keccak256(b"yes"),
        timestamp_s=1,
    )
    signature = b"no RSA signature"
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = key.sign(proof.digest(), pss, hashes.SHA256())
    proof = replace(proof, signature=signature)
    verdict = check_proof(proof, public_key_der=der, request=request, text="yes", tool_calls=(), finish_reason="stop")
    return verdict, is_signed_by(proof, der)


def test_keys_of_at_least_2048_bits_count_and_others_are_a_verdict():
    assert signed_with(rsa.generate_private_key(65537, 2048)) == (Verdict.VERIFIED, True)
    assert signed_with(rsa.generate_private_key(65537, 1024)) == (Verdict.UNUSABLE_KEY, False)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_keys_of_other_kinds_are_a_verdict(key):
    assert signed_with(key) == (Verdict.UNUSABLE_KEY, False)
