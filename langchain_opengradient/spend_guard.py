"""`SpendGuard`: ends a run before the call that could take it over its limit.

Counts what a `SettlementCallbackHandler` hears, and sets something aside for each call that is under way. It does
not know payments: what a wallet may spend at all is the `SpendPolicy`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage

from langchain_opengradient.blocks import PROVIDER
from langchain_opengradient.callbacks import SettlementCallbackHandler
from langchain_opengradient.errors import as_model_error
from opengradient_x402.errors import BudgetExceeded
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import format_amount, parse_amount


class SpendGuard(SettlementCallbackHandler):
    """Stops a run before the call that could take it over `limit` (in OPG, as a string like "0.5").

    `reserve_per_call` is set aside for every call that is under way, so that parallel branches cannot all
    pass while none has a receipt yet. Raises BudgetExceeded out of the run; nothing is paid for that call.
    This guards one run or one agent; what a wallet may spend at all is the `SpendPolicy`'s business.
    """

    raise_error = True  # core swallows handler errors without it

    def __init__(
        self,
        limit: str,
        *,
        reserve_per_call: str = "0",
        on_receipt: Callable[[SettlementReceipt], None] | None = None,
    ) -> None:
        super().__init__(on_receipt=on_receipt)
        self.limit_atomic = parse_amount(limit)
        self.reserve_per_call_atomic = parse_amount(reserve_per_call)
        self._under_way: set[UUID] = set()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuse the call if it could exceed the limit."""
        if (metadata or {}).get("ls_provider") == PROVIDER:
            self._admit(run_id)
        super().on_chat_model_start(serialized, messages, run_id=run_id, metadata=metadata, **kwargs)

    def forget(self, run_id: UUID) -> None:
        """The call is over and its receipt is counted: free what was set aside for it."""
        super().forget(run_id)
        self._under_way.discard(run_id)

    def _admit(self, run_id: UUID) -> None:
        with self._lock:
            # Under the lock: a call that ended between the two looks would count in neither.
            spent = self.spent_atomic
            reserved = self.reserve_per_call_atomic * (len(self._under_way) + 1)
            fits = spent + reserved <= self.limit_atomic and spent < self.limit_atomic
            if fits:
                self._under_way.add(run_id)
        if not fits:
            raise as_model_error(
                BudgetExceeded(
                    f"This run has spent up to {format_amount(spent)} OPG and {len(self._under_way)} calls are "
                    f"under way; its limit is {format_amount(self.limit_atomic)} OPG. The call was not made and "
                    "not paid. Raise the SpendGuard's limit, or end the run here."
                )
            )
