"""What an enclave can say wrong about a call, or about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeProof:
    """Make the TEE proof wrong in one way.

    `key`: signed by a key that is not the enclave's. `signature`: one bit flipped. `timestamp`: another time
    than the signed one. `stale`: correctly signed, an hour ago. `request_hash`, `output_hash`: correctly
    signed, over something else. `replayed`: the whole proof of the call before, or of one that nobody made when
    there was none. `reused_signature`: this call's hashes under the signature of that other proof. `absent`: no
    proof at all.
    """

    part: Literal[
        "key",
        "signature",
        "timestamp",
        "stale",
        "request_hash",
        "output_hash",
        "replayed",
        "reused_signature",
        "absent",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddUnsigned:
    """Add members to the message of a whole answer after the enclave signed it (in streams: `RawEvent`)."""

    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeAttestation:
    """Make the attestation document wrong in one way.

    `root`: under a root of somebody else. `chain`: a certificate in between is not the signer's issuer. `signature`:
    one bit flipped. The others are signed as they should be: `nonce` answers another question, `stale` is an hour
    old, `debug` has the zero PCRs of debug mode, `image` another PCR0, and `certificate` and `key` bind other ones.
    """

    part: Literal["root", "chain", "signature", "nonce", "stale", "debug", "image", "certificate", "key"]
