"""`PaymentInvalid`, the failure of a check, and the small checks that all ways to pay share."""

from __future__ import annotations

from opengradient_devnet.chain.chain import Chain
from opengradient_devnet.facilitator.payments import Payment, Requirements

UPTO = "upto"
EXACT = "exact"
# A settlement needs a moment to be mined: what ends sooner than this is refused at once.
DEADLINE_MARGIN_S = 6


class PaymentInvalid(Exception):
    """A check failed. `reason` is the protocol's code; the text says more where there is more to say."""

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message


def require(condition: object, reason: str, message: str | None = None) -> None:
    if not condition:
        raise PaymentInvalid(reason, message)


def same_address(left: str, right: str) -> bool:
    return left.lower() == right.lower()


def check_network(chain: Chain, payment: Payment, requirements: Requirements, *, mismatch: str) -> None:
    """The payer must mean the network that the seller asks for, and this facilitator must be on it."""
    require(payment.accepted_network == requirements.network, mismatch)
    ours = f"eip155:{chain.chain_id}"
    require(requirements.network == ours, "invalid_network", f"this facilitator settles on {ours} only")
