"""Wrong TEE proofs, for clients to find out. The fault `ForgeProof` says which part is wrong."""

from __future__ import annotations

import dataclasses
from typing import Literal, assert_never

from eth_utils.crypto import keccak

from opengradient_devnet.faults import ForgeProof
from opengradient_devnet.gateway.proofs.tee import Enclave, Proof

_STALE_BY_S = 3600


def forge(proof: Proof, fault: ForgeProof, *, enclave: Enclave, earlier: Proof | None = None) -> Proof | None:
    """A proof that is wrong in the way that `fault` names; None when it is to be absent.

    `earlier` is the true proof of the call before, if there was one.
    """
    match fault.part:
        case "absent":
            return None
        case "key":
            return dataclasses.replace(_sign_again(proof, enclave=Enclave()), tee_id=proof.tee_id)
        case "signature":
            flipped = bytes([proof.signature[0] ^ 1]) + proof.signature[1:]
            return dataclasses.replace(proof, signature=flipped)
        case "timestamp":
            return dataclasses.replace(proof, timestamp_s=proof.timestamp_s + 1)
        case "replayed":
            return earlier or _of_no_call(proof, enclave=enclave)
        case "reused_signature":
            other = earlier or _of_no_call(proof, enclave=enclave)
            return dataclasses.replace(proof, signature=other.signature)
        case "stale" | "request_hash" | "output_hash":
            return _sign_again(_signed_content(proof, fault.part), enclave=enclave)
        case _:
            assert_never(fault.part)


def _signed_content(proof: Proof, part: Literal["stale", "request_hash", "output_hash"]) -> Proof:
    something_else = keccak(text="something else")
    match part:
        case "stale":
            return dataclasses.replace(proof, timestamp_s=proof.timestamp_s - _STALE_BY_S)
        case "request_hash":
            return dataclasses.replace(proof, request_hash=something_else)
        case "output_hash":
            return dataclasses.replace(proof, output_hash=something_else)


def _sign_again(proof: Proof, *, enclave: Enclave) -> Proof:
    return enclave.sign(request_hash=proof.request_hash, output_hash=proof.output_hash, timestamp_s=proof.timestamp_s)


def _of_no_call(proof: Proof, *, enclave: Enclave) -> Proof:
    nothing = keccak(b"")
    return _sign_again(dataclasses.replace(proof, request_hash=nothing, output_hash=nothing), enclave=enclave)
