"""Receipts as files for other programs: one JSON object per line, or one table row per receipt.

Amounts stay decimal strings of atomic units. Does not know evidence (`bundle_export`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields

from opengradient_x402.ledger.receipts import SettlementReceipt

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def jsonl_bytes(receipts: Sequence[SettlementReceipt]) -> bytes:
    """One receipt per line, as `SettlementReceipt.to_json` writes it."""
    return "".join(json.dumps(receipt.to_json()) + "\n" for receipt in receipts).encode("utf-8")


def csv_bytes(receipts: Sequence[SettlementReceipt]) -> bytes:
    """All fields as columns, a header first (RFC 4180). What a spreadsheet would run as a formula is made text."""
    names = [field.name for field in fields(SettlementReceipt)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\r\n")
    writer.writeheader()
    for receipt in receipts:
        writer.writerow({name: _cell(value) for name, value in receipt.to_json().items()})
    return text.getvalue().encode("utf-8")


def _cell(value: str | int) -> str | int:
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value
