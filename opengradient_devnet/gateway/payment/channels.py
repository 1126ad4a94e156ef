"""Payment channels on the gateway's side: what each has been charged, the last voucher, and claims on chain.

A channel serves one request at a time. A voucher must allow exactly what was charged before and this request's amount;
one that does not is answered with the channel's state. Claims are made by `claim_due`, which the owner calls; it
starts no thread. Usable from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from opengradient_devnet.facilitator.channels import (
    REASON,
    ChannelConfig,
    ChannelPayment,
    Channels,
    Claim,
    OnChain,
    parse_channel_payment,
    state_json,
)
from opengradient_devnet.facilitator.facilitator import PaymentMalformed
from opengradient_devnet.facilitator.refusals import PaymentInvalid
from opengradient_devnet.faults import Faults, ForgeCorrection, LieAboutCharge, NeverSettle, SettleAtCap

_MOST_CLAIMS = 16


class VoucherRefused(Exception):
    """`reason` is the protocol's code; `extra` is what the offer has besides, for a voucher with a wrong sum."""

    def __init__(self, reason: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.extra = dict(extra or {})


@dataclass(slots=True, kw_only=True)
class ChannelRecord:
    """One channel, as the gateway knows it. Only `ChannelBook` changes it."""

    id: str
    config: ChannelConfig
    charged: int
    signed: int = 0
    signature: bytes = field(default=b"", repr=False)
    on_chain: OnChain = field(default_factory=lambda: OnChain(balance=0, total_claimed=0))
    is_busy: bool = False
    calls: int = 0
    last_used_s: float = 0.0

    @property
    def claim(self) -> Claim:
        return Claim(config=self.config, max_claimable=self.signed, signature=self.signature, total=self.charged)


@dataclass(slots=True, kw_only=True)
class ChannelCall:
    """One admitted request; exactly one of `finish`, `refund` and `release` of the book ends it."""

    record: ChannelRecord
    payment: ChannelPayment
    most: int
    transaction: str = ""
    is_over: bool = False


class ChannelBook:
    """All channels of one gateway."""

    def __init__(self, channels: Channels, *, network: str, faults: Faults, claim_interval_s: float) -> None:
        self._channels = channels
        self._network = network
        self._faults = faults
        self._interval_s = claim_interval_s
        self._claimed_s = time.monotonic()
        self._lock = threading.RLock()
        self._claiming = threading.Lock()
        self._records: dict[str, ChannelRecord] = {}
        self._hoard: dict[str, Claim] = {}

    @property
    def records(self) -> list[ChannelRecord]:
        """The channels that were used here."""
        with self._lock:
            return list(self._records.values())

    def forget(self) -> None:
        """Lose every record, as a gateway that starts anew."""
        with self._lock:
            self._records.clear()

    def keep(self, content: Mapping[str, Any]) -> None:
        """Put the voucher of PAYMENT-SIGNATURE aside, served or not: a greedy claim takes the highest of a channel."""
        if "voucher" not in content["payload"]:
            return
        try:
            payment = parse_channel_payment(content["payload"], content.get("extensions"))
        except PaymentMalformed:
            return
        most = payment.max_claimable
        claim = Claim(config=payment.config, max_claimable=most, signature=payment.signature, total=most)
        with self._lock:
            known = self._hoard.get(payment.channel_id)
            if known is None or known.max_claimable < most:
                self._hoard[payment.channel_id] = claim

    def admit(self, content: Mapping[str, Any], requirements: Mapping[str, Any]) -> ChannelCall:
        """Let a request in: its deposit is collected, and its channel is busy from here on. Blocks.

        `content` is that of PAYMENT-SIGNATURE. Raises VoucherRefused, and PaymentMalformed for what is not a payment.
        """
        payment = parse_channel_payment(content["payload"], content.get("extensions"))
        most = 0 if payment.kind == "refund" else int(requirements["amount"])
        record = self._reserved(payment, most)
        try:
            least = int(requirements["extra"].get("minDeposit") or 0)
            if payment.deposit is not None and payment.deposit.amount < least:
                raise VoucherRefused(f"{REASON}deposit_below_min_deposit")
            record.on_chain = self._channels.check(payment, requirements)
            call = ChannelCall(record=record, payment=payment, most=most)
            if payment.deposit is not None:
                call.transaction = self._channels.deposit(payment)
                record.on_chain = self._channels.state(record.id)
        except PaymentInvalid as exc:
            self._free(record)
            raise VoucherRefused(exc.reason) from exc
        except BaseException:
            self._free(record)
            raise
        with self._lock:
            self._records[record.id] = record
            record.signed, record.signature = payment.max_claimable, payment.signature
            record.last_used_s = time.time()
        return call

    def _reserved(self, payment: ChannelPayment, most: int) -> ChannelRecord:
        with self._lock:
            record = self._records.get(payment.channel_id)
            if record is None:  # as x402's own servers: one that knows nothing of a channel believes the payer
                charged = max(0, payment.max_claimable - most)
                record = ChannelRecord(id=payment.channel_id, config=payment.config, charged=charged)
            if record.is_busy:
                raise VoucherRefused(f"{REASON}channel_busy")
            forged = self._faults.take(ForgeCorrection)
            if forged is not None:
                raise VoucherRefused(f"{REASON}cumulative_amount_mismatch", self._forged(record, payment, forged))
            if payment.max_claimable != record.charged + most:
                raise VoucherRefused(f"{REASON}cumulative_amount_mismatch", self._state_of(record, record.charged))
            record.is_busy = True
            self._records.setdefault(record.id, record)
            return record

    def _free(self, record: ChannelRecord) -> None:
        with self._lock:
            record.is_busy = False
            if not record.signature:
                self._records.pop(record.id, None)

    def _state_of(self, record: ChannelRecord, charged: int) -> dict[str, Any]:
        known = state_json(record.id, record.on_chain)
        state: dict[str, Any] = {"channelState": {**known, "chargedCumulativeAmount": str(charged)}}
        if record.signature:
            signature = "0x" + record.signature.hex()
            state["voucherState"] = {"signedMaxClaimable": str(record.signed), "signature": signature}
        return state

    def _forged(self, record: ChannelRecord, payment: ChannelPayment, fault: ForgeCorrection) -> dict[str, Any]:
        state = self._state_of(record, record.charged)
        more = payment.max_claimable + 1
        good = record.signature or payment.signature
        signed, charged, signature = (record.signed or payment.max_claimable), more, good
        if fault.how == "signature":
            signed, signature = more, b"\x11" * 64 + b"\x1b"
        elif fault.how == "below":
            charged = max(0, self._channels.state(record.id).total_claimed - 1)
        state["channelState"]["chargedCumulativeAmount"] = str(charged)
        state["voucherState"] = {"signedMaxClaimable": str(signed), "signature": "0x" + signature.hex()}
        return state

    # -- the end of a request

    def finish(self, call: ChannelCall, cost: int) -> dict[str, Any]:
        """Charge what the request cost, at most what it allowed; the content of PAYMENT-RESPONSE."""
        charged = min(cost, call.most)
        with self._lock:
            record = call.record
            if not call.is_over:
                call.is_over, record.is_busy = True, False
                record.charged += charged
                record.calls += 1
            cumulative = record.charged
        lie = self._faults.take(LieAboutCharge) or LieAboutCharge()
        extra = self._state_of(record, cumulative + int(lie.cumulative))
        extra.pop("voucherState", None)
        extra["chargedAmount"] = str(charged + int(lie.charge))
        return self._response(call, extra)

    def release(self, call: ChannelCall) -> None:
        """The request costs nothing. Releasing twice changes nothing."""
        with self._lock:
            if not call.is_over:
                call.is_over, call.record.is_busy = True, False

    def refund(self, call: ChannelCall) -> dict[str, Any]:
        """Claim what is owed and give back the rest; the content of PAYMENT-RESPONSE. Blocks. Raises VoucherRefused."""
        record = call.record
        try:
            left = record.on_chain.balance - record.charged
            if left <= 0:
                raise VoucherRefused(f"{REASON}refund_no_balance")
            owed = [record.claim] if record.charged > record.on_chain.total_claimed else []
            wanted = call.payment.refund_amount
            amount = left if wanted is None else min(wanted, left)
            call.transaction = self._channels.refund(record.config, amount, claims=owed)
            record.on_chain = self._channels.state(record.id)
        except PaymentInvalid as exc:
            raise VoucherRefused(exc.reason) from exc
        finally:
            self.release(call)
        if record.on_chain.balance <= record.charged:
            with self._lock:
                self._records.pop(record.id, None)
        return self._response(call, self._state_of(record, record.charged))

    def _response(self, call: ChannelCall, extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "success": True,
            "payer": call.record.config.payer,
            "transaction": call.transaction,
            "network": self._network,
            "amount": str(call.payment.deposit.amount) if call.payment.deposit is not None else "",
            "extra": extra,
        }

    # -- on chain

    def claim_due(self) -> None:
        """Claim, if the last time is long enough ago. Blocks."""
        if time.monotonic() - self._claimed_s >= self._interval_s:
            self.claim_all()

    def claim_all(self) -> None:
        """Claim what was charged, of all channels, and have it paid out. Blocks."""
        with self._claiming:
            self._claimed_s = time.monotonic()
            with self._lock:
                owing = [one for one in self._records.values() if one.charged > one.on_chain.total_claimed]
            if not owing or self._faults.take(NeverSettle):
                return
            greedy = self._faults.take(SettleAtCap) is not None
            claims = [self._greedy(one) if greedy else one.claim for one in owing]
            for first in range(0, len(claims), _MOST_CLAIMS):
                self._channels.claim(claims[first : first + _MOST_CLAIMS])
            for receiver, token in {(one.config.receiver, one.config.token) for one in owing}:
                self._channels.settle(receiver=receiver, token=token)
            for one in owing:
                one.on_chain = self._channels.state(one.id)

    def refund_all(self) -> None:
        """Give back what is left in all channels that no call uses, unasked, as servers do with idle ones. Blocks."""
        with self._claiming:
            with self._lock:
                idle = [one for one in self._records.values() if one.on_chain.balance > one.charged and not one.is_busy]
                for one in idle:
                    del self._records[one.id]
            for one in idle:
                owed = [one.claim] if one.charged > one.on_chain.total_claimed else []
                self._channels.refund(one.config, one.on_chain.balance - one.charged, claims=owed)

    def _greedy(self, record: ChannelRecord) -> Claim:
        claim = self._hoard[record.id]
        return replace(claim, total=min(claim.max_claimable, record.on_chain.balance))
