"""Is this payment good? The checks of the x402 v2 schemes, in the protocol's order, with its reason codes.

The cheap ones come first and need no chain; then come signature, allowance, balance, and a simulation of the
settlement itself. Nothing here sends a transaction. Reason codes: x402 v2 specification, schemes upto and exact
on EVM, as the official facilitator 2.25 gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.address import is_hex_address, to_checksum_address

from opengradient_devnet.chain import Chain, RpcError
from opengradient_devnet.contracts import EXACT_PROXY, PERMIT2, UPTO_PROXY, contract
from opengradient_devnet.digests import eip3009_digest, permit2_digest, recover
from opengradient_devnet.payments import (
    Eip3009Payment,
    Payment,
    Permit2Payment,
    Requirements,
    SponsoredPermit,
    decimal,
)

UPTO = "upto"
EXACT = "exact"
# A settlement needs a moment to be mined: what ends sooner than this is refused at once.
DEADLINE_MARGIN_S = 6
_EIP1271_MAGIC = bytes.fromhex("1626ba7e")
_ERC6492_MAGIC = bytes.fromhex("6492" * 16)

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
_EIP3009_REVERTS = (
    ("authorization is expired", "invalid_exact_evm_payload_authorization_valid_before"),
    ("authorization is not yet valid", "invalid_exact_evm_payload_authorization_valid_after"),
    ("authorization is used", "invalid_exact_evm_nonce_already_used"),
    ("transfer amount exceeds balance", "invalid_exact_evm_insufficient_balance"),
    ("invalid signature", "invalid_exact_evm_payload_signature"),
)


class PaymentInvalid(Exception):
    """A check failed. `reason` is the protocol's code; the text says more where there is more to say."""

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A transaction that would settle a payment, and what it would move."""

    to: str
    data: bytes
    payer: str
    pay_to: str
    asset: str
    amount_atomic: int


def _same(left: str, right: str) -> bool:
    return left.lower() == right.lower()


def _require(condition: object, reason: str, message: str | None = None) -> None:
    if not condition:
        raise PaymentInvalid(reason, message)


def _in_scheme(
    authorization: Permit2Payment | Eip3009Payment, scheme: str
) -> Permit2Payment | Eip3009Payment:
    """The exact scheme's witness has no facilitator: what an exact payload says there is not signed."""
    if scheme == EXACT and isinstance(authorization, Permit2Payment):
        return replace(authorization, facilitator=None)
    return authorization


def permit2_settle_reason(scheme: str, message: str) -> str:
    """The reason code for what Permit2 or a proxy said when a settlement was tried."""
    for words, upto_reason, exact_reason in _PERMIT2_REVERTS:
        if words in message:
            return upto_reason if scheme == UPTO else exact_reason
    return "invalid_upto_evm_transaction_failed" if scheme == UPTO else "transaction_failed"


def eip3009_settle_reason(message: str) -> str:
    for words, reason in _EIP3009_REVERTS:
        if words in message.lower():
            return reason
    return "transaction_failed"


