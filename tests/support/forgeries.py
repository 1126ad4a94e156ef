"""More than a hundred kinds of lies about a world's bundle, each with the statement that falls, and to what.

Both verifiers are held against them: ours, and the one in JavaScript.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from opengradient_x402.proofs.bundle import Record
from opengradient_x402.proofs.findings import Statement
from opengradient_x402.proofs.history import IN_HISTORY, described, leaf_hash
from support.channel_forgeries import channel_forgeries
from support.forging import (
    HASH,
    OTHER,
    UNREADABLE,
    Change,
    Forgery,
    World,
    both,
    by,
    dropping,
    forge,
    is_open,
    of_mode,
    setting,
    settled,
    with_status,
)
from support.odd_forgeries import odd_forgeries


def _rows() -> Iterator[Forgery]:
    yield from _of_receipts()
    yield from _of_both()
    yield from _of_outcomes()
    yield from _of_enclaves()
    yield from _of_data()
    yield from _of_twice()
    yield from _of_files()
    yield from _of_networks()
    yield from _of_histories()
    yield from _of_shapes()
    yield from channel_forgeries()
    yield from _of_decisions()
    yield from odd_forgeries()


NOBODYS = {"call_id": "nobody", "tx_hash": HASH, "log_index": 0}


def _of_receipts() -> Iterator[Forgery]:
    """A receipt that tells another story than its authorization."""
    changes = {
        "scheme": "exact",
        "facilitator": OTHER,
        "deadline": 5,
        "payer": OTHER,
        "payee": OTHER,
        "asset": OTHER,
        "nonce": "5",
        "authorized_atomic": "5",
        "authorization_settled_atomic": "5",
        "payment_tx_hash": HASH,
        "block_hash": HASH,
        "block_number": 5,
        "network": "eip155:1",
        "status": "expired",
    }
    for name, value in changes.items():
        make = by(setting("receipt", settled, **{name: value}))
        yield Forgery(name=f"a receipt with another {name}", falls=Statement.PAID, to="refuted", make=make)


def _of_both() -> Iterator[Forgery]:
    """A receipt and its authorization that agree on a lie."""
    changes: list[tuple[str, dict[str, Any], dict[str, Any], Statement, str]] = [
        ("less settled", {"settled_atomic": "5"}, {"authorization_settled_atomic": "5"}, Statement.PAID, "refuted"),
        ("another payee", {"payee": OTHER}, {"payee": OTHER}, Statement.PAID, "refuted"),
        ("a payee that nobody knows", {"payee": OTHER}, {"payee": OTHER}, Statement.PAYEE, "stated"),
        ("another facilitator", {"facilitator": OTHER}, {"facilitator": OTHER}, Statement.SIGNED, "undecided"),
        (
            "a facilitator that nobody knows",
            {"facilitator": OTHER},
            {"facilitator": OTHER},
            Statement.FACILITATOR,
            "stated",
        ),
        ("another deadline", {"deadline": 2**40}, {"deadline": 2**40}, Statement.SIGNED, "undecided"),
        (
            "a larger amount signed",
            {"amount_atomic": str(10**20)},
            {"authorized_atomic": str(10**20)},
            Statement.SIGNED,
            "undecided",
        ),
        ("another nonce", {"nonce": str(2**255 + 5)}, {"nonce": str(2**255 + 5)}, Statement.PAID, "refuted"),
        ("a counter as nonce", {"nonce": "32"}, {"nonce": "32"}, Statement.PAID, "refuted"),
        ("another token", {"asset": OTHER}, {"asset": OTHER}, Statement.PAID, "refuted"),
        ("another spender", {"spender": OTHER}, {}, Statement.PAID, "refuted"),
        ("another chain", {"network": "eip155:1"}, {"network": "eip155:1"}, Statement.PAID, "refuted"),
        ("a transaction of nobody", {"tx_hash": HASH}, {"payment_tx_hash": HASH}, Statement.PAID, "refuted"),
        ("another block", {"block_hash": HASH}, {"block_hash": HASH}, Statement.PAID, "refuted"),
        ("another height", {"block_number": 1}, {"block_number": 1}, Statement.PAID, "refuted"),
        ("another payer", {"payer": OTHER}, {"payer": OTHER}, Statement.PAID, "refuted"),
        ("another scheme", {"scheme": "exact"}, {"scheme": "exact"}, Statement.PAID, "refuted"),
        ("another method", {"transfer_method": "eip3009"}, {}, Statement.PAID, "refuted"),
    ]
    for name, of_authorization, of_receipt, falls, to in changes:
        change = both(setting("authorization", settled, **of_authorization), setting("receipt", settled, **of_receipt))
        yield Forgery(name=f"both with {name}", falls=falls, to=to, make=by(change))

    def oneself(w: World) -> bytes:
        p = w.own_payment
        place = {"block_number": p["block_number"], "block_hash": p["block_hash"], "nonce": p["nonce"]}
        terms = {"payee": p["payee"], "facilitator": p["payee"], "deadline": p["deadline"]}
        first = next(body["id"] for body in w.bundle.of_kind("authorization") if settled(body))
        change = both(
            setting("authorization", lambda body: body["id"] == first, **place, **terms, tx_hash=p["tx_hash"],
                    amount_atomic=p["amount"], settled_atomic=p["amount"]),
            setting("receipt", lambda body: body["authorization_id"] == first, **place, **terms,
                    payment_tx_hash=p["tx_hash"], authorized_atomic=p["amount"],
                    authorization_settled_atomic=p["amount"], cost_atomic=p["amount"]),
        )  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    def behind_a_gateway(w: World, *, dispute: str | None = None) -> bytes:
        """The gateway's terms were signed last, and are the receipts'; settled was a payment to oneself."""
        p = w.own_payment
        place = {"block_number": p["block_number"], "block_hash": p["block_hash"], "nonce": p["nonce"]}
        entry = next(body for body in w.bundle.of_kind("authorization") if settled(body))
        last = {**entry["signed"][-1], "deadline": p["deadline"], "amount_atomic": p["amount"]}
        own = {**last, "payee": p["payee"], "facilitator": p["payee"]}

        def change(record: Record) -> list[Record]:
            body = {**record.body}
            if record.kind == "authorization" and body["id"] == entry["id"]:
                body |= {**place, "tx_hash": p["tx_hash"], "settled_atomic": p["amount"]}
                body |= {"signed": [own, last]} if dispute is None else {"signed": [last], "dispute": dispute}
            if record.kind == "receipt" and body["authorization_id"] == entry["id"]:
                body |= {**place, "payment_tx_hash": p["tx_hash"], "authorization_settled_atomic": p["amount"]}
                body |= {"deadline": p["deadline"], "authorized_atomic": p["amount"], "cost_atomic": p["amount"]}
            return [Record(record.kind, body)]

        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a payment to oneself", falls=Statement.PAYEE, to="stated", make=oneself)
    for falls in (Statement.PAYEE, Statement.FACILITATOR):
        name = (
            f"a payment to oneself behind a gateway's terms: {'payee' if falls is Statement.PAYEE else 'facilitator'}"
        )
        yield Forgery(name=name, falls=falls, to="stated", make=behind_a_gateway)
    disputed = partial(behind_a_gateway, dispute="It went elsewhere.")
    name = "a payment to oneself as a gateway's, with a word of dispute"
    yield Forgery(name=name, falls=Statement.PAID, to="refuted", make=disputed)
    yield Forgery(
        name="a payment to oneself in place of a real one", falls=Statement.COMPLETE, to="refuted", make=oneself
    )


GONE = dict.fromkeys(
    (
        "settled_atomic", "authorization_settled_atomic", "payment_tx_hash", "tx_hash", "block_number", "block_hash",
        "confirmations", "confirmations_needed", "cost_atomic", "cost_usd", "opg_usd",
    )
)  # fmt: skip


def _of_outcomes() -> Iterator[Forgery]:
    kinds = "authorization receipt"
    hidden = setting(kinds, settled, **GONE, nonce=str(2**255 + 12345), deadline=1, status="expired")
    yield Forgery(
        name="payments behind a nonce that never was", falls=Statement.NOTHING_TAKEN, to="undecided", make=by(hidden)
    )
    yield Forgery(
        name="payments behind a nonce that never was: missing", falls=Statement.COMPLETE, to="refuted", make=by(hidden)
    )
    expired = setting(kinds, settled, **GONE, status="expired")
    yield Forgery(name="a settlement called expired", falls=Statement.NOTHING_TAKEN, to="undecided", make=by(expired))
    yield Forgery(name="a settlement called expired: missing", falls=Statement.COMPLETE, to="refuted", make=by(expired))
    cancelled = setting("authorization", settled, settled_atomic=None, status="cancelled")
    cancelled = both(cancelled, setting("receipt", settled, settled_atomic=None, authorization_settled_atomic=None,
                                        status="cancelled"))  # fmt: skip
    yield Forgery(name="a settlement called cancelled", falls=Statement.NOTHING_TAKEN, to="refuted", make=by(cancelled))
    unsigned = setting("authorization", with_status("expired"), signature=None)
    yield Forgery(
        name="an expiry without a signature", falls=Statement.NOTHING_TAKEN, to="undecided", make=by(unsigned)
    )
    garbled = setting("authorization", with_status("expired"), signature="0x" + "11" * 65)
    yield Forgery(name="an expiry with a garbled signature", falls=Statement.SIGNED, to="undecided", make=by(garbled))
    moved = setting(kinds, with_status("expired"), nonce=str(2**255 + 999))
    yield Forgery(name="an expiry of another nonce", falls=Statement.NOTHING_TAKEN, to="undecided", make=by(moved))
    later = setting(kinds, with_status("expired"), deadline=2**40)
    yield Forgery(name="an expiry before its time", falls=Statement.NOTHING_TAKEN, to="undecided", make=by(later))
    elsewhere = setting("authorization", with_status("cancelled"), tx_hash=HASH)
    elsewhere = both(elsewhere, setting("receipt", with_status("cancelled"), payment_tx_hash=HASH))
    yield Forgery(
        name="a cancellation in no transaction", falls=Statement.NOTHING_TAKEN, to="refuted", make=by(elsewhere)
    )

    def burned_late(w: World) -> bytes:
        """Permit2 lets a payer invalidate a nonce that was used: the event is no sign that nothing was taken."""
        nonce, tx_hash = w.own_payment["nonce"], w.own_payment["burned_in"]
        change = both(
            setting("authorization", with_status("cancelled"), nonce=nonce, tx_hash=tx_hash),
            setting("receipt", with_status("cancelled"), nonce=nonce, payment_tx_hash=tx_hash),
        )
        return forge(w.bundle, w.payments.signer, change)

    name = "a cancellation of a nonce that was used before"
    yield Forgery(name=name, falls=Statement.NOTHING_TAKEN, to="undecided", make=burned_late)
    other = setting(kinds, with_status("cancelled"), nonce=str(2**255 + 998))
    yield Forgery(name="a cancellation of another nonce", falls=Statement.NOTHING_TAKEN, to="refuted", make=by(other))
    early = setting("receipt", is_open, status="settled", settled_atomic="5")
    yield Forgery(name="an open call called settled", falls=Statement.PAID, to="refuted", make=by(early))
    taken = setting("authorization", with_status("expired"), settled_atomic="7")
    yield Forgery(name="an expiry with an amount", falls=Statement.PAID, to="refuted", make=by(taken))
    shares = setting("receipt", of_mode("batch"), settled_atomic="1")
    yield Forgery(name="a share made smaller", falls=Statement.SHARES, to="refuted", make=by(shares))
    slander = both(setting("authorization", settled, dispute="It took 500 OPG too much."),
                   setting("receipt", settled, dispute="It took 500 OPG too much.", status="disputed"))  # fmt: skip
    yield Forgery(
        name="a slander", falls=Statement.DISPUTE, to="stated", make=by(slander), why="It took 500 OPG too much."
    )
    quoted = setting("receipt", settled, cost_atomic="1")
    yield Forgery(name="an overcharge that is hidden", falls=Statement.DISPUTE, to="refuted", make=by(quoted))
    dated = setting("receipt", settled, created_at=1_700_000_000)
    yield Forgery(name="calls dated before their proof", falls=Statement.TOLD, to="refuted", make=by(dated))
    yield Forgery(name="calls dated after their proof", falls=Statement.TOLD, to="refuted", make=by(
        setting("receipt", settled, created_at=2**40)))  # fmt: skip
    for name, values in {
        "another model": {"model": "anthropic/claude-opus-4-6"},
        "a thousand times the tokens": {"prompt_tokens": 10**9},
        "another endpoint": {"endpoint": "https://api.openai.com"},
        "another outcome": {"outcome": "failed"},
    }.items():
        make = by(setting("receipt", settled, **values))
        (shown,) = map(str, values.values())
        yield Forgery(name=f"calls with {name}", falls=Statement.TOLD, to="stated", why=shown, make=make)


def _of_enclaves() -> Iterator[Forgery]:
    sign = base64.b64encode(b"s" * 256).decode()
    for name, value, to in (
        ("tee_id", HASH, "undecided"),
        ("tee_id", "zzz", "refuted"),
        ("tee_request_hash", "77" * 32, "refuted"),
        ("tee_request_hash", "77", "refuted"),
        ("tee_output_hash", "77" * 32, "refuted"),
        ("tee_output_hash", None, "refuted"),
        ("tee_timestamp", lambda body: body["tee_timestamp"] + 1, "refuted"),
        ("tee_signature", sign, "refuted"),
        ("tee_signature", "not base64!", "refuted"),
        ("tee_signature", lambda body: body["tee_signature"].rstrip("=") + "====", "refuted"),
        ("tee_output_hash", lambda body: f" {body['tee_output_hash']}", "refuted"),
        ("tee_request_hash", lambda body: _spaced(body["tee_request_hash"]), "refuted"),
        ("tee_id", lambda body: body["tee_id"].replace("0x", "0X"), "refuted"),
        ("tee_signature", None, "undecided"),
    ):
        shown = ("made later" if name == "tee_timestamp" else "spelt otherwise") if callable(value) else str(value)[:12]
        make = by(setting("receipt", of_mode("private"), **{name: value}))
        yield Forgery(name=f"a proof whose {name} is {shown}", falls=Statement.ENCLAVE, to=to, make=make)

    for name, change in {
        "a bit of an attestation flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "an attestation cut short": lambda content: content[: len(content) // 2],
        "an attestation that is none": lambda content: b"attested",
    }.items():
        spoil = partial(_respelled, change)
        make = by(setting("attestation", document_base64=lambda body, spoil=spoil: spoil(body["document_base64"])))
        yield Forgery(name=name, falls=Statement.ATTESTED, to="refuted", make=make)
    other_key = setting("attestation", public_key_base64=base64.b64encode(b"another key").decode())
    yield Forgery(name="an attestation of another key", falls=Statement.ATTESTED, to="refuted", make=by(other_key))

    def swapped(w: World) -> bytes:
        first, second = [body for body in w.bundle.of_kind("receipt") if settled(body)][:2]
        names = [name for name in first if name.startswith("tee_")]
        change = both(
            setting("receipt", lambda body: body["call_id"] == first["call_id"], **{n: second[n] for n in names}),
            setting("receipt", lambda body: body["call_id"] == second["call_id"], **{n: first[n] for n in names}),
        )
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="two proofs swapped", falls=Statement.DATA, to="refuted", make=swapped)

    def invented(w: World) -> bytes:
        theirs = w.strangers.of_kind("receipt")[0]
        place = w.strangers.of_kind("data_settlement")[0]
        mine = next(body for body in w.bundle.of_kind("receipt") if of_mode("batch")(body))
        half = int(mine["settled_atomic"]) // 2
        rest = int(mine["settled_atomic"]) - half
        tee = {name: value for name, value in theirs.items() if name.startswith("tee_")}
        new = mine | tee | {"call_id": "call_invented", "settled_atomic": str(rest), "cost_atomic": str(rest)}
        change = setting("receipt", lambda body: body["call_id"] == mine["call_id"], settled_atomic=str(half),
                         cost_atomic=str(half))  # fmt: skip
        added = (Record("receipt", new), Record("data_settlement", place | {"call_id": "call_invented"}))
        return forge(w.bundle, w.payments.signer, change, added=added)

    yield Forgery(name="a stranger's proof as an invented call", falls=Statement.OWN_CALL, to="stated", make=invented)


def _spaced(digest: str) -> str:
    digits = digest.removeprefix("0x")
    return " ".join(digits[start : start + 2] for start in range(0, len(digits), 2))


def _respelled(change: Callable[[bytes], bytes], text: str) -> str:
    return base64.b64encode(change(base64.b64decode(text))).decode()


def _of_data() -> Iterator[Forgery]:
    tx = {"tx_hash": HASH}
    calls = "data_settlement"
    yield Forgery(
        name="a data settlement in no transaction", falls=Statement.DATA, to="refuted", make=by(setting(calls, **tx))
    )
    yield Forgery(
        name="a data settlement at another log",
        falls=Statement.DATA,
        to="refuted",
        make=by(setting(calls, log_index=9)),
    )
    for old, new in (("batch", "individual"), ("individual", "batch")):
        make = by(setting("receipt", of_mode(old), settlement_mode=new))
        yield Forgery(name=f"{old} called {new}", falls=Statement.DATA, to="refuted", make=make)
    private = both(dropping(calls), setting("receipt", settled, settlement_mode="private"))
    yield Forgery(name="everything called private", falls=Statement.NO_DATA, to="stated", make=by(private))
    yield Forgery(name="no data settlements", falls=Statement.DATA, to="undecided", make=by(dropping(calls)))

    def moved(w: World) -> bytes:
        places = w.bundle.of_kind(calls)
        first = next(place for place in places)
        other = next(place for place in places if place["tx_hash"] != first["tx_hash"])
        change = setting(calls, lambda body: body["call_id"] == first["call_id"], tx_hash=other["tx_hash"],
                         log_index=other["log_index"])  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="another call's data settlement", falls=Statement.DATA, to="refuted", make=moved)
    for name in ("tee_request_hash", "tee_output_hash", "tee_signature", "tee_timestamp"):
        make = by(partial(_other_record, name))
        yield Forgery(name=f"a record of another {name}", falls=Statement.BLOB, to="refuted", make=make)
    for name in ("request", "response"):
        make = by(partial(_other_text, name))
        yield Forgery(name=f"a record of another text of the {name}", falls=Statement.BLOB, to="refuted", make=make)
    named = setting("receipt", of_mode("individual"), data_tx_hash=HASH)
    yield Forgery(
        name="a data transaction that was not named", falls=Statement.NAMED_TRANSACTION, to="refuted", make=by(named)
    )
    blob = setting("receipt", of_mode("individual"), data_blob_id="another")
    yield Forgery(name="a blob that was not named", falls=Statement.NAMED_BLOB, to="refuted", make=by(blob))


def _other_record(name: str, record: Record) -> list[Record]:
    """The blob of an individual settlement, with another member."""
    if record.kind != "blob":
        return [record]
    content = json.loads(base64.b64decode(record.body["content_base64"]))
    place = next((part for part in (content, content.get("output")) if isinstance(part, dict) and name in part), None)
    if place is None:
        return [record]
    place[name] = 5 if name == "tee_timestamp" else "0x" + "77" * (20 if name == "eth_address" else 32)
    text = base64.b64encode(json.dumps(content).encode()).decode()
    return [Record("blob", {**record.body, "content_base64": text})]


def _other_text(name: str, record: Record) -> list[Record]:
    """The blob of an individual settlement, with another question or another answer."""
    if record.kind != "blob":
        return [record]
    content = json.loads(base64.b64decode(record.body["content_base64"]))
    said = content.get(name)
    if not isinstance(said, dict):
        return [record]
    content[name] = _retold(said)
    text = base64.b64encode(json.dumps(content).encode()).decode()
    return [Record("blob", {**record.body, "content_base64": text})]


def _retold(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "made up" if name == "content" else _retold(part) for name, part in value.items()}
    return [_retold(part) for part in value] if isinstance(value, list) else value


def _again(w: World, **values: Any) -> tuple[Record, ...]:
    """A settled authorization and its calls once more, under other names."""
    authorization = next(body for body in w.bundle.of_kind("authorization") if settled(body))
    calls = [body for body in w.bundle.of_kind("receipt") if body["authorization_id"] == authorization["id"]]
    copies = [
        {name: value for name, value in body.items() if not name.startswith("tee_")}
        | {"call_id": body["call_id"] + "x", "authorization_id": authorization["id"] + "x"}
        | values
        for body in calls
    ]
    again = authorization | {"id": authorization["id"] + "x"} | values
    return (Record("authorization", again), *(Record("receipt", body) for body in copies))


def _of_twice() -> Iterator[Forgery]:
    def with_copy(**values: Callable[[World], Any] | Any) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            now = {name: value(w) if callable(value) else value for name, value in values.items()}
            return forge(w.bundle, w.payments.signer, added=_again(w, **now))

        return make

    yield Forgery(name="one nonce twice", falls=Statement.ONCE, to="refuted", make=with_copy())
    yield Forgery(name="one transfer twice", falls=Statement.PAID, to="refuted", make=with_copy())
    own_address = with_copy(nonce=lambda w: str(int(w.payments.payer, 16)))
    yield Forgery(name="the payer's address as a nonce", falls=Statement.PAID, to="undecided", make=own_address)

    def stolen(text: Callable[[str], str]) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            proof = next(body for body in w.bundle.of_kind("receipt") if settled(body))
            tee = {name: value for name, value in proof.items() if name.startswith("tee_")}
            tee["tee_signature"] = text(tee["tee_signature"])
            return forge(w.bundle, w.payments.signer, setting("receipt", is_open, **tee))

        return make

    yield Forgery(name="one proof for two calls", falls=Statement.ONCE, to="refuted", make=stolen(str))
    yield Forgery(
        name="one proof in another base64 text", falls=Statement.ONCE, to="refuted", make=stolen(_other_base64)
    )
    for kind in ("receipt", "authorization", "data_settlement", "rpc", "blob", "source"):
        twice: Change = lambda record, kind=kind: [record, record] if record.kind == kind else [record]  # noqa: E731
        yield Forgery(name=f"every {kind} twice", falls=None, to=UNREADABLE, make=by(twice))


def _other_base64(text: str) -> str:
    """Other bits where base64 has none to spare: the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = text.rstrip("=")[-1]
    padding = text[len(text.rstrip("=")) :]
    return text.rstrip("=")[:-1] + alphabet[alphabet.index(last) ^ 1] + padding


