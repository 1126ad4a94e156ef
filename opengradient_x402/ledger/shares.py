"""How one settlement is shared among the calls that it pays for.

Each call gets what the gateway claimed for it when the claims add up to the settlement. What goes beyond them
was taken for the calls whose claim never came: streams that were dropped, answers that broke off. Otherwise the
settlement is split in proportion to the claims (or to tokens, or evenly), to the last atomic unit. Pure
arithmetic; whether a settlement was right is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence

from opengradient_x402.ledger.receipts import SettlementReceipt


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
    tokens = [(receipt.prompt_tokens or 0) + (receipt.completion_tokens or 0) for receipt in receipts]
    return tokens if any(tokens) else [1] * len(receipts)
