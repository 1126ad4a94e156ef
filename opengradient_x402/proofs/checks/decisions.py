"""What persons decided about payments (`SpendPolicy(approve_above=…)`), as the ledger has noted it.

Nobody signs a decision, and no chain has it: so it is only the payer's word in every bundle.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from opengradient_x402.ledger.authorizations import DECISION_NOTED_AS
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network
from opengradient_x402.proofs.findings import Finding, Refuted, Stated, Statement, utc

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person was asked, when (Unix seconds), and the answer: `approved`, `refused` or `unanswered`.

    `amount_atomic` is the most that the signature would allow; for a payment channel, the deposit.
    """

    call_id: str
    decision: str
    asked_at: int
    decided_at: int
    endpoint: str
    payee: str
    payer: str
    network: str
    scheme: str
    amount_atomic: int
    model: str

    def to_json(self) -> dict[str, Any]:
        """What a bundle has of it; the amount as text."""
        return asdict(self) | {"amount_atomic": str(self.amount_atomic)}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Decision:
        """What `to_json`, or the ledger's note, has; other members are ignored."""
        known = {name: body[name] for name in _NAMES}
        return cls(**known | {"amount_atomic": int(body["amount_atomic"])})


_NAMES = tuple(field.name for field in fields(Decision))


def decisions_in(ledger: Ledger, *, network: Network, payer: str | None = None) -> Future[list[Decision]]:
    """All decisions about payments on this network, in the order in which they were asked for."""

    def read(_book: Book, conn: Connection) -> list[Decision]:
        from opengradient_x402.ledger import tables

        begin = f"{DECISION_NOTED_AS} "
        rows = conn.execute(tables.pins.select().where(tables.pins.c.key.startswith(begin, autoescape=True)))
        found = [Decision.from_json(json.loads(row.value)) for row in rows]
        own = [one for one in found if one.network == network.caip2 and payer in (None, one.payer)]
        return sorted(own, key=lambda one: (one.asked_at, one.call_id))

    return ledger.read(read)


def decision_finding(decision: Decision, network: Network) -> Finding:
    """The decision in words: stated by the payer."""
    statement, about = Statement.DECIDED, decision.call_id
    if decision.decided_at < decision.asked_at:
        why = f"it was answered at {utc(decision.decided_at)}, and asked at {utc(decision.asked_at)}"
        return Refuted(statement=statement, about=about, why=why)
    most = network.asset.format(decision.amount_atomic)
    why = (
        f"{decision.decision}: at most {most} to {decision.payee} for {decision.model}, "
        f"asked at {utc(decision.asked_at)}, answered at {utc(decision.decided_at)}"
    )
    return Stated(statement=statement, about=about, why=why)
