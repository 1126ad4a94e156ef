"""LangChain on OpenGradient: `ChatOpenGradient` pays for every call over x402 and keeps the receipt.

Names are loaded on first use (PEP 562), so importing the package is cheap. It does not know
how a payment is made: that is `opengradient_x402`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_opengradient.callbacks import (
        SettlementCallbackHandler,
        get_settlement_callback,
    )
    from langchain_opengradient.chat_models import ChatOpenGradient
    from langchain_opengradient.conversions import areceipt_of, receipt_of
    from langchain_opengradient.displays import (
        MarkdownDisplayHandler,
        OnTokenHandler,
        ProgressDotsHandler,
        TokenCounterHandler,
    )
    from langchain_opengradient.spend_guard import SpendGuard, interrupt_for_approval
    from opengradient_x402.gateway.request import GatewayLimitation
    from opengradient_x402.settlement_mode import SettlementMode

__all__ = [
    "ChatOpenGradient",
    "GatewayLimitation",
    "MarkdownDisplayHandler",
    "OnTokenHandler",
    "ProgressDotsHandler",
    "SettlementCallbackHandler",
    "SettlementMode",
    "SpendGuard",
    "TokenCounterHandler",
    "areceipt_of",
    "get_settlement_callback",
    "interrupt_for_approval",
    "receipt_of",
]

_HOME = {
    "ChatOpenGradient": "langchain_opengradient.chat_models",
    "GatewayLimitation": "opengradient_x402.gateway.request",
    "MarkdownDisplayHandler": "langchain_opengradient.displays",
    "OnTokenHandler": "langchain_opengradient.displays",
    "ProgressDotsHandler": "langchain_opengradient.displays",
    "SettlementCallbackHandler": "langchain_opengradient.callbacks",
    "SettlementMode": "opengradient_x402.settlement_mode",
    "SpendGuard": "langchain_opengradient.spend_guard",
    "TokenCounterHandler": "langchain_opengradient.displays",
    "areceipt_of": "langchain_opengradient.conversions",
    "get_settlement_callback": "langchain_opengradient.callbacks",
    "interrupt_for_approval": "langchain_opengradient.spend_guard",
    "receipt_of": "langchain_opengradient.conversions",
}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as exc:
        if exc.name != "langchain_core":
            raise
        raise ModuleNotFoundError(
            f"{name} needs LangChain, which is not installed. "
            "Install it: pip install 'opengradient-integrations[langchain]'",
            name=exc.name,
        ) from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
