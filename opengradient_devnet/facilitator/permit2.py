"""Checks payments over Permit2: the upto scheme, and the exact scheme with a Permit2 witness.

It reads the chain and simulates; it sends nothing. Order and reason codes: x402 v2, schemes upto and exact on EVM, as
in the official facilitator 2.25.
"""

from __future__ import annotations

from eth_utils.address import is_hex_address, to_checksum_address

from opengradient_devnet.chain.chain import Chain, RpcError
from opengradient_devnet.contracts import EXACT_PROXY, PERMIT2, UPTO_PROXY, contract
from opengradient_devnet.facilitator.digests import permit2_digest, recover
from opengradient_devnet.facilitator.payments import Payment, Permit2Payment, Requirements, SponsoredPermit, decimal
from opengradient_devnet.facilitator.refusals import (
    DEADLINE_MARGIN_S,
    EXACT,
    UPTO,
    PaymentInvalid,
    check_network,
    require,
    same_address,
)
from opengradient_devnet.facilitator.sponsored_approval import ApprovalTransaction, check_approval

_EIP1271_MAGIC = bytes.fromhex("1626ba7e")

# What the contracts say, in the facilitator's words. First match wins, so the longer names come first.
_PERMIT2_REVERTS = (
    ("Permit2612AmountMismatch", "permit2_2612_amount_mismatch", "permit2_2612_amount_mismatch"),
    ("InvalidAmount", "permit2_invalid_amount", "invalid_permit2_amount"),
    ("AmountExceedsPermitted", "upto_amount_exceeds_permitted", "transaction_failed"),
    ("UnauthorizedFacilitator", "upto_unauthorized_facilitator", "transaction_failed"),
    ("InvalidDestination", "permit2_invalid_destination", "invalid_permit2_destination"),
    ("InvalidOwner", "permit2_invalid_owner", "invalid_permit2_owner"),
    ("PaymentTooEarly", "permit2_payment_too_early", "permit2_payment_too_early"),
    ("InvalidSignature", "invalid_permit2_signature", "invalid_permit2_signature"),
    ("SignatureExpired", "invalid_permit2_signature", "invalid_permit2_signature"),
    ("InvalidNonce", "permit2_invalid_nonce", "permit2_invalid_nonce"),
)


def permit2_settle_reason(scheme: str, message: str) -> str:
    """The reason code for what Permit2 or a proxy said when a settlement was tried."""
    for words, upto_reason, exact_reason in _PERMIT2_REVERTS:
        if words in message:
            return upto_reason if scheme == UPTO else exact_reason
    return "invalid_upto_evm_transaction_failed" if scheme == UPTO else "transaction_failed"


