"""Making an audit bundle from a ledger, and checking one from the file alone or with the auditor's own nodes.

Nothing in a bundle is believed: bytes against the hash chain and its signature, receipts against evidence, and,
unless offline, everything against the chain once more. The export runs the same audit live, so a bundle holds exactly
what a reader's audit needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from opengradient_x402.addresses import checksum_address
from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.chain.sources import Sources
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.networks import PRESETS, Network, check_payable_url, is_loopback
from opengradient_x402.proofs.audit import audit
from opengradient_x402.proofs.bundle import Bundle, Contents, cases_of, describe, network_of, origin_findings, places_of
from opengradient_x402.proofs.bundle_schema import check_shape
from opengradient_x402.proofs.data_settlement import find_data_settlements
from opengradient_x402.proofs.evidence import Evidence, Recorded, Replayed
from opengradient_x402.proofs.findings import Finding, Standing, not_proven, overall, proven, refuted
from opengradient_x402.signer import Signer

_NOWHERE = "https://offline.invalid"
_NETWORK = "the contracts are those of the network that it names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found out about a bundle."""

    bundle: Bundle
    contents: Contents
    findings: tuple[Finding, ...]
    is_live: bool

    @property
    def standing(self) -> Standing:
        """Refuted when any statement is; proven only when all are."""
        return overall(self.findings)

    def of(self, standing: Standing) -> list[Finding]:
        """The findings with one standing."""
        return [finding for finding in self.findings if finding.standing is standing]


def verify_bundle(
    content: bytes,
    *,
    rpc_url: str | None = None,
    relay_rpc_url: str | None = None,
    is_offline: bool = False,
    expected_signer: str | None = None,
) -> Verification:
    """Everything that can be found out about a bundle.

    `rpc_url` is a node of the payments' chain (the public one of a known network when not given);
    `relay_rpc_url` is one of the chain of relay and registry, where that is another. `expected_signer` demands
    that address's signature. Raises BundleUnreadable for a file that was changed, ConfigurationError when a node
    is needed.
    """
    if expected_signer is not None:
        expected_signer = _address(expected_signer)
    bundle = Bundle.from_bytes(content)
    check_shape(bundle)
    contents = Contents.of(bundle)
    findings = origin_findings(bundle, payers=contents.payers, expected_signer=expected_signer)
    findings += _network_findings(bundle)
    urls = _known_urls() | _given_urls(bundle, relay_rpc_url)
    described = network_of(bundle, rpc_url=_NOWHERE, other_rpc_urls={})
    replayed = Replayed(Evidence(bundle.records))
    recorded = look_up(audit(contents, network=described, sources=replayed, is_live=False))
    if is_offline:
        found = recorded
    else:
        network = network_of(bundle, rpc_url=rpc_url or _node_for(bundle, urls), other_rpc_urls=urls)
        live = look_up(audit(contents, network=_with_care(network), sources=Sources(), is_live=True))
        # Evidence that contradicts its own receipts is told as well, whatever the chain says now.
        contradictions = [item for item in recorded if item.standing is Standing.REFUTED and item not in live]
        found = live + contradictions
    return Verification(bundle=bundle, contents=contents, findings=tuple(findings + found), is_live=not is_offline)


_CONTRACTS: Final = ("asset", "permit2", "upto_proxy", "exact_proxy", "registry", "relay")
_OF_ENCLAVES: Final = ("registry", "relay")


def _network_findings(bundle: Bundle) -> list[Finding]:
    """A bundle of a network that everybody knows must name that network's contracts, not look-alikes."""
    chain_id = bundle.network.get("chain_id")
    known = next((network for network in PRESETS.values() if network.chain_id == chain_id), None)
    if known is None:
        return []
    described = describe(known)
    expected = [name for name in _CONTRACTS if described[name] is not None]
    absent = [name for name in expected if name in _OF_ENCLAVES and bundle.network.get(name) is None]
    differing = [name for name in expected if name not in absent and described[name] != bundle.network.get(name)]
    if differing:
        why = f"{', '.join(differing)} differ from those of {known.name}"
        return [refuted(_NETWORK, about="bundle", why=why)]
    if absent:
        why = (
            f"it names no {' and no '.join(absent)}, as a network file for a gateway of one's own: who runs the "
            f"enclaves cannot be looked up on {known.name}; token, Permit2 and proxies are those of {known.name}"
        )
        return [not_proven(_NETWORK, about="bundle", why=why)]
    return [proven(_NETWORK, about="bundle", why=f"token, Permit2 and proxies are those of {known.name}")]


def _with_care(network: Network) -> Network:
    """The network without what its bundle could use against the reader.

    A URL of a blob store leads where the bundle likes, also into the reader's own network; and a chain that
    everybody knows is no sooner final than everybody says.
    """
    known = next((preset for preset in PRESETS.values() if preset.chain_id == network.chain_id), network)
    network = replace(network, confirmations=max(network.confirmations, known.confirmations))
    if network.blob_url is None:
        return network
    try:
        check_payable_url(network.blob_url, network)
    except InsecureEndpoint:
        return replace(network, blob_url=None)
    is_allowed = is_loopback(_host(network.rpc_url)) or not is_loopback(_host(network.blob_url))
    return network if is_allowed else replace(network, blob_url=None)


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError as exc:
        raise ConfigurationError(f"The URL {url!r} cannot be read ({exc}). Nothing was checked. Correct it.") from exc


def _address(text: str) -> str:
    try:
        return checksum_address(text)
    except ValueError as exc:
        raise ConfigurationError(
            f"{exc} Nothing was checked. Give the address of the wallet that must have signed."
        ) from exc


def _known_urls() -> dict[int, str]:
    urls: dict[int, str] = {}
    for network in PRESETS.values():
        for place in (network, network.relay, network.registry):
            if place is not None:
                urls[place.chain_id] = place.rpc_url
    return urls


def _given_urls(bundle: Bundle, relay_rpc_url: str | None) -> dict[int, str]:
    if relay_rpc_url is None:
        return {}
    network = network_of(bundle, rpc_url=_NOWHERE, other_rpc_urls={})
    return {place.chain_id: relay_rpc_url for place in (network.relay, network.registry) if place is not None}


def _node_for(bundle: Bundle, urls: Mapping[int, str]) -> str:
    chain_id = bundle.network.get("chain_id")
    url = urls.get(chain_id) if isinstance(chain_id, int) else None
    if url is None:
        raise ConfigurationError(
            f"The bundle is about chain {chain_id}, for which no public node is known. Nothing was checked. Give one "
            "with `--rpc-url`, or check the file alone with `--offline`."
        )
    return url


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
