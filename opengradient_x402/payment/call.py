"""One logical call: its id, what pays for it, how it ended.

A call is what the user asked for once, however many HTTP requests that takes. It carries at most one payment.
Plain state; the decisions are in `handshake` and `payments`.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.sessions import PaidSession
from opengradient_x402.process import Ending, Resident, belongs


class _Ids(Resident):
    """Where call ids come from; a forked child draws others than its parent."""

    def __init__(self) -> None:
        self.renew()
        belongs(self, Ending.WATCHERS)

    def renew(self) -> None:
        # Ids must be unique, not secret (nonces are derived from them with the key). The system's generator gives up
        # the interpreter lock, which costs half a millisecond a call while the ledger writes.
        self.draw = random.Random(secrets.randbits(256)).getrandbits  # noqa: S311


_ids = _Ids()

_EXTENSION = "opengradient.call"
"""Where a request of any httpx client carries its call: redirected requests have it too, so a call stays one call."""


@dataclass(slots=True, eq=False)
class Call:
    """State of one logical call, shared by the transport (which pays) and the client (which interprets)."""

    id: str = field(default_factory=lambda: f"call_{_ids.draw(96):024x}")
    model: str = ""
    base_url: str = ""
    """The gateway that was asked last."""
    settlement_mode: str = ""
    timeout_s: float | None = None
    prompt_bytes: int = 0
    max_tokens: int | None = None
    payees: frozenset[str] | None = None
    """All that may be paid at the endpoint that was asked last; None leaves it to network and policy."""
    is_blocking: bool = False
    """Whether the caller waits by blocking its thread."""
    created_at: int = field(default_factory=lambda: int(time.time()))
    process_id: int = field(default_factory=os.getpid)
    """Whose call it is: a forked child that inherits it must neither end nor record it."""

    authorization: Authorization | None = None
    """The authorization that pays, from the moment its signature or session id may have left."""
    session: PaidSession | None = None
    has_signed_out: bool = False
    """Whether a gateway has seen a signature of this call, even if it refused it."""
    is_answered: bool = False
    claims: Mapping[str, Any] = field(default_factory=dict)
    """PAYMENT-RESPONSE, as the gateway sent it."""
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    receipt: SettlementReceipt | None = None
    """Set once, when the call is finished."""
    ending: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Taken for good by whoever ends the call: a reader, or another thread that closes the stream."""

    @classmethod
    def of(cls, request: httpx.Request, *, is_blocking: bool) -> Call:
        """The call of a request that no gateway client made; the first request of a call begins it."""
        call = request.extensions.get(_EXTENSION)
        if not isinstance(call, Call):
            call = request.extensions[_EXTENSION] = cls(is_blocking=is_blocking)
        return call
