"""What must hold of payment channels after every step: vouchers, deposits, claims, and what the ledger has of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy
from simulation.broken import Broken
from simulation.chain import Chain
from simulation.contract import DepositSignature
from simulation.desks import ChannelPayment

_GWEI = 10**9


@dataclass(slots=True)
class ChannelOut:
    """What has left for one channel."""

    origin: str
    first_s: float
    highest: int = 0
    highest_by: str = ""
    """The authorization of that voucher."""
    deposits: list[DepositSignature] = field(default_factory=list)


class ChannelAuditor:
    """Compares what left for channels, what the ledger has of them, and what the chain shows."""

    def __init__(
        self, connected: Callable[[], sqlite3.Connection], *, chain: Chain, network: Network, policy: SpendPolicy
    ) -> None:
        self._connected, self._chain = connected, chain
        self._most_deposit = policy.deposit_atomic(network.asset)
        self._most_channels = policy.max_channels
        self.out: dict[str, ChannelOut] = {}

    # -- a voucher leaves

    def left(self, payment: ChannelPayment, *, origin: str, amount: int) -> None:
        """Called when a request is on its way, which may cost up to `amount`."""
        channel_id, most = payment.channel_id, payment.voucher.max_atomic
        shown = f"a voucher for {most} to {origin}"
        row = (
            self._connected()
            .execute(
                "SELECT signed_atomic, charged_atomic, deposit_atomic, deposit_salt, deposit_deadline "
                "FROM channels WHERE id = ?",
                (channel_id,),
            )
            .fetchone()
        )
        if row is None or int(row[0]) < most:
            raise Broken("every voucher that left is in the ledger", f"{shown} is not")
        signed_by = self._vouchers(channel_id)
        if payment.kind != "refund" and str(most) not in signed_by:
            raise Broken("every voucher that left is in the ledger", f"{shown} is not, and {row[0]} is signed")
        out = self.out.setdefault(channel_id, ChannelOut(origin, self._chain.now_s))
        if most >= out.highest and payment.kind != "refund":
            out.highest, out.highest_by = most, signed_by[str(most)]
        if (deposit := payment.deposit) is not None and deposit not in self._chain.deposited:
            kept = tuple(None if value is None else int(value) for value in row[2:])
            if kept != (deposit.amount_atomic, payment.salt, deposit.deadline):
                raise Broken("every deposit that left is in the ledger", f"{deposit}, and it has {kept}")
            if deposit not in out.deposits:
                out.deposits.append(deposit)
                self._check_deposit(channel_id, deposit, charged=int(row[1]), amount=amount)
        self.check(channel_id)

    def _vouchers(self, channel_id: str) -> dict[str, str]:
        """By what they allow, the authorizations that pay with them."""
        query = "SELECT max_atomic, authorization_id FROM vouchers WHERE channel_id = ? ORDER BY sequence"
        return dict(self._connected().execute(query, (channel_id,)).fetchall())

    def _check_deposit(self, channel_id: str, deposit: DepositSignature, *, charged: int, amount: int) -> None:
        if deposit.amount_atomic > self._most_deposit:
            raise Broken("deposits are capped", f"{deposit.amount_atomic} of {self._most_deposit}")
        out = self.out[channel_id]
        tied = self._chain.channel(channel_id).balance_atomic + self._open(out) - charged
        if tied > self._most_deposit + amount:
            raise Broken("deposits are capped", f"{tied} are tied up, and a deposit is {self._most_deposit} at most")
        beside = [
            each
            for each in self.out
            if self.out[each].origin == out.origin and self._holds(each) and self._status(each) == "open"
        ]
        if len(beside) > self._most_channels:
            raise Broken("channels are capped", f"{len(beside)} hold money, and {self._most_channels} may")

    def _status(self, channel_id: str) -> str:
        query = "SELECT status FROM channels WHERE id = ?"
        return str(self._connected().execute(query, (channel_id,)).fetchone()[0])

    def _open(self, out: ChannelOut) -> int:
        """What deposits can still move, but for those that a reorganisation took back."""
        return sum(
            one.amount_atomic
            for one in out.deposits
            if one not in self._chain.deposited and one.deadline >= self._chain.now_s
        )

    def _holds(self, channel_id: str) -> bool:
        return self._chain.channel(channel_id).left_atomic > 0 or self._open(self.out[channel_id]) > 0

    # -- ledger or chain have changed

    def check(self, channel_id: str) -> None:
        """What was claimed, and what can be, is reserved or spent in the ledger."""
        out = self.out.get(channel_id)
        if out is None:
            return
        claimed = self._chain.channel(channel_id).claimed_atomic
        if claimed > out.highest:
            raise Broken("nothing is claimed above what was signed", f"{claimed} of {out.highest}")
        if claimed == out.highest or self._is_settled(out.highest_by):  # a claim frees what its voucher reserved
            return
        gwei, rest = (
            self._connected()
            .execute(
                "SELECT coalesce(sum(reserved_gwei), 0), coalesce(sum(reserved_rest), 0) "
                "FROM authorizations WHERE nonce = ?",
                (str(int(channel_id, 16)),),
            )
            .fetchone()
        )
        reserved = gwei * _GWEI + rest
        if max(out.highest, claimed) > reserved:
            raise Broken(
                "the ledger holds what can be claimed",
                f"{out.highest} is signed, {claimed} claimed, and {reserved} are reserved or spent",
            )

    def _is_settled(self, authorization_id: str) -> bool:
        query = "SELECT 1 FROM authorizations WHERE id = ? AND status = 'settled'"
        return self._connected().execute(query, (authorization_id,)).fetchone() is not None

    def check_all(self) -> None:
        for channel_id in self.out:
            self.check(channel_id)

    @property
    def claimable(self) -> int:
        """What can be claimed of channels that were opened within a day, or was."""
        new = (each for each, out in self.out.items() if out.first_s > self._chain.now_s - 86_000)
        return sum(self._claimable(each) for each in new)

    def _claimable(self, channel_id: str) -> int:
        """All that was signed; of a channel that gets no further deposit no more than is or can come into it."""
        out, on_chain = self.out[channel_id], self._chain.channel(channel_id)
        if self._status(channel_id) != "closed":
            return out.highest
        return min(out.highest, on_chain.claimed_atomic + on_chain.left_atomic + self._open(out))

    # -- the end

    def equal(self, charged: dict[str, int], *, honest: Iterable[str]) -> None:
        """The ledger says what the chain says, when nothing is left in any channel. `charged` is by channel."""
        honest = set(honest)
        for channel_id, out in self.out.items():
            claimed = self._chain.channel(channel_id).claimed_atomic
            rows = (
                self._connected()
                .execute(
                    "SELECT a.status, a.settled_atomic, c.receipt, a.tx_hash FROM authorizations a LEFT JOIN calls c "
                    "ON c.authorization_id = a.id WHERE a.nonce = ?",
                    (str(int(channel_id, 16)),),
                )
                .fetchall()
            )
            settled = sum(int(row[1] or 0) for row in rows)
            open_ = [row[0] for row in rows if row[0] not in ("settled", "unsent")]
            if settled != claimed or open_:
                raise Broken(
                    "in the end ledger and chain are equal", f"{claimed} claimed, {settled} in the ledger, {open_} open"
                )
            self._check_transactions(channel_id, [(row[3], int(row[1] or 0)) for row in rows if row[3] is not None])
            self._check_disputes(
                [json.loads(row[2]) for row in rows if row[2]],
                claimed=claimed,
                charged=charged.get(channel_id, 0),
                is_honest=out.origin in honest,
            )

    def _check_transactions(self, channel_id: str, taken: list[tuple[str, int]]) -> None:
        """The calls that name a claim come to no more than had been claimed by then."""
        so_far = claimed = 0
        for event, amount in self._chain.view().claims():
            if event.channel_id == channel_id:
                so_far += sum(one for tx_hash, one in taken if tx_hash == event.hash)
                claimed += amount
                taken = [(tx_hash, one) for tx_hash, one in taken if tx_hash != event.hash]
                if so_far > claimed:
                    raise Broken("calls name the claim that they are in", f"{so_far} of {claimed} by {event.hash}")
        if taken:
            raise Broken("calls name the claim that they are in", f"{taken} are no claims of {channel_id}")

    def _check_disputes(self, receipts: list[dict[str, Any]], *, claimed: int, charged: int, is_honest: bool) -> None:
        said = [receipt["dispute"] for receipt in receipts if "dispute" in receipt]
        known = sum(int(receipt.get("cost_atomic", receipt["authorized_atomic"])) for receipt in receipts)
        if claimed > max(charged, known) and not said:
            raise Broken(
                "what is claimed above what was charged is disputed",
                f"{claimed} claimed for {charged}, at most {known}",
            )
        if is_honest and said:
            raise Broken("nobody is accused who took what is right", f"{claimed} claimed for {charged}: {said[0]}")
