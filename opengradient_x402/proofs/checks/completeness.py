"""Whether a file has every settlement of a wallet: the chain is read between two blocks, and compared with the file.

A settlement is what moves the network's token out of the payer's wallet through an x402 proxy, or by an EIP-3009
authorization. Payments that the payer makes otherwise are nobody's settlement, and not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from opengradient_x402.chain.questions import Log, Question, TransactionReceipt, block, logs, receipt
from opengradient_x402.chain.sources import Sources
from opengradient_x402.effects import Steps
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.networks import Network
from opengradient_x402.proofs.findings import Finding, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.settlement.recognition import AUTHORIZATION_USED, TRANSFER, address_topic, settled_transfers

_SHOWN: Final = 5
Claim = tuple[str, int]
"""A transfer on chain: its transaction, and the index of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From one block to another, both included."""

    from_block: int
    to_block: int


def stated_completeness(payers: Sequence[str], period: Period | None) -> list[Finding]:
    """What the file alone says of itself."""
    if period is None:
        why = "the file names no period"
        return [Undecided(statement=Statement.COMPLETE, about=payer, why=why) for payer in payers]
    why = f"the file says so for blocks {period.from_block} to {period.to_block}; no chain was asked"
    return [Stated(statement=Statement.COMPLETE, about=payer, why=why) for payer in payers]


def completeness(
    payers: Sequence[str], period: Period, claims: Collection[Claim], *, network: Network, sources: Sources
) -> Steps[list[Finding]]:
    """For each payer: whether the transfers that settled something in the period are those that the file explains."""
    findings: list[Finding] = []
    for payer in payers:
        findings += [(yield from _of_payer(payer, period, claims, network, sources))]
    return findings


def _of_payer(
    payer: str, period: Period, claims: Collection[Claim], network: Network, sources: Sources
) -> Steps[Finding]:
    statement = Statement.COMPLETE
    try:
        source = yield from sources.source(network)
        found = yield from sources.ask(network, settlements_of(payer, period, network))
    except ChainUnavailable as exc:
        return Undecided(statement=statement, about=payer, why=exc.message)
    absent = [log for log in found if (log.tx_hash, log.log_index) not in claims]
    between = f"between blocks {period.from_block} and {period.to_block}"
    if not absent:
        why = f"all {len(found)} settlements of this wallet {between} are in this file"
        return Read(statement=statement, about=payer, why=why, source=source)
    amounts = [f"{network.asset.format(int.from_bytes(log.data, 'big'))} in {log.tx_hash}" for log in absent[:_SHOWN]]
    more = f", and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    why = f"{len(absent)} of {len(found)} settlements {between} are not in this file: {', '.join(amounts)}{more}"
    return Refuted(statement=statement, about=payer, why=why)


def settlements_of(payer: str, period: Period, network: Network) -> Question[list[Log]]:
    """The transfers by which a wallet's payments were settled, in order. Raises ChainUnavailable."""
    head = yield from block()
    end = min(period.to_block, head.number)
    span = {"from_block": period.from_block, "to_block": end}
    outgoing = yield from logs(network.asset.address, [TRANSFER, address_topic(payer)], **span)
    authorized = yield from logs(network.asset.address, [AUTHORIZATION_USED, address_topic(payer)], **span)
    used = {log.tx_hash for log in authorized}
    found: list[Log] = []
    for tx_hash in dict.fromkeys(log.tx_hash for log in outgoing):
        done = yield from receipt(tx_hash)
        if done is not None and done.is_success:
            found += _settled_in(done, payer, network, is_authorized=tx_hash in used)
    return found


def _settled_in(done: TransactionReceipt, payer: str, network: Network, *, is_authorized: bool) -> list[Log]:
    through_proxies = list(settled_transfers(done, {network.upto_proxy, network.exact_proxy}))
    candidates = through_proxies
    if is_authorized:
        candidates = through_proxies + [log for log in done.logs if log not in through_proxies]
    return [
        log
        for log in candidates
        if log.address == network.asset.address and log.topics[:2] == (TRANSFER, address_topic(payer))
    ]
