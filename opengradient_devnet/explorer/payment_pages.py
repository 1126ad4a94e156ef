"""Pages about payments, sessions, data settlements and blobs.

What the chain says and what the gateway says are shown apart. `reader` has read what they show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from opengradient_devnet.explorer.layout import facts, raw, section, table, unfolds
from opengradient_devnet.explorer.markup import Html, Node, element, fragment
from opengradient_devnet.explorer.notation import Notation, badge, number, opg, opg_column, short, utc
from opengradient_devnet.explorer.reader import DataRecord, Payment
from opengradient_devnet.gateway.payment.served import ServedCall
from opengradient_devnet.gateway.payment.session_views import SessionView, session_mark
from opengradient_devnet.gateway.payment.sessions import SettlementRecord


def calls_table(calls: Sequence[ServedCall], places: Mapping[bytes, DataRecord], notation: Notation) -> Html:
    """The calls of one payment: model, tokens, cost, and where the data were settled."""
    rows: list[list[Node]] = [
        [
            element("code", call.model),
            element("code", short(call.call_id), title=call.call_id) if call.call_id else None,
            f"{number(call.prompt_tokens)} in, {number(call.completion_tokens)} out",
            cost,
            badge(call.data_mode),
            notation.hash(call.request_hash) if call.request_hash else None,
            _data_place(places.get(call.signature), call, notation),
            notation.time(call.time_s),
        ]
        for call, cost in zip(calls, opg_column([call.cost_atomic for call in calls]), strict=True)
    ]
    head = ["Model", "Call", "Tokens", "Cost", "Data", "Request hash", "Data settlement", "Served"]
    return table(head, rows, empty="The gateway remembers no call of this payment.")


def _data_place(record: DataRecord | None, call: ServedCall, notation: Notation) -> Node:
    if record is not None:
        return notation.transaction(record.tx_hash)
    return "none, it is private" if call.data_mode == "private" else "not yet"


def payments_table(payments: Sequence[Payment], notation: Notation) -> Html:
    """Settled payments, as the chain has them."""
    amounts = opg_column([payment.call.amount_atomic for payment in payments])
    rows: list[list[Node]] = [
        [
            notation.transaction(payment.tx_hash),
            amount,
            notation.address(payment.call.payer),
            notation.address(payment.call.pay_to),
            payment.call.method,
            notation.time(payment.time_s),
        ]
        for payment, amount in zip(payments, amounts, strict=True)
    ]
    head = ["Transaction", "Amount", "Payer", "Payee", "Scheme", "Settled"]
    return table(head, rows, empty="No payment has been settled yet. Sessions settle when they close.")


def sessions_table(sessions: Sequence[SessionView], notation: Notation) -> Html:
    """Sessions that are not settled yet."""
    rows: list[list[Node]] = [
        [
            notation.session(session.mark),
            badge(session.state, tone="busy" if session.in_flight else "good"),
            notation.address(session.payer),
            fragment(number(session.calls), _in_flight(session.in_flight)),
            _used(session),
            notation.time(session.last_used_s),
            notation.time(session.deadline_s),
        ]
        for session in sessions
    ]
    head = ["Session", "State", "Payer", "Calls", "Used of signed", "Last call", "Deadline"]
    return table(head, rows, empty="No session is open.")


def _in_flight(count: int) -> str | None:
    return f" ({count} running)" if count else None


def _used(session: SessionView) -> Html:
    bar = element(
        "meter", min="0", max=str(session.cap_atomic), value=str(min(session.cost_atomic, session.cap_atomic))
    )
    return fragment(opg(session.cost_atomic), element("br"), bar, " of ", opg(session.cap_atomic))


def settlements_table(records: Sequence[SettlementRecord], notation: Notation) -> Html:
    """Sessions and single calls that have ended, as the gateway tells it."""
    amounts = opg_column([record.amount_atomic for record in records])
    rows: list[list[Node]] = [
        [
            notation.session(session_mark(record.session_id)) if record.session_id else "single call",
            notation.address(record.payer),
            number(record.calls),
            amount,
            _ending(record),
            notation.transaction(record.transaction) if record.transaction else "none",
        ]
        for record, amount in zip(records, amounts, strict=True)
    ]
    head = ["Session", "Payer", "Calls", "Taken", "Outcome", "Transaction"]
    return table(head, rows, empty="Nothing has ended yet.")


def _ending(record: SettlementRecord) -> Html:
    if not record.success:
        return badge(record.reason or "failed", tone="bad")
    return badge("settled", tone="good") if record.transaction else badge("nothing taken")


def data_table(records: Sequence[DataRecord], notation: Notation) -> Html:
    """Events of the settlement relay."""
    rows: list[list[Node]] = [
        [
            badge(record.kind),
            _recorded(record, notation),
            notation.transaction(record.tx_hash),
            notation.blob(record.blob_id),
            notation.time(record.time_s),
        ]
        for record in records
    ]
    head = ["Kind", "Records", "Transaction", "Blob", "Written"]
    empty = "Nothing is recorded yet. Batches are written when they are full or old enough; private calls never are."
    return table(head, rows, empty=empty)


def _recorded(record: DataRecord, notation: Notation) -> Html:
    if record.kind == "batch":
        size = record.arguments["batchSize"]
        return fragment(
            f"{number(size)} call{'' if size == 1 else 's'} under root ", notation.hash(record.arguments["merkleRoot"])
        )
    return fragment(
        "a call of ",
        notation.address(record.arguments["ethAddress"]),
        ": ",
        notation.hash(record.arguments["inputHash"]),
        " → ",
        notation.hash(record.arguments["outputHash"]),
    )


def blob_body(blob_id: str, content: Any, notation: Notation, *, records: Sequence[DataRecord]) -> Html:
    """A blob, read as the record of one call or the tree of a batch; anything else is shown as JSON."""
    view: Html | None = None
    if isinstance(content, dict) and isinstance(content.get("values"), list):
        view = _tree(content)
    elif isinstance(content, dict) and isinstance(content.get("request"), dict):
        view = _call_record(content)
    return fragment(
        facts(("Blob", element("code", blob_id)), ("JSON", element("a", "as it is stored", href=f"/blobs/{blob_id}"))),
        section("On chain", data_table(records, notation)),
        view,
        unfolds("The whole blob", raw(json.dumps(content, indent=2, ensure_ascii=False))),
    )


def _call_record(content: dict[str, Any]) -> Html:
    request, response = content["request"], content.get("response") or {}
    messages = request.get("messages") if isinstance(request.get("messages"), list) else []
    turns = [_turn(str(item.get("role")), item.get("content")) for item in messages if isinstance(item, dict)]
    answer = response.get("content") or json.dumps(response.get("tool_calls"), ensure_ascii=False)
    usage = content.get("usage") or {}
    when_s = content.get("tee_timestamp")
    return section(
        "Call",
        facts(
            ("Model", element("code", str(request.get("model")))),
            ("Finished with", str(content.get("finish_reason"))),
            ("Tokens", f"{usage.get('prompt_tokens')} in, {usage.get('completion_tokens')} out"),
            ("Request hash", element("code", "0x" + str(content.get("tee_request_hash")))),
            ("Output hash", element("code", "0x" + str(content.get("tee_output_hash")))),
            ("Enclave", element("code", str(content.get("tee_id")))),
            ("Signed", utc(when_s) if isinstance(when_s, int) else None),
        ),
        element("div", *turns, _turn("assistant", answer), class_="talk"),
    )


def _turn(role: str, content: Any) -> Html:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return element("blockquote", element("b", role), element("p", text))


def _tree(content: dict[str, Any]) -> Html:
    rows: list[list[Node]] = []
    for place, leaf in enumerate(content["values"], start=1):
        value = leaf.get("value") if isinstance(leaf, dict) else None
        if isinstance(value, list) and len(value) == 5:
            tee_id, request_hash, output_hash, _signature, timestamp = map(str, value)
            when = utc(int(timestamp)) if timestamp.isdigit() else timestamp
            hashes = [element("code", short(text), title=text) for text in (request_hash, output_hash, tee_id)]
            rows.append([str(place), *hashes, when])
    head = ["Call", "Request hash", "Output hash", "Enclave", "Signed"]
    return section("Calls in this batch", table(head, rows, empty="The tree holds no calls."))
