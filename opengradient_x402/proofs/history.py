"""A history of records that can only grow: the Merkle tree of RFC 9162, section 2.1. Every change of it is noticed.

A ledger keeps a leaf for every version of a record that it ever exported (`Ledger.extend_history`). A bundle has the
tree's head, the way from each of its records to the head (inclusion), and proofs that the heads of earlier bundles
are the beginning of this one (consistency). An auditor who kept an earlier head, or an earlier bundle, sees when a
leaf was changed, moved or dropped, and when a record tells another story than it did before. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from opengradient_x402.proofs.bundle import ABOUT, Bundle, Record
from opengradient_x402.proofs.findings import Finding, Proven, Refuted, Stated, Statement, Undecided

IN_HISTORY: Final = ("authorization", "receipt", "decision")
"""The kinds of records that a ledger keeps; all others are evidence."""
_MOST_HEADS: Final = 64
"""So many earlier heads get a consistency proof: the first one, and the newest."""
_SHOWN: Final = 3
_FIXED: Final = {
    "authorization": ("network", "payer", "nonce", "call_id"),
    "receipt": ("network", "payer", "nonce", "authorization_id", "created_at", "asset"),
    "decision": ("decision", "asked_at", "decided_at", "payee", "payer", "network", "amount_atomic", "model"),
}
_FIXED_WHEN_OVER: Final = (
    "model",
    "endpoint",
    "settlement_mode",
    "outcome",
    "prompt_tokens",
    "completion_tokens",
    "tee_id",
    "tee_request_hash",
    "tee_output_hash",
    "tee_signature",
    "tee_timestamp",
)
"""Of a receipt whose call has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The state of a history: how many leaves it has, and the root over them (0x-hex)."""

    size: int
    root: str


_EMPTY: Final = Head(size=0, root="0x" + sha256(b"").hexdigest())


def leaf_hash(record: Record) -> bytes:
    """The leaf of a record: SHA-256 of a zero byte and the record's canonical JSON."""
    return sha256(b"\0" + record.to_bytes()).digest()


class HistoryTree:
    """The tree over a list of leaf hashes. Every subtree of a power of two is computed once."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.size = len(leaves)
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            self._levels.append([_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])

    @property
    def head(self) -> Head:
        """Size and root."""
        return Head(size=self.size, root=_hex(self._root(0, self.size)))

    def inclusion(self, index: int) -> list[str]:
        """The way from a leaf to the root (RFC 9162 §2.1.3.1)."""
        return [_hex(node) for node in self._path(index, 0, self.size)]

    def consistency(self, size: int) -> list[str]:
        """That the first `size` leaves are the beginning of this tree (RFC 9162 §2.1.4.1)."""
        return [_hex(node) for node in self._subproof(size, 0, self.size, is_whole=True)] if size else []

    def _root(self, start: int, end: int) -> bytes:
        width = end - start
        if width == 0:
            return sha256(b"").digest()
        if width & (width - 1) == 0:  # a power of two: these ranges are aligned
            return self._levels[width.bit_length() - 1][start // width]
        middle = start + _split(width)
        return _node(self._root(start, middle), self._root(middle, end))

    def _path(self, index: int, start: int, end: int) -> Iterator[bytes]:
        if end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                yield from self._path(index, start, middle)
                yield self._root(middle, end)
            else:
                yield from self._path(index, middle, end)
                yield self._root(start, middle)

    def _subproof(self, size: int, start: int, end: int, *, is_whole: bool) -> Iterator[bytes]:
        if size == end - start:
            if not is_whole:
                yield self._root(start, end)
            return
        split = _split(end - start)
        middle = start + split
        if size <= split:
            yield from self._subproof(size, start, middle, is_whole=is_whole)
            yield self._root(middle, end)
        else:
            yield from self._subproof(size - split, middle, end, is_whole=False)
            yield self._root(start, middle)


def is_included(leaf: bytes, index: int, proof: Sequence[str], head: Head) -> bool:
    """Whether a leaf stands at this place under the head (RFC 9162 §2.1.3.2)."""
    if index >= head.size:
        return False
    sides = list(_sides(index, head.size - 1))
    if len(sides) != len(proof):
        return False
    node = leaf
    for is_left, sibling in zip(sides, map(_bytes, proof), strict=True):
        node = _node(sibling, node) if is_left else _node(node, sibling)
    return _hex(node) == head.root


def is_continued(earlier: Head, proof: Sequence[str], head: Head) -> bool:
    """Whether an earlier head is the beginning of this one (RFC 9162 §2.1.4.2)."""
    if earlier.size in (0, head.size):
        return not proof and earlier == (_EMPTY if earlier.size == 0 else head)
    if earlier.size > head.size:
        return False
    place, last = earlier.size - 1, head.size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    sides = list(_sides(place, last))
    nodes = list(map(_bytes, proof if place else [earlier.root, *proof]))
    if len(nodes) != len(sides) + 1:
        return False
    old = new = nodes[0]
    for is_left, node in zip(sides, nodes[1:], strict=True):
        old = _node(node, old) if is_left else old
        new = _node(node, new) if is_left else _node(new, node)
    return _hex(old) == earlier.root and _hex(new) == head.root


def _sides(place: int, last: int) -> Iterator[bool]:
    """For each node of a proof, from the leaf up: whether it stands on the left."""
    while last:
        is_left = bool(place & 1) or place == last
        yield is_left
        while is_left and place and not place & 1:
            place, last = place >> 1, last >> 1
        place, last = place >> 1, last >> 1


def described(
    leaves: Sequence[bytes],
    places: Sequence[int],
    sizes: Sequence[int],
    *,
    anchors: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The member `history` of a bundle whose records stand at these places; `sizes` are those of earlier heads."""
    tree = HistoryTree(leaves)
    known = sorted({size for size in sizes if 0 < size < tree.size})
    shown = known if len(known) <= _MOST_HEADS else [known[0], *known[1 - _MOST_HEADS :]]
    shown = sorted({*shown, *(anchor["size"] for anchor in anchors if anchor["size"] < tree.size)})
    return ({"anchors": [dict(anchor) for anchor in anchors]} if anchors else {}) | {
        "size": tree.size,
        "root": tree.head.root,
        "places": [{"index": index, "proof": tree.inclusion(index)} for index in places],
        "consistency": [{"size": size, "proof": tree.consistency(size)} for size in shown],
    }


