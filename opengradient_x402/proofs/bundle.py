"""An audit bundle: one file with receipts and the evidence for them, in which no byte can be changed unseen.

The file is canonical JSON: sorted keys, no spaces, ASCII. Every record is chained to all before it (`chain` =
keccak256 of the previous one and the record), `head` is the last link, and the exporter may sign it with the
payer's key: whoever changes a record must change every later link and the head, and cannot sign that.

Does not know what the records mean (`audit`), nor where they come from (`bundle_export`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opengradient_x402.addresses import checksum_address, keccak256
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.proofs.findings import Finding, not_proven, proven, refuted
from opengradient_x402.signatures import recover_address, text_digest
from opengradient_x402.signer import Signer
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


def _first_difference(left: bytes, right: bytes) -> int:
    return next(
        (place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )
