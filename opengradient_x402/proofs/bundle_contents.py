"""What goes into an audit bundle and comes out of it: receipts, authorizations, places of data settlements, the
network. Both directions in one place, so that they cannot drift apart.

The network is described without RPC URLs (they often hold an API key, and an auditor brings their own node).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opengradient_x402.addresses import checksum_address
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import Asset
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.bundle import Bundle, Record
from opengradient_x402.proofs.bundle_schema import check_shape
from opengradient_x402.proofs.data_evidence import DataSettlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One authorization and all the calls that it paid for."""

    entry: Authorization
    receipts: tuple[SettlementReceipt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlace:
    """Where on the relay's chain the event is that settles a call's data."""

    call_id: str
    tx_hash: str
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a bundle is about."""

    cases: tuple[Case, ...]
    data_places: tuple[DataPlace, ...]

    @property
    def receipts(self) -> list[SettlementReceipt]:
        """All receipts."""
        return [receipt for case in self.cases for receipt in case.receipts]

    @property
    def payers(self) -> list[str]:
        """Everybody who paid."""
        return sorted({case.entry.payer for case in self.cases})

    def records(self) -> list[Record]:
        """The contents as records."""
        records: list[Record] = []
        for case in self.cases:
            records.append(Record("authorization", _entry_json(case.entry)))
            records += [Record("receipt", receipt.to_json()) for receipt in case.receipts]
        return records + [Record("data_settlement", asdict(place)) for place in self.data_places]

    @classmethod
    def of(cls, bundle: Bundle) -> Contents:
        """The contents of a bundle. Raises BundleUnreadable for records that are not what they are called."""
        check_shape(bundle)
        entries = [_entry(body) for body in bundle.of_kind("authorization")]
        receipts = [SettlementReceipt.from_json(dict(body)) for body in bundle.of_kind("receipt")]
        places = tuple(DataPlace(**body) for body in bundle.of_kind("data_settlement"))
        return cls(cases=tuple(cases_of(entries, receipts)), data_places=places)


def cases_of(entries: Iterable[Authorization], receipts: Sequence[SettlementReceipt]) -> list[Case]:
    """Receipts sorted to their authorizations; authorizations without any are left out."""
    by_id: dict[str, list[SettlementReceipt]] = {}
    for receipt in receipts:
        by_id.setdefault(receipt.authorization_id, []).append(receipt)
    return [Case(entry=entry, receipts=tuple(by_id[entry.id])) for entry in entries if entry.id in by_id]


def places_of(settlements: Iterable[DataSettlement]) -> tuple[DataPlace, ...]:
    """Where the data settlements were found."""
    return tuple(
        DataPlace(call_id=item.call_id, tx_hash=item.log.tx_hash, log_index=item.log.log_index)
        for item in settlements
        if item.log is not None
    )


def describe(network: Network) -> dict[str, Any]:
    """The network, as a bundle's header has it."""
    return {
        "name": network.name,
        "chain_id": network.chain_id,
        "confirmations": network.confirmations,
        "asset": asdict(network.asset),
        "permit2": network.permit2,
        "upto_proxy": network.upto_proxy,
        "exact_proxy": network.exact_proxy,
        "relay": _contract_json(network.relay),
        "registry": _contract_json(network.registry),
        "blob_url": network.blob_url,
    }


def network_of(bundle: Bundle, *, rpc_url: str, other_rpc_urls: Mapping[int, str]) -> Network:
    """The network of a bundle whose shape was checked, to be read through nodes of the auditor's own.

    `other_rpc_urls` (by chain id) are for relay and registry, where they are on another chain than the payments.
    """
    about = bundle.network
    chain_id = about["chain_id"]
    urls = {**other_rpc_urls, chain_id: rpc_url}
    return Network(
        name=about["name"],
        chain_id=chain_id,
        rpc_url=rpc_url,
        gateway_url="",
        asset=Asset(**about["asset"]),
        permit2=checksum_address(about["permit2"]),
        upto_proxy=checksum_address(about["upto_proxy"]),
        exact_proxy=checksum_address(about["exact_proxy"]),
        relay=_contract(about["relay"], urls),
        registry=_contract(about["registry"], urls),
        blob_url=about["blob_url"],
        confirmations=about["confirmations"],
    )


def _contract_json(contract: ChainContract | None) -> dict[str, Any] | None:
    return None if contract is None else {"address": contract.address, "chain_id": contract.chain_id}


def _contract(about: Mapping[str, Any] | None, urls: Mapping[int, str]) -> ChainContract | None:
    if about is None:
        return None
    chain_id = about["chain_id"]
    return ChainContract(address=checksum_address(about["address"]), rpc_url=urls.get(chain_id, ""), chain_id=chain_id)


def _entry_json(authorization: Authorization) -> dict[str, Any]:
    body = _texts(asdict(authorization))
    return body | {
        "nonce": str(authorization.nonce),
        "signed": [_texts(asdict(terms)) for terms in authorization.signed],
    }


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, with amounts as text."""
    known = {name: value for name, value in values.items() if value is not None}
    return {name: str(value) if name.endswith("_atomic") else value for name, value in known.items()}


def _entry(body: Mapping[str, Any]) -> Authorization:
    signed = tuple(SignedTerms(**{"facilitator": None} | _amounts(terms)) for terms in body["signed"])
    return Authorization(**_amounts(body) | {"nonce": int(body["nonce"]), "signed": signed})


def _amounts(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if name.endswith("_atomic") else value for name, value in body.items()}
