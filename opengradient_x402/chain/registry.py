"""OpenGradient's on-chain registry of enclaves: which ones serve, how to reach them, whom to pay, which keys they hold.

Questions for a chain reader, and what they answer. Decides nothing: which of these to trust is `endpoints`'
and the policy's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from opengradient_x402.addresses import checksum_address, keccak256
from opengradient_x402.chain.node import Question, RpcRequest
from opengradient_x402.chain.tee_abi import (
    GET_ACTIVE_TEES,
    GET_TEE,
    TeeFields,
    decode_tee,
    decode_tees,
    hex_bytes,
)
from opengradient_x402.errors import RpcError

LLM_PROXY: Final = 0
"""The type of enclaves that serve language models (docs/wire.md, "Registry")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredTee:
    """One enclave as the registry describes it. Keys and certificates are DER, times are Unix seconds.

    `id` is `0x` and the keccak256 of the public key, the `tee_id` of its signatures. `pcr_hash` (0x-hex) stands
    for the image that it was measured to run.
    """

    id: str
    owner: str
    payment_address: str
    endpoint: str
    public_key_der: bytes = field(repr=False)
    certificate_der: bytes = field(repr=False)
    pcr_hash: str
    tee_type: int
    is_enabled: bool
    registered_at: int
    last_heartbeat_at: int


def active_tees(registry: str, *, tee_type: int = LLM_PROXY) -> Question[tuple[RegisteredTee, ...]]:
    """The enclaves that the registry calls active. Raises RpcError for an answer that cannot be read."""
    answer = yield from _called(registry, GET_ACTIVE_TEES, tee_type.to_bytes(32, "big"))
    try:
        return tuple(_registered(fields) for fields in decode_tees(answer))
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc


def registered_tee(registry: str, tee_id: str) -> Question[RegisteredTee | None]:
    """One enclave by its id, active or not; None when the registry does not know it.

    This is the key to check an old proof with: it stays registered after the enclave has stopped.
    """
    try:
        answer = yield from _called(registry, GET_TEE, hex_bytes(tee_id).rjust(32, b"\0"))
    except RpcError as exc:
        if exc.data is not None or "revert" in str(exc):
            return None
        raise
    try:
        return _registered(decode_tee(answer))
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc


def _called(registry: str, selector: str, argument: bytes) -> Question[bytes]:
    call = {"to": registry, "data": selector + argument.hex()}
    answer = yield RpcRequest("eth_call", (call, "latest"))
    try:
        content = hex_bytes(answer)
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc
    if not content:
        # What the EVM answers for an address without code.
        raise RpcError(
            f"There is no contract at {registry}, the network's TEE registry. Nothing was paid. "
            "Check the network's `registry` and its `rpc_url`."
        )
    return content


def _registered(fields: TeeFields) -> RegisteredTee:
    return RegisteredTee(
        id="0x" + keccak256(fields.public_key_der).hex(),
        owner=checksum_address(fields.owner),
        payment_address=checksum_address(fields.payment_address),
        endpoint=fields.endpoint,
        public_key_der=fields.public_key_der,
        certificate_der=fields.certificate_der,
        pcr_hash="0x" + fields.pcr_hash.hex(),
        tee_type=fields.tee_type,
        is_enabled=fields.is_enabled,
        registered_at=fields.registered_at,
        last_heartbeat_at=fields.last_heartbeat_at,
    )


def _unreadable(registry: str, exc: ValueError) -> RpcError:
    return RpcError(
        f"The answer of the TEE registry {registry} cannot be read ({exc}). Nothing was paid. "
        "Check the network's `registry`, or ask another node."
    )
