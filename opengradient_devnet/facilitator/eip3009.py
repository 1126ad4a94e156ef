"""Checks payments by EIP-3009, the exact scheme's `transferWithAuthorization`.

It reads the chain and simulates; it sends nothing. Order and reason codes: x402 v2, scheme exact on EVM, as in the
official facilitator 2.25.
"""

from __future__ import annotations

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from opengradient_devnet.chain.chain import Chain, RpcError
from opengradient_devnet.contracts import contract
from opengradient_devnet.facilitator.digests import eip3009_digest, recover
from opengradient_devnet.facilitator.payments import Eip3009Payment, Payment, Requirements
from opengradient_devnet.facilitator.refusals import (
    DEADLINE_MARGIN_S,
    EXACT,
    PaymentInvalid,
    check_network,
    require,
    same_address,
)

_ERC6492_MAGIC = bytes.fromhex("6492" * 16)
_EIP3009_REVERTS = (
    ("authorization is expired", "invalid_exact_evm_payload_authorization_valid_before"),
    ("authorization is not yet valid", "invalid_exact_evm_payload_authorization_valid_after"),
    ("authorization is used", "invalid_exact_evm_nonce_already_used"),
    ("transfer amount exceeds balance", "invalid_exact_evm_insufficient_balance"),
    ("invalid signature", "invalid_exact_evm_payload_signature"),
)


def eip3009_settle_reason(message: str) -> str:
    for words, reason in _EIP3009_REVERTS:
        if words in message.lower():
            return reason
    return "transaction_failed"


class Eip3009Checks:
    """The checks of one facilitator on one chain."""

    def __init__(self, chain: Chain, *, facilitator: str) -> None:
        self._chain = chain
        self._facilitator = facilitator

    def check(
        self, payment: Payment, authorization: Eip3009Payment, requirements: Requirements, *, simulate: bool
    ) -> None:
        require(requirements.scheme == EXACT, "unsupported_payload_type")
        require(payment.accepted_scheme == EXACT, "unsupported_scheme")
        check_network(self._chain, payment, requirements, mismatch="network_mismatch")
        name, version = requirements.extra.get("name"), requirements.extra.get("version")
        if not isinstance(name, str) or not isinstance(version, str):
            raise PaymentInvalid("missing_eip712_domain")
        recipient = "invalid_exact_evm_payload_recipient_mismatch"
        require(same_address(authorization.to, requirements.pay_to), recipient)
        value = "invalid_exact_evm_payload_authorization_value_mismatch"
        require(authorization.value == int(requirements.amount), value)
        now_s = self._chain.now_s()
        before = "invalid_exact_evm_payload_authorization_valid_before"
        require(authorization.valid_before >= now_s + DEADLINE_MARGIN_S, before)
        after = "invalid_exact_evm_payload_authorization_valid_after"
        require(authorization.valid_after <= now_s, after)
        self._check_signature(authorization, requirements, name=name, version=version)
        require(self._chain.code(requirements.asset), "asset_not_deployed_contract")
        if simulate:
            self._simulate(authorization, requirements, name=name, version=version)

    def _check_signature(
        self, authorization: Eip3009Payment, requirements: Requirements, *, name: str, version: str
    ) -> None:
        require(authorization.signature, "invalid_exact_evm_payload_signature")
        if self._chain.code(authorization.payer):
            return  # a contract's signature is judged by the token, in the simulation
        if authorization.signature.endswith(_ERC6492_MAGIC):
            message = "the devnet's facilitator deploys no smart wallets; deploy it first"
            raise PaymentInvalid("eip6492_factory_not_allowed", message)
        if len(authorization.signature) != 65:
            raise PaymentInvalid("invalid_exact_evm_payload_undeployed_smart_wallet")
        digest = eip3009_digest(
            chain_id=self._chain.chain_id,
            token=requirements.asset,
            name=name,
            version=version,
            payer=authorization.payer,
            to=authorization.to,
            value=authorization.value,
            valid_after=authorization.valid_after,
            valid_before=authorization.valid_before,
            nonce=authorization.nonce,
        )
        signer = recover(digest, authorization.signature)
        ok = signer is not None and same_address(signer, authorization.payer)
        require(ok, "invalid_exact_evm_payload_signature")

    def _simulate(
        self,
        authorization: Eip3009Payment,
        requirements: Requirements,
        *,
        name: str,
        version: str,
    ) -> None:
        try:
            self._chain.call(to=requirements.asset, data=eip3009_call(authorization), sender=self._facilitator)
        except RpcError as exc:
            reason = eip3009_settle_reason(exc.message)
            if reason in ("transaction_failed", "invalid_exact_evm_payload_signature"):
                reason = self._suspect(authorization, requirements, (name, version)) or reason
            if reason == "transaction_failed":
                reason = "invalid_exact_evm_transaction_simulation_failed"
            raise PaymentInvalid(reason, exc.message) from exc

    def _suspect(
        self, authorization: Eip3009Payment, requirements: Requirements, domain: tuple[str, str]
    ) -> str | None:
        """Why a transfer with a good-looking signature failed, as far as reading the token tells."""
        token = contract("OPG")
        questions = (
            ("authorizationState", (authorization.payer, authorization.nonce)),
            ("name", ()),
            ("version", ()),
        )
        try:
            answers = [
                token.decode(function, self._chain.call(to=requirements.asset, data=token.encode(function, *args)))[0]
                for function, args in questions
            ]
        except (RpcError, DecodingError):
            return "invalid_exact_evm_eip3009_not_supported"
        used, name, version = answers
        if used:
            return "invalid_exact_evm_nonce_already_used"
        if name != domain[0]:
            return "invalid_exact_evm_token_name_mismatch"
        return None if version == domain[1] else "invalid_exact_evm_token_version_mismatch"


def eip3009_call(authorization: Eip3009Payment) -> bytes:
    fields = (
        authorization.payer,
        authorization.to,
        authorization.value,
        authorization.valid_after,
        authorization.valid_before,
        authorization.nonce,
    )
    types = "address,address,uint256,uint256,uint256,bytes32"
    signature = _inner_signature(authorization.signature)
    token = contract("OPG")
    if len(signature) != 65:
        return token.encode(f"transferWithAuthorization({types},bytes)", *fields, signature)
    v = signature[64] + 27 if signature[64] < 2 else signature[64]
    parts = (v, signature[:32], signature[32:64])
    return token.encode(f"transferWithAuthorization({types},uint8,bytes32,bytes32)", *fields, *parts)


def _inner_signature(signature: bytes) -> bytes:
    """The signature inside an ERC-6492 wrapper, for a wallet that is deployed by now."""
    if not signature.endswith(_ERC6492_MAGIC):
        return signature
    try:
        inner: bytes = decode(["address", "bytes", "bytes"], signature[:-32])[2]
    except DecodingError:
        return signature
    return inner
