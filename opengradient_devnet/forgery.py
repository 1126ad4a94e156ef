"""Wrong TEE proofs, for clients to find out.

It does not know when a proof is to be forged.
"""

from __future__ import annotations

import dataclasses

from eth_utils.crypto import keccak

from opengradient_devnet.faults import ForgeProof
from opengradient_devnet.tee import Enclave, Proof

_STALE_BY_S = 3600


def forge(proof: Proof, fault: ForgeProof, *, enclave: Enclave) -> Proof | None:
    """A proof that is wrong in the way that `fault` names; None when it is to be absent."""
    something_else = keccak(text="something else")
    match fault.part:
        case "key":
            impostor = Enclave().sign(
                request_hash=proof.request_hash, output_hash=proof.output_hash, timestamp_s=proof.timestamp_s
            )
            return dataclasses.replace(impostor, tee_id=proof.tee_id)
        case "signature":
            flipped = bytes([proof.signature[0] ^ 1]) + proof.signature[1:]
            return dataclasses.replace(proof, signature=flipped)
        case "timestamp":
            return dataclasses.replace(proof, timestamp_s=proof.timestamp_s + 1)
        case "stale":
            return enclave.sign(
                request_hash=proof.request_hash,
                output_hash=proof.output_hash,
                timestamp_s=proof.timestamp_s - _STALE_BY_S,
            )
        case "request_hash":
            return enclave.sign(
                request_hash=something_else, output_hash=proof.output_hash, timestamp_s=proof.timestamp_s
            )
        case "output_hash":
            return enclave.sign(
                request_hash=proof.request_hash, output_hash=something_else, timestamp_s=proof.timestamp_s
            )
        case "absent":
            return None