def _of_files() -> Iterator[Forgery]:
    lie = setting("receipt", settled, model="another/model")
    yield Forgery(name="an unsigned file", falls=Statement.MADE, to="undecided", make=lambda w: forge(w.bundle, None))
    yield Forgery(name="a file signed by a stranger", falls=Statement.MADE, to="refuted",
                  make=lambda w: forge(w.bundle, w.stranger, lie))  # fmt: skip

    def with_signature(change: Callable[[str, World], str]) -> Callable[[World], bytes]:
        return lambda w: replace(w.bundle, signature=change(w.bundle.signature or "", w)).to_bytes()

    yield Forgery(name="a signature over another file", falls=Statement.MADE, to="refuted",
                  make=with_signature(lambda _, w: w.earlier.signature or ""))  # fmt: skip
    yield Forgery(name="the other solution of a signature", falls=Statement.MADE, to="refuted",
                  make=with_signature(lambda text, _: _twin(text)))  # fmt: skip
    yield Forgery(name="a signature of zeros", falls=Statement.MADE, to="refuted",
                  make=with_signature(lambda text, _: "0x" + "00" * 65))  # fmt: skip
    yield Forgery(name="a signature under another name", falls=Statement.MADE, to="refuted",
                  make=lambda w: replace(w.bundle, signed_by=w.stranger.address).to_bytes())  # fmt: skip
    yield Forgery(name="a wallet's session left out", falls=Statement.COMPLETE, to="refuted", make=_without_a_session)

    def spliced(w: World) -> bytes:
        known = {(r.kind, json.dumps(dict(r.body), sort_keys=True)) for r in w.bundle.records}
        own = [r for r in w.strangers.records if r.kind in ("authorization", "receipt", "channel", "data_settlement")]
        added = tuple(r for r in own if (r.kind, json.dumps(dict(r.body), sort_keys=True)) not in known)
        return forge(w.bundle, w.payments.signer, added=added)

    yield Forgery(name="a stranger's calls spliced in", falls=Statement.MADE, to="undecided", make=spliced)

    def narrow(w: World) -> bytes:
        period = dict(w.bundle.period or {})
        return forge(w.bundle, w.payments.signer, period={**period, "to_block": period["to_block"] + 10**6})

    yield Forgery(name="a later settlement that the period has", falls=Statement.COMPLETE, to="refuted", make=narrow)
    yield Forgery(name="a file without a period", falls=Statement.COMPLETE, to="undecided",
                  make=by(lambda record: [record], period=None))  # fmt: skip


