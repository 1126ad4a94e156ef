"""What is known of one call's payment and proof, and how sure that is.

A receipt is plain data. The gateway's words (cost, data-settlement hashes, TEE fields) are claims; the
payment transaction, its block and the settled amount are facts read from the chain, and stay empty until
somebody read them. This module does not know how a receipt is stored (`ledger`) nor how facts are found
(`reconcile`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class ReceiptStatus(StrEnum):
    """Where a receipt stands in its life: `authorized -> served -> settled | expired | cancelled | disputed`."""

    AUTHORIZED = "authorized"
    """Signed (and perhaps sent); no answer is known."""
    SERVED = "served"
    """The gateway answered; the settlement has not been seen on the chain yet."""
    SETTLED = "settled"
    """The settlement was found on the chain; amounts and transaction are facts."""
    EXPIRED = "expired"
    """The deadline passed with the nonce unused: nothing was or can be taken."""
    CANCELLED = "cancelled"
    """The payer invalidated the nonce on the chain: nothing can be taken."""
    DISPUTED = "disputed"
    """The chain and the gateway's claims contradict each other; see `dispute`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementReceipt:
    """One call, its payment, and its proof.

    Amounts are integer atomic units of `asset`. Times are Unix seconds. `settled_atomic` is this call's share
    of `authorization_settled_atomic`: one authorization may pay for many calls (a session) and settles in one
    transaction; the shares of its calls add up to that transaction exactly.
    """

    call_id: str
    status: ReceiptStatus
    created_at: int
    outcome: str
    """How the call ended: `ok`, `failed`, `abandoned`, or `unknown` while it has not."""

    network: str
    scheme: str
    asset: str
    payer: str
    payee: str
    facilitator: str | None = None
    authorization_id: str
    nonce: str
    deadline: int
    authorized_atomic: int

    endpoint: str
    model: str
    settlement_mode: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    # Claims of the gateway
    cost_atomic: int | None = None
    claimed_payment_tx_hash: str | None = None
    data_tx_hash: str | None = None
    data_blob_id: str | None = None
    tee_id: str | None = None
    tee_timestamp: int | None = None
    tee_request_hash: str | None = None
    tee_output_hash: str | None = None
    tee_signature: str | None = None
    tee_verified: str | None = None

    # Facts of the chain
    settled_atomic: int | None = None
    authorization_settled_atomic: int | None = None
    payment_tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    confirmations: int | None = None
    dispute: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing further can happen to the money of this receipt."""
        return self.status not in (ReceiptStatus.AUTHORIZED, ReceiptStatus.SERVED)

    def to_json(self) -> dict[str, str | int]:
        """A flat dict of strings and ints, absent fields left out.

        Amounts (`*_atomic`) are decimal strings, since they exceed what JSON numbers carry safely. Floats and
        Decimals are avoided because LangChain adds numbers up when it merges chunks.
        """
        out: dict[str, str | int] = {}
        for name in _FIELD_NAMES:
            value = getattr(self, name)
            if value is None:
                continue
            if name.endswith("_atomic"):
                out[name] = str(value)
            elif isinstance(value, int):
                out[name] = value
            else:
                out[name] = str(value)
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SettlementReceipt:
        """The receipt that `to_json` wrote; keys that this version does not know are ignored."""
        known: dict[str, Any] = {name: data[name] for name in _FIELD_NAMES if name in data}
        for name, value in known.items():
            if name.endswith("_atomic"):
                known[name] = int(value)
        known["status"] = ReceiptStatus(known["status"])
        return cls(**known)


_FIELD_NAMES = tuple(field.name for field in fields(SettlementReceipt))


def total_settled(receipts: list[SettlementReceipt] | tuple[SettlementReceipt, ...]) -> int:
    """Sum of what the chain took for these receipts, each authorization's shares included once, in atomic units."""
    seen: dict[str, int] = {}
    for receipt in receipts:
        if receipt.settled_atomic is not None:
            seen[receipt.call_id] = receipt.settled_atomic
    return sum(seen.values())
