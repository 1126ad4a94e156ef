"""A gateway's side of payment channels: what each was charged, the vouchers it holds, and what it claims of them.

It keeps every voucher and every deposit that it ever saw. What it does with them is its gateway's character.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from opengradient_x402.chain.eip712 import deposit_nonce
from simulation.chain import Chain
from simulation.contract import DepositSignature, VoucherSignature

REASON = "invalid_batch_settlement_evm_"
_LATEST_S = 6


class ChannelPayment(NamedTuple):
    """What a PAYMENT-SIGNATURE of a channel says: `kind` is deposit, voucher or refund."""

    kind: str
    channel_id: str
    voucher: VoucherSignature
    deposit: DepositSignature | None
    salt: int | None
    """The deposit's."""


@dataclass(slots=True, eq=False)
class Record:
    """A channel, as the gateway knows it."""

    charged: int = 0
    latest: VoucherSignature | None = None
    busy_until_s: float = 0.0


class Refused(Exception):
    """A 402, with what the offer says besides."""

    def __init__(self, why: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.extra = dict(extra or {})


class Desk:
    """The channels of one gateway; `happens(chance)` draws, `settled()` says that the chain has changed."""

    def __init__(
        self,
        chain: Chain,
        character: Any,
        *,
        rng: random.Random,
        happens: Callable[[float], bool],
        later: Callable[[float, Callable[[], None]], None],
        settled: Callable[[], None],
        network: str,
    ) -> None:
        self._chain, self._character, self._rng = chain, character, rng
        self._happens, self._later, self._settled = happens, later, settled
        self._network = network
        self._records: dict[str, Record] = {}
        self.highest: dict[str, VoucherSignature] = {}
        """The voucher that allows most, of each channel."""
        self._deposits: dict[str, list[DepositSignature]] = {}
        self.charged: dict[str, int] = {}
        """By channel, what all calls were charged, whatever was said of it."""
        self.served = 0

    def keep(self, payment: ChannelPayment) -> None:
        """Puts aside what came, whether it is served or not."""
        known = self.highest.get(payment.channel_id)
        if known is None or known.max_atomic < payment.voucher.max_atomic:
            self.highest[payment.channel_id] = payment.voucher
        held = self._deposits.setdefault(payment.channel_id, [])
        if payment.deposit is not None and payment.deposit not in held:
            held.append(payment.deposit)
        if self._happens(self._character.settles_denied):
            self._later(self._rng.random() * 200, lambda: self._steal(payment.channel_id))

    def admit(self, payment: ChannelPayment, amount: int) -> Record:
        """The channel of a request that may be served, once its deposit is collected. Raises Refused."""
        record = self._records.setdefault(payment.channel_id, Record())
        if record.latest is None:  # as real servers: who knows nothing takes the payer's word
            record.charged = max(0, payment.voucher.max_atomic - amount)
        if record.busy_until_s > self._chain.now_s:
            raise Refused(f"{REASON}channel_busy")
        if self._happens(self._character.forges_corrections):
            raise Refused(f"{REASON}cumulative_amount_mismatch", self._forged(payment, record))
        if payment.voucher.max_atomic != record.charged + amount:
            raise Refused(f"{REASON}cumulative_amount_mismatch", self._state(payment.channel_id, record))
        self._collect(payment)
        state = self._chain.channel(payment.channel_id)
        if payment.voucher.max_atomic < state.claimed_atomic:
            raise Refused(f"{REASON}cumulative_below_claimed", self._state(payment.channel_id, record))
        if payment.voucher.max_atomic > state.balance_atomic:
            raise Refused(f"{REASON}cumulative_exceeds_balance")
        record.latest = payment.voucher
        return record

    def _collect(self, payment: ChannelPayment) -> None:
        deposit = payment.deposit
        if deposit is None:
            return
        is_late = deposit.deadline < self._chain.now_s + _LATEST_S
        if is_late or not self._chain.deposit(deposit, after_blocks=self._rng.choice((1, 1, 2))):
            raise Refused(f"{REASON}deposit_simulation_failed")
        self._settled()

    def charge(self, payment: ChannelPayment, record: Record, cost: int, amount: int) -> dict[str, Any]:
        """Charges a request; what PAYMENT-RESPONSE says of it."""
        charged = min(cost, amount)
        record.charged += charged
        self.served += 1
        self.charged[payment.channel_id] = self.charged.get(payment.channel_id, 0) + charged
        if self._happens(self._character.is_slow_to_free):
            record.busy_until_s = self._chain.now_s + self._rng.choice((0.5, 3.0, 90.0))
        state = self._state(payment.channel_id, record)
        state.pop("voucherState", None)
        said = charged
        match self._rng.randrange(4) if self._happens(self._character.lies_about_charges) else None:
            case 0:
                said = amount + 1
                state["channelState"]["chargedCumulativeAmount"] = str(record.charged + amount + 1)
            case 1:
                state["channelState"]["chargedCumulativeAmount"] = str(record.charged + 10**9)
            case 2:
                state["channelState"]["chargedCumulativeAmount"] = str(max(0, record.charged - charged - 1))
            case 3:
                said = 0
        return self._response(payment, {**state, "chargedAmount": str(said)})

    def refund(self, payment: ChannelPayment, record: Record) -> dict[str, Any]:
        """Claims what is owed, and gives back the rest."""
        channel_id = payment.channel_id
        self._chain.claim(channel_id, record.charged)
        self._chain.give_back(channel_id, "refund", self._chain.channel(channel_id).left_atomic)
        self._settled()
        self._records.pop(channel_id, None)
        return self._response(payment, self._state(channel_id, record))

    def _response(self, payment: ChannelPayment, extra: dict[str, Any]) -> dict[str, Any]:
        done = (
            None if payment.deposit is None else self._chain.used.get((payment.deposit.method, payment.deposit.nonce))
        )
        return {
            "success": True,
            "transaction": "" if done is None else done.hash,
            "network": self._network,
            "amount": "" if payment.deposit is None else str(payment.deposit.amount_atomic),
            "extra": extra,
        }

    def _state(self, channel_id: str, record: Record) -> dict[str, Any]:
        on_chain = self._chain.channel(channel_id)
        state: dict[str, Any] = {
            "channelState": {
                "channelId": channel_id,
                "balance": str(on_chain.balance_atomic),
                "totalClaimed": str(on_chain.claimed_atomic),
                "chargedCumulativeAmount": str(record.charged),
            }
        }
        if record.latest is not None:
            state["voucherState"] = _voucher_json(record.latest)
        return state

    def _forged(self, payment: ChannelPayment, record: Record) -> dict[str, Any]:
        """A state that is not the channel's; some of them it could get money by, if they were believed."""
        state, held = self._state(payment.channel_id, record), self.highest[payment.channel_id]
        channel, held_state = state["channelState"], _voucher_json(held)
        match self._rng.randrange(5):
            case 0:  # more than was charged, with the best voucher that there is
                channel["chargedCumulativeAmount"] = str(held.max_atomic)
            case 1:  # more than was ever signed
                channel["chargedCumulativeAmount"] = str(held.max_atomic + 10**15)
                held_state["signedMaxClaimable"] = str(held.max_atomic + 10**15)
            case 2:  # less than is claimed, or was charged
                channel["chargedCumulativeAmount"] = str(self._rng.randrange(record.charged + 1))
            case 3:
                channel["channelId"] = "0x" + "ab" * 32
            case _:
                return {"channelState": channel}
        return {**state, "voucherState": held_state}

    # -- claims

    def claim(self) -> None:
        """Claims what was charged of all channels; a greedy gateway all that was signed."""
        for channel_id, record in self._records.items():
            total = record.charged
            if self._happens(self._character.overcharges):
                total = self.highest[channel_id].max_atomic
            if channel_id in self.highest and total <= self.highest[channel_id].max_atomic:
                self._claimed(channel_id, total)

    def _claimed(self, channel_id: str, total: int) -> None:
        if self._chain.claim(channel_id, total, after_blocks=self._rng.choice((1, 1, 2))):
            self._settled()

    def forget(self) -> None:
        """Loses its records; what was charged since the last claim is lost, too."""
        self._records = {}

    def _steal(self, channel_id: str) -> None:
        """Takes every deposit, and all that was ever signed."""
        for deposit in self._deposits[channel_id]:
            if self._chain.deposit(deposit):
                self._settled()
        most = min(self.highest[channel_id].max_atomic, self._chain.channel(channel_id).balance_atomic)
        self._claimed(channel_id, most)


def channel_payment(payload: Mapping[str, Any]) -> ChannelPayment:
    """The payment of a channel, out of its payload."""
    signed, deposit, salt = payload["voucher"], None, None
    channel_id = signed["channelId"]
    if (raw := payload.get("deposit")) is not None:
        deposit, salt = _deposit(channel_id, int(raw["amount"]), raw["authorization"])
    voucher = VoucherSignature(channel_id, int(signed["maxClaimableAmount"]), signed["signature"])
    return ChannelPayment(payload["type"], channel_id, voucher, deposit, salt)


def _deposit(channel_id: str, amount: int, authorization: Mapping[str, Any]) -> tuple[DepositSignature, int]:
    if (permit := authorization.get("permit2Authorization")) is not None:
        salt = int(permit["nonce"])
        return DepositSignature(channel_id, "permit2", salt, amount, int(permit["deadline"])), salt
    receive = authorization["erc3009Authorization"]
    salt = int(receive["salt"], 16)
    nonce = deposit_nonce(bytes.fromhex(channel_id[2:]), salt)
    return DepositSignature(channel_id, "eip3009", nonce, amount, int(receive["validBefore"])), salt


def _voucher_json(voucher: VoucherSignature) -> dict[str, str]:
    return {"signedMaxClaimable": str(voucher.max_atomic), "signature": voucher.signature}
