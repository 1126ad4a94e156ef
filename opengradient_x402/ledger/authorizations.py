"""What is kept of an authorization, and the budget that it must fit into. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import BudgetExceeded
from opengradient_x402.money import format_amount


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationEntry:
    """What the ledger keeps of one authorization. Amounts are atomic units, times Unix seconds, addresses EIP-55."""

    id: str
    call_id: str
    network: str
    scheme: str
    transfer_method: str
    asset: str
    payer: str
    payee: str
    facilitator: str | None
    spender: str
    nonce: str
    amount_atomic: int
    signed_at: int
    deadline: int
    endpoint: str
    model: str
    settlement_mode: str
    status: str = "signed"
    """`signed`, `settled`, `expired`, `cancelled` or `unsent` (the signature provably never left)."""
    settled_atomic: int | None = None
    tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    confirmations: int | None = None
    confirmations_needed: int | None = None
    dispute: str | None = None
    """What the chain shows and the signed terms do not allow, in words with the numbers."""

    def __post_init__(self) -> None:
        # From the database, from a bundle or from a signer: equal text is equal address from here on.
        for name in ("asset", "payer", "payee", "spender", "facilitator"):
            if (address := getattr(self, name)) is not None:
                object.__setattr__(self, name, checksum_address(address))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit that holds over a sliding window, for one payer, asset and network, in atomic units."""

    limit_atomic: int
    window_s: int = 86_400


def receipt_fields(entry: AuthorizationEntry) -> dict[str, Any]:
    """What every receipt of a call says of the authorization that pays for it."""
    return {
        "network": entry.network,
        "scheme": entry.scheme,
        "asset": entry.asset,
        "payer": entry.payer,
        "payee": entry.payee,
        "facilitator": entry.facilitator,
        "authorization_id": entry.id,
        "nonce": entry.nonce,
        "deadline": entry.deadline,
        "authorized_atomic": entry.amount_atomic,
        "endpoint": entry.endpoint,
    }


def budget_exceeded(*, spent_atomic: int, entry: AuthorizationEntry, budget: Budget) -> BudgetExceeded:
    """The error for a reservation that does not fit, with the numbers."""
    hours = budget.window_s // 3600
    return BudgetExceeded(
        f"Authorizing {format_amount(entry.amount_atomic)} OPG would exceed the budget: "
        f"{format_amount(spent_atomic)} OPG of {format_amount(budget.limit_atomic)} OPG are spent or reserved in "
        f"the last {hours} h. Nothing was signed and nothing was paid. Wait for open authorizations to settle or "
        "expire (`opengradient-x402 receipts reconcile`), or raise `max_per_day` of the SpendPolicy.",
        call_id=entry.call_id,
    )
