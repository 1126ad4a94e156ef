"""The calls of rows that have a key: what became of them before, and how to go on without paying a second time.

A call's id follows from the job and the key of its row, and the ledger has every call before it is sent. So a row that
was under way when its process was killed is found again, and the chain decides:

* It has a nonce of its own: a gateway that gives answers again is asked for it. Other gateways are asked nothing more
while that nonce may hold an open session, which would charge for the row a second time. When none can be open any more,
and nothing has settled, the row is called again under that nonce: at most one of the payments settles. * A session paid
for it: the session's settlement is waited for, which shows whether the row was charged. * Not charged: it is called
again. Charged: it is paid, and its answer is lost; only `pay_again` pays for it once more.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from opengradient_x402.batch.rows import shown_cost
from opengradient_x402.effects import awaited
from opengradient_x402.errors import AnswerLost, ChainUnavailable, PaymentOutcomeUnknown
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt, cost_of
from opengradient_x402.payment.payments import Payments

_GROUP_DIGITS: Final = 8
_ID_DIGITS: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCall:
    """The call to make now; `earlier` is what was signed for it before, whose nonce pays now.

    `only_given_again`: the gateway is asked for the answer that it has given, and for no other.
    """

    call_id: str
    earlier: Authorization | None = field(default=None, compare=False)
    only_given_again: bool = False


class KeyedCalls:
    """The calls of one job. `wait_s` is how long a settlement is waited for."""

    def __init__(self, payments: Payments, *, job: str, pay_again: bool, wait_s: float) -> None:
        self._payments = payments
        self._job = job
        self._pay_again = pay_again
        self._wait_s = wait_s

    def call_id(self, key: str, attempt: int = 1) -> str:
        """The id of a row's call. Those of one job begin alike."""
        rest = sha256(f"{self._job} {attempt} {key}".encode(errors="surrogatepass")).hexdigest()
        return f"call_{self._job[:_GROUP_DIGITS]}{rest[:_ID_DIGITS]}"

    async def known(self, keys: Collection[str]) -> set[str]:
        """Those of the rows that were called before."""
        ids = {self.call_id(key): key for key in keys}
        receipts = await awaited(self._payments.ledger.receipts(call_ids=list(ids))) if ids else []
        return {ids[receipt.call_id] for receipt in receipts}

    async def next(self, key: str, *, refused: Collection[NextCall] = ()) -> NextCall:
        """The next call of a row; `refused` are those that the gateway did not serve.

        Raises AnswerLost for a row that was paid, PaymentOutcomeUnknown while the chain does not show whether it was.
        """
        attempt = 1
        while (recorded := await self._receipt(self.call_id(key, attempt))) is not None:
            receipt = await self._refreshed(recorded)
            own = await self._own(receipt)
            may_be_open = own is not None and own.terms.scheme == "upto"
            again = NextCall(call_id=receipt.call_id, earlier=own, only_given_again=may_be_open)
            if own is not None and again not in refused:
                return again
            if not receipt.is_final and receipt.outcome != "ok":
                receipt = await receipt.await_settled(self._wait_s)
                if not receipt.is_final:
                    again = NextCall(call_id=receipt.call_id, earlier=own)
                    if own is not None and again not in refused and await self._is_idle(own):
                        return again
                    raise self._unknown(receipt, f"the chain has shown no settlement within {self._wait_s:g} s")
            # One that was served counts as paid; if nothing is taken for it after all, a later run finds that out.
            if not self._pay_again and (cost_of(receipt) or not receipt.is_final):
                raise self._lost(receipt)
            # The process that began it may live, and be late: it must not go on with it after this.
            if await awaited(self._payments.ledger.give_up_call(receipt.call_id, receipt.authorization_id)):
                attempt += 1
        return NextCall(call_id=self.call_id(key, attempt))

    async def _is_idle(self, authorization: Authorization) -> bool:
        """Whether its session, if there was one, has ended: nobody has used it for as long as sessions last unused."""
        calls = await awaited(self._payments.ledger.receipts(authorization_ids=[authorization.id]))
        last_s = max((call.created_at for call in calls), default=authorization.terms.signed_at)
        return time.time() > last_s + self._payments.network.session_idle_s

    async def _refreshed(self, receipt: SettlementReceipt) -> SettlementReceipt:
        try:
            return await receipt.followed_by(self._payments.reconciler).arefresh()
        except ChainUnavailable as exc:
            raise self._unknown(receipt, f"the chain cannot be asked ({exc.message})") from exc

    async def _receipt(self, call_id: str) -> SettlementReceipt | None:
        found = await awaited(self._payments.ledger.receipts(call_ids=[call_id]))
        return found[0] if found else None

    async def _own(self, receipt: SettlementReceipt) -> Authorization | None:
        """The authorization of the call itself, whose nonce may be used again; None for what another call signed."""
        if receipt.scheme == "batch-settlement" or receipt.status is ReceiptStatus.CANCELLED:
            return None
        ledger = self._payments.ledger
        [authorization] = await awaited(ledger.authorizations(authorization_id=receipt.authorization_id))
        is_ours = authorization.payer == self._payments.payer and authorization.network == self._payments.network.caip2
        return authorization if is_ours and authorization.call_id == receipt.call_id else None

    def _lost(self, receipt: SettlementReceipt) -> AnswerLost:
        place = "" if receipt.payment_tx_hash is None else f", settled in {receipt.payment_tx_hash}"
        return AnswerLost(
            f"Call {receipt.call_id} of this row was paid before ({shown_cost(receipt)}{place}), and its answer was "
            "lost: its process ended before the answer was on disk. Nothing was paid now. Run the job with "
            "`pay_again=True` to call such rows once more, each for a new payment.",
            receipt=receipt,
            call_id=receipt.call_id,
        )

    def _unknown(self, receipt: SettlementReceipt, why: str) -> PaymentOutcomeUnknown:
        return PaymentOutcomeUnknown(
            f"Call {receipt.call_id} of this row was under way when its process ended, and {why}. It may be charged, "
            f"{shown_cost(receipt)}. Nothing was paid now. Run the job again later: it goes on with this row.",
            receipt=receipt,
            call_id=receipt.call_id,
        )
