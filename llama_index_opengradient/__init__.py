"""OpenGradient for LlamaIndex: verifiable LLMs, paid per call over x402, with a receipt for each call.

Knows the framework's vocabulary; wallets, payments and the wire are `opengradient_x402`'s. Names are imported at
first use, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_opengradient.events import ReceiptEvent, SettlementEvent, SettlementUpdateEvent
    from llama_index_opengradient.handlers import SettlementCallbackHandler, SettlementLedgerHandler, SpendGuard
    from llama_index_opengradient.llm import OpenGradient
    from llama_index_opengradient.responses import areceipt_of, receipt_of
    from opengradient_x402.gateway.request import GatewayLimitation
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.payment.policy import SpendPolicy
    from opengradient_x402.settlement_mode import SettlementMode

__all__ = [
    "GatewayLimitation",
    "OpenGradient",
    "ReceiptEvent",
    "SettlementCallbackHandler",
    "SettlementEvent",
    "SettlementLedgerHandler",
    "SettlementMode",
    "SettlementReceipt",
    "SettlementUpdateEvent",
    "SpendGuard",
    "SpendPolicy",
    "areceipt_of",
    "receipt_of",
]

_HOMES = {
    "GatewayLimitation": "opengradient_x402.gateway.request",
    "OpenGradient": "llama_index_opengradient.llm",
    "ReceiptEvent": "llama_index_opengradient.events",
    "SettlementCallbackHandler": "llama_index_opengradient.handlers",
    "SettlementEvent": "llama_index_opengradient.events",
    "SettlementLedgerHandler": "llama_index_opengradient.handlers",
    "SettlementMode": "opengradient_x402.settlement_mode",
    "SettlementReceipt": "opengradient_x402.ledger.receipts",
    "SettlementUpdateEvent": "llama_index_opengradient.events",
    "SpendGuard": "llama_index_opengradient.handlers",
    "SpendPolicy": "opengradient_x402.payment.policy",
    "areceipt_of": "llama_index_opengradient.responses",
    "receipt_of": "llama_index_opengradient.responses",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the public names, imported when first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as exc:
        if exc.name not in ("llama_index.core", "llama_index_instrumentation"):
            raise
        raise ModuleNotFoundError(
            f"{name} needs LlamaIndex, which is not installed. "
            "Install it: pip install 'opengradient-integrations[llama-index]'",
            name=exc.name,
        ) from exc
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
