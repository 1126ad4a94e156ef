"""What stops a run before it pays: `SpendGuard` ends it at a limit, `interrupt_for_approval` pauses it for a person.

The guard is a handler with a limit, which the model asks when a call is about to be paid
(`opengradient_x402.payment.run_limit`). What a wallet may spend at all is the `SpendPolicy`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langchain_opengradient.callbacks import SettlementCallbackHandler
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.approval import ApprovalRequest
from opengradient_x402.payment.run_limit import RunLimit


class SpendGuard(SettlementCallbackHandler):
    """Stops a run before the call that could take it over `limit`, in whole tokens as text ("0.5" of OPG, or USDC, …).

    Calls that have ended count with their cost, calls under way with their worst case: the price of the whole prompt
    and of all the tokens that the answer may have, or all that the payment allows where no price is known. So parallel
    branches cannot all pass while none has a receipt. `reserve_per_call` is counted in place of the worst case.
    A call that was refused, cancelled before it was paid, or answered from a cache counts nothing.

    Raises BudgetExceeded out of the run; nothing is paid for that call. This guards one run or one agent; what a
    wallet may spend at all is the `SpendPolicy`'s business.
    """

    run_limit: RunLimit

    def __init__(
        self,
        limit: str,
        *,
        reserve_per_call: str | None = None,
        on_receipt: Callable[[SettlementReceipt], None] | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(on_receipt=on_receipt, most=most)
        self.run_limit = RunLimit(limit, reserve_per_call=reserve_per_call)

    @property
    def spent_atomic(self) -> int:
        """What the calls that have ended cost, at most: the worst case of a call whose cost is not known yet."""
        self._kept.now()
        return self.run_limit.spent_atomic

    @property
    def spent(self) -> str:
        """`spent_atomic` for people, also of several tokens: "0.0125 OPG"."""
        self._kept.now()
        return self.run_limit.spent

    def receive(self, receipt: SettlementReceipt) -> None:
        """Count `receipt`, unless its call was counted already."""
        self.run_limit.count(receipt)
        super().receive(receipt)

    def clear(self) -> None:
        """Forget the calls that have ended: the limit begins anew."""
        self.run_limit.clear()
        super().clear()

    def _take_news(self, receipt: SettlementReceipt) -> None:
        self.run_limit.update([receipt])


def interrupt_for_approval(request: ApprovalRequest) -> bool:
    """Pauses a LangGraph run before it pays: `SpendPolicy(approve_above="0.5", approval=interrupt_for_approval)`.

    The interrupt's value is the request as JSON, with its `question`. The run needs a checkpointer, and goes on with
    `Command(resume=True)`, or `False` to refuse. The node that asked is run again then: nothing of it was signed or
    paid before.
    """
    from langgraph.types import interrupt

    answer = interrupt({**request.to_json(), "question": request.question})
    return answer is True or (isinstance(answer, Mapping) and answer.get("approved") is True)
