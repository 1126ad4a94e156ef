"""What must hold after every step, whatever happens. It believes the chain, the ledger's file, and nobody's word."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from opengradient_x402.networks import Network
from opengradient_x402.payment.policy import SpendPolicy
from simulation.broken import Broken
from simulation.chain import Chain, Signature
from simulation.channel_audit import ChannelAuditor
from simulation.desks import ChannelPayment
from simulation.gateways import price_of

_GWEI = 10**9
_CLOCKS_S = 200
"""So far a deadline may be off: two limits of the clock's skew, a gateway's `Date`, and the rounding of all."""


@dataclass(slots=True)
class Out:
    """What has left under one nonce."""

    signatures: list[Signature] = field(default_factory=list)
    left_s: float = 0.0
    call: int = 0
    """The first call that sent one."""
    said_not_paid: str = ""

    def can_take(self, now_s: float) -> int:
        """The most that can still be taken."""
        return max((one.amount_atomic for one in self.signatures if one.deadline >= now_s), default=0)


class Auditor:
    """Compares what left, what the ledger has, and what the chain shows."""

    def __init__(self, path: Path, *, chain: Chain, network: Network, payer: str, policy: SpendPolicy) -> None:
        self._path = path
        self._chain, self._network, self._payer, self._policy = chain, network, payer, policy
        self._budget = policy.per_day_atomic(network.asset)
        self._most = policy.per_authorization_atomic(network.asset)
        self._conn: sqlite3.Connection | None = None
        self.out: dict[int, Out] = {}
        self._open: set[int] = set()
        """Nonces whose reservation must hold: something can be taken, or was."""
        self._rows: dict[int, tuple[str, int]] = {}
        """By nonce: status and reserved amount, as committed."""
        self._by_call: dict[int, set[int]] = {}
        self.channels = ChannelAuditor(self._connected, chain=chain, network=network, policy=policy)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    # -- a signature leaves

    def left(self, signature: Signature, *, origin: str, call: int) -> None:
        """Called when a signature is on its way: it must be in the ledger by now."""
        now_s, shown = self._chain.now_s, f"a signature for {signature.amount_atomic} ({signature.method}) to {origin}"
        held = self._stored(signature.nonce)
        if (signature.amount_atomic, signature.deadline, signature.payee.lower()) not in held:
            raise Broken("every signature that left is in the ledger", f"{shown} is not")
        if self._rows[signature.nonce][0] == "unsent":
            raise Broken("every signature that left is in the ledger", f"{shown} is there as unsent")
        if signature.deadline > now_s + self._policy.max_deadline_s + _CLOCKS_S:
            raise Broken("deadlines are capped", f"{shown} lives {signature.deadline - now_s:.0f} s")
        if signature.amount_atomic > self._most or signature.payee not in self._network.payees:
            raise Broken("the policy holds", f"{shown} goes to {signature.payee}")
        out = self.out.setdefault(signature.nonce, Out(left_s=now_s, call=call))
        self._by_call.setdefault(out.call, set()).add(signature.nonce)
        if signature not in out.signatures:
            out.signatures.append(signature)
            self._open.add(signature.nonce)
            self._check_budget()
        self._check(signature.nonce)

    def voucher_left(self, payment: ChannelPayment, *, origin: str, amount: int) -> None:
        """As `left`, for a voucher, with a deposit or without."""
        self.channels.left(payment, origin=origin, amount=amount)
        self._check_budget()

    def _check_budget(self) -> None:
        total = self.channels.claimable
        for nonce, out in self.out.items():
            if out.left_s > self._chain.now_s - 86_000:
                taken = sum(done.amount_atomic for done in self._chain.by_nonce.get(nonce, ()))
                total += taken or out.can_take(self._chain.now_s)
        if total > self._budget:
            raise Broken("budgets hold", f"{total} are taken or can be, and the budget is {self._budget}")

    # -- the ledger has changed

    def committed(self, authorization_ids: Iterable[str]) -> None:
        """A transaction of the ledger is done."""
        for authorization_id in authorization_ids:
            row = (
                self._connected()
                .execute(
                    "SELECT nonce, status, reserved_gwei, reserved_rest FROM authorizations WHERE id = ?",
                    (authorization_id,),
                )
                .fetchone()
            )
            if row is not None:
                nonce = int(row[0])
                self._rows[nonce] = row[1], row[2] * _GWEI + row[3]
                self._check(nonce)
            elif authorization_id in self.channels.out:
                self.channels.check(authorization_id)

    # -- the chain has changed

    def mined(self) -> None:
        """Something was settled, or a block is gone."""
        for nonce in self._open:
            self._check(nonce)
        self.channels.check_all()

    def _check(self, nonce: int) -> None:
        out = self.out.get(nonce)
        if out is None:
            return
        of_call = [done for one in self._by_call[out.call] for done in self._chain.by_nonce.get(one, ())]
        if len(of_call) > 1:
            raise Broken("no call settles twice", f"one call paid {[done.amount_atomic for done in of_call]}")
        done = self._chain.by_nonce.get(nonce, ())
        taken = sum(one.amount_atomic for one in done)
        if taken and out.said_not_paid:
            raise Broken("no error says 'not paid' about what the chain shows", f"{taken} taken: {out.said_not_paid}")
        status, reserved = self._rows[nonce]
        most = taken or out.can_take(self._chain.now_s)
        if most > reserved:
            what = "was taken" if taken else "can be taken"
            raise Broken("the ledger holds what is taken", f"{most} {what}, and the ledger ({status}) has {reserved}")

    # -- a call has ended

    def said_not_paid(self, nonces: Iterable[int], error: str, *, vouchers: int = 0) -> None:
        """A call ended with an error that says `not_paid`; these are the nonces that it signed for the first time.

        A voucher can always be claimed, so nobody can say so once one has left.
        """
        if vouchers:
            raise Broken("no error says 'not paid' about what can be claimed", error)
        for nonce in nonces:
            self.out[nonce].said_not_paid = error
            self._check(nonce)

    # -- the end

    def equal(self) -> None:
        """When all is over the ledger says what the chain says, to the wei, and names every overcharge."""
        self._check_sums()
        rows = {}
        for authorization_id, nonce, status, settled in self._connected().execute(
            "SELECT a.id, a.nonce, a.status, a.settled_atomic FROM authorizations a WHERE NOT EXISTS "
            "(SELECT 1 FROM vouchers v WHERE v.authorization_id = a.id) AND NOT EXISTS "
            "(SELECT 1 FROM signatures s WHERE s.authorization_id = a.id AND s.scheme = 'batch-settlement')"
        ):
            rows[int(nonce)] = (authorization_id, status, None if settled is None else int(settled))
        for nonce, out in self.out.items():
            if nonce not in rows:
                raise Broken("every signature that left is in the ledger", "one is not there at the end")
            stored = self._stored(nonce)
            for one in out.signatures:
                if (one.amount_atomic, one.deadline, one.payee.lower()) not in stored:
                    raise Broken("every signature that left is in the ledger", "one is not there at the end")
        for nonce, (authorization_id, status, settled) in rows.items():
            taken = sum(done.amount_atomic for done in self._chain.by_nonce.get(nonce, ()))
            if taken != (settled or 0) or (status == "settled") != bool(taken) or status == "signed":
                raise Broken(
                    "in the end ledger and chain are equal", f"{taken} taken, and the ledger has {status} {settled}"
                )
            if taken:
                self._check_dispute(authorization_id, taken, self.out[nonce])

    def _check_sums(self) -> None:
        """What a budget counts is kept by the minute: it must be what the authorizations reserve."""
        conn = self._connected()
        kept, reserved = (
            conn.execute(
                f"SELECT coalesce(sum({gwei}), 0) * {_GWEI} + coalesce(sum({rest}), 0) FROM {table}"
            ).fetchone()
            for gwei, rest, table in (
                ("gwei", "rest", "reserved"),
                ("reserved_gwei", "reserved_rest", "authorizations"),
            )
        )
        if kept != reserved:
            raise Broken("budgets hold", f"the budget counts {kept[0]}, and {reserved[0]} are reserved or spent")

    def _check_dispute(self, authorization_id: str, taken: int, out: Out) -> None:
        if out.signatures[0].scheme == "exact":
            return
        found = self._connected().execute("SELECT receipt FROM calls WHERE authorization_id = ?", (authorization_id,))
        receipts = [json.loads(row[0]) for row in found]
        if not receipts or any("prompt_tokens" not in receipt for receipt in receipts):
            return
        fair = sum(price_of(receipt["prompt_tokens"], receipt["completion_tokens"]) for receipt in receipts)
        is_disputed = any("dispute" in receipt for receipt in receipts)
        if taken > fair + len(receipts) and not is_disputed:
            raise Broken("what is taken above usage and price is disputed", f"{taken} taken for {fair}")
        claims = any(receipt.get("claimed_payment_tx_hash") for receipt in receipts)
        if taken <= fair and is_disputed and not claims and all(receipt["outcome"] == "ok" for receipt in receipts):
            said = next(receipt["dispute"] for receipt in receipts if "dispute" in receipt)
            raise Broken("nobody is accused who took what is right", f"{taken} taken for {fair}: {said}")

    # -- the ledger's file

    def _stored(self, nonce: int) -> set[tuple[int, int, str]]:
        rows = self._connected().execute(
            "SELECT s.amount_atomic, s.deadline, s.payee FROM signatures s JOIN authorizations a "
            "ON a.id = s.authorization_id WHERE a.nonce = ?",
            (str(nonce),),
        )
        return {(int(amount), deadline, payee.lower()) for amount, deadline, payee in rows}

    def _connected(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = sqlite3.connect(self._path, isolation_level=None)
        return self._conn
