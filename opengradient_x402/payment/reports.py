"""What is reported of one payer's signatures, sessions and calls, as events."""

from __future__ import annotations

from typing import Any

from opengradient_x402.errors import OpenGradientError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.call import Call
from opengradient_x402.payment.sessions import PaidSession
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
                call_id=authorization.call_id,
                authorization_id=authorization.id,
                endpoint=authorization.endpoint,
                model=authorization.model,
                payee=authorization.terms.payee,
                amount_atomic=authorization.terms.amount_atomic,
                deadline=authorization.terms.deadline,
            )
        )

    def opened(self, session: PaidSession) -> None:
        """A gateway gave this session for a payment."""
        events.report(
            events.SessionOpened(
                **self._whose,
                authorization_id=session.authorization.id,
                origin=session.key.origin,
                amount_atomic=session.authorization.terms.amount_atomic,
                deadline=session.authorization.terms.deadline,
            )
        )

    def retired(self, session: PaidSession, reason: str) -> None:
        """No further call uses this session."""
        events.report(
            events.SessionRetired(
                **self._whose,
                authorization_id=session.authorization.id,
                origin=session.key.origin,
                reason=reason,
                spent_atomic=session.spent_atomic,
            )
        )

    def refused(self, call: Call, error: OpenGradientError) -> None:
        """The call ended with this error; reported once."""
        if call.is_refused:
            return
        call.is_refused = True
        events.report(
            events.CallRefused(
                **self._whose,
                call_id=call.id,
                endpoint=call.base_url,
                model=call.model,
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
