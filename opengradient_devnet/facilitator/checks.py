"""Is this payment good? The checks of the x402 v2 schemes, and the transaction that would settle it.

Checks that need no chain come first; then come signature, allowance, balance, and a simulation of the settlement.
Nothing here sends a transaction. Each way to pay has its own module: `permit2`, `eip3009`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.facilitator.eip3009 import Eip3009Checks, eip3009_call, eip3009_settle_reason
from opengradient_devnet.facilitator.payments import Eip3009Payment, Payment, Permit2Payment, Requirements
from opengradient_devnet.facilitator.permit2 import Permit2Checks, permit2_call, permit2_settle_reason
from opengradient_devnet.facilitator.refusals import EXACT, UPTO, PaymentInvalid
from opengradient_devnet.facilitator.sponsored_approval import ApprovalTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A transaction that would settle a payment, and what it would move."""

    to: str
    data: bytes
    payer: str
    pay_to: str
    asset: str
    amount_atomic: int


def _in_scheme(authorization: Permit2Payment | Eip3009Payment, scheme: str) -> Permit2Payment | Eip3009Payment:
    """The exact scheme's witness has no facilitator: what an exact payload says there is not signed."""
    if scheme == EXACT and isinstance(authorization, Permit2Payment):
        return replace(authorization, facilitator=None)
    return authorization


class Checker:
    """The checks of one facilitator on one chain."""

    def __init__(self, chain: Chain, *, facilitator: str) -> None:
        self._chain = chain
        self._facilitator = facilitator
        self._permit2 = Permit2Checks(chain, facilitator=facilitator)
        self._eip3009 = Eip3009Checks(chain, facilitator=facilitator)

    def check(self, payment: Payment, requirements: Requirements, *, simulate: bool) -> None:
        """Raise `PaymentInvalid` with the first reason against a payment.

        A settlement is simulated by itself, with its own amount: it checks without `simulate`.
        """
        if requirements.scheme not in (UPTO, EXACT):
            message = f"{requirements.scheme!r} is neither {UPTO} nor {EXACT}"
            raise PaymentInvalid("unsupported_scheme", message)
        authorization = _in_scheme(payment.authorization, requirements.scheme)
        match authorization:
            case Permit2Payment():
                self._permit2.check(payment, authorization, requirements, simulate=simulate)
            case Eip3009Payment():
                self._eip3009.check(payment, authorization, requirements, simulate=simulate)
            case _:
                assert_never(authorization)

    def transfer(self, payment: Payment, requirements: Requirements, *, amount_atomic: int) -> Transfer:
        """The transaction that settles a payment which has passed `check`."""
        authorization = _in_scheme(payment.authorization, requirements.scheme)
        match authorization:
            case Permit2Payment():
                to, data = permit2_call(authorization, payment.permit, amount_atomic=amount_atomic)
            case Eip3009Payment():
                to, data = requirements.asset, eip3009_call(authorization)
            case _:
                assert_never(authorization)
        return Transfer(
            to=to,
            data=data,
            payer=authorization.payer,
            pay_to=requirements.pay_to,
            asset=requirements.asset,
            amount_atomic=amount_atomic,
        )

    def approval_to_send(self, payment: Payment, requirements: Requirements) -> ApprovalTransaction | None:
        """The payer's approval that has to be sent before `transfer` can succeed; raises `PaymentInvalid`."""
        authorization = payment.authorization
        if isinstance(authorization, Eip3009Payment):
            return None
        return self._permit2.approval_to_send(payment, authorization, asset=requirements.asset)

    def simulate(self, transfer: Transfer) -> None:
        """Run a settlement without sending it; raises `RpcError`."""
        self._chain.call(to=transfer.to, data=transfer.data, sender=self._facilitator)


def settle_reason(payment: Payment, requirements: Requirements, message: str) -> str:
    """The reason code for what the contracts said (or the chain, or nobody) when a settlement was tried."""
    if isinstance(payment.authorization, Eip3009Payment):
        return eip3009_settle_reason(message)
    return permit2_settle_reason(requirements.scheme, message)
