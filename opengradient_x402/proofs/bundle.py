"""An audit bundle: one file with receipts and the evidence for them, in which every changed byte is noticed.

The file is canonical JSON (RFC 8785) and one line feed. `digest` is the SHA-256 of the document without `digest` and
`signature`, and the exporter may sign it with the payer's key. docs/bundle-format.md describes every member, for
programs in other languages; `bundle_schema` has the types of the members.

`Contents` are the records as values; both directions are here, so that they cannot drift apart. The network is
described by its contracts alone: the file names no node and no blob store, since readers bring their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final

import rfc8785

from opengradient_x402.addresses import checksum_address
from opengradient_x402.channels.channel import Voucher
from opengradient_x402.channels.shown import ShownChannel
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.keys.signer import Signer, recover_address, text_digest
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.proofs.checks.decisions import Decision
from opengradient_x402.proofs.data_settlement import DataSettlement
from opengradient_x402.proofs.findings import Finding, Proven, Refuted, Statement, Undecided
from opengradient_x402.strict_json import check_depth, whole_characters

FORMAT: Final = "opengradient-audit-bundle/1"
MAX_BYTES: Final = 512 * 1024 * 1024
ABOUT: Final = "bundle"
_FREE: Final = 100_000
"""So many lists and objects, and ten times as many values, may have any size."""
_LONGEST_LINE: Final = 2**20
"""Bytes. No receipt has more."""
_LARGEST_COUNT: Final = 2**53
"""RFC 8785 writes numbers as JavaScript does: more is not exact."""


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a bundle; docs/bundle-format.md lists the kinds."""

    kind: str
    body: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The text that a ledger's history has a leaf of."""
        return canonical_json({"body": self.body, "kind": self.kind})


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds. `network` describes the chain without the URL of anybody's node."""

    created_at: int
    network: Mapping[str, Any]
    records: tuple[Record, ...]
    period: Mapping[str, Any] | None = None
    history: Mapping[str, Any] | None = None
    signed_by: str | None = None
    signature: str | None = None

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The bodies of all records of a kind, in order."""
        return [record.body for record in self.records if record.kind == kind]

    @cached_property
    def digest(self) -> str:
        """0x-hex of the 32 bytes that stand for everything but the signature."""
        return "0x" + hashlib.sha256(canonical_json(self._content())).hexdigest()

    def signed(self, signer: Signer) -> Bundle:
        """This bundle with a signature over its digest."""
        signature = signer.sign_digest(text_digest(_statement(self.digest)))
        return replace(self, signed_by=signer.address, signature="0x" + signature.hex())

    def document(self) -> dict[str, Any]:
        """The whole file as a value."""
        document = self._content() | {"digest": self.digest}
        if self.signature is not None:
            document["signature"] = {"address": self.signed_by, "value": self.signature}
        return document

    def to_bytes(self) -> bytes:
        """The file. Raises ValueError for what JSON cannot hold exactly."""
        return canonical_json(self.document()) + b"\n"

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "created_at": self.created_at,
            "format": FORMAT,
            "network": self.network,
            "records": [{"body": record.body, "kind": record.kind} for record in self.records],
        }
        known = {"history": self.history, "period": self.period}
        return content | {name: value for name, value in known.items() if value is not None}

    @classmethod
    def from_bytes(cls, content: bytes) -> Bundle:
        """The bundle in a file. Raises BundleUnreadable when any byte is not what `to_bytes` would write."""
        try:
            document = _parsed(content)
            signature = document.get("signature", {})
            bundle = cls(
                created_at=document["created_at"],
                network=document["network"],
                records=tuple(Record(item["kind"], item["body"]) for item in document["records"]),
                period=document.get("period"),
                history=document.get("history"),
                signed_by=signature.get("address"),
                signature=signature.get("value"),
            )
            again = bundle.to_bytes()
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
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


def maker_finding(bundle: Bundle, *, payers: Sequence[str], expected_signer: str | None = None) -> Finding:
    """Who signed the file."""
    if bundle.signature is None or bundle.signed_by is None:
        make: type[Undecided | Refuted] = Undecided if expected_signer is None else Refuted
        why = "it has no signature: anybody could have written it, also after the fact"
        return make(statement=Statement.MADE, about=ABOUT, why=why)
    signer = recover_address(text_digest(_statement(bundle.digest)), hex_bytes(bundle.signature))
    if signer is None or signer != bundle.signed_by:
        why = f"the signature is not {bundle.signed_by}'s over this content: the records or the signature were changed"
        return Refuted(statement=Statement.MADE, about=ABOUT, why=why)
    accepted = [expected_signer] if expected_signer is not None else payers
    vouching = {checksum_address(wallet) for wallet in accepted}
    if signer not in vouching:
        why = f"{signer} signed it, and that is not {' or '.join(sorted(vouching))}"
        return Refuted(statement=Statement.MADE, about=ABOUT, why=why)
    if others := sorted(vouching - {signer}):
        # A writer who owns one receipt must not be able to sign for the receipts of others.
        why = f"{signer} signed it, and {', '.join(others)} paid as well"
        return Undecided(statement=Statement.MADE, about=ABOUT, why=why)
    return Proven(statement=Statement.MADE, about=ABOUT, why=f"{signer} signed {bundle.digest}", key=signer)


def canonical_json(value: Any) -> bytes:
    """The one text of a value (RFC 8785). Raises ValueError for what has none, such as integers over 53 bits."""
    try:
        return _PLAIN.encode(value).encode() if _is_plain(value) else rfc8785.dumps(value)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


_PLAIN: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)
"""Five times as fast as `rfc8785`, and the same for plain values."""


def _is_plain(value: Any) -> bool:
    """Whether a value has no fraction, no number over 53 bits, and only ASCII names (others are sorted by UTF-16)."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        kind = type(part)
        if kind is dict:
            if not all(type(name) is str and name.isascii() for name in part):
                return False
            waiting.extend(part.values())
        elif kind is list or kind is tuple:
            waiting.extend(part)
        elif kind is int:
            if not -_LARGEST_COUNT < part < _LARGEST_COUNT:
                return False
        elif kind is not str and kind is not bool and part is not None:
            return False
    return True