def head_of(bundle: Bundle) -> Head | None:
    """The head of a bundle's history; None for a bundle without one."""
    history = bundle.history
    return None if history is None else Head(size=history["size"], root=history["root"])


def history_findings(bundle: Bundle, *, signer: str | None, earlier: Head | Bundle | None) -> list[Finding]:
    """Whether the records are under the head, and whether that continues what the reader kept from earlier.

    `signer` is the payer who signed the bundle, None where nobody is known to have.
    """
    before = earlier if isinstance(earlier, Bundle) else None
    kept = head_of(earlier) if isinstance(earlier, Bundle) else earlier
    history, head = bundle.history, head_of(bundle)
    if history is None or head is None:
        return [Undecided(statement=Statement.HISTORY, about=ABOUT, why="it has no history"), *_missing(kept)]
    records = [record for record in bundle.records if record.kind in IN_HISTORY]
    pairs = list(zip(records, history["places"], strict=True))
    outside = [
        record for record, place in pairs if not is_included(leaf_hash(record), place["index"], place["proof"], head)
    ]
    is_odd = len({place["index"] for place in history["places"]}) != len(pairs)
    if outside or is_odd or (head.size == 0 and head != _EMPTY):
        what = ", ".join(name_of(record) for record in outside[:_SHOWN])
        what = what or ("two records with one place" if is_odd else "it is not that of an empty tree")
        findings: list[Finding] = [
            Refuted(statement=Statement.HISTORY, about=ABOUT, why=f"not under the root {head.root}: {what}")
        ]
    else:
        why = f"{len(records)} records are among the {head.size} under the root {head.root}"
        findings = [_by(signer, Statement.HISTORY, why)]
    return findings if kept is None else [*findings, _continued(bundle, head, kept, before, signer)]


def _missing(earlier: Head | None) -> list[Finding]:
    if earlier is None:
        return []
    why = f"it has no history, and there was one of {earlier.size} records"
    return [Refuted(statement=Statement.CONTINUED, about=ABOUT, why=why)]


def _continued(bundle: Bundle, head: Head, earlier: Head, before: Bundle | None, signer: str | None) -> Finding:
    statement = Statement.CONTINUED
    if head.size < earlier.size:
        why = f"it has {head.size} records, and there were {earlier.size}"
        return Refuted(statement=statement, about=ABOUT, why=why)
    proofs = {item["size"]: item["proof"] for item in (bundle.history or {})["consistency"]} | {0: [], head.size: []}
    if earlier.size not in proofs:
        why = f"the file has no proof from the head of {earlier.size} records; ask for a bundle that was made later"
        return Undecided(statement=statement, about=ABOUT, why=why)
    if not is_continued(earlier, proofs[earlier.size], head):
        why = f"the first {earlier.size} of its records are not those under {earlier.root}: they were rewritten"
        return Refuted(statement=statement, about=ABOUT, why=why)
    changed = [] if before is None else list(_changed(before, bundle))
    if changed:
        return Refuted(statement=statement, about=ABOUT, why="; ".join(changed[:_SHOWN]))
    why = f"the {earlier.size} records under {earlier.root} are its beginning"
    if before is None:
        old = sum(place["index"] < earlier.size for place in (bundle.history or {})["places"])
        why += (
            f"; {old} of the file's records are among those, and what the others were then, only the earlier file shows"
        )
    return _by(signer, statement, why)


def _by(signer: str | None, statement: Statement, why: str) -> Finding:
    if signer is None:
        why = f"{why}; nobody is known to have signed that"
        return Stated(statement=statement, about=ABOUT, why=why, by="the writer")
    return Proven(statement=statement, about=ABOUT, why=f"{why}, which {signer} signed", key=signer)


def _changed(before: Bundle, after: Bundle) -> Iterator[str]:
    """Where a record differs from the same record in an earlier bundle, or is missing now."""
    now = {name_of(record): record.body for record in after.records if record.kind in IN_HISTORY}
    created = [body["created_at"] for body in after.of_kind("receipt")]
    for record in before.records:
        if record.kind not in IN_HISTORY:
            continue
        body = now.get(name_of(record))
        if body is None:
            if record.kind == "receipt" and created and record.body["created_at"] >= min(created):
                yield f"the {name_of(record)} was in the earlier file and is not in this one"
            continue
        for name in _fixed(record):
            old, new = record.body.get(name), body.get(name)
            if old != new:
                yield f"the {name_of(record)} had the {name} {old!s:.80}, and has {new!s:.80}"


def _fixed(record: Record) -> Sequence[str]:
    is_over = record.kind == "receipt" and record.body["outcome"] != "unknown"
    return _FIXED[record.kind] + (_FIXED_WHEN_OVER if is_over else ())


def name_of(record: Record) -> str:
    """The name of a record in a history; all versions have the same name."""
    body: Mapping[str, Any] = record.body
    return f"{record.kind} {body['id'] if record.kind == 'authorization' else body['call_id']}"


def _split(width: int) -> int:
    """The largest power of two below a width."""
    return 1 << (width - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def _hex(node: bytes) -> str:
    return "0x" + node.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
