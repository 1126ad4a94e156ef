"""What a gateway can do wrong with a payment: sessions, and what is taken from the payer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSession:
    """Declare the session of a request dead although it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeSessionId:
    """Send this X-Upto-Session value instead of the real one (no CR or LF: HTTP cannot carry them)."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAtCap:
    """Take the whole signed amount, whatever the calls cost."""


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
