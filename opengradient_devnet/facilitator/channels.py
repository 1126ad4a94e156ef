"""Payment channels (x402 batch-settlement) on the facilitator's side: checks vouchers, deposits, claims, refunds.

A channel's receiver authorizer is this facilitator, so it claims and refunds in its own name; of others it needs their
signatures. What a channel owes is the gateway's matter (`gateway.payment.channels`). Reason codes: x402 2.25.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_abi.abi import encode
from eth_utils.address import is_hex_address

from opengradient_devnet.chain.chain import Chain, ChainTimeout, KeyHolder, RpcError
from opengradient_devnet.contracts import (
    BATCH_SETTLEMENT,
    ERC3009_COLLECTOR,
    PERMIT2,
    PERMIT2_COLLECTOR,
    contract,
)
from opengradient_devnet.facilitator.digests import channel_digest, recover, voucher_digest
from opengradient_devnet.facilitator.payments import (
    PaymentMalformed,
    SponsoredApproval,
    SponsoredPermit,
    decimal,
    parse_approval,
    parse_permit,
)
from opengradient_devnet.facilitator.permit2 import check_permit, signature_bytes
from opengradient_devnet.facilitator.refusals import DEADLINE_MARGIN_S, PaymentInvalid, require, same_address
from opengradient_devnet.facilitator.sponsored_approval import ApprovalTransaction, check_approval, send_approval

BATCH_SETTLEMENT_SCHEME = "batch-settlement"
PAYER_REFUSED = "payer_not_made_by_this_devnet"
REASON = "invalid_batch_settlement_evm_"
UINT128_MAX = 2**128 - 1
_BYTES32 = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """What a channel is; the struct that the contract takes."""

    payer: str
    payer_authorizer: str
    receiver: str
    receiver_authorizer: str
    token: str
    withdraw_delay_s: int
    salt: bytes

    @property
    def struct(self) -> tuple[Any, ...]:
        return (
            self.payer,
            self.payer_authorizer,
            self.receiver,
            self.receiver_authorizer,
            self.token,
            self.withdraw_delay_s,
            self.salt,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelDeposit:
    """A signed deposit: the amount, the collector that takes it, and what that one is given."""

    amount: int
    collector: str
    data: bytes = field(repr=False)
    deadline: int
    permit: SponsoredPermit | None = None
    """An EIP-2612 permit that is in the data, too: Permit2's collector uses it."""
    approval: SponsoredApproval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPayment:
    """One request of a payer: `deposit`, `voucher` or `refund`."""

    kind: str
    config: ChannelConfig
    channel_id: str
    max_claimable: int
    signature: bytes = field(repr=False)
    deposit: ChannelDeposit | None = None
    refund_amount: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A voucher, and up to what it is claimed now."""

    config: ChannelConfig
    max_claimable: int
    signature: bytes = field(repr=False)
    total: int

    @property
    def struct(self) -> tuple[Any, ...]:
        return ((self.config.struct, self.max_claimable), self.signature, self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChain:
    """A channel as the contract has it; a balance counts what was claimed, too."""

    balance: int
    total_claimed: int
    withdraw_requested_at: int = 0
    refund_nonce: int = 0


def _malformed(message: str) -> PaymentMalformed:
    return PaymentMalformed(message, reason=f"{REASON}payload_type")


def _member(holder: Any, name: str, kind: type) -> Any:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _malformed(f"{name} is missing, or no {kind.__name__}")
    return value


def _number(holder: Any, name: str, *, most: int = UINT128_MAX) -> int:
    value = decimal(_member(holder, name, str))
    if value is None or value > most:
        raise _malformed(f"{name} is no unsigned number of this size")
    return value


def _bytes(holder: Any, name: str, pattern: re.Pattern[str] = _HEX) -> bytes:
    text = _member(holder, name, str)
    if pattern.fullmatch(text) is None:
        raise _malformed(f"{name} is no 0x-hex of the right length")
    return bytes.fromhex(text[2:])


def _address(holder: Any, name: str) -> str:
    text: str = _member(holder, name, str)
    if not is_hex_address(text):
        raise _malformed(f"{name} is no address")
    return text


def parse_config(raw: Any) -> ChannelConfig:
    """Raises PaymentMalformed."""
    return ChannelConfig(
        payer=_address(raw, "payer"),
        payer_authorizer=_address(raw, "payerAuthorizer"),
        receiver=_address(raw, "receiver"),
        receiver_authorizer=_address(raw, "receiverAuthorizer"),
        token=_address(raw, "token"),
        withdraw_delay_s=_member(raw, "withdrawDelay", int),
        salt=_bytes(raw, "salt", _BYTES32),
    )


def parse_channel_payment(payload: Any, extensions: Any = None) -> ChannelPayment:
    """The members `payload` and `extensions` of PAYMENT-SIGNATURE. Raises PaymentMalformed."""
    kind = _member(payload, "type", str)
    if kind not in ("deposit", "voucher", "refund"):
        raise _malformed(f"a payload of the type {kind!r}")
    voucher = _member(payload, "voucher", Mapping)
    amount = payload.get("amount")
    return ChannelPayment(
        kind=kind,
        config=parse_config(payload.get("channelConfig")),
        channel_id="0x" + _bytes(voucher, "channelId", _BYTES32).hex(),
        max_claimable=_number(voucher, "maxClaimableAmount"),
        signature=_bytes(voucher, "signature"),
        deposit=_parse_deposit(payload.get("deposit"), extensions) if kind == "deposit" else None,
        refund_amount=None if kind != "refund" or amount is None else _number(payload, "amount"),
    )


def _parse_deposit(raw: Any, extensions: Any) -> ChannelDeposit:
    amount, authorization = _number(raw, "amount"), _member(raw, "authorization", Mapping)
    most = 2**256 - 1
    if "permit2Authorization" in authorization:
        permit = authorization["permit2Authorization"]
        if _number(_member(permit, "permitted", Mapping), "amount", most=most) != amount:
            raise PaymentMalformed("permitted is not the deposit", reason=f"{REASON}permit2_amount_mismatch")
        if not same_address(_address(permit, "spender"), PERMIT2_COLLECTOR):
            raise PaymentMalformed("the spender is no collector", reason=f"{REASON}permit2_invalid_spender")
        deadline, sponsored = _number(permit, "deadline", most=most), parse_permit(extensions)
        data = encode(
            ["uint256", "uint256", "bytes", "bytes"],
            [_number(permit, "nonce", most=most), deadline, _bytes(permit, "signature"), _permit_data(sponsored)],
        )
        return ChannelDeposit(
            amount=amount,
            collector=PERMIT2_COLLECTOR,
            data=data,
            deadline=deadline,
            permit=sponsored,
            approval=parse_approval(extensions),
        )
    signed = _member(authorization, "erc3009Authorization", Mapping)
    deadline = _number(signed, "validBefore", most=most)
    data = encode(
        ["uint256", "uint256", "uint256", "bytes"],
        [
            _number(signed, "validAfter", most=most),
            deadline,
            int.from_bytes(_bytes(signed, "salt", _BYTES32), "big"),
            _bytes(signed, "signature"),
        ],
    )
    return ChannelDeposit(amount=amount, collector=ERC3009_COLLECTOR, data=data, deadline=deadline)


def _permit_data(permit: SponsoredPermit | None) -> bytes:
    """What the collector is given of a permit; nothing of one that nobody could use."""
    if permit is None:
        return b""
    amount, deadline, signature = decimal(permit.amount), decimal(permit.deadline), signature_bytes(permit.signature)
    if amount is None or deadline is None or signature is None:
        return b""
    v = signature[64] + (27 if signature[64] < 27 else 0)
    words = [amount, deadline, v, signature[:32], signature[32:64]]
    return encode(["uint256", "uint256", "uint8", "bytes32", "bytes32"], words)


class Channels:
    """The channels of one chain, for one facilitator's account. Safe to use from any thread."""

    def __init__(
        self, chain: Chain, *, account: KeyHolder, may_be_served: Callable[[str], bool] = lambda _payer: True
    ) -> None:
        self._chain = chain
        self._account = account
        self._may_be_served = may_be_served
        self._contract = contract("BatchSettlement")

    def state(self, channel_id: str) -> OnChain:
        """The channel as it is on the chain now."""
        raw = bytes.fromhex(channel_id[2:])
        balance, total_claimed = self._read("channels", raw)
        _, requested_at = self._read("pendingWithdrawals", raw)
        (nonce,) = self._read("refundNonce", raw)
        return OnChain(
            balance=balance, total_claimed=total_claimed, withdraw_requested_at=requested_at, refund_nonce=nonce
        )

    def _read(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        data = self._chain.call(to=BATCH_SETTLEMENT, data=self._contract.encode(function, *arguments))
        return self._contract.decode(function, data)

    def performed(self, transaction: str, config: ChannelConfig) -> Performed:
        """A transaction that changed a channel, with what the channel is now."""
        channel_id = "0x" + channel_digest(config.struct, chain_id=self._chain.chain_id).hex()
        state = state_json(channel_id, self.state(channel_id))
        return Performed(transaction=transaction, payer=config.payer, state=state)

    def check(self, payment: ChannelPayment, requirements: Mapping[str, Any]) -> OnChain:
        """Raises PaymentInvalid for a payment that is not good; nothing moves. The channel as it is now."""
        config, extra = payment.config, requirements["extra"]
        require(self._may_be_served(config.payer), PAYER_REFUSED)
        digest = channel_digest(config.struct, chain_id=self._chain.chain_id)
        require("0x" + digest.hex() == payment.channel_id, f"{REASON}channel_id_mismatch")
        require(same_address(config.receiver, requirements["payTo"]), f"{REASON}receiver_mismatch")
        require(same_address(config.token, requirements["asset"]), f"{REASON}token_mismatch")
        authorizer = str(extra.get("receiverAuthorizer", ""))
        require(same_address(config.receiver_authorizer, authorizer), f"{REASON}receiver_authorizer_mismatch")
        require(config.withdraw_delay_s == extra.get("withdrawDelay"), f"{REASON}withdraw_delay_mismatch")
        signer = recover(
            voucher_digest(digest, payment.max_claimable, chain_id=self._chain.chain_id), payment.signature
        )
        require(signer is not None, f"{REASON}voucher_signature")
        require(same_address(signer or "", config.payer_authorizer), f"{REASON}voucher_signature")
        state = self.state(payment.channel_id)
        balance = state.balance
        if payment.deposit is not None:
            self._check_deposit(payment, payment.deposit)
            balance += payment.deposit.amount
        require(payment.max_claimable <= balance, f"{REASON}cumulative_exceeds_balance")
        is_enough = payment.max_claimable > state.total_claimed or payment.kind == "refund"
        require(is_enough, f"{REASON}cumulative_below_claimed")
        return state

    def _check_deposit(self, payment: ChannelPayment, deposit: ChannelDeposit) -> None:
        token, payer = contract("OPG"), payment.config.payer
        is_permit = deposit.collector == PERMIT2_COLLECTOR
        late = "permit2_deadline_expired" if is_permit else "payload_authorization_valid_before"
        require(deposit.deadline >= self._chain.now_s() + DEADLINE_MARGIN_S, f"{REASON}{late}")
        approval = self._approval_to_send(payment, deposit) if is_permit else None
        data = self._chain.call(to=payment.config.token, data=token.encode("balanceOf", payer))
        require(int.from_bytes(data[:32], "big") >= deposit.amount, f"{REASON}insufficient_balance")
        if approval is not None:
            return  # there is nothing to simulate on before the approval is mined
        try:
            self._chain.call(
                to=BATCH_SETTLEMENT, data=self._deposit_call(payment, deposit), sender=self._account.address
            )
        except RpcError as exc:
            raise PaymentInvalid(f"{REASON}deposit_simulation_failed", exc.message) from exc

    def _approval_to_send(self, payment: ChannelPayment, deposit: ChannelDeposit) -> ApprovalTransaction | None:
        """The approval that must be sent before Permit2 can take the deposit, checked; None when none has to be."""
        payer, asset = payment.config.payer, payment.config.token
        if deposit.permit is not None:
            check_permit(deposit.permit, payer=payer, asset=asset, now_s=self._chain.now_s())
            require(decimal(deposit.permit.amount) == deposit.amount, f"{REASON}eip2612_amount_mismatch")
            return None
        data = self._chain.call(to=asset, data=contract("OPG").encode("allowance", payer, PERMIT2))
        if int.from_bytes(data[:32], "big") >= deposit.amount:
            return None
        if deposit.approval is None:
            raise PaymentInvalid(f"{REASON}permit2_allowance_required")
        return check_approval(self._chain, deposit.approval, payer=payer, asset=asset, amount_atomic=deposit.amount)

    def _deposit_call(self, payment: ChannelPayment, deposit: ChannelDeposit) -> bytes:
        return self._contract.encode("deposit", payment.config.struct, deposit.amount, deposit.collector, deposit.data)

    def deposit(self, payment: ChannelPayment) -> str:
        """Collect the payment's deposit; its transaction. Raises PaymentInvalid."""
        if payment.deposit is None:
            raise PaymentInvalid(f"{REASON}deposit_payload")
        require(self._may_be_served(payment.config.payer), PAYER_REFUSED)
        if payment.deposit.collector == PERMIT2_COLLECTOR:
            approval = self._approval_to_send(payment, payment.deposit)
            if approval is not None:
                send_approval(self._chain, approval, sponsor=self._account)
        return self._sent(self._deposit_call(payment, payment.deposit), failed="deposit_transaction_failed")

    def claim(self, claims: Sequence[Claim], *, authorizer_signature: bytes | None = None) -> str:
        """Claim what was charged; the transaction. Raises PaymentInvalid."""
        return self._sent(self._claim_call(claims, authorizer_signature), failed="claim_transaction_failed")

    def _claim_call(self, claims: Sequence[Claim], authorizer_signature: bytes | None) -> bytes:
        structs = [claim.struct for claim in claims]
        if authorizer_signature is None:
            return self._contract.encode("claim", structs)
        return self._contract.encode("claimWithSignature", structs, authorizer_signature)

    def settle(self, *, receiver: str, token: str) -> str:
        """Pay out what was claimed for a receiver; the transaction. Raises PaymentInvalid."""
        return self._sent(self._contract.encode("settle", receiver, token), failed="settle_transaction_failed")

    def refund(
        self,
        config: ChannelConfig,
        amount: int,
        *,
        claims: Sequence[Claim] = (),
        nonce: int = 0,
        authorizer_signature: bytes | None = None,
        claim_signature: bytes | None = None,
    ) -> str:
        """Claim what is owed, and give the payer back up to `amount`, in one transaction. Raises PaymentInvalid."""
        if authorizer_signature is None:
            data = self._contract.encode("refund", config.struct, amount)
        else:
            data = self._contract.encode("refundWithSignature", config.struct, amount, nonce, authorizer_signature)
        calls = [self._claim_call(claims, claim_signature), data] if claims else [data]
        whole = calls[0] if len(calls) == 1 else self._contract.encode("multicall", calls)
        return self._sent(whole, failed="refund_transaction_failed")

    def _sent(self, data: bytes, *, failed: str) -> str:
        try:
            self._chain.call(to=BATCH_SETTLEMENT, data=data, sender=self._account.address)
            receipt = self._chain.send(self._account, to=BATCH_SETTLEMENT, data=data)
        except (RpcError, ChainTimeout) as exc:
            raise PaymentInvalid(f"{REASON}{failed}", str(exc)) from exc
        require(receipt["status"] == "0x1", f"{REASON}{failed}", "the transaction reverted")
        transaction: str = receipt["transactionHash"]
        return transaction


def parse_claim(raw: Any) -> Claim:
    """One entry of a facilitator's `claim` payload. Raises PaymentMalformed."""
    voucher = _member(raw, "voucher", Mapping)
    return Claim(
        config=parse_config(voucher.get("channel")),
        max_claimable=_number(voucher, "maxClaimableAmount"),
        signature=_bytes(raw, "signature"),
        total=_number(raw, "totalClaimed"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """A transaction for a server; with the channel that it was about, as it is now, where there is one."""

    transaction: str
    payer: str | None = None
    state: dict[str, Any] | None = None


def state_json(channel_id: str, state: OnChain) -> dict[str, Any]:
    """A channel as facilitators and servers write it."""
    return {
        "channelId": channel_id,
        "balance": str(state.balance),
        "totalClaimed": str(state.total_claimed),
        "withdrawRequestedAt": state.withdraw_requested_at,
        "refundNonce": str(state.refund_nonce),
    }


def perform(channels: Channels, payload: Mapping[str, Any], extensions: Any = None) -> Performed:
    """What a server asks of a facilitator: `deposit`, `claim`, `settle` or `refund`.

    Raises PaymentMalformed and PaymentInvalid.
    """
    kind = _member(payload, "type", str)
    if kind == "claim":
        claims = [parse_claim(raw) for raw in _member(payload, "claims", list)]
        require(claims, f"{REASON}claim_payload")
        signature = _optional(payload, "claimAuthorizerSignature")
        return Performed(transaction=channels.claim(claims, authorizer_signature=signature))
    if kind == "settle":
        paid = channels.settle(receiver=_address(payload, "receiver"), token=_address(payload, "token"))
        return Performed(transaction=paid)
    if kind == "refund":
        config = parse_config(payload.get("channelConfig"))
        transaction = channels.refund(
            config,
            _number(payload, "amount"),
            claims=[parse_claim(raw) for raw in payload.get("claims") or []],
            nonce=_number(payload, "refundNonce", most=2**256 - 1) if "refundNonce" in payload else 0,
            authorizer_signature=_optional(payload, "refundAuthorizerSignature"),
            claim_signature=_optional(payload, "claimAuthorizerSignature"),
        )
        return channels.performed(transaction, config)
    payment = parse_channel_payment(payload, extensions)
    require(payment.kind == "deposit", f"{REASON}unknown_settle_action")
    return channels.performed(channels.deposit(payment), payment.config)


def _optional(payload: Mapping[str, Any], name: str) -> bytes | None:
    return _bytes(payload, name) if payload.get(name) else None
