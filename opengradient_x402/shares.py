"""How one settlement is shared among the calls that it pays for.

Each call gets what the gateway claimed for it when the claims add up to the settlement; otherwise the
settlement is split in proportion to the claims (or to tokens, or evenly), to the last atomic unit. Pure
arithmetic; whether a settlement was right is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence

from opengradient_x402.receipts import SettlementReceipt


def split_settlement(settled_atomic: int, receipts: Sequence[SettlementReceipt]) -> list[int]:
    """One share per receipt, in order; they always add up to `settled_atomic` (for at least one receipt)."""
    if not receipts:
        return []
    weights = _weights(receipts)
    total = sum(weights)
    shares = [settled_atomic * weight // total for weight in weights]
    # Largest remainder first; ties go to the earlier call, so the split is the same on every machine.
    rest = settled_atomic - sum(shares)
    order = sorted(range(len(shares)), key=lambda i: (-(settled_atomic * weights[i] % total), i))
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
