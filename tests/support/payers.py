"""Paying clients for tests, closed again when the test ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opengradient_devnet import Account, Devnet
from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import Network, load_network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler

PROMPT = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "What is x402?"}]}


def network_of(net: Devnet) -> Network:
    """The devnet as the client sees it: over its public description."""
    return load_network(f"{net.gateway_url}/network")


@contextmanager
def payments_for(
    net: Devnet, account: Account, ledger: Path | str, *, policy: SpendPolicy | None = None
) -> Iterator[Payments]:
    """Payments of one wallet with a ledger of its own."""
    payments = Payments.open(network=network_of(net), private_key=account.private_key, policy=policy, ledger=ledger)
    try:
        yield payments
    finally:
        payments.close()


@contextmanager
def client_for(payments: Payments, **options) -> Iterator[GatewayClient]:
    """A sync client."""
    with GatewayClient(payments, **options) as client:
        yield client


def async_client_for(payments: Payments, **options) -> AsyncGatewayClient:
    """An async client; its connections close with the loop."""
    return AsyncGatewayClient(payments, **options)


def settled_receipts(net: Devnet, payments: Payments) -> list[SettlementReceipt]:
    """Closes the gateway's sessions, reconciles, and gives back all receipts of the ledger."""
    net.close_sessions()
    Reconciler(payments.network, payments.ledger).reconcile()
    return payments.ledger.receipts().result()


def opg_balance(net: Devnet, address: str) -> int:
    """Atomic OPG of an address, read from the chain."""
    call = {"to": net.network["asset"]["address"], "data": "0x70a08231" + address[2:].lower().rjust(64, "0")}
    return int(net.chain.rpc("eth_call", [call, "latest"]), 16)


def gateway_task(net: Devnet, payee: str, *, cap_atomic: int, cost_atomic: int, **others: object) -> dict[str, object]:
    """What a gateway script of `tests/interop/scripts` is told; the devnet is its facilitator."""
    return {
        "facilitator_url": net.network["facilitator_url"],
        "network": net.network["network"],
        "asset": net.network["asset"]["address"],
        "pay_to": payee,
        "cap_atomic": str(cap_atomic),
        "cost_atomic": str(cost_atomic),
    } | others
