"""What a gateway can do wrong with a payment: sessions, and what is taken from the payer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSession:
    """Declare the session of a request dead although it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeSessionId:
    """Send this X-Upto-Session value instead of the real one (no CR or LF: HTTP cannot carry them)."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAtCap:
    """Take the whole signed amount, whatever the calls cost; of a channel, by the highest voucher that ever came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSettle:
    """Serve, and never collect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailSettlement:
    """Report that a payment could not be settled; nothing is sent to the chain."""

    reason: str = "settlement_timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleForSomebodyElse:
    """Settle nothing of the client's, and pass off a real settlement of another payer as it.

    The other payer pays the same amount, to the same payee or to `pay_to`; the client's authorization stays unspent.
    """

    pay_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongTransaction:
    """Name another transaction wherever a response would name the real one: one that is on no chain, or, with
    `transaction`, any real one (another payer's settlement, the client's own transfer to a stranger).
    """

    transaction: str = "0x" + "de" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAndRefuse:
    """Answer a good payment as if it had not been paid, and take it all the same.

    `amount` is what is taken, in atomic units (None: all that was signed); with `settles=False` nothing is taken.
    `challenge` is the PAYMENT-REQUIRED of the answer, `receipt` its PAYMENT-RESPONSE: `failed` says that nothing was
    settled, `good` tells the truth. A `status` of 402 asks for money once more; any other is an error with `body`.
    """

    status: int = 402
    challenge: Literal["absent", "garbled", "good"] = "absent"
    receipt: Literal["absent", "garbled", "failed", "good"] = "absent"
    body: str = "{}"
    content_type: str = "application/json"
    settles: bool = True
    amount: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandAnew:
    """Answer a good payment with other terms, as if a new signature were needed; that one is then honoured.

    `scheme` moves the payment elsewhere: a nonce of Permit2 does not exclude one of EIP-3009. None leaves what the
    first payment had. The first signature is settled in full: `now`, before the answer; `later`, when the test calls
    `devnet.settle_hoarded()`; or `never`.
    """

    scheme: Literal["upto", "exact-permit2", "exact-eip3009"] | None = None
    amount: str | None = None
    max_timeout_s: int | None = None
    settles: Literal["now", "later", "never"] = "later"