def _twin(text: str) -> str:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    signature = bytes.fromhex(text[2:])
    s = order - int.from_bytes(signature[32:64], "big")
    return "0x" + (signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])).hex()


def _without_a_session(w: World) -> bytes:
    gone = next(body["id"] for body in w.bundle.of_kind("authorization") if settled(body))
    calls = {body["call_id"] for body in w.bundle.of_kind("receipt") if body["authorization_id"] == gone}
    change = both(
        dropping("authorization", lambda body: body["id"] == gone),
        dropping("receipt data_settlement", lambda body: body["call_id"] in calls),
    )
    return forge(w.bundle, w.payments.signer, change)


def _of_networks() -> Iterator[Forgery]:
    def with_network(**values: Any) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            network = json.loads(json.dumps(dict(w.bundle.network)))
            for name, value in values.items():
                network[name] = {**network[name], **value} if isinstance(value, dict) else value
            return forge(w.bundle, w.payments.signer, network=network)

        return make

    for name, value in {
        "asset": {"address": OTHER},
        "permit2": OTHER,
        "upto_proxy": OTHER,
        "exact_proxy": OTHER,
        "registry": {"address": OTHER},
        "relay": {"address": OTHER},
    }.items():
        yield Forgery(name=f"another {name}", falls=Statement.NETWORK, to="refuted", make=with_network(**{name: value}))
    decimals = with_network(asset={"decimals": 6, "symbol": "USDC"})
    yield Forgery(name="a token with other decimals", falls=Statement.NETWORK, to="refuted", make=decimals)