def read_json(content: bytes) -> Any:
    """The value of a JSON text. Raises ValueError for numbers that no two languages read alike, and great depth."""
    check_depth(content)
    # The standard library, since orjson turns integers over 64 bits into floats.
    # RFC 8785 writes fractions of 22 digits and more with an exponent, and shorter ones that are whole as integers.
    return json.loads(content, parse_float=_bounded(float), parse_int=_bounded(int))


def _bounded(number_of: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        number = number_of(text)
        if not abs(number) < _LARGEST_COUNT:
            raise ValueError(f"{text[:40]} is more than 53 bits can count")
        return number

    return read


def hex_bytes(text: str) -> bytes:
    """The bytes of 0x and lower-case hex digits; none for any other text."""
    try:
        content = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return b""
    return content if "0x" + content.hex() == text else b""


def _statement(digest: str) -> str:
    return f"OpenGradient audit bundle {digest}"


def _parsed(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    containers, values = content.count(b"[") + content.count(b"{"), content.count(b",")
    if containers > _FREE + len(content) // 32 or values > 10 * _FREE + len(content) // 8:
        raise ValueError("so many values in so few bytes that reading them could fill the memory")
    document = read_json(content)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return document


def _other_export(content: bytes) -> str | None:
    """What the file is, if `receipts export` wrote it in another format."""
    first, _, rest = content[:MAX_BYTES].strip().partition(b"\n")
    if first.startswith((b"call_id,", b"date,")):
        return f"a table of receipts (CSV, {len(rest.splitlines())} rows)"
    if len(first) > _LONGEST_LINE:
        return None
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
    """One authorization and all the calls that it paid for.

    `signature` (0x-hex) is the payer's over the terms that live longest, for one that expired: where something was
    settled, the signature is on chain. `voucher` is what a call on a payment channel may add to it.
    """

    entry: Authorization
    receipts: tuple[SettlementReceipt, ...]
    signature: str | None = None
    voucher: Voucher | None = None

    @property
    def channel_id(self) -> str | None:
        """The payment channel that pays for it, if one does."""
        return None if self.voucher is None else self.voucher.channel_id


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlace:
    """Where on the relay's chain the event is that settles a call's data."""

    call_id: str
    tx_hash: str
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What an enclave showed of itself: its attestation document, and the key that it is to name. Both in base64."""

    tee_id: str
    document_base64: str
    public_key_base64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a bundle is about. `made_at` is when its writer says that it was made, if it says so."""

    cases: tuple[Case, ...]
    data_places: tuple[DataPlace, ...]
    attestations: tuple[Attested, ...] = ()
    channels: tuple[ShownChannel, ...] = ()
    decisions: tuple[Decision, ...] = ()
    made_at: int | None = None

    @property
    def receipts(self) -> list[SettlementReceipt]:
        """All receipts."""
        return [receipt for case in self.cases for receipt in case.receipts]

    @property
    def payers(self) -> list[str]:
        """The addresses of all payers."""
        return sorted({case.entry.payer for case in self.cases})

    def records(self) -> list[Record]:
        """The contents as records."""
        records: list[Record] = []
        for case in self.cases:
            records.append(Record("authorization", _case_json(case)))
            records += [Record("receipt", _expressible(receipt.to_json())) for receipt in case.receipts]
        records += [Record("decision", _expressible(decision.to_json())) for decision in self.decisions]
        records += [Record("channel", channel.to_json()) for channel in self.channels]
        records += [Record("data_settlement", asdict(place)) for place in self.data_places]
        return records + [Record("attestation", asdict(attested)) for attested in self.attestations]

    @classmethod
    def of(cls, bundle: Bundle) -> Contents:
        """The contents of a bundle whose shape was checked (`bundle_schema`)."""
        token = {_OF_TOKEN[name]: value for name, value in bundle.network["asset"].items() if name in _OF_TOKEN}
        bodies = [{**body, **token} for body in bundle.of_kind("authorization")]
        signatures = {body["id"]: body.get("signature") for body in bodies}
        vouchers = {body["id"]: _voucher(body) for body in bodies}
        receipts = [SettlementReceipt.from_json({**body, **token}) for body in bundle.of_kind("receipt")]
        places = tuple(DataPlace(**body) for body in bundle.of_kind("data_settlement"))
        cases = [
            replace(case, signature=signatures[case.entry.id], voucher=vouchers[case.entry.id])
            for case in cases_of(map(_entry, bodies), receipts)
        ]
        attestations = tuple(Attested(**body) for body in bundle.of_kind("attestation"))
        channels = tuple(map(ShownChannel.from_json, bundle.of_kind("channel")))
        decisions = tuple(Decision.from_json(dict(body)) for body in bundle.of_kind("decision"))
        return cls(
            cases=tuple(cases),
            data_places=places,
            attestations=attestations,
            channels=channels,
            decisions=decisions,
            made_at=bundle.created_at,
        )


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


def _case_json(case: Case) -> dict[str, Any]:
    entry = case.entry
    body = _texts(asdict(entry)) | {
        "nonce": str(entry.nonce),
        "signed": [_texts(asdict(terms)) for terms in entry.signed],
    }
    for name in ("recheck_at", *_OF_TOKEN.values()):  # when the ledger looks again concerns no reader
        body.pop(name, None)
    if case.voucher is not None:
        own = _texts(asdict(case.voucher))
        body["voucher"] = {name: value for name, value in own.items() if name not in _OF_CHANNEL}
    return body if case.signature is None else body | {"signature": case.signature}


_OF_CHANNEL: Final = ("authorization_id", "channel_id", "signed_atomic")
"""What a voucher's record leaves out: the nonce of its authorization is the channel's id."""


def channel_id_of(body: Mapping[str, Any]) -> str:
    """The channel of an authorization that has a voucher."""
    return f"0x{int(body['nonce']):064x}"


def _voucher(body: Mapping[str, Any]) -> Voucher | None:
    shown = body.get("voucher")
    if shown is None:
        return None
    return Voucher(authorization_id=body["id"], channel_id=channel_id_of(body), **_amounts(shown))


_OF_TOKEN: Final = {"symbol": "asset_symbol", "decimals": "asset_decimals"}
"""What records leave out, since the header has it once, for the one token of a bundle."""


def _expressible(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a gateway made up and JSON cannot say in every language: halves of characters, huge numbers."""
    known = {
        name: whole_characters(value) if isinstance(value, str) else value
        for name, value in body.items()
        if name not in _OF_TOKEN.values()
    }
    return {name: value for name, value in known.items() if isinstance(value, str) or 0 <= value < _LARGEST_COUNT}


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, with amounts as text."""
    known = {name: value for name, value in values.items() if value is not None}
    return {name: str(value) if name.endswith("_atomic") else value for name, value in known.items()}


def _entry(body: Mapping[str, Any]) -> Authorization:
    signed = tuple(SignedTerms(**{"facilitator": None} | _amounts(terms)) for terms in body["signed"])
    own = {name: value for name, value in _amounts(body).items() if name not in ("signature", "voucher")}
    return Authorization(**own | {"nonce": int(body["nonce"]), "signed": signed})


def _amounts(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if name.endswith("_atomic") else value for name, value in body.items()}
