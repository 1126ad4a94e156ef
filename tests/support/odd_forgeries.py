"""Lies of a careful adversary: odd spellings of JSON, odd trees, odd times, and files of another network.

Some are told to a reader who kept an earlier bundle (`EARLIER`); the others are told like those of `forgeries`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from opengradient_x402.proofs.bundle import Record
from opengradient_x402.proofs.findings import Statement
from opengradient_x402.proofs.history import IN_HISTORY, HistoryTree, described, leaf_hash
from support.forging import HASH, OTHER, UNREADABLE, Forgery, World, by, forge, on_channel, setting, settled

YEAR_S = 365 * 86_400


def odd_forgeries() -> Iterator[Forgery]:
    """All of them but `EARLIER`."""
    yield from _of_spellings()
    yield from _of_depth()
    yield from _of_periods()
    yield from _of_times()
    yield from _of_trees()
    yield from _of_networks()
    yield from _of_parts()


# -- one content, another spelling


def _respelled(change: Callable[[bytes], bytes]) -> Callable[[World], bytes]:
    def make(w: World) -> bytes:
        honest = w.bundle.to_bytes()
        changed = change(honest)
        assert changed != honest
        return changed

    return make


def _once(old: bytes, new: Callable[[bytes], bytes] | bytes) -> Callable[[bytes], bytes]:
    """Changes what stands behind the first `old`, a member's name and a colon, up to the next comma."""

    def change(content: bytes) -> bytes:
        start = content.index(old) + len(old)
        end = min(place for place in (content.find(sign, start) for sign in (b",", b"}")) if place >= 0)
        value = content[start:end]
        return content[:start] + (new(value) if callable(new) else new) + content[end:]

    return change


_MADE = b'"created_at":'


def _of_spellings() -> Iterator[Forgery]:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "a time with an exponent": _once(_MADE, lambda value: value[:1] + b"." + value[1:] + b"e9"),
        "a time with a fraction of nothing": _once(_MADE, lambda value: value + b".0"),
        "a negative zero": _once(b'"log_index":', b"-0"),
        "a number with a leading zero": _once(_MADE, lambda value: b"0" + value),
        "a number with a plus": _once(_MADE, lambda value: b"+" + value),
        "not a number": _once(_MADE, b"NaN"),
        "no end of numbers": _once(_MADE, b"Infinity"),
        "a number that overflows": _once(_MADE, b"1e999"),
        "a number of five thousand digits": _once(_MADE, b"1" * 5000),
        "one member twice": lambda content: content.replace(b'{"created_at"', b'{"created_at":1,"created_at"', 1),
        "a member twice, the second one escaped": lambda content: content.replace(
            b'"format":', b'"f\\u006frmat":"opengradient-audit-bundle/1","format":', 1
        ),
        "half a character": lambda content: content.replace(b'"name":"', b'"name":"\\ud800', 1),
        "half a character in raw bytes": lambda content: content.replace(b'"name":"', b'"name":"\xed\xa0\x80', 1),
        "an overlong character": lambda content: content.replace(b'"name":"', b'"name":"\xc0\xaf', 1),
        "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda content: content.decode().encode("utf-16"),
        "a second line feed": lambda content: content + b"\n",
        "a carriage return": lambda content: content[:-1] + b"\r\n",
        "no line feed": lambda content: content[:-1],
        "a comment": lambda content: content[:-1] + b"/**/\n",
        "two files in one": lambda content: content + content,
        "members in another order": lambda content: (
            json.dumps(dict(reversed(json.loads(content).items())), separators=(",", ":"), ensure_ascii=False) + "\n"
        ).encode(),
        "an escaped slash": lambda content: content.replace(b"/v1/chat", b"\\/v1\\/chat", 1),
        "digits of another script": _once(_MADE, "١٢".encode()),
    }
    for name, change in changes.items():
        yield Forgery(name=f"a file with {name}", falls=None, to=UNREADABLE, make=_respelled(change))
    for name, value in (("a number of 22 digits", 1e21), ("a negative one", -1e21)):
        make = by(setting("rpc", result=value))
        yield Forgery(name=f"an answer with {name}", falls=None, to=UNREADABLE, make=make)