class Checker:
    """The checks of one facilitator on one chain."""

    def __init__(self, chain: Chain, *, facilitator: str) -> None:
        self._chain = chain
        self._facilitator = facilitator
        self._network = f"eip155:{chain.chain_id}"

    def check(self, payment: Payment, requirements: Requirements, *, simulate: bool) -> None:
        """Raise `PaymentInvalid` with the first reason against a payment; without `simulate`, stop at the
        signature (a settlement is simulated by itself, with its own amount)."""
        authorization = _in_scheme(payment.authorization, requirements.scheme)
        match authorization:
            case Permit2Payment():
                self._check_permit2(payment, authorization, requirements, simulate=simulate)
            case Eip3009Payment():
                self._check_eip3009(payment, authorization, requirements, simulate=simulate)
            case _:
                assert_never(authorization)

    def transfer(self, payment: Payment, requirements: Requirements, *, amount_atomic: int) -> Transfer:
        """The transaction that settles a payment which has passed `check`."""
        authorization = _in_scheme(payment.authorization, requirements.scheme)
        match authorization:
            case Permit2Payment():
                to, data = _permit2_call(authorization, payment.permit, amount_atomic=amount_atomic)
            case Eip3009Payment():
                to, data = requirements.asset, _eip3009_call(authorization)
            case _:
                assert_never(authorization)
        return Transfer(
            to=to,
            data=data,
            payer=authorization.payer,
            pay_to=requirements.pay_to,
            asset=requirements.asset,
            amount_atomic=amount_atomic,
        )

    # Permit2: upto and exact.

    def _check_permit2(
        self, payment: Payment, authorization: Permit2Payment, requirements: Requirements, *, simulate: bool
    ) -> None:
        upto = requirements.scheme == UPTO
        if upto:
            _require(authorization.facilitator is not None, "unsupported_payload_type")
            _require(payment.accepted_scheme == UPTO, "invalid_upto_evm_scheme")
            self._check_network(payment, requirements, mismatch="invalid_upto_evm_network_mismatch")
        else:
            _require(payment.accepted_scheme == EXACT, "unsupported_scheme")
            self._check_network(payment, requirements, mismatch="network_mismatch")
        self._check_permit2_parties(authorization, requirements, upto=upto)
        self._check_permit2_terms(authorization, requirements)
        self._check_permit2_signature(authorization, upto=upto)
        _require(self._chain.code(requirements.asset), "asset_not_deployed_contract")
        if simulate or not upto:
            self._check_allowance(payment, authorization, requirements)
            self._check_balance(authorization, requirements, upto=upto)
        if simulate:
            self._simulate_permit2(payment, requirements, upto=upto)

    def _check_network(self, payment: Payment, requirements: Requirements, *, mismatch: str) -> None:
        _require(payment.accepted_network == requirements.network, mismatch)
        ours = requirements.network == self._network
        _require(ours, "invalid_network", f"this facilitator settles on {self._network} only")

    def _check_permit2_parties(
        self, authorization: Permit2Payment, requirements: Requirements, *, upto: bool
    ) -> None:
        proxy = UPTO_PROXY if upto else EXACT_PROXY
        _require(_same(authorization.spender, proxy), "invalid_permit2_spender")
        _require(_same(authorization.to, requirements.pay_to), "invalid_permit2_recipient_mismatch")
        if upto:
            named = authorization.facilitator or ""
            _require(_same(named, self._facilitator), "upto_facilitator_mismatch")

    def _check_permit2_terms(self, authorization: Permit2Payment, requirements: Requirements) -> None:
        deadline, valid_after = decimal(authorization.deadline), decimal(authorization.valid_after)
        amount, nonce = decimal(authorization.amount), decimal(authorization.nonce)
        if deadline is None or valid_after is None or amount is None or nonce is None:
            raise PaymentInvalid("invalid_permit2_payload_format")
        now_s = self._chain.now_s()
        _require(deadline >= now_s + DEADLINE_MARGIN_S, "permit2_deadline_expired")
        _require(valid_after <= now_s, "permit2_not_yet_valid")
        _require(amount == int(requirements.amount), "permit2_amount_mismatch")
        _require(_same(authorization.token, requirements.asset), "permit2_token_mismatch")

    def _check_permit2_signature(self, authorization: Permit2Payment, *, upto: bool) -> None:
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
        _require(authorization.signature, "invalid_permit2_signature")
        code = self._chain.code(authorization.payer)
        if code:
            signed = self._wallet_accepts(authorization.payer, digest, authorization.signature)
            # Some wallets judge by the caller; in upto the simulation has the last word about contracts.
            _require(signed or upto, "invalid_permit2_signature")
            return
        signer = recover(digest, authorization.signature)
        _require(signer is not None and _same(signer, authorization.payer), "invalid_permit2_signature")

    def _wallet_accepts(self, wallet: str, digest: bytes, signature: bytes) -> bool:
        """EIP-1271, as Permit2 and the token will ask it themselves."""
        data = contract("SmartWallet").encode("isValidSignature", digest, signature)
        try:
            return self._chain.call(to=wallet, data=data)[:4] == _EIP1271_MAGIC
        except RpcError:
            return False

    def _check_allowance(
        self, payment: Payment, authorization: Permit2Payment, requirements: Requirements
    ) -> None:
        data = contract("OPG").encode("allowance", authorization.payer, PERMIT2)
        if self._read_uint(requirements.asset, data) >= int(requirements.amount):
            return
        if payment.permit is None:
            raise PaymentInvalid("permit2_allowance_required")
        self._check_permit(payment.permit, authorization, requirements)

    def _check_permit(
        self, permit: SponsoredPermit, authorization: Permit2Payment, requirements: Requirements
    ) -> None:
        deadline = decimal(permit.deadline)
        formed = (
            deadline is not None
            and decimal(permit.amount) is not None
            and all(map(is_hex_address, (permit.owner, permit.asset, permit.spender)))
            and _signature_bytes(permit.signature) is not None
        )
        _require(formed, "invalid_eip2612_extension_format")
        _require(_same(permit.owner, authorization.payer), "eip2612_from_mismatch")
        _require(_same(permit.asset, requirements.asset), "eip2612_asset_mismatch")
        _require(_same(permit.spender, PERMIT2), "eip2612_spender_not_permit2")
        _require((deadline or 0) >= self._chain.now_s() + DEADLINE_MARGIN_S, "eip2612_deadline_expired")

    def _check_balance(self, authorization: Permit2Payment, requirements: Requirements, *, upto: bool) -> None:
        data = contract("OPG").encode("balanceOf", authorization.payer)
        enough = self._read_uint(requirements.asset, data) >= int(requirements.amount)
        reason = "permit2_insufficient_balance" if upto else "invalid_exact_evm_insufficient_balance"
        _require(enough, reason)

    def _read_uint(self, asset: str, data: bytes) -> int:
        try:
            return int.from_bytes(self._chain.call(to=asset, data=data)[:32], "big")
        except RpcError as exc:
            raise PaymentInvalid("balance_check_failed", exc.message) from exc

    def _simulate_permit2(self, payment: Payment, requirements: Requirements, *, upto: bool) -> None:
        try:
            self.simulate(self.transfer(payment, requirements, amount_atomic=int(requirements.amount)))
        except RpcError as exc:
            # The protocol has one code for all that only the contracts could find.
            reason = (
                "invalid_upto_evm_transaction_failed" if upto else permit2_settle_reason(EXACT, exc.message)
            )
            raise PaymentInvalid(reason, exc.message) from exc

    def simulate(self, transfer: Transfer) -> None:
        """Run a settlement without sending it; raises `RpcError`."""
        self._chain.call(to=transfer.to, data=transfer.data, sender=self._facilitator)

    # EIP-3009: exact.

    def _check_eip3009(
        self, payment: Payment, authorization: Eip3009Payment, requirements: Requirements, *, simulate: bool
    ) -> None:
        _require(requirements.scheme == EXACT, "unsupported_payload_type")
        _require(payment.accepted_scheme == EXACT, "unsupported_scheme")
        self._check_network(payment, requirements, mismatch="network_mismatch")
        name, version = requirements.extra.get("name"), requirements.extra.get("version")
        if not isinstance(name, str) or not isinstance(version, str):
            raise PaymentInvalid("missing_eip712_domain")
        recipient = "invalid_exact_evm_payload_recipient_mismatch"
        _require(_same(authorization.to, requirements.pay_to), recipient)
        value = "invalid_exact_evm_payload_authorization_value_mismatch"
        _require(authorization.value == int(requirements.amount), value)
        now_s = self._chain.now_s()
        before = "invalid_exact_evm_payload_authorization_valid_before"
        _require(authorization.valid_before >= now_s + DEADLINE_MARGIN_S, before)
        after = "invalid_exact_evm_payload_authorization_valid_after"
        _require(authorization.valid_after <= now_s, after)
        self._check_eip3009_signature(authorization, requirements, name=name, version=version)
        _require(self._chain.code(requirements.asset), "asset_not_deployed_contract")
        if simulate:
            self._simulate_eip3009(payment, authorization, requirements, name=name, version=version)

    def _check_eip3009_signature(
        self, authorization: Eip3009Payment, requirements: Requirements, *, name: str, version: str
    ) -> None:
        _require(authorization.signature, "invalid_exact_evm_payload_signature")
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
        ok = signer is not None and _same(signer, authorization.payer)
        _require(ok, "invalid_exact_evm_payload_signature")

    def _simulate_eip3009(
        self,
        payment: Payment,
        authorization: Eip3009Payment,
        requirements: Requirements,
        *,
        name: str,
        version: str,
    ) -> None:
        try:
            self.simulate(self.transfer(payment, requirements, amount_atomic=authorization.value))
        except RpcError as exc:
            reason = eip3009_settle_reason(exc.message)
            if reason in ("transaction_failed", "invalid_exact_evm_payload_signature"):
                reason = self._eip3009_suspect(authorization, requirements, (name, version)) or reason
            if reason == "transaction_failed":
                reason = "invalid_exact_evm_transaction_simulation_failed"
            raise PaymentInvalid(reason, exc.message) from exc

    def _eip3009_suspect(
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


def _signature_bytes(text: str) -> bytes | None:
    try:
        raw = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return None
    return raw if len(raw) == 65 else None


def _permit2_call(
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
    signature = None if permit is None else _signature_bytes(permit.signature)
    if permit is None or signature is None:
        return proxy.address, proxy.encode("settle", *rest)
    permit2612 = (int(permit.amount), int(permit.deadline), signature[:32], signature[32:64], signature[64])
    return proxy.address, proxy.encode("settleWithPermit", permit2612, *rest)


def _eip3009_call(authorization: Eip3009Payment) -> bytes:
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
