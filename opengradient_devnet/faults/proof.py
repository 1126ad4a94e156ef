"""What an enclave can say wrong about a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