def _of_depth() -> Iterator[Forgery]:
    def nested(depth: int) -> Any:
        value: Any = []
        for _ in range(depth):
            value = [value]
        return value

    deep = {"chain_id": 1, "method": "m", "params": [], "result": nested(600)}
    yield Forgery(
        name="an answer 600 deep",
        falls=None,
        to=UNREADABLE,
        make=lambda w: forge(w.bundle, w.payments.signer, added=(Record("rpc", deep),)),
    )

    def bottomless(w: World) -> bytes:
        return w.bundle.to_bytes().replace(b'"records":[', b'"records":[' + b"[" * 100_000, 1)

    yield Forgery(name="a file that is brackets", falls=None, to=UNREADABLE, make=bottomless)
    for name, part in {"empty lists": b"[],", "empty objects": b"{},", "zeros": b"0,"}.items():
        begin = b'{"created_at":1,"format":"opengradient-audit-bundle/1","records":['
        full = begin + part * (3_000_000 // len(part)) + b"[]]}\n"
        yield Forgery(name=f"a file of {name}", falls=None, to=UNREADABLE, make=lambda w, full=full: full)
    terms = setting("authorization", settled, signed=lambda body: body["signed"] * 1001)
    yield Forgery(name="a thousand and one signatures", falls=None, to=UNREADABLE, make=by(terms))


# -- odd times


def _with_period(change: Callable[[dict[str, int]], dict[str, int]]) -> Callable[[World], bytes]:
    return lambda w: forge(w.bundle, w.payments.signer, period=change(dict(w.bundle.period or {})))


def _of_periods() -> Iterator[Forgery]:
    backwards = _with_period(lambda period: {"from_block": period["to_block"] + 1, "to_block": period["to_block"]})
    yield Forgery(name="a period that ends before it begins", falls=None, to=UNREADABLE, make=backwards)
    future = _with_period(lambda period: {name: number + 10**9 for name, number in period.items()})
    yield Forgery(name="a period that is not over", falls=Statement.COMPLETE, to="undecided", make=future)


def _has_proof(body: Any) -> bool:
    return "tee_timestamp" in body


def _of_times() -> Iterator[Forgery]:
    for name, field in (("calls of next year", "created_at"), ("a file older than its calls", None)):

        def make(w: World, field: str | None = field) -> bytes:
            if field is None:
                return forge(w.bundle, w.payments.signer, created_at=w.bundle.created_at - YEAR_S)
            return forge(
                w.bundle,
                w.payments.signer,
                setting("receipt", created_at=w.bundle.created_at + YEAR_S),
                created_at=2**40,
            )

        yield Forgery(name=name, falls=Statement.TOLD, to="refuted", make=make)
    dated = setting(
        "receipt", lambda body: "tee_timestamp" in body, tee_timestamp=lambda body: body["tee_timestamp"] + YEAR_S
    )
    yield Forgery(name="proofs of next year", falls=Statement.ENCLAVE, to="refuted", make=by(dated))


# -- odd trees


def _history(w: World) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(dict(w.bundle.history or {})))
    return copied


def _of_trees() -> Iterator[Forgery]:
    def made(change: Callable[[World, dict[str, Any]], None]) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            history = _history(w)
            change(w, history)
            return forge(w.bundle, w.payments.signer, history=history)

        return make

    def longer(w: World, history: dict[str, Any]) -> None:
        """A head of a tree with more leaves, above places that are those of the shorter one."""
        leaves = [leaf_hash(record) for record in w.bundle.records if record.kind in IN_HISTORY]
        head = HistoryTree([*leaves, b"\7" * 32]).head
        history.update(size=head.size, root=head.root)

    def inner(w: World, history: dict[str, Any]) -> None:
        """The hash of an inner node, shown as a leaf's sibling one level too high."""
        history["places"][0]["proof"] = history["places"][0]["proof"][1:]
        history["places"][0]["index"] = history["places"][0]["index"] // 2

    def moved(w: World, history: dict[str, Any]) -> None:
        history["places"][0]["index"] += 2**40

    for name, change in {
        "the head of a longer tree": longer,
        "an inner node as a leaf": inner,
        "a far place": moved,
    }.items():
        yield Forgery(name=f"a history with {name}", falls=Statement.HISTORY, to="refuted", make=made(change))

    def fewer(w: World) -> bytes:
        history = _history(w)
        history["places"].pop()
        return forge(w.bundle, w.payments.signer, history=history)

    yield Forgery(name="a history without one of its places", falls=None, to=UNREADABLE, make=fewer)


# -- another network


def _of_networks() -> Iterator[Forgery]:
    def twin(w: World) -> bytes:
        """A network of the same chain id with contracts of its own, all of them consistent in the file."""
        network = json.loads(json.dumps(dict(w.bundle.network)))
        for name in ("permit2", "upto_proxy", "exact_proxy"):
            network[name] = OTHER
        network["asset"]["address"] = OTHER
        change = setting("authorization receipt", asset=OTHER, spender=OTHER)
        return forge(w.bundle, w.payments.signer, lambda record: _without_spender(change(record)), network=network)

    yield Forgery(name="a network with the same chain id", falls=Statement.NETWORK, to="refuted", make=twin)
    yield Forgery(name="a network with the same chain id: its money", falls=Statement.PAID, to="refuted", make=twin)

    def renumbered(w: World) -> bytes:
        """Evidence that says the right things about another chain."""
        other = {"chain_id": w.bundle.network["chain_id"] + 1}
        return forge(w.bundle, w.payments.signer, setting("rpc source", **other))

    yield Forgery(name="evidence of another chain", falls=Statement.MADE, to="proven", why="signed", make=renumbered)