def _of_histories() -> Iterator[Forgery]:
    told = setting("receipt", settled, model="another/model")
    yield Forgery(
        name="a record that is not in the history",
        falls=Statement.HISTORY,
        to="refuted",
        make=by(told, keep_history=True),
    )

    def with_history(change: Callable[[dict[str, Any]], Any]) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            history = json.loads(json.dumps(dict(w.bundle.history or {})))
            change(history)
            return forge(w.bundle, w.payments.signer, history=history)

        return make

    def swap(history: dict[str, Any]) -> None:
        history["places"][0], history["places"][1] = history["places"][1], history["places"][0]

    def same(history: dict[str, Any]) -> None:
        history["places"][1] = history["places"][0]

    def bend(history: dict[str, Any]) -> None:
        history["places"][0]["proof"][0] = HASH

    for name, change in {
        "another root": lambda history: history.update(root=HASH),
        "another size": lambda history: history.update(size=history["size"] + 1),
        "no size": lambda history: history.update(size=0),
        "two places swapped": swap,
        "one place for two records": same,
        "a proof cut short": lambda history: history["places"][0]["proof"].pop(),
        "a proof made longer": lambda history: history["places"][0]["proof"].append(HASH),
        "a bent proof": bend,
        "a place outside": lambda history: history["places"][0].update(index=10**6),
    }.items():
        yield Forgery(name=f"a history with {name}", falls=Statement.HISTORY, to="refuted", make=with_history(change))

    def unanchored(history: dict[str, Any]) -> None:
        history["anchors"][0]["size"] = history["size"]
        history["anchors"][0]["root"] = history["root"]

    for name, change in {
        "an anchor of a later head": unanchored,
        "an anchor of another root": lambda history: history["anchors"][0].update(root=HASH),
        "an anchor of another size": lambda history: history["anchors"][0].update(size=1),
        "an anchor in no transaction": lambda history: history["anchors"][0].update(tx_hash=HASH),
        "an anchor that nothing leads to": lambda history: history.update(
            consistency=[one for one in history["consistency"] if one["size"] != history["anchors"][0]["size"]]
        ),
        "an anchor of a tree of nothing": lambda history: history.update(size=0),
        "an anchor with a bent proof": lambda history: next(
            one for one in history["consistency"] if one["size"] == history["anchors"][0]["size"]
        )["proof"].append(HASH),
    }.items():
        yield Forgery(name=name, falls=Statement.ANCHORED, to="refuted", make=with_history(change))

    def elsewhere(w: World) -> bytes:
        history = json.loads(json.dumps(dict(w.bundle.history or {})))
        history["anchors"][0]["tx_hash"] = w.own_payment["tx_hash"]
        return forge(w.bundle, w.payments.signer, history=history)

    name = "an anchor in a transaction of something else"
    yield Forgery(name=name, falls=Statement.ANCHORED, to="refuted", make=elsewhere)
    rewritten = both(told, setting("decision", decided_at=lambda body: body["decided_at"] + 1))

    def under_old_anchor(w: World) -> bytes:
        """The records told anew, with a history made for them, and the anchor of the true one."""
        records = [after for record in w.bundle.records for after in rewritten(record)]
        leaves = [leaf_hash(record) for record in records if record.kind in IN_HISTORY]
        anchors = (w.bundle.history or {})["anchors"]
        history = described(leaves, range(len(leaves)), [one["size"] for one in anchors], anchors=anchors)
        return forge(w.bundle, w.payments.signer, rewritten, history=history)

    name = "a history told anew, under the old anchor"
    yield Forgery(name=name, falls=Statement.ANCHORED, to="refuted", make=under_old_anchor)
    for name, change in {
        "one anchor twice": lambda history: history["anchors"].append(history["anchors"][0]),
        "one earlier head twice": lambda history: history["consistency"].append(history["consistency"][0]),
        "an anchor of nothing": lambda history: history["anchors"][0].update(size=0),
    }.items():
        yield Forgery(name=name, falls=None, to=UNREADABLE, make=with_history(change))
    yield Forgery(name="a file without a history", falls=Statement.HISTORY, to="undecided",
                  make=by(lambda record: [record], history=None))  # fmt: skip


