"""Ledger rows for tests: an authorization, and a call that it paid for."""

from __future__ import annotations

from opengradient_x402.ledger.authorizations import Authorization, SignedTerms, receipt_fields
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt

OPG = 10**18
NOW = 2_000_000_000


_TERMS = set(SignedTerms.__slots__)


def entry(number: int = 1, *, amount_atomic: int = OPG // 10, **changes) -> Authorization:
    """An authorization with one signature; `changes` are of its fields or of its terms."""
    values = {
        "id": f"auth_{number}",
        "call_id": f"call_{number}",
        "network": "eip155:31402",
        "scheme": "upto",
        "transfer_method": "permit2",
        "asset": "0xFbC2051AE2265686a469421b2C5A2D5462FbF5eB",
        "payer": "0xd0a6588C678D94cE87619Ab6068E46A4baD36c10",
        "payee": "0x8C2e0718822cE47cA8c74107e66cb0E4B2B3f4D5",
        "facilitator": None,
        "spender": "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002",
        "nonce": 2**255 + number,
        "amount_atomic": amount_atomic,
        "signed_at": NOW + number,
        "deadline": NOW + 300,
        "endpoint": "http://127.0.0.1/v1/chat/completions",
        "model": "openai/gpt-5",
        "settlement_mode": "batch",
        "asset_symbol": "OPG",
        "asset_decimals": 18,
    }
    values |= changes
    terms = SignedTerms(**{name: values.pop(name) for name in _TERMS})
    return Authorization(**({"signed": (terms,)} | values))


def served(source: Authorization, call_id: str, **changes) -> SettlementReceipt:
    values = receipt_fields(source) | {
        "call_id": call_id,
        "status": ReceiptStatus.SERVED,
        "created_at": NOW,
        "outcome": "ok",
        "model": source.model,
        "settlement_mode": "batch",
    }
    return SettlementReceipt(**(values | changes))
