"""What is kept of an authorization, with every signature made under its nonce, and the budget that it must fit into.

Plain data. Amounts are atomic units, times Unix seconds. The bytes of a signature are not in it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from opengradient_x402.addresses import checksum_address
from opengradient_x402.errors import BudgetExceeded, ConfigurationError
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.money import PaidIn, amount_in

if TYPE_CHECKING:
    from opengradient_x402.ledger.recorder import CallUnderWay

TransferMethod = Literal["permit2", "eip3009"]
DECISION_NOTED_AS: Final = "approval"
"""A ledger notes what a person decided about a call's payment under `approval <call id>`."""
BUDGET_WINDOW_S: Final = 86_400
"""The time over which a budget counts: the `day` of a SpendPolicy's `max_per_day`."""
_MOMENT_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTerms:
    """What one signature allows: to whom, how much, how long, and through which contract (`spender`)."""

    scheme: str
    transfer_method: TransferMethod
    asset: str
    payee: str
    facilitator: str | None
    spender: str
    """The x402 proxy that Permit2 lets take the payment, or the token itself for EIP-3009."""
    amount_atomic: int
    signed_at: int
    deadline: int

    def __post_init__(self) -> None:
        _spell(self, "asset", "payee", "spender", "facilitator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """Permission to take up to an amount, under one nonce, with the terms of every signature made for it.

    The chain settles at most one of the signatures. What is reserved is the largest amount, until the latest
    deadline: a later signature for less, or for a shorter time, does not take back an earlier one.
    """

    id: str
    call_id: str
    network: str
    payer: str
    nonce: int
    endpoint: str
    model: str
    settlement_mode: str
    signed: tuple[SignedTerms, ...]
    """Oldest first; never empty."""
    asset_symbol: str | None = None
    asset_decimals: int | None = None
    """Decimals of the asset; None where they were not known when this was signed."""
    status: str = "signed"
    """`signed`, `settled`, `expired`, `cancelled`, `unsent` (the signature provably never left), or `charged`: a
    voucher that a later one of its channel includes, for what its gateway charged (`settled_atomic`, a claim)."""
    settled_atomic: int | None = None
    tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    confirmations: int | None = None
    confirmations_needed: int | None = None
    dispute: str | None = None
    """What the chain shows that the signed terms do not allow, as a sentence with the numbers."""
    recheck_at: int | None = None
    """When an expired authorization is checked once more, in Unix seconds; None when it is not."""

    def __post_init__(self) -> None:
        _spell(self, "payer")

    @property
    def terms(self) -> SignedTerms:
        """The terms that were signed last."""
        return self.signed[-1]

    @property
    def transfer_method(self) -> TransferMethod:
        """How it is settled: the same for all signatures, since the method's contract keeps the nonce."""
        return self.signed[0].transfer_method

    @property
    def asset(self) -> str:
        """The token; the same for all signatures."""
        return self.signed[0].asset

    @property
    def payees(self) -> frozenset[str]:
        """All addresses that a signature allows to be paid."""
        return frozenset(terms.payee for terms in self.signed)

    @property
    def amount_atomic(self) -> int:
        """The most that can be taken."""
        return max(terms.amount_atomic for terms in self.signed)

    @property
    def signed_at(self) -> int:
        """When the first signature was made."""
        return min(terms.signed_at for terms in self.signed)

    @property
    def deadline(self) -> int:
        """Until when something can be taken."""
        return max(terms.deadline for terms in self.signed)

    @property
    def is_over(self) -> bool:
        """Whether the latest signature has expired, or is about to."""
        return time.time() > self.terms.deadline - _MOMENT_S

    @property
    def is_final(self) -> bool:
        """Whether the chain will not change it any more: its end was found, and is confirmed often enough."""
        if self.status in ("signed", "charged"):
            return False
        return self.confirmations_needed is None or (self.confirmations or 0) >= self.confirmations_needed

    @property
    def reserved_atomic(self) -> int:
        """What it takes from a budget, in atomic units: the settled amount once that is final, before that the most."""
        if self.status == "unsent":
            return 0
        return (self.settled_atomic or 0) if self.is_final or self.status == "charged" else self.amount_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit that holds over a sliding window, for one payer, asset and network, in atomic units."""

    limit_atomic: int
    window_s: int = BUDGET_WINDOW_S


class Objections(NamedTuple):
    """What a ledger knows that stands against a new signature."""

    dispute: str | None
    """An authorization at the gateway whose dispute is not cleared."""
    is_loss: bool
    """Another ledger was at this place within a day, and is gone; whether its payments are missing is not known."""


def _spell(record: object, *names: str) -> None:
    # From the database, from a bundle or from a signer: equal text is equal address from here on.
    for name in names:
        if (address := getattr(record, name)) is not None:
            object.__setattr__(record, name, checksum_address(address))


def token_fields(record: PaidIn) -> dict[str, Any]:
    """The address, symbol and decimals of the token that it is paid in."""
    return {name: getattr(record, name) for name in ("asset", "asset_symbol", "asset_decimals")}


def receipt_fields(authorization: Authorization) -> dict[str, Any]:
    """What every receipt of a call says of the authorization that pays for it."""
    return {
        "network": authorization.network,
        "scheme": authorization.terms.scheme,
        **token_fields(authorization),
        "payer": authorization.payer,
        "payee": authorization.terms.payee,
        "facilitator": authorization.terms.facilitator,
        "authorization_id": authorization.id,
        "nonce": str(authorization.nonce),
        "deadline": authorization.deadline,
        "authorized_atomic": authorization.amount_atomic,
        "endpoint": authorization.endpoint,
    }


def budget_exceeded(*, spent_atomic: int, authorization: Authorization, budget: Budget) -> BudgetExceeded:
    """The error for a reservation that does not fit, with the numbers."""
    hours = budget.window_s // 3600
    return BudgetExceeded(
        f"Authorizing {amount_in(authorization, authorization.amount_atomic)} would exceed the budget: "
        f"{amount_in(authorization, spent_atomic)} of {amount_in(authorization, budget.limit_atomic)} are spent or "
        f"reserved in the last {hours} h. Nothing was signed and nothing was paid. Wait for open authorizations to "
        "settle or expire (`opengradient-x402 receipts reconcile`), or raise `max_per_day` of the SpendPolicy.",
        call_id=authorization.call_id,
    )


def unanswered(authorization: Authorization, call: CallUnderWay | None = None) -> SettlementReceipt:
    """The receipt of a call when only its payment is known: of the signer's call, or of another one."""
    receipt = SettlementReceipt(
        call_id=authorization.call_id,
        status=ReceiptStatus.AUTHORIZED,
        created_at=authorization.signed_at,
        outcome="unknown",
        **receipt_fields(authorization),
        model=authorization.model,
        settlement_mode=authorization.settlement_mode,
    )
    if call is None:
        return receipt
    return replace(
        receipt,
        call_id=call.call_id,
        created_at=call.created_at,
        model=call.model or receipt.model,
        settlement_mode=call.settlement_mode or receipt.settlement_mode,
    )


def authorization_id(network: str, payer: str, nonce: int) -> str:
    """One id for one nonce: the chain settles at most one of the signatures under it."""
    return "auth_" + hashlib.sha256(f"{network} {payer} {nonce}".encode()).hexdigest()[:32]


def payer_named(payer: str | None) -> str | None:
    """As `spelled`; None for None."""
    return None if payer is None else spelled(payer)


def spelled(address: str) -> str:
    """The address as records have it (EIP-55). Raises ConfigurationError for text that is not an address."""
    try:
        return checksum_address(address)
    except ValueError as exc:
        raise ConfigurationError(f"{exc} Nothing was read. Give the whole address.") from exc
