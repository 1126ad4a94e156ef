"""What contradicts a gateway's claims about a call, and how a settlement is shared among its calls.

Pure: it compares what the ledger has of one authorization and of its calls.

Each call gets what the gateway claimed for it when the claims add up to the settlement. What goes beyond them was
taken for the calls whose claim never came: dropped streams, answers that broke off. Otherwise the settlement is split
in proportion to the claims, or to usage at published prices where nothing was claimed (or to tokens, or evenly), to
the last atomic unit.

An overcharge can only be seen when it is known what every call of the session may cost. A call whose cost is unknown
(its stream was dropped, or its process killed) makes an honest settlement look too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from opengradient_x402.ledger.receipts import SettlementReceipt, transaction_claim
from opengradient_x402.models import find_model, quoted_price, usd_to_atomic
from opengradient_x402.money import amount_in

if TYPE_CHECKING:
    from opengradient_x402.ledger.authorizations import Authorization
    from opengradient_x402.ledger.receipts import SettlementReceipt

_SHOWN_CALLS = 5
_FINE = 10**24
"""Parts of a USD. Weights are whole numbers of these parts, so that even the price of one token is exact."""


def dispute_of(
    receipt: SettlementReceipt,
    *,
    authorization: Authorization,
    overcharged: str | None,
    recorded: str | None = None,
) -> str | None:
    """Everything that contradicts what the gateway said about this call; None when nothing does.

    `overcharged` is what `overcharge` says of its session, `recorded` what was found out about this call before.
    """
    said = [
        authorization.dispute,
        recorded,
        overcharged,
        _forged_transaction(receipt, authorization),
    ]
    return " ".join(dict.fromkeys(text for text in said if text)) or None


def overcharge(authorization: Authorization, receipts: Sequence[SettlementReceipt]) -> str | None:
    """More was taken than was signed for, or than the calls cost by the gateway's own quotes."""
    settled = authorization.settled_atomic
    if settled is None:
        return None
    if settled > authorization.amount_atomic:
        taken, most = amount_in(authorization, settled), amount_in(authorization, authorization.amount_atomic)
        return f"{taken} was settled, and at most {most} was authorized."
    costs = [allowed_cost(receipt) for receipt in receipts]
    known = [cost for cost in costs if cost is not None]
    # A gateway may round each call up, or their sum.
    if (
        authorization.terms.scheme == "exact"
        or not receipts
        or len(known) < len(costs)
        or settled <= sum(known) + len(known)
    ):
        return None
    listed = ", ".join(
        f"{receipt.call_id} {amount_in(authorization, cost)}"
        for receipt, cost in zip(receipts[:_SHOWN_CALLS], known, strict=False)
    )
    more = f", and {len(receipts) - _SHOWN_CALLS} more" if len(receipts) > _SHOWN_CALLS else ""
    taken, allowed, excess = (
        amount_in(authorization, amount) for amount in (settled, sum(known), settled - sum(known))
    )
    return (
        f"{taken} was settled, and the {len(receipts)} recorded calls of this authorization come to {allowed} by "
        f"published prices and the gateway's quotes ({listed}{more}): {excess} too much."
    )


def allowed_cost(receipt: SettlementReceipt) -> int | None:
    """What one call may cost: its usage at the model's published price and the quoted token price; at most its quote.

    None when neither is known, also for a call that failed or was abandoned before its quote arrived. A quote alone
    counts for models that the catalog does not have.
    """
    quoted, published = receipt.cost_atomic, _published_cost(receipt)
    if quoted is None or published is None:
        return published if quoted is None else quoted
    return min(quoted, published)


def _published_cost(receipt: SettlementReceipt) -> int | None:
    usd, opg_usd = _published_usd(receipt), quoted_price(receipt.opg_usd)
    if usd is None or opg_usd is None or receipt.asset_decimals is None:
        return None
    return usd_to_atomic(usd, asset_usd=opg_usd, decimals=receipt.asset_decimals)


