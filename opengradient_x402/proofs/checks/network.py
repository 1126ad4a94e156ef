"""The network that a bundle is about: as its writer describes it, and whether that is the reader's own. Pure."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

from opengradient_x402.addresses import checksum_address
from opengradient_x402.chain.sources import Source
from opengradient_x402.money import Asset, units_of
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.bundle import ABOUT, Bundle
from opengradient_x402.proofs.findings import Finding, Read, Refuted, Stated, Statement, Undecided

OF_ENCLAVES: Final = ("registry", "relay")
"""Contracts that may be on another chain than payments are."""
_CONTRACTS: Final = ("asset", "permit2", "upto_proxy", "exact_proxy", *OF_ENCLAVES)


def describe(network: Network) -> dict[str, Any]:
    """The network, as a bundle's header has it."""
    described: dict[str, Any] = {
        "name": network.name,
        "chain_id": network.chain_id,
        "asset": asdict(network.asset),
        "permit2": network.permit2,
        "upto_proxy": network.upto_proxy,
        "exact_proxy": network.exact_proxy,
    }
    for name, contract in (("relay", network.relay), ("registry", network.registry)):
        if contract is not None:
            described[name] = {"address": contract.address, "chain_id": contract.chain_id}
    return described


def network_of(bundle: Bundle) -> Network:
    """The network that the writer of a bundle describes, without a node: only to read its own evidence."""
    about = bundle.network
    nowhere = "https://offline.invalid"
    contracts = {
        name: ChainContract(
            address=checksum_address(about[name]["address"]), rpc_url=nowhere, chain_id=about[name]["chain_id"]
        )
        for name in ("relay", "registry")
        if name in about
    }
    return Network(
        name=about["name"],
        chain_id=about["chain_id"],
        rpc_url=nowhere,
        gateway_url="",
        # The price of a token and its decimals are not taken from the writer of a file.
        asset=replace(Asset(**about["asset"]), symbol=units_of(about["asset"]["address"]), decimals=0),
        permit2=checksum_address(about["permit2"]),
        upto_proxy=checksum_address(about["upto_proxy"]),
        exact_proxy=checksum_address(about["exact_proxy"]),
        relay=contracts.get("relay"),
        registry=contracts.get("registry"),
        blob_url=nowhere,
    )


def description_of(network: Network) -> Source:
    """The reader's own description of a network, as a source."""
    return Source(name=f"the reader's description of {network.name}", is_chain=False)


def network_finding(bundle: Bundle, trusted: Network | None) -> Finding:
    """A bundle must be about the contracts of the reader's network, not about look-alikes."""
    statement = Statement.NETWORK
    if trusted is None:
        chain_id = bundle.network["chain_id"]
        why = f"no network of chain {chain_id} is known here: token, contracts and registry are the writer's word"
        return Stated(statement=statement, about=ABOUT, why=why, by="the writer")
    described_here = describe(trusted)
    expected = [name for name in _CONTRACTS if name in described_here]
    absent = [name for name in expected if name in OF_ENCLAVES and name not in bundle.network]
    differing = [name for name in expected if name not in absent and described_here[name] != bundle.network.get(name)]
    if differing:
        why = f"{', '.join(differing)} differ from those of {trusted.name}"
        return Refuted(statement=statement, about=ABOUT, why=why)
    added = [name for name in OF_ENCLAVES if name in bundle.network and name not in described_here]
    if absent or added:
        why = (
            f"it names {'no ' + ' and no '.join(absent) if absent else 'a ' + ' and a '.join(added) + ' of its own'}; "
            f"what {trusted.name} has is used, and token, Permit2 and proxies are those of {trusted.name}"
        )
        return Undecided(statement=statement, about=ABOUT, why=why)
    why = f"token, Permit2, proxies, registry and relay are those of {trusted.name}"
    return Read(statement=statement, about=ABOUT, why=why, source=description_of(trusted))
