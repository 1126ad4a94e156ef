"""Making an audit bundle: receipts of a ledger, checked live once more, with every answer kept as evidence.

The same audit that a reader of the bundle runs is run here, so a bundle holds exactly what it takes.
"""

from __future__ import annotations

import time

from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.sources import Sources
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import Network
from opengradient_x402.proofs.audit import audit
from opengradient_x402.proofs.bundle import Bundle
from opengradient_x402.proofs.bundle_contents import Contents, cases_of, describe, places_of
from opengradient_x402.proofs.data_settlement import find_data_settlements
from opengradient_x402.proofs.evidence import Evidence, Recorded
from opengradient_x402.signer import Signer


def export_bundle(
    ledger: Ledger, *, network: Network, since: int = 0, payer: str | None = None, signer: Signer | None = None
) -> Bundle:
    """The bundle of all receipts of a network since a time, signed when a signer is given.

    A session's calls belong together: those of a session that began earlier are included. Raises
    ChainUnavailable, LedgerUnavailable.
    """
    return look_up(_bundled(ledger, network=network, since=since, payer=payer, signer=signer))


async def aexport_bundle(
    ledger: Ledger, *, network: Network, since: int = 0, payer: str | None = None, signer: Signer | None = None
) -> Bundle:
    """As `export_bundle`, for coroutines."""
    return await alook_up(_bundled(ledger, network=network, since=since, payer=payer, signer=signer))


def _bundled(
    ledger: Ledger, *, network: Network, since: int, payer: str | None, signer: Signer | None
) -> Steps[Bundle]:
    entries = yield Wait(ledger.authorizations(payer=payer, network=network.caip2))
    recent: list[SettlementReceipt] = yield Wait(ledger.receipts(since=since, payer=payer))
    wanted = {receipt.authorization_id for receipt in recent}
    everything: list[SettlementReceipt] = yield Wait(ledger.receipts(payer=payer))
    receipts = [receipt for receipt in everything if receipt.authorization_id in wanted]
    cases = tuple(cases_of(entries, receipts))
    included = [receipt for case in cases for receipt in case.receipts]
    places = places_of((yield from find_data_settlements(included, network=network, sources=Sources())))
    contents = Contents(cases=cases, data_places=places)
    evidence = Evidence()
    yield from audit(contents, network=network, sources=Recorded(evidence), is_live=True)
    bundle = Bundle(
        created_at=int(time.time()),
        network=describe(network),
        records=(*contents.records(), *evidence.records),
    )
    return bundle if signer is None else bundle.signed(signer)