def _published_usd(receipt: SettlementReceipt) -> Decimal | None:
    model = find_model(receipt.model)
    if model is None or receipt.prompt_tokens is None or receipt.completion_tokens is None:
        return None
    return model.cost_usd(prompt_tokens=receipt.prompt_tokens, completion_tokens=receipt.completion_tokens)


def settled_elsewhere(authorization: Authorization, *, payee: str, amount_atomic: int, tx_hash: str) -> str:
    """The nonce was used for a payment to somebody else."""
    return (
        f"The nonce of this authorization was used to pay {amount_in(authorization, amount_atomic)} to {payee} "
        f"instead of {authorization.terms.payee}, in transaction {tx_hash}. Only the payer's key can have signed that: "
        "look for another user of the key."
    )


def forged_transaction(claimed: str, *, why: str) -> str:
    """The gateway named a transaction that did not settle this payment."""
    return f"The gateway named {claimed} as the transaction of this payment, and {why}."


def _forged_transaction(receipt: SettlementReceipt, authorization: Authorization) -> str | None:
    claimed = transaction_claim(receipt.claimed_payment_tx_hash)
    if claimed is None or authorization.status not in ("settled", "expired", "cancelled"):
        return None
    if authorization.tx_hash is not None and claimed.lower() == authorization.tx_hash.lower():
        return None
    if authorization.status == "settled":
        return forged_transaction(claimed, why=f"the chain shows the settlement in {authorization.tx_hash}")
    return forged_transaction(claimed, why=f"nothing was ever settled: the authorization is {authorization.status}")


def split_settlement(settled_atomic: int, receipts: Sequence[SettlementReceipt]) -> list[int]:
    """One share per receipt, in order; they always add up to `settled_atomic` (for at least one receipt)."""
    if not receipts:
        return []
    claimed = [receipt.cost_atomic or 0 for receipt in receipts]
    unquoted = [i for i, receipt in enumerate(receipts) if receipt.cost_atomic is None]
    excess = settled_atomic - sum(claimed)
    if any(claimed) and excess >= 0 and unquoted and all(receipts[i].outcome != "ok" for i in unquoted):
        for i, share in zip(unquoted, _split(excess, [1] * len(unquoted)), strict=True):
            claimed[i] = share
        return claimed
    return _split(settled_atomic, _weights(receipts))


def _split(amount_atomic: int, weights: Sequence[int]) -> list[int]:
    total = sum(weights)
    shares = [amount_atomic * weight // total for weight in weights]
    # Largest remainder first; ties go to the earlier call, so the split is the same on every machine.
    rest = amount_atomic - sum(shares)
    order = sorted(range(len(shares)), key=lambda i: (-(amount_atomic * weights[i] % total), i))
    for i in order[:rest]:
        shares[i] += 1
    return shares


def _weights(receipts: Sequence[SettlementReceipt]) -> list[int]:
    costs = [receipt.cost_atomic for receipt in receipts]
    if all(cost is not None or receipt.outcome != "ok" for cost, receipt in zip(costs, receipts, strict=True)):
        claimed = [cost or 0 for cost in costs]
        if any(claimed):
            return claimed
    return _weights_by_price(receipts) or [1] * len(receipts)


def _weights_by_price(receipts: Sequence[SettlementReceipt]) -> list[int]:
    """Usage at published prices; empty when no call has any.

    Tokens of a model without a published price count as much as those of the other calls do on average.
    """
    tokens = [(receipt.prompt_tokens or 0) + (receipt.completion_tokens or 0) for receipt in receipts]
    prices = [_published_usd(receipt) for receipt in receipts]
    known = [(usd, count) for usd, count in zip(prices, tokens, strict=True) if usd]
    if not known:
        return tokens if any(tokens) else []
    average = Fraction(sum(usd for usd, _ in known)) / sum(count for _, count in known)
    exact = [count * average if usd is None else Fraction(usd) for usd, count in zip(prices, tokens, strict=True)]
    return [ceil(weight * _FINE) for weight in exact]
