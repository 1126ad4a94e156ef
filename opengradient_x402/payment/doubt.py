"""A payment whose fate is unknown, and what the chain can say of it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from opengradient_x402.payment.permits import SignedPayment


class Fate(Enum):
    """What the chain says of an authorization."""

    OPEN = "open"
    SETTLED = "settled"
    GONE = "gone"
    """Expired or cancelled."""


class Doubtful(NamedTuple):
    """A payment whose fate is unknown.

    `was_refused`: a gateway answered as if it had not taken it. `is_taken`: the chain shows that it took it after all.
    """

    signed: SignedPayment
    was_refused: bool = False
    is_taken: bool = False
