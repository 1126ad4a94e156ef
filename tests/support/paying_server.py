"""The OpenAI-compatible server on a real socket, in a thread, over payments that a test has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from opengradient_x402.gateway.client import AsyncGatewayClient
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.payments import Payments
from opengradient_x402.serve.app import build_app
from opengradient_x402.serve.heads import HeadLimits
from opengradient_x402.serve.keys import ApiKey, keys_of
from support.loopback_server import serving


@dataclass
class PayingServer:
    """A server that is up. `receipts` are those that it reported, by the name of the key that paid."""

    keys: dict[str, ApiKey]
    url: str = ""
    receipts: list[tuple[str, SettlementReceipt]] = field(default_factory=list)

    def token(self, name: str = "default") -> str:
        return self.keys[name].token

    def headers(self, name: str = "default") -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(name)}"}

    def receipts_of(self, name: str) -> list[SettlementReceipt]:
        return [receipt for paid_by, receipt in self.receipts if paid_by == name]


@contextmanager
def paying_server(payments: Payments, *, budgets: Sequence[str] = (), **options) -> Iterator[PayingServer]:
    """Serves while the block lasts; `options` are the gateway client's."""
    keys = keys_of(budgets)
    server = PayingServer(keys={key.name: key for key in keys})
    app = build_app(
        AsyncGatewayClient(payments, **options),
        keys=keys,
        on_receipt=lambda key, receipt: server.receipts.append((key.name, receipt)),
    )
    with serving(app, lifespan="on", http=HeadLimits) as url:
        server.url = f"{url}/v1"
        yield server