def _of_decisions() -> Iterator[Forgery]:
    """What persons decided: the payer's word, which an earlier head or bundle holds them to."""
    refused = setting("decision", decision="refused")
    yield Forgery(name="a yes called a no", falls=Statement.DECIDED, to="stated", why="refused:", make=by(refused))
    kept = by(refused, keep_history=True)
    yield Forgery(name="a yes called a no, under the old head", falls=Statement.HISTORY, to="refuted", make=kept)
    early = setting("decision", decided_at=5)
    yield Forgery(name="an answer before the question", falls=Statement.DECIDED, to="refuted", make=by(early))
    gone = by(dropping("decision"), keep_history=True)
    yield Forgery(name="decisions left out, and not their places", falls=None, to=UNREADABLE, make=gone)
    for name, change in {
        "every decision twice": lambda record: [record, record] if record.kind == "decision" else [record],
        "a decision that is neither yes nor no": setting("decision", decision="proven"),
        "a decision with a negative amount": setting("decision", amount_atomic="-5"),
    }.items():
        yield Forgery(name=name, falls=None, to=UNREADABLE, make=by(change))


def _of_shapes() -> Iterator[Forgery]:
    """Fields that are not what they are called: no bundle at all."""
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("a nonce with an underscore", "authorization", {"nonce": "1_000"}),
        ("a nonce in other digits", "authorization", {"nonce": "٣"}),
        ("a negative nonce", "authorization", {"nonce": "-1"}),
        ("a nonce over 256 bits", "authorization", {"nonce": str(2**256)}),
        ("an amount as a number", "authorization", {"amount_atomic": 10**15}),
        ("a payer that is a number", "authorization", {"payer": 5}),
        ("an address with a Cyrillic letter", "authorization", {"payee": "0x" + "аb" * 20}),  # noqa: RUF001
        ("a negative deadline", "authorization", {"deadline": -1}),
        ("a deadline that is true", "authorization", {"deadline": True}),
        ("half a second", "authorization", {"deadline": 1.5}),
        ("an unknown status", "authorization", {"status": "paid"}),
        ("an id with a line feed", "authorization", {"id": "a\n0 refuted"}),
        ("a field that nobody knows", "authorization", {"proven": "yes"}),
        ("negative tokens", "receipt", {"prompt_tokens": -5}),
        ("an amount with a sign", "receipt", {"settled_atomic": "+5"}),
        ("no call id", "receipt", {"call_id": ""}),
        ("a log index as text", "data_settlement", {"log_index": "0"}),
        ("a chain id as text", "rpc", {"chain_id": "31402"}),
        ("a blob that is not base64", "blob", {"content_base64": "***"}),
        ("a blob with more padding than it needs", "blob", {"content_base64": "AAAA=="}),
        ("a blob with less padding than it needs", "blob", {"content_base64": "AAA"}),
        ("a block hash in capitals", "source", {"block_hash": "0x" + "AB" * 32}),
    ]
    for name, kind, values in wrong:
        yield Forgery(name=name, falls=None, to=UNREADABLE, make=by(setting(kind, **values)))
    refund: Change = lambda record: [record, Record("refund", {})] if record.kind == "source" else [record]  # noqa: E731
    yield Forgery(name="a record of no kind", falls=None, to=UNREADABLE, make=by(refund))
    yield Forgery(name="a receipt without its authorization", falls=None, to=UNREADABLE,
                  make=by(dropping("authorization", settled)))  # fmt: skip
    yield Forgery(name="an authorization without receipts", falls=None, to=UNREADABLE,
                  make=by(dropping("receipt", settled)))  # fmt: skip
    yield Forgery(name="the data settlement of nobody", falls=None, to=UNREADABLE, make=by(
        lambda record: [record], added=(Record("data_settlement", NOBODYS),)))  # fmt: skip


FORGERIES = tuple(_rows())
