"""From a call that ended to its receipt: what was authorized, what the gateway claims, how it went.

Reads the claims that gateways put into the body, the terminal stream event or the headers (docs/wire.md,
"Quotes" and "Data settlement"). It believes none of them, and knows nothing of the chain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opengradient_x402.completions import Usage
from opengradient_x402.ledger.authorizations import receipt_fields
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.money import parse_amount
from opengradient_x402.payment.call import Call

_UNIX_TIME = re.compile(r"[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client understood of the response: `raw` is the body or the terminal stream event."""

    model: str = ""
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    tee_verified: str | None = None


def build_receipt(call: Call, *, outcome: str, error: str | None, answer: Answer | None) -> SettlementReceipt:
    """The receipt of a call that has a payment attached."""
    authorization = call.authorization
    if authorization is None:
        raise ValueError("A call without a payment has no receipt.")
    answer = answer if answer is not None else Answer()
    usage = answer.usage
    return SettlementReceipt(
        call_id=call.id,
        status=ReceiptStatus.SERVED if call.is_answered else ReceiptStatus.AUTHORIZED,
        created_at=call.created_at,
        outcome=outcome,
        error=error,
        **receipt_fields(authorization),
        model=answer.model or call.model or authorization.model,
        settlement_mode=call.settlement_mode or authorization.settlement_mode,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        cost_atomic=_claimed_cost(call, answer),
        cost_usd=_quoted(answer, "cost_usd"),
        opg_usd=_quoted(answer, "opg_price_usd"),
        claimed_payment_tx_hash=_text(call.claims.get("transaction")),
        tee_verified=answer.tee_verified,
        **_data_claims(call, answer),
        **_proof(call, answer),
    )


def _quoted(answer: Answer, name: str) -> str | None:
    costs = answer.raw.get("opengradient")
    return _text(costs.get(name)) if isinstance(costs, Mapping) else None


def _claimed_cost(call: Call, answer: Answer) -> int | None:
    costs = answer.raw.get("opengradient")
    claimed = costs.get("cost_opg") if isinstance(costs, Mapping) else None
    if isinstance(claimed, str):
        return _amount(claimed, decimals=18)
    amount = call.claims.get("amount")
    return _amount(amount, decimals=0) if isinstance(amount, str) else None


def _amount(text: str, *, decimals: int) -> int | None:
    try:
        return parse_amount(text, decimals=decimals)
    except ValueError:  # a claim that is not an amount is no claim
        return None


def _data_claims(call: Call, answer: Answer) -> dict[str, Any]:
    raw, headers = answer.raw, call.headers
    return {
        "data_tx_hash": _text(raw.get("data_settlement_transaction_hash")) or headers.get("X-Settlement-Tx-Hash"),
        "data_blob_id": _text(raw.get("data_settlement_blob_id")) or headers.get("X-Settlement-Walrus-Blob-ID"),
    }


def _proof(call: Call, answer: Answer) -> dict[str, Any]:
    raw, headers = answer.raw, call.headers
    timestamp = raw.get("tee_timestamp", headers.get("X-TEE-Timestamp"))
    return {
        "tee_id": _text(raw.get("tee_id")) or headers.get("X-TEE-ID"),
        "tee_signature": _text(raw.get("tee_signature")) or headers.get("X-TEE-Signature"),
        "tee_request_hash": _text(raw.get("tee_request_hash")) or headers.get("X-TEE-Request-Hash"),
        "tee_output_hash": _text(raw.get("tee_output_hash")) or headers.get("X-TEE-Output-Hash"),
        "tee_timestamp": int(timestamp) if _UNIX_TIME.fullmatch(str(timestamp)) else None,
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
