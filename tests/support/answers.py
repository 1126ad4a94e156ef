"""Reading a gateway's answers in tests: events, text, tool calls, proofs."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from eth_utils.crypto import keccak

from opengradient_devnet.gateway.proofs.tee import Proof


def events_of(body: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, without [DONE]."""
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]


def answer_of(body: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Text, whole tool calls, and the object that carries proof and usage."""
    if not body.startswith("data:"):
        final = json.loads(body)
        message = final["choices"][0]["message"]
        return message["content"], message.get("tool_calls", []), final
    events = events_of(body)
    deltas = [event["choices"][0]["delta"] for event in events]
    text = "".join(delta.get("content", "") for delta in deltas)
    return text, [call for delta in deltas for call in delta.get("tool_calls", [])], events[-1]


def proof_of(final: dict[str, Any]) -> Proof:
    """The proof in a complete answer or a final event."""
    return Proof(
        tee_id=bytes.fromhex(final["tee_id"][2:]),
        request_hash=bytes.fromhex(final["tee_request_hash"]),
        output_hash=bytes.fromhex(final["tee_output_hash"]),
        timestamp_s=final["tee_timestamp"],
        signature=base64.b64decode(final["tee_signature"]),
    )


def verify_proof(proof: Proof, *, public_key_pem: str) -> bool:
    """Whether `proof` was signed by the key that its `tee_id` names (docs/wire.md, "TEE proof")."""
    key = serialization.load_pem_public_key(public_key_pem.encode())
    assert isinstance(key, rsa.RSAPublicKey)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = keccak(proof.request_hash + proof.output_hash + proof.timestamp_s.to_bytes(32, "big"))
    try:
        key.verify(proof.signature, digest, padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32), hashes.SHA256())
    except InvalidSignature:
        return False
    return keccak(der) == proof.tee_id
