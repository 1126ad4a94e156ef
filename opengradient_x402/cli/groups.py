"""Receipts that belong together: by day, by model, by run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

from opengradient_x402.cli.output import local_time

if TYPE_CHECKING:
    from opengradient_x402.ledger.receipts import SettlementReceipt

T = TypeVar("T")
NO_RUN: Final = "(no run)"
"""The name of the group of calls that belong to no run."""


def run_of(receipt: SettlementReceipt) -> str:
    """The run of a call, for a table."""
    return receipt.run or NO_RUN


def grouped(
    receipts: Iterable[SettlementReceipt], key: Callable[[SettlementReceipt], T]
) -> dict[T, list[SettlementReceipt]]:
    """Receipts in groups with an equal `key`. Groups and receipts keep the order in which they come."""
    groups: dict[T, list[SettlementReceipt]] = {}
    for receipt in receipts:
        groups.setdefault(key(receipt), []).append(receipt)
    return groups


def day_of(receipt: SettlementReceipt) -> str:
    """The day of a call on this machine's clock."""
    return local_time(receipt.created_at, "%Y-%m-%d")


def model_of(receipt: SettlementReceipt) -> str:
    """The model's name in the catalog, with its provider."""
    from opengradient_x402.models import find_model

    info = find_model(receipt.model)
    return receipt.model if info is None else info.name
