"""Receipts by their call's id, which messages, checkpoints and logs hold: the receipt as it is now.

The ledgers that are open in this process are asked first, and then the one of the user's settings. Who reads the
chain for such a receipt is the wallet that paid, where it lives in this process, and else the settings' network.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol, cast

from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.errors import ConfigurationError, LedgerUnavailable
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.shared import OF_THE_PROCESS
from opengradient_x402.networks import PRESETS, Network, load_network, with_node
from opengradient_x402.process import Ending, residents
from opengradient_x402.settings import Settings
from opengradient_x402.settlement.reconciler import Reconciler


class Paying(Protocol):
    """What pays in this process (`Payments`)."""

    payer: str
    network: Network
    ledger: Ledger
    reconciler: Reconciler


def receipt_of(call_id: str, *, ledger: Ledger | None = None) -> SettlementReceipt:
    """What the ledger knows of this call now. It can update itself from the chain (`refresh`, `wait_settled`).

    Raises ConfigurationError when no ledger knows the call: name the one that does.
    """
    return look_up(_looking(call_id, ledger))


async def areceipt_of(call_id: str, *, ledger: Ledger | None = None) -> SettlementReceipt:
    """As `receipt_of`, for coroutines."""
    return await alook_up(_looking(call_id, ledger))


def follower_of(receipt: SettlementReceipt) -> Reconciler:
    """The reconciler that reads the chain for a receipt that is plain data.

    Raises ConfigurationError when no wallet of this process and no setting knows its network.
    """
    for one in residents(Ending.CONNECTIONS):
        if getattr(one, "payer", None) != receipt.payer:
            continue
        paying = cast("Paying", one)
        if paying.network.caip2 == receipt.network and not paying.ledger.is_closed:
            return paying.reconciler
    settings = Settings.load()
    return _reconciler(_network_of(receipt, settings), OF_THE_PROCESS.found(settings.ledger_url))


def _looking(call_id: str, ledger: Ledger | None) -> Steps[SettlementReceipt]:
    asked = []
    for one in _candidates() if ledger is None else [ledger]:
        asked.append(one)
        try:
            found = yield Wait(one.receipts(call_ids=[call_id]))
        except LedgerUnavailable:
            if ledger is not None:
                raise
            continue
        if found:
            receipt: SettlementReceipt = found[0]
            return receipt
    where = ", ".join(repr(one) for one in asked) or "no ledger"
    raise ConfigurationError(
        f"Call {call_id} is not in {where}. Nothing was paid by asking. Set OG_LEDGER_URL to the ledger that recorded "
        "it, or pass that ledger."
    )


def _candidates() -> Iterator[Ledger]:
    known = [one for one in residents(Ending.LEDGERS) if isinstance(one, Ledger) and not one.is_closed]
    yield from known
    of_settings = OF_THE_PROCESS.found(Settings.load().ledger_url)
    if of_settings not in known:
        yield of_settings


def _network_of(receipt: SettlementReceipt, settings: Settings) -> Network:
    network = with_node(load_network(settings.network), rpc_url=settings.rpc_url)
    known = [one for one in (network, *PRESETS.values()) if one.caip2 == receipt.network]
    if known:
        return next((one for one in known if one.asset.address == receipt.asset), known[0])
    raise ConfigurationError(
        f"The receipt of call {receipt.call_id} is of the network {receipt.network}, and {network.name} is "
        f"{network.caip2}. Nothing was paid by asking. Set OG_NETWORK to the receipt's network, or use "
        "`Reconciler(network, ledger).refresh(receipt)`."
    )


@lru_cache(maxsize=8)
def _reconciler(network: Network, ledger: Ledger) -> Reconciler:
    return Reconciler(network, ledger)
