"""Writes the devnet's gateway into the on-chain TEE registry, the way OpenGradient publishes its enclaves."""

from __future__ import annotations

from opengradient_devnet.chain.chain import Chain, KeyHolder
from opengradient_devnet.contracts import TEE_REGISTRY, contract

LLM_PROXY = 0
_NO_OHTTP = (0, 0, 0, 0, b"", b"", 0)


class RegistrationFailed(RuntimeError):
    """The registry refused the gateway; clients cannot discover it. No money is involved."""


def register_gateway(
    chain: Chain,
    *,
    operator: KeyHolder,
    payment_address: str,
    endpoint: str,
    public_key_der: bytes,
    certificate_der: bytes,
    pcr_hash: bytes,
) -> None:
    """Publish endpoint, payment address, signing key, TLS certificate and image of one gateway."""
    data = contract("TEERegistry").encode(
        "registerTEE",
        payment_address,
        endpoint,
        public_key_der,
        certificate_der,
        pcr_hash,
        LLM_PROXY,
        _NO_OHTTP,
    )
    receipt = chain.send(operator, to=TEE_REGISTRY, data=data)
    if receipt["status"] != "0x1":
        raise RegistrationFailed(
            f"registerTEE for {endpoint} reverted in {receipt['transactionHash']}: the devnet would have no "
            "published gateway. The registry contract and this code disagree."
        )