class Permit2Checks:
    """The checks of one facilitator on one chain."""

    def __init__(self, chain: Chain, *, facilitator: str) -> None:
        self._chain = chain
        self._facilitator = facilitator

    def check(
        self, payment: Payment, authorization: Permit2Payment, requirements: Requirements, *, simulate: bool
    ) -> None:
        upto = requirements.scheme == UPTO
        if upto:
            require(authorization.facilitator is not None, "unsupported_payload_type")
            require(payment.accepted_scheme == UPTO, "invalid_upto_evm_scheme")
            check_network(self._chain, payment, requirements, mismatch="invalid_upto_evm_network_mismatch")
        else:
            require(payment.accepted_scheme == EXACT, "unsupported_scheme")
            check_network(self._chain, payment, requirements, mismatch="network_mismatch")
        self._check_parties(authorization, requirements, upto=upto)
        self._check_terms(authorization, requirements)
        self._check_signature(authorization, upto=upto)
        require(self._chain.code(requirements.asset), "asset_not_deployed_contract")
        if simulate or not upto:
            self._check_allowance(payment, authorization, requirements)
            self._check_balance(authorization, requirements, upto=upto)
        if simulate:
            self._simulate(payment, authorization, requirements, upto=upto)

    def _check_parties(self, authorization: Permit2Payment, requirements: Requirements, *, upto: bool) -> None:
        proxy = UPTO_PROXY if upto else EXACT_PROXY
        require(same_address(authorization.spender, proxy), "invalid_permit2_spender")
        require(same_address(authorization.to, requirements.pay_to), "invalid_permit2_recipient_mismatch")
        if upto:
            named = authorization.facilitator or ""
            require(same_address(named, self._facilitator), "upto_facilitator_mismatch")

    def _check_terms(self, authorization: Permit2Payment, requirements: Requirements) -> None:
        deadline, valid_after = decimal(authorization.deadline), decimal(authorization.valid_after)
        amount, nonce = decimal(authorization.amount), decimal(authorization.nonce)
        if deadline is None or valid_after is None or amount is None or nonce is None:
            raise PaymentInvalid("invalid_permit2_payload_format")
        now_s = self._chain.now_s()
        require(deadline >= now_s + DEADLINE_MARGIN_S, "permit2_deadline_expired")
        require(valid_after <= now_s, "permit2_not_yet_valid")
        require(amount == int(requirements.amount), "permit2_amount_mismatch")
        require(same_address(authorization.token, requirements.asset), "permit2_token_mismatch")

    def _check_signature(self, authorization: Permit2Payment, *, upto: bool) -> None:
        digest = permit2_digest(
            chain_id=self._chain.chain_id,
            token=authorization.token,
            amount=int(authorization.amount),
            spender=authorization.spender,
            nonce=int(authorization.nonce),
            deadline=int(authorization.deadline),
            to=authorization.to,
            facilitator=authorization.facilitator,
            valid_after=int(authorization.valid_after),
        )
        require(authorization.signature, "invalid_permit2_signature")
        code = self._chain.code(authorization.payer)
        if code:
            signed = self._wallet_accepts(authorization.payer, digest, authorization.signature)
            # Some wallets judge by the caller; in upto the simulation decides about contracts.
            require(signed or upto, "invalid_permit2_signature")
            return
        signer = recover(digest, authorization.signature)
        require(signer is not None and same_address(signer, authorization.payer), "invalid_permit2_signature")

    def _wallet_accepts(self, wallet: str, digest: bytes, signature: bytes) -> bool:
        """EIP-1271, as Permit2 and the token will ask it themselves."""
        data = contract("SmartWallet").encode("isValidSignature", digest, signature)
        try:
            return self._chain.call(to=wallet, data=data)[:4] == _EIP1271_MAGIC
        except RpcError:
            return False

    def _check_allowance(self, payment: Payment, authorization: Permit2Payment, requirements: Requirements) -> None:
        if self._allowance_atomic(authorization.payer, requirements.asset) >= int(requirements.amount):
            return
        if payment.permit is not None:
            check_permit(payment.permit, payer=authorization.payer, asset=requirements.asset, now_s=self._chain.now_s())
        elif self.approval_to_send(payment, authorization, asset=requirements.asset) is None:
            raise PaymentInvalid("permit2_allowance_required")

    def approval_to_send(
        self, payment: Payment, authorization: Permit2Payment, *, asset: str
    ) -> ApprovalTransaction | None:
        """The approval that has to be sent before this payment can be settled, checked; None when none has to be."""
        amount_atomic = int(authorization.amount)
        if payment.approval is None or payment.permit is not None:
            return None
        if self._allowance_atomic(authorization.payer, asset) >= amount_atomic:
            return None
        return check_approval(
            self._chain, payment.approval, payer=authorization.payer, asset=asset, amount_atomic=amount_atomic
        )

    def _allowance_atomic(self, payer: str, asset: str) -> int:
        return self._read_uint(asset, contract("OPG").encode("allowance", payer, PERMIT2))

    def _check_balance(self, authorization: Permit2Payment, requirements: Requirements, *, upto: bool) -> None:
        data = contract("OPG").encode("balanceOf", authorization.payer)
        enough = self._read_uint(requirements.asset, data) >= int(requirements.amount)
        reason = "permit2_insufficient_balance" if upto else "invalid_exact_evm_insufficient_balance"
        require(enough, reason)

    def _read_uint(self, asset: str, data: bytes) -> int:
        try:
            return int.from_bytes(self._chain.call(to=asset, data=data)[:32], "big")
        except RpcError as exc:
            raise PaymentInvalid("balance_check_failed", exc.message) from exc

    def _simulate(
        self, payment: Payment, authorization: Permit2Payment, requirements: Requirements, *, upto: bool
    ) -> None:
        if self.approval_to_send(payment, authorization, asset=requirements.asset) is not None:
            return  # there is nothing to simulate on before the approval is mined; settling simulates again
        try:
            to, data = permit2_call(authorization, payment.permit, amount_atomic=int(requirements.amount))
            self._chain.call(to=to, data=data, sender=self._facilitator)
        except RpcError as exc:
            # The protocol has one code for all that only the contracts could find.
            reason = "invalid_upto_evm_transaction_failed" if upto else permit2_settle_reason(EXACT, exc.message)
            raise PaymentInvalid(reason, exc.message) from exc


def check_permit(permit: SponsoredPermit, *, payer: str, asset: str, now_s: int) -> None:
    """Raises PaymentInvalid for one that does not let Permit2 take something of this payer's token."""
    deadline = decimal(permit.deadline)
    formed = (
        deadline is not None
        and decimal(permit.amount) is not None
        and all(map(is_hex_address, (permit.owner, permit.asset, permit.spender)))
        and signature_bytes(permit.signature) is not None
    )
    require(formed, "invalid_eip2612_extension_format")
    require(same_address(permit.owner, payer), "eip2612_from_mismatch")
    require(same_address(permit.asset, asset), "eip2612_asset_mismatch")
    require(same_address(permit.spender, PERMIT2), "eip2612_spender_not_permit2")
    require((deadline or 0) >= now_s + DEADLINE_MARGIN_S, "eip2612_deadline_expired")


def signature_bytes(text: str) -> bytes | None:
    """The 65 bytes of a signature as 0x-hex; None for anything else."""
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return None
    return raw if len(raw) == 65 else None


def permit2_call(
    authorization: Permit2Payment, permit: SponsoredPermit | None, *, amount_atomic: int
) -> tuple[str, bytes]:
    transfer = (
        (to_checksum_address(authorization.token), int(authorization.amount)),
        int(authorization.nonce),
        int(authorization.deadline),
    )
    witness: tuple[object, ...] = (to_checksum_address(authorization.to), int(authorization.valid_after))
    rest: tuple[object, ...] = (transfer, authorization.payer)
    proxy = contract("ExactProxy")
    if authorization.facilitator is not None:
        proxy = contract("UptoProxy")
        witness = (witness[0], to_checksum_address(authorization.facilitator), witness[1])
        rest = (transfer, amount_atomic, authorization.payer)
    rest = (*rest, witness, authorization.signature)
    signature = None if permit is None else signature_bytes(permit.signature)
    if permit is None or signature is None:
        return proxy.address, proxy.encode("settle", *rest)
    permit2612 = (int(permit.amount), int(permit.deadline), signature[:32], signature[32:64], signature[64])
    return proxy.address, proxy.encode("settleWithPermit", permit2612, *rest)
