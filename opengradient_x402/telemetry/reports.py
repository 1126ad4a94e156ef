"""What is reported of one payer's signatures, sessions and calls, as events."""

from __future__ import annotations

from typing import Any

from opengradient_x402.errors import OpenGradientError
from opengradient_x402.ledger.authorizations import Authorization, token_fields
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.telemetry import events


class Reports:
    """The events of `payer` on the network whose CAIP-2 name is `network`."""

    def __init__(self, *, payer: str, network: str) -> None:
        self._whose: dict[str, Any] = {"payer": payer, "network": network}

    def signed(self, authorization: Authorization) -> None:
        """The latest terms of this authorization were signed."""
        events.report(
            events.Signed(
                **self._whose,
                **token_fields(authorization),
                call_id=authorization.call_id,
                authorization_id=authorization.id,
                endpoint=authorization.endpoint,
                model=authorization.model,
                payee=authorization.terms.payee,
                amount_atomic=authorization.terms.amount_atomic,
                deadline=authorization.terms.deadline,
            )
        )

    def opened(self, paid_by: Authorization, *, origin: str) -> None:
        """A gateway gave a session for this payment."""
        events.report(
            events.SessionOpened(
                **self._whose,
                **token_fields(paid_by),
                authorization_id=paid_by.id,
                origin=origin,
                amount_atomic=paid_by.terms.amount_atomic,
                deadline=paid_by.terms.deadline,
            )
        )

    def retired(self, paid_by: Authorization, *, origin: str, reason: str, spent_atomic: int) -> None:
        """No further call uses the session of this payment."""
        events.report(
            events.SessionRetired(
                **self._whose,
                **token_fields(paid_by),
                authorization_id=paid_by.id,
                origin=origin,
                reason=reason,
                spent_atomic=spent_atomic,
            )
        )

    def refused(self, call_id: str, error: OpenGradientError, *, endpoint: str, model: str) -> None:
        """A call ended with this error."""
        events.report(
            events.CallRefused(
                **self._whose,
                call_id=call_id,
                endpoint=endpoint,
                model=model,
                error=type(error).__name__,
                kind=error.kind,
                money=error.money,
                message=error.message,
            )
        )

    def ended(self, receipt: SettlementReceipt) -> None:
        """A paid call ended. Asked only when somebody listens: it would come with every call."""
        events.report(events.CallEnded(**self._whose, receipt=receipt))

    def disputed(self, authorization: Authorization, dispute: str) -> None:
        """The payment's own call is disputed."""
        events.report(
            events.Disputed(
                **self._whose,
                call_id=authorization.call_id,
                authorization_id=authorization.id,
                endpoint=authorization.endpoint,
                dispute=dispute,
            )
        )
