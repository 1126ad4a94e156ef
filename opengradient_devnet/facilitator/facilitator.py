"""The devnet's x402 facilitator: verifies payments, settles them on chain, anchors inference data.

It holds the only key that can settle an upto payment. It settles any amount that it is told, up to the signed one.
The checks are in `checks`, the HTTP routes in `api`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from opengradient_devnet.chain.chain import Chain, ChainTimeout, KeyHolder, RpcError
from opengradient_devnet.contracts import contract
from opengradient_devnet.facilitator.channels import (
    BATCH_SETTLEMENT_SCHEME,
    Channels,
    parse_channel_payment,
    perform,
    state_json,
)
from opengradient_devnet.facilitator.checks import Checker, Transfer, settle_reason
from opengradient_devnet.facilitator.payments import (
    EIP2612_EXTENSION,
    ERC20_APPROVAL_EXTENSION,
    X402_VERSION,
    Eip3009Payment,
    Payment,
    PaymentMalformed,
    Requirements,
    parse_payment,
    parse_requirements,
)
from opengradient_devnet.facilitator.refusals import EXACT, UPTO, PaymentInvalid
from opengradient_devnet.facilitator.sponsored_approval import send_approval

__all__ = ["DataSettlement", "Facilitator", "PaymentMalformed", "Settlement", "Verification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a facilitator says of a payment before any money moves. `reason` is a protocol reason code."""

    is_valid: bool
    payer: str | None
    reason: str | None = None
    message: str | None = None
    extra: dict[str, Any] | None = None
    """Of a channel: as it is on the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The end of a payment on chain; `transaction` is "" when none was sent."""

    success: bool
    transaction: str
    block_number: int | None
    amount_atomic: int | None
    payer: str | None
    network: str
    reason: str | None = None
    message: str | None = None
    extra: dict[str, Any] | None = None
    """Of a channel: as it is on the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettlement:
    """The end of a data settlement (what was asked and answered, not what was paid)."""

    success: bool
    transaction: str
    block_number: int | None
    settlement_type: str
    reason: str | None = None


def _signed_amount_atomic(payment: Payment) -> int:
    authorization = payment.authorization
    return authorization.value if isinstance(authorization, Eip3009Payment) else int(authorization.amount)


class Facilitator:
    """Verifies and settles with one account. Safe to use from any thread; its sends are serialized."""

    def __init__(
        self, chain: Chain, *, account: KeyHolder, may_be_served: Callable[[str], bool] = lambda _payer: True
    ) -> None:
        self.channels = Channels(chain, account=account, may_be_served=may_be_served)
        """What it does for payment channels."""
        self.address = account.address
        self.network = f"eip155:{chain.chain_id}"
        self._chain = chain
        self._account = account
        self._checker = Checker(chain, facilitator=account.address)
        self._in_flight: set[tuple[str, str]] = set()
        self._in_flight_lock = threading.Lock()

    def supported(self) -> dict[str, Any]:
        """The answer to `GET /supported` (x402 v2 §7.3)."""
        kind = {"x402Version": X402_VERSION, "network": self.network}
        extra = {"facilitatorAddress": self.address}
        return {
            "kinds": [
                {**kind, "scheme": UPTO, "extra": extra},
                {**kind, "scheme": EXACT},
                {**kind, "scheme": BATCH_SETTLEMENT_SCHEME, "extra": {"receiverAuthorizer": self.address}},
            ],
            "extensions": [EIP2612_EXTENSION, ERC20_APPROVAL_EXTENSION],
            "signers": {"eip155:*": [self.address]},
        }

    def verify(self, payload: Any, requirements: Any) -> Verification:
        """Check a payment. `payload` is the whole decoded PAYMENT-SIGNATURE object.

        Raises `PaymentMalformed` when either argument does not have the protocol's shape.
        """
        if is_of_channel(requirements):
            return self._verify_voucher(payload, requirements)
        payment, wanted = parse_payment(payload), parse_requirements(requirements)
        payer = payment.authorization.payer
        try:
            self._checker.check(payment, wanted, simulate=True)
        except PaymentInvalid as exc:
            return Verification(is_valid=False, payer=payer, reason=exc.reason, message=exc.message)
        return Verification(is_valid=True, payer=payer)

    def settle(self, payload: Any, requirements: Any, amount_atomic: int | None = None) -> Settlement:
        """Take a payment on chain, after checking it again.

        `amount_atomic` (upto only) is what to take, at most the signed amount; None takes the amount of the
        requirements. An authorization that was settled before, or is being settled now, is an error and moves
        nothing. Raises `PaymentMalformed` when an argument does not have the protocol's shape.
        """
        if is_of_channel(requirements):
            return self._settle_channel(payload)
        payment, wanted = parse_payment(payload), parse_requirements(requirements)
        if amount_atomic is not None:
            wanted = replace(wanted, amount=str(amount_atomic))
        try:
            with self._reserved(payment):
                return self._settle(payment, wanted)
        except PaymentInvalid as exc:
            return self._failed(payment, exc.reason, exc.message)

    def _verify_voucher(self, payload: Any, requirements: Mapping[str, Any]) -> Verification:
        payment = parse_channel_payment(_content(payload), payload.get("extensions"))
        parse_requirements(requirements)
        try:
            state = self.channels.check(payment, requirements)
        except PaymentInvalid as exc:
            return Verification(is_valid=False, payer=payment.config.payer, reason=exc.reason, message=exc.message)
        extra = state_json(payment.channel_id, state)
        return Verification(is_valid=True, payer=payment.config.payer, extra=extra)

    def _settle_channel(self, payload: Any) -> Settlement:
        ended: dict[str, Any] = {"block_number": None, "amount_atomic": None, "network": self.network}
        try:
            done = perform(self.channels, _content(payload), payload.get("extensions"))
        except PaymentInvalid as exc:
            return Settlement(
                success=False, transaction="", payer=None, reason=exc.reason, message=exc.message, **ended
            )
        extra = None if done.state is None else {"channelState": done.state}
        return Settlement(success=True, transaction=done.transaction, payer=done.payer, extra=extra, **ended)

    @contextmanager
    def _reserved(self, payment: Payment) -> Iterator[None]:
        """Hold an authorization while it is being settled: a second one would only burn gas on a revert."""
        authorization = payment.authorization
        nonce = authorization.nonce
        key = (authorization.payer.lower(), nonce.hex() if isinstance(nonce, bytes) else nonce)
        with self._in_flight_lock:
            if key in self._in_flight:
                message = "this authorization is being settled at this moment"
                raise PaymentInvalid("duplicate_settlement", message)
            self._in_flight.add(key)
        try:
            yield
        finally:
            with self._in_flight_lock:
                self._in_flight.discard(key)

    def _settle(self, payment: Payment, wanted: Requirements) -> Settlement:
        amount_atomic = int(wanted.amount)
        self._checker.check(payment, self._as_signed(payment, wanted), simulate=False)
        if wanted.scheme == UPTO:
            if amount_atomic == 0:
                return self._succeeded(payment, transaction="", block_number=None, amount_atomic=0)
            if amount_atomic > _signed_amount_atomic(payment):
                raise PaymentInvalid("invalid_upto_evm_payload_settlement_exceeds_amount")
        approval = self._checker.approval_to_send(payment, wanted)
        if approval is not None:
            send_approval(self._chain, approval, sponsor=self._account)
        transfer = self._checker.transfer(payment, wanted, amount_atomic=amount_atomic)
        try:
            self._checker.simulate(transfer)
            receipt = self._chain.send(self._account, to=transfer.to, data=transfer.data)
        except RpcError as exc:
            return self._failed(payment, settle_reason(payment, wanted, exc.message), exc.message)
        except ChainTimeout as exc:
            return self._failed(payment, "settlement_pending", str(exc))
        return self._settled(payment, wanted, transfer, receipt)

    def _as_signed(self, payment: Payment, wanted: Requirements) -> Requirements:
        """In upto the seller's amount may be below the signed one, which is the one to check."""
        if wanted.scheme != UPTO or isinstance(payment.authorization, Eip3009Payment):
            return wanted
        return replace(wanted, amount=payment.authorization.amount)

    def _settled(
        self, payment: Payment, wanted: Requirements, transfer: Transfer, receipt: dict[str, Any]
    ) -> Settlement:
        transaction = receipt["transactionHash"]
        block_number = int(receipt["blockNumber"], 16)
        if receipt["status"] != "0x1":
            reason = settle_reason(payment, wanted, "")
            return self._failed(payment, reason, "the transaction reverted", transaction, block_number)
        if not _moved(transfer, receipt):
            reason = "invalid_exact_evm_transfer_event_mismatch"
            return self._failed(payment, reason, "the token logged no such transfer", transaction, block_number)
        return self._succeeded(
            payment,
            transaction=transaction,
            block_number=block_number,
            amount_atomic=transfer.amount_atomic,
        )

    def _succeeded(
        self, payment: Payment, *, transaction: str, block_number: int | None, amount_atomic: int
    ) -> Settlement:
        return Settlement(
            success=True,
            transaction=transaction,
            block_number=block_number,
            amount_atomic=amount_atomic,
            payer=payment.authorization.payer,
            network=self.network,
        )

    def _failed(
        self,
        payment: Payment,
        reason: str,
        message: str | None,
        transaction: str = "",
        block_number: int | None = None,
    ) -> Settlement:
        return Settlement(
            success=False,
            transaction=transaction,
            block_number=block_number,
            amount_atomic=None,
            payer=payment.authorization.payer,
            network=self.network,
            reason=reason,
            message=message,
        )

    # What was asked and answered, as hashes on the settlement relay.

    def settle_batch(self, *, merkle_root: bytes, batch_size: int, blob_id: bytes) -> DataSettlement:
        """Anchor the Merkle root of a batch of inferences."""
        data = contract("Relay").encode("batchSettle", merkle_root, batch_size, blob_id)
        return self._anchor(data, settlement_type="batch")

    def settle_individual(
        self,
        *,
        tee_id: bytes,
        input_hash: bytes,
        output_hash: bytes,
        timestamp: int,
        payer: str,
        blob_id: bytes,
        signature: bytes,
    ) -> DataSettlement:
        """Anchor one inference with its enclave's signature."""
        data = contract("Relay").encode(
            "settleIndividual", tee_id, input_hash, output_hash, timestamp, payer, blob_id, signature
        )
        return self._anchor(data, settlement_type="individual")

    def _anchor(self, data: bytes, *, settlement_type: str) -> DataSettlement:
        try:
            receipt = self._chain.send(self._account, to=contract("Relay").address, data=data)
        except (RpcError, ChainTimeout) as exc:
            return DataSettlement(
                success=False,
                transaction="",
                block_number=None,
                settlement_type=settlement_type,
                reason=str(exc),
            )
        done = receipt["status"] == "0x1"
        return DataSettlement(
            success=done,
            transaction=receipt["transactionHash"],
            block_number=int(receipt["blockNumber"], 16),
            settlement_type=settlement_type,
            reason=None if done else "the relay reverted: a blob id has at most 256 bytes, a signature 1024",
        )


def is_of_channel(requirements: Any) -> bool:
    """Whether they are those of a payment channel."""
    return isinstance(requirements, Mapping) and requirements.get("scheme") == BATCH_SETTLEMENT_SCHEME


def _content(payload: Any) -> dict[str, Any]:
    content = payload.get("payload") if isinstance(payload, Mapping) else None
    if not isinstance(content, dict):
        raise PaymentMalformed("payload must be an object", reason="invalid_payload")
    return content


def _moved(transfer: Transfer, receipt: dict[str, Any]) -> bool:
    """Whether the token's own log says that this money went from this payer to this payee."""
    token = contract("OPG")
    for log in receipt["logs"]:
        if log["address"].lower() != transfer.asset.lower() or log["topics"][0] != token.topic("Transfer"):
            continue
        moved = token.decode_log(log)
        parties = (moved["from"], moved["to"]) == (transfer.payer.lower(), transfer.pay_to.lower())
        if parties and moved["value"] == transfer.amount_atomic:
            return True
    return False
