"""Pay for LLM calls over x402, and keep receipts that anybody can check. See README.md.

Names are loaded on first use (PEP 562): importing this package imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opengradient_x402.batch.chat_batch import ChatBatch
    from opengradient_x402.completions import Completion, Delta, ToolCall, Usage
    from opengradient_x402.errors import (
        NotPaid,
        OpenGradientError,
        PaidButFailed,
        PaymentOutcomeUnknown,
    )
    from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
    from opengradient_x402.gateway.enclaves import RegistryGateway
    from opengradient_x402.gateway.endpoints import StaticGateway
    from opengradient_x402.gateway.request import GatewayLimitation
    from opengradient_x402.keys.signer import Keystore, LocalSigner, Signer
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
    from opengradient_x402.models import TEE_LLM
    from opengradient_x402.networks import Network, load_network
    from opengradient_x402.payment.approval import ApprovalRequest, ask_in_terminal
    from opengradient_x402.payment.payments import Payments
    from opengradient_x402.payment.policy import SpendPolicy
    from opengradient_x402.payment.transport import AsyncX402Transport, X402Transport
    from opengradient_x402.payment.wallet import Wallet
    from opengradient_x402.proofs.data_settlement import DataSettlements
    from opengradient_x402.proofs.export import aexport_bundle, export_bundle
    from opengradient_x402.proofs.verification import verify_bundle
    from opengradient_x402.settlement.background import BackgroundReconciler
    from opengradient_x402.settlement.reconciler import Reconciler
    from opengradient_x402.settlement.restored import areceipt_of, receipt_of
    from opengradient_x402.settlement_mode import SettlementMode
    from opengradient_x402.telemetry.events import Event, listen
    from opengradient_x402.telemetry.runs import named_run

_HOMES = {
    "ApprovalRequest": "payment.approval",
    "AsyncGatewayClient": "gateway.client",
    "AsyncX402Transport": "payment.transport",
    "BackgroundReconciler": "settlement.background",
    "ChatBatch": "batch.chat_batch",
    "Completion": "completions",
    "DataSettlements": "proofs.data_settlement",
    "Delta": "completions",
    "Event": "telemetry.events",
    "GatewayClient": "gateway.client",
    "GatewayLimitation": "gateway.request",
    "Keystore": "keys.signer",
    "Ledger": "ledger.ledger",
    "LocalSigner": "keys.signer",
    "Network": "networks",
    "NotPaid": "errors",
    "OpenGradientError": "errors",
    "PaidButFailed": "errors",
    "PaymentOutcomeUnknown": "errors",
    "Payments": "payment.payments",
    "ReceiptStatus": "ledger.receipts",
    "Reconciler": "settlement.reconciler",
    "RegistryGateway": "gateway.enclaves",
    "SettlementMode": "settlement_mode",
    "SettlementReceipt": "ledger.receipts",
    "Signer": "keys.signer",
    "SpendPolicy": "payment.policy",
    "StaticGateway": "gateway.endpoints",
    "TEE_LLM": "models",
    "ToolCall": "completions",
    "Usage": "completions",
    "Wallet": "payment.wallet",
    "X402Transport": "payment.transport",
    "aexport_bundle": "proofs.export",
    "areceipt_of": "settlement.restored",
    "ask_in_terminal": "payment.approval",
    "export_bundle": "proofs.export",
    "listen": "telemetry.events",
    "load_network": "networks",
    "named_run": "telemetry.runs",
    "receipt_of": "settlement.restored",
    "verify_bundle": "proofs.verification",
}

__all__ = [
    "TEE_LLM",
    "ApprovalRequest",
    "AsyncGatewayClient",
    "AsyncX402Transport",
    "BackgroundReconciler",
    "ChatBatch",
    "Completion",
    "DataSettlements",
    "Delta",
    "Event",
    "GatewayClient",
    "GatewayLimitation",
    "Keystore",
    "Ledger",
    "LocalSigner",
    "Network",
    "NotPaid",
    "OpenGradientError",
    "PaidButFailed",
    "PaymentOutcomeUnknown",
    "Payments",
    "ReceiptStatus",
    "Reconciler",
    "RegistryGateway",
    "SettlementMode",
    "SettlementReceipt",
    "Signer",
    "SpendPolicy",
    "StaticGateway",
    "ToolCall",
    "Usage",
    "Wallet",
    "X402Transport",
    "aexport_bundle",
    "areceipt_of",
    "ask_in_terminal",
    "export_bundle",
    "listen",
    "load_network",
    "named_run",
    "receipt_of",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
