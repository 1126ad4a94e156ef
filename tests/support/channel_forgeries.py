"""Lies about payment channels: what was deposited, signed, charged and claimed, and whose channel it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from opengradient_x402.proofs.bundle import Record
from opengradient_x402.proofs.findings import Statement
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
    on_channel,
    setting,
)

MORE = 10**15


def channel_forgeries() -> Iterator[Forgery]:
    """All of them."""
    yield from _of_sums()
    yield from _of_events()
    yield from _of_calls()
    yield from _of_parameters()
    yield from _of_others()
    yield from _of_shapes()


def _claimed(body: Any) -> bool:
    return on_channel(body) and body["status"] == "settled"


def _unclaimed(body: Any) -> bool:
    return on_channel(body) and body["status"] in ("signed", "served")


def _plus(name: str, more: int) -> Callable[[Any], str]:
    return lambda body: str(int(body[name]) + more)


def _of_channel(w: World, kind: str, channel_id: str) -> list[Any]:
    return [body for body in w.bundle.of_kind(kind) if on_channel(body) and _id(body) == channel_id]


def _id(body: Any) -> str:
    return f"0x{int(body['nonce']):064x}"


def _used_twice(w: World) -> dict[str, Any]:
    """The channel that was claimed from twice."""
    return max(w.bundle.of_kind("channel"), key=lambda body: len(body["events"]))


def _used_once(w: World) -> dict[str, Any]:
    return min(w.bundle.of_kind("channel"), key=lambda body: len(body["events"]))


def _voucher(**more: int) -> Callable[[Any], dict[str, Any]]:
    def moved(body: Any) -> dict[str, Any]:
        return body["voucher"] | {name: str(int(body["voucher"][name]) + add) for name, add in more.items()}

    return moved


def _both(of_authorization: dict[str, Any], of_receipt: dict[str, Any]) -> Change:
    return both(setting("authorization", _claimed, **of_authorization), setting("receipt", _claimed, **of_receipt))


def _of_sums() -> Iterator[Forgery]:
    for more, name in ((MORE, "more"), (-1, "less")):
        change = _both(
            {"settled_atomic": _plus("settled_atomic", more)},
            {
                "settled_atomic": _plus("settled_atomic", more),
                "authorization_settled_atomic": _plus("authorization_settled_atomic", more),
            },
        )
        yield Forgery(
            name=f"channel calls that cost {name} than was claimed", falls=Statement.PAID, to="refuted", make=by(change)
        )
        for amount in ("deposited", "claimed", "returned"):
            field = f"{amount}_atomic"
            if amount == "returned" and more < 0:
                continue
            make = by(setting("channel", **{field: _plus(field, more)}))
            yield Forgery(name=f"a channel with {name} {amount}", falls=Statement.CHANNEL, to="refuted", make=make)
    for name, moved in {
        "cumulative sums shifted": {"base_atomic": MORE, "max_atomic": MORE},
        "higher ceilings": {"max_atomic": MORE},
        "lower ceilings": {"max_atomic": -7},
    }.items():
        make = by(setting("authorization", on_channel, voucher=_voucher(**moved)))
        yield Forgery(name=f"vouchers with {name}", falls=Statement.SIGNED, to="undecided", make=make)
    quoted = setting("receipt", _claimed, cost_atomic="1")
    yield Forgery(name="an overcharge on a channel, hidden", falls=Statement.DISPUTE, to="refuted", make=by(quoted))
    unsettled = both(
        setting("authorization", _claimed, status="signed", settled_atomic=None, tx_hash=None, **_NO_BLOCK),
        setting("receipt", _claimed, status="served", settled_atomic=None, authorization_settled_atomic=None,
                payment_tx_hash=None, **_NO_BLOCK),
        setting("channel", claimed_atomic="0"),
    )  # fmt: skip
    yield Forgery(name="claims called open", falls=Statement.CHANNEL, to="refuted", make=by(unsettled))


_NO_BLOCK = dict.fromkeys(("block_number", "block_hash", "confirmations", "confirmations_needed"))


def _of_events() -> Iterator[Forgery]:
    def without(which: Callable[[list[Any]], Any], **amounts: Any) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            wanted = _used_twice(w)["id"]
            events = which(list(_used_twice(w)["events"]))
            change = setting("channel", lambda body: body["id"] == wanted, events=events, **amounts)
            return forge(w.bundle, w.payments.signer, change)

        return make

    # The events of this channel are a deposit and two claims.
    yield Forgery(name="a deposit left out", falls=Statement.CHANNEL, to="refuted", make=without(lambda all_: all_[1:]))
    yield Forgery(
        name="a deposit left out, with its amount",
        falls=Statement.COMPLETE,
        to="refuted",
        make=without(lambda all_: all_[1:], deposited_atomic="0"),
    )
    middle = without(lambda all_: [all_[0], all_[2]])
    yield Forgery(name="the first claim left out", falls=Statement.CHANNEL, to="refuted", make=middle)
    yield Forgery(
        name="the last claim left out", falls=Statement.CHANNEL, to="refuted", make=without(lambda all_: all_[:2])
    )
    yield Forgery(name="a channel without events", falls=Statement.CHANNEL, to="refuted", make=without(lambda _: []))

    def last_claim_gone(w: World) -> bytes:
        channel = _used_twice(w)
        calls = [body for body in _of_channel(w, "authorization", channel["id"]) if _claimed(body)]
        newest = max(body["block_number"] for body in calls)
        late = {body["id"] for body in calls if body["block_number"] == newest}
        gone = sum(int(body["settled_atomic"]) for body in calls if body["id"] in late)
        change = both(
            setting("channel", lambda body: body["id"] == channel["id"], events=channel["events"][:2],
                    claimed_atomic=_plus("claimed_atomic", -gone)),
            setting("authorization", lambda body: body["id"] in late, status="signed", settled_atomic=None,
                    **_NO_BLOCK),
            setting("receipt", lambda body: body["authorization_id"] in late, status="served", settled_atomic=None,
                    authorization_settled_atomic=None, **_NO_BLOCK),
        )  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(
        name="the last claim left out, and its calls called open",
        falls=Statement.COMPLETE,
        to="refuted",
        make=last_claim_gone,
    )

    def moved(w: World) -> bytes:
        mine, other = _used_twice(w), _used_once(w)
        events = [*mine["events"][:2], other["events"][1]]
        change = both(
            setting("channel", lambda body: body["id"] == other["id"], events=other["events"][:1]),
            setting("channel", lambda body: body["id"] == mine["id"], events=events),
        )
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a claim from another channel", falls=Statement.CHANNEL, to="refuted", make=moved)
    for name, place in {
        "no transaction": {"tx_hash": HASH, "log_index": 0},
        "a payment's transaction": None,
    }.items():

        def invented(w: World, place: Any = place) -> bytes:
            paid = next(body for body in w.bundle.of_kind("authorization") if "tx_hash" in body and not _claimed(body))
            event = place or {"tx_hash": paid["tx_hash"], "log_index": 0}
            change = setting("channel", events=lambda body: [*body["events"], event])
            wanted = _used_once(w)["id"]
            only: Change = lambda record: change(record) if record.body.get("id") == wanted else [record]  # noqa: E731
            return forge(w.bundle, w.payments.signer, only)

        yield Forgery(name=f"a claim in {name}", falls=Statement.CHANNEL, to="refuted", make=invented)


def _in_event(number: int) -> Callable[[World], bytes]:
    """The calls of the channel that was claimed from twice, in one event of it."""

    def make(w: World) -> bytes:
        channel = _used_twice(w)
        tx_hash = channel["events"][number]["tx_hash"]
        mine = lambda body: _claimed(body) and _id(body) == channel["id"]  # noqa: E731
        change = both(
            setting("authorization", mine, tx_hash=tx_hash), setting("receipt", mine, payment_tx_hash=tx_hash)
        )
        return forge(w.bundle, w.payments.signer, change)

    return make


def _of_calls() -> Iterator[Forgery]:
    settled = {"block_number": 1, "block_hash": HASH}
    make = by(_both(settled, settled))
    yield Forgery(name="a claim in a block of nobody", falls=Statement.CONFIRMED, to="refuted", make=make)

    def early(w: World) -> bytes:
        first = min(body["block_number"] for body in w.bundle.of_kind("authorization") if _claimed(body))
        calls = [body for body in w.bundle.of_kind("authorization") if _claimed(body)]
        then = next(body for body in calls if body["block_number"] == first)
        place = {"block_number": first, "block_hash": then["block_hash"]}
        return forge(w.bundle, w.payments.signer, _both(place, place))

    yield Forgery(name="calls settled before they were claimed", falls=Statement.PAID, to="refuted", make=early)

    def open_as_settled(w: World) -> bytes:
        done = next(body for body in w.bundle.of_kind("authorization") if _claimed(body))
        place = {name: done[name] for name in _NO_BLOCK if name in done}
        change = both(
            setting("authorization", _unclaimed, status="settled", settled_atomic="5", **place),
            setting("receipt", _unclaimed, status="settled", settled_atomic="5", authorization_settled_atomic="5",
                    **place),
        )  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a call on a channel called settled", falls=Statement.PAID, to="refuted", make=open_as_settled)
    for status in ("expired", "cancelled"):
        change = setting("authorization receipt", _unclaimed, status=status)
        yield Forgery(name=f"a voucher called {status}", falls=Statement.PAID, to="refuted", make=by(change))
    named = _both({"tx_hash": HASH}, {"payment_tx_hash": HASH})
    yield Forgery(name="a call on a channel with a transaction", falls=Statement.PAID, to="refuted", make=by(named))
    yield Forgery(name="calls in the deposit of their channel", falls=Statement.PAID, to="refuted", make=_in_event(0))
    yield Forgery(name="calls in the claim before theirs", falls=Statement.PAID, to="refuted", make=_in_event(1))
    for name, values in {
        "payee": {"payee": OTHER},
        "claimer": {"facilitator": OTHER},
        "token": {"asset": OTHER},
        "spender": {"spender": OTHER},
        "chain": {"network": "eip155:1"},
    }.items():
        of_receipt = {key: value for key, value in values.items() if key != "spender"}
        change = _both(values, of_receipt)
        yield Forgery(name=f"channel calls with another {name}", falls=Statement.PAID, to="refuted", make=by(change))

    def dropped(w: World) -> bytes:
        gone = next(body for body in w.bundle.of_kind("authorization") if _claimed(body))
        change = both(
            dropping("authorization", lambda body: body["id"] == gone["id"]),
            dropping("receipt", lambda body: body["authorization_id"] == gone["id"]),
        )
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a call on a channel left out", falls=Statement.COMPLETE, to="refuted", make=dropped)

    def copied(w: World) -> bytes:
        one = next(body for body in w.bundle.of_kind("authorization") if _claimed(body))
        call = next(body for body in w.bundle.of_kind("receipt") if body["authorization_id"] == one["id"])
        plain = {name: value for name, value in call.items() if not name.startswith("tee_")}
        new = (
            Record("authorization", one | {"id": one["id"] + "x"}),
            Record("receipt", plain | {"call_id": call["call_id"] + "x", "authorization_id": one["id"] + "x"}),
        )
        return forge(w.bundle, w.payments.signer, added=new)

    yield Forgery(name="one voucher for two calls", falls=Statement.ONCE, to="refuted", make=copied)
    yield Forgery(name="one claim for two calls", falls=Statement.PAID, to="refuted", make=copied)

    def elsewhere(w: World) -> bytes:
        mine, other = _used_twice(w)["id"], _used_once(w)["id"]
        call = next(body for body in _of_channel(w, "authorization", mine) if _claimed(body))
        names = ("id", "authorization_id")
        change = setting("authorization receipt", lambda body: call["id"] in map(body.get, names),
                         nonce=str(int(other, 16)))  # fmt: skip
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a voucher of another channel", falls=Statement.PAID, to="refuted", make=elsewhere)

    def swapped(w: World) -> bytes:
        one, other = (str(int(body["id"], 16)) for body in (_used_twice(w), _used_once(w)))
        change = setting("authorization receipt", on_channel, nonce=lambda body: other if body["nonce"] == one else one)
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="two channels swapped", falls=Statement.PAID, to="refuted", make=swapped)


def _of_parameters() -> Iterator[Forgery]:
    for name, value in {
        "payer": OTHER,
        "payer_authorizer": OTHER,
        "receiver": OTHER,
        "receiver_authorizer": OTHER,
        "asset": OTHER,
        "withdraw_delay_s": 1000,
        "salt": "5",
    }.items():
        make = by(setting("channel", **{name: value}))
        yield Forgery(name=f"a channel with another {name}", falls=Statement.CHANNEL, to="refuted", make=make)
    agreed = both(setting("channel", receiver=OTHER), setting("authorization receipt", on_channel, payee=OTHER))
    yield Forgery(
        name="a channel and its calls with another payee", falls=Statement.CHANNEL, to="refuted", make=by(agreed)
    )


def _of_others() -> Iterator[Forgery]:
    def parts(w: World) -> tuple[list[Any], list[Any], list[Any]]:
        calls = [body for body in w.strangers.of_kind("authorization") if on_channel(body)]
        ids = {body["id"] for body in calls}
        receipts = [body for body in w.strangers.of_kind("receipt") if body["authorization_id"] in ids]
        return calls, receipts, list(w.strangers.of_kind("channel"))

    def spliced(w: World) -> bytes:
        calls, receipts, channels = parts(w)
        added = [Record("authorization", body) for body in calls] + [Record("receipt", body) for body in receipts]
        added += [Record("channel", body) for body in channels]
        return forge(w.bundle, w.payments.signer, added=tuple(added))

    yield Forgery(name="a stranger's channel spliced in", falls=Statement.MADE, to="undecided", make=spliced)

    def renamed(with_channel: bool) -> Callable[[World], bytes]:
        def make(w: World) -> bytes:
            own = {"payer": w.payments.payer}
            calls, receipts, channels = parts(w)
            added = [Record("authorization", {**body, **own}) for body in calls]
            added += [Record("receipt", {**body, **own}) for body in receipts]
            added += [Record("channel", {**body, **own} if with_channel else body) for body in channels]
            return forge(w.bundle, w.payments.signer, added=tuple(added))

        return make

    yield Forgery(name="a stranger's channel as one's own", falls=Statement.CHANNEL, to="refuted", make=renamed(True))
    yield Forgery(name="a stranger's calls on a channel", falls=Statement.PAID, to="refuted", make=renamed(False))

    def hidden(w: World) -> bytes:
        ids = {body["id"] for body in w.bundle.of_kind("authorization") if on_channel(body)}
        change = both(
            dropping("channel"),
            dropping("authorization", on_channel),
            dropping("receipt", lambda body: body["authorization_id"] in ids),
        )
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="all payment channels left out", falls=Statement.COMPLETE, to="refuted", make=hidden)


def _of_shapes() -> Iterator[Forgery]:
    def under_its_name(w: World) -> bytes:
        """What is said of a channel would stand in the place of what is said of a payment."""
        entry = next(body for body in w.bundle.of_kind("authorization") if not on_channel(body))
        (name, *_) = (body["id"] for body in w.bundle.of_kind("channel"))
        change = both(
            setting("authorization", lambda body: body["id"] == entry["id"], id=name),
            setting("receipt", lambda body: body["authorization_id"] == entry["id"], authorization_id=name),
        )
        return forge(w.bundle, w.payments.signer, change)

    yield Forgery(name="a payment under the name of a channel", falls=None, to=UNREADABLE, make=under_its_name)
    signed = setting("authorization", on_channel, voucher=lambda body: body["voucher"] | {"max_atomic": "+5"})
    changes: dict[str, Change] = {
        "channels left out, and not their calls": dropping("channel"),
        "every channel twice": lambda record: [record, record] if record.kind == "channel" else [record],
        "a call on a channel without its voucher": setting("authorization", on_channel, voucher=None),
        "a voucher without a channel": setting(
            "authorization", lambda body: not on_channel(body), voucher={"base_atomic": "0", "max_atomic": "5"}
        ),
        "a call on a channel called upto": setting("authorization", on_channel, scheme="upto"),
        "one event twice": setting("channel", events=lambda body: [*body["events"], body["events"][0]]),
        "a channel of no call": lambda record: (
            [record, Record("channel", {**record.body, "id": HASH, "events": []})]
            if record.kind == "channel"
            else [record]
        ),
        "a ceiling with a sign": signed,
        "a withdrawal delay of half a second": setting("channel", withdraw_delay_s=0.5),
    }
    for name, change in changes.items():
        yield Forgery(name=name, falls=None, to=UNREADABLE, make=by(change))