def _without_spender(records: list[Record]) -> list[Record]:
    """A receipt has no spender."""
    return [
        Record(item.kind, {name: value for name, value in item.body.items() if name != "spender"})
        if item.kind == "receipt"
        else item
        for item in records
    ]


def _of_parts() -> Iterator[Forgery]:
    def shares(w: World) -> bytes:
        """Two calls of one session exchange their shares: the sum stays."""
        calls = [body for body in w.bundle.of_kind("receipt") if settled(body)]
        first = next(
            body for body in calls if sum(one["authorization_id"] == body["authorization_id"] for one in calls) > 1
        )
        same = [body for body in calls if body["authorization_id"] == first["authorization_id"]]
        amounts = [body["settled_atomic"] for body in same]
        moved = dict(zip([body["call_id"] for body in same], amounts[1:] + amounts[:1], strict=True))
        change = setting("receipt", lambda body: body["call_id"] in moved,
                         settled_atomic=lambda body: moved[body["call_id"]])  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="shares that changed places", falls=Statement.SHARES, to="stated", why="OPG", make=shares)
    disowned = setting("receipt", lambda body: "tee_id" in body, tee_verified="replayed (key from the gateway)")
    yield Forgery(name="good proofs called replayed", falls=Statement.ENCLAVE, to="undecided", make=by(disowned))

    def halves(w: World) -> bytes:
        """One claim, listed by two channels of which one is made up."""
        channel = w.bundle.of_kind("channel")[0]
        twin = Record("channel", {**channel, "id": HASH, "salt": "5"})
        call = next(body for body in w.bundle.of_kind("authorization") if on_channel(body))
        receipt = next(body for body in w.bundle.of_kind("receipt") if body["authorization_id"] == call["id"])
        new = {"nonce": str(int(HASH, 16))}
        plain = {name: value for name, value in receipt.items() if not name.startswith("tee_")}
        added = (
            twin,
            Record("authorization", {**call, **new, "id": call["id"] + "x"}),
            Record(
                "receipt", {**plain, **new, "call_id": receipt["call_id"] + "x", "authorization_id": call["id"] + "x"}
            ),
        )
        return forge(w.bundle, w.payments.signer, added=added)

    yield Forgery(name="one claim in two channels", falls=None, to=UNREADABLE, make=halves)

    def proto(w: World) -> bytes:
        answer = {
            "chain_id": 1,
            "method": "m",
            "params": [],
            "result": {"__proto__": 5, "": "\u2028", "￿": 1, "😀": 1.5},
        }
        return forge(w.bundle, None, added=(Record("rpc", answer),))

    yield Forgery(name="an odd answer in an unsigned file", falls=Statement.MADE, to="undecided", make=proto)


# -- for a reader who kept an earlier bundle


def _longer_before(w: World) -> bytes:
    """The later bundle comes first: the history has become shorter."""
    leaves = [leaf_hash(record) for record in w.earlier.records if record.kind in IN_HISTORY]
    history = described(leaves, range(len(leaves)), [])
    return replace(w.earlier, history=history, signature=None).signed(w.payments.signer).to_bytes()


def _with_path(change: Callable[[list[str]], Any]) -> Callable[[World], bytes]:
    def make(w: World) -> bytes:
        history = _history(w)
        size = (w.earlier.history or {})["size"]
        for item in history["consistency"]:
            if item["size"] == size:
                change(item["proof"])
        return forge(w.bundle, w.payments.signer, history=history)

    return make


def _regrown(w: World) -> bytes:
    """Another tree of a greater size, with a path that is right for itself."""
    size = (w.earlier.history or {})["size"]
    leaves = [leaf_hash(record) for record in w.bundle.records if record.kind in IN_HISTORY]
    last = len(leaves) - 1
    history = described([*leaves[1:], leaves[0]], [last, *range(last)], [size])
    return forge(w.bundle, w.payments.signer, history=history)


EARLIER: dict[str, Callable[[World], bytes]] = {
    "a path cut short": _with_path(lambda proof: proof.pop()),
    "a path made longer": _with_path(lambda proof: proof.append(HASH)),
    "a path turned around": _with_path(lambda proof: proof.reverse()),
    "a path through another node": _with_path(lambda proof: proof.__setitem__(0, HASH)),
    "no path at all": _with_path(lambda proof: proof.clear()),
    "another tree with a path of its own": _regrown,
    "a history that became shorter": _longer_before,
}
"""What makes the file: *the history continues the earlier one* is refuted for each."""
