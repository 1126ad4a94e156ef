"""An audit bundle: one file with receipts and the evidence for them, in which no byte can be changed unseen.

The file is canonical JSON: sorted keys, no spaces, ASCII. Every record is chained to all before it (`chain` =
keccak256 of the previous one and the record), `head` is the last link, and the exporter may sign it with the
payer's key: whoever changes a record must change every later link and the head, and cannot sign that.

`Contents` are the records as values; both directions are here, so that they cannot drift apart. The network is
described without RPC URLs: they often hold an API key, and an auditor brings their own node.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from opengradient_x402.addresses import checksum_address, keccak256
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import Asset
from opengradient_x402.networks import ChainContract, Network
from opengradient_x402.proofs.data_settlement import DataSettlement
from opengradient_x402.proofs.findings import Finding, not_proven, proven, refuted
from opengradient_x402.signer import Signer, recover_address, text_digest
from opengradient_x402.strict_json import check_depth

FORMAT: Final = "opengradient-audit-bundle/1"
MAX_BYTES: Final = 512 * 1024 * 1024
_ABOUT: Final = "bundle"
_UNCHANGED: Final = "the file is whole: its records hash to its head"
_SIGNED: Final = "the bundle was made by the payer"


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a bundle: a `receipt`, an `authorization`, a `data_settlement`, an `rpc` answer, a `document`."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds. `network` describes the chain without the URL of anybody's node."""

    created_at: int
    network: Mapping[str, Any]
    records: tuple[Record, ...]
    signed_by: str | None = None
    signature: str | None = None

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The bodies of all records of a kind, in order."""
        return [record.body for record in self.records if record.kind == kind]

    @property
    def links(self) -> list[str]:
        """The hash chain: the header's link, then one per record; the last is the head."""
        header = {"created_at": self.created_at, "format": FORMAT, "network": self.network}
        link = keccak256(canonical_json(header))
        links = [link]
        for record in self.records:
            link = keccak256(link + canonical_json({"body": record.body, "kind": record.kind}))
            links.append(link)
        return ["0x" + link.hex() for link in links]

    def signed(self, signer: Signer) -> Bundle:
        """This bundle with a signature over its head."""
        signature = signer.sign_digest(text_digest(_statement(self.links[-1])))
        return Bundle(
            created_at=self.created_at,
            network=self.network,
            records=self.records,
            signed_by=signer.address,
            signature="0x" + signature.hex(),
        )

    def to_bytes(self) -> bytes:
        """The file."""
        links = self.links
        document = {
            "created_at": self.created_at,
            "format": FORMAT,
            "head": links[-1],
            "network": self.network,
            "records": [
                {"body": record.body, "chain": link, "kind": record.kind}
                for record, link in zip(self.records, links[1:], strict=True)
            ],
            "signature": None if self.signature is None else {"address": self.signed_by, "value": self.signature},
        }
        return canonical_json(document) + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Bundle:
        """The bundle in a file. Raises BundleUnreadable when any byte is not what `to_bytes` would write."""
        try:
            document = _parsed(content)
            signature = document["signature"]
            bundle = cls(
                created_at=document["created_at"],
                network=document["network"],
                records=tuple(Record(item["kind"], item["body"]) for item in document["records"]),
                signed_by=None if signature is None else signature["address"],
                signature=None if signature is None else signature["value"],
            )
            again = bundle.to_bytes()
        except (ValueError, TypeError, KeyError) as exc:
            if (other := _other_export(content)) is not None:
                raise BundleUnreadable(
                    f"This file is {other}. It has no evidence and no signature, so nothing in it can be checked. "
                    "Write a bundle of the same receipts: `opengradient-x402 receipts export --format bundle "
                    "--output bundle.json`, and verify that."
                ) from exc
            raise BundleUnreadable(
                f"This is not an audit bundle ({type(exc).__name__}: {exc}), or it was changed. Nothing in it can be "
                "relied on. Ask for the file again."
            ) from exc
        if again != content:
            raise BundleUnreadable(
                f"The bundle was changed: from byte {_first_difference(again, content)} on it is not what was "
                "written. Nothing in it can be relied on. Ask for the file again."
            )
        return bundle


def origin_findings(bundle: Bundle, *, payers: Sequence[str], expected_signer: str | None = None) -> list[Finding]:
    """That the bytes are intact (they were read), and who vouches for them."""
    head = bundle.links[-1]
    intact = proven(
        _UNCHANGED, about=_ABOUT, why=f"{len(bundle.records)} records hash to {head}, and the text is canonical"
    )
    return [intact, _signature_finding(bundle, head, payers, expected_signer)]


def canonical_json(value: Any) -> bytes:
    """The one text of a value: sorted keys, no spaces, ASCII. Raises ValueError for floats that are no numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _signature_finding(bundle: Bundle, head: str, payers: Sequence[str], expected: str | None) -> Finding:
    if bundle.signature is None or bundle.signed_by is None:
        why = "it carries no signature: anybody could have written it, also after the fact"
        make = not_proven if expected is None else refuted
        return make(_SIGNED, about=_ABOUT, why=why)
    signer = recover_address(text_digest(_statement(head)), _signature_bytes(bundle.signature))
    if signer is None or signer != bundle.signed_by:
        why = f"the signature is not {bundle.signed_by}'s over this content: the records or the signature were changed"
        return refuted(_SIGNED, about=_ABOUT, why=why)
    vouching = {checksum_address(expected)} if expected is not None else {checksum_address(payer) for payer in payers}
    if signer not in vouching:
        return refuted(
            _SIGNED, about=_ABOUT, why=f"{signer} signed it, and that is not {' or '.join(sorted(vouching))}"
        )
    if others := sorted(vouching - {signer}):
        # One receipt of one's own must not be enough to vouch for those of others.
        return not_proven(_SIGNED, about=_ABOUT, why=f"{signer} signed it, and {', '.join(others)} paid as well")
    return proven(_SIGNED, about=_ABOUT, why=f"{signer} signed {head}")


def _signature_bytes(text: str) -> bytes:
    try:
        content = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return b""
    return content if "0x" + content.hex() == text else b""


def _statement(head: str) -> str:
    return f"OpenGradient audit bundle {head}"


def _parsed(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    check_depth(content)
    # The standard library, since orjson turns integers over 64 bits into floats.
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return document


def _other_export(content: bytes) -> str | None:
    """What the file is, if `receipts export` wrote it in another format."""
    first, _, rest = content[:MAX_BYTES].strip().partition(b"\n")
    if first.startswith(b"call_id,"):
        return f"a table of receipts (CSV, {len(rest.splitlines())} rows)"
    try:
        check_depth(first)
        receipt = json.loads(first)
    except ValueError:
        return None
    if not isinstance(receipt, dict) or not {"call_id", "authorization_id", "status"} <= receipt.keys():
        return None
    return f"a list of {len(rest.splitlines()) + 1} receipts, one per line (JSON Lines)"


def _first_difference(left: bytes, right: bytes) -> int:
    return next(
        (place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )


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
        """The contents of a bundle whose shape was checked (`bundle_schema`)."""
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
