"""`llama_index.llms.opengradient`: the place where LlamaIndex users look for an LLM integration.

The code lives in `llama_index_opengradient`. `llama_index` and `llama_index.llms` are namespace packages shared
with other distributions: neither has an `__init__.py`, here or elsewhere.
"""

from llama_index_opengradient import (
    GatewayLimitation,
    OpenGradient,
    ReceiptEvent,
    SettlementCallbackHandler,
    SettlementEvent,
    SettlementLedgerHandler,
    SettlementMode,
    SettlementReceipt,
    SettlementUpdateEvent,
    SpendGuard,
    SpendPolicy,
    areceipt_of,
    receipt_of,
)

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
