"""Server-sent events are split the same however the bytes arrive, and only those of the answer are part of it."""

from __future__ import annotations

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_devnet.faults import RawEvent
from opengradient_x402.errors import GatewayError
from opengradient_x402.gateway.answer import EventDecoder
from support.payers import PROMPT


def decode(*pieces: bytes) -> list[bytes]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.flush()


STREAM = (
    'data: {"a": 1}\n\nevent: ping\ndata: {}\n\n: a comment\n\nevent: message\ndata: two\ndata: lines\n\n'
    "data:tight\n\ndata: é…\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"tight", "é…".encode(), b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts, line_end):
    data = STREAM.replace("\n", line_end).encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert decode(*(data[a:b] for a, b in pairwise(edges))) == EVENTS


def test_a_byte_order_mark_is_ignored():
    assert decode(b"\xef\xbb\xbfdata: x\n\n") == [b"x"]


def test_a_last_event_without_blank_line_is_still_read():
    assert decode(b"data: x\n\ndata: y\n") == [b"x", b"y"]


def test_an_endless_event_is_refused(monkeypatch):
    monkeypatch.setattr("opengradient_x402.gateway.answer.MAX_EVENT_BYTES", 1000)
    decoder = EventDecoder()
    for _ in range(10):
        decoder.feed(b"x" * 100)
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        decoder.feed(b"x")


@pytest.mark.parametrize("name", ["ping", "x402-settlement", "usage"])
def test_an_event_with_a_name_of_its_own_is_no_part_of_the_answer(name):
    assert decode(f'data: 1\n\nevent: {name}\ndata: {{"error": "no"}}\n\ndata: 2\n\n'.encode()) == [b"1", b"2"]


@pytest.mark.parametrize(
    "event",
    [
        'event: message\ndata: {"a": 1}',
        'event:\ndata: {"a": 1}',
        'event: error\ndata: {"error": "no"}',
        'event: chunk\ndata: {"choices": []}',
        "event: done\ndata: [DONE]",
    ],
)
def test_a_name_for_a_piece_of_the_answer_does_not_hide_it(event):
    assert decode(f"{event}\n\n".encode()) == [event.partition("data: ")[2].encode()]


def settlement(**data) -> RawEvent:
    return RawEvent(text=f"event: x402-settlement\ndata: {json.dumps(data)}\n\n")


def test_a_settlement_that_a_stream_reports_goes_into_the_receipt(net, client):
    response = base64.b64encode(json.dumps({"success": True, "transaction": "job-7"}).encode()).decode()
    net.faults.inject(settlement(success=True, paymentResponse=response))
    with client.stream(PROMPT) as stream:
        list(stream)
    assert "What is x402?" in stream.completion.content
    assert (stream.receipt.outcome, stream.receipt.error, stream.receipt.payment_job) == ("ok", None, "job-7")


@pytest.mark.parametrize("error", ["charge_exceeds_signed_cumulative", None])
def test_a_settlement_that_failed_after_the_answer_is_told_by_the_receipt_and_loses_nothing(net, client, error):
    net.faults.inject(settlement(success=False, error=error))
    with client.stream(PROMPT) as stream:
        text = "".join(delta.content for delta in stream)
    assert "What is x402?" in text == stream.completion.content
    assert (stream.receipt.outcome, stream.receipt.status) == ("ok", "served")
    assert stream.receipt.error == f"settlement failed: {error or 'no reason given'}"


@pytest.mark.parametrize("data", ["", "[]", "{", '{"success": true, "paymentResponse": "%"}', '{"success": 0}'])
def test_a_settlement_event_that_cannot_be_read_changes_nothing(net, client, data):
    net.faults.inject(RawEvent(text=f"event: x402-settlement\ndata: {data}\n\n"))
    with client.stream(PROMPT) as stream:
        list(stream)
    assert (stream.receipt.outcome, stream.receipt.error) == ("ok", None)


def test_an_event_named_error_is_still_an_error(net, client):
    net.faults.inject(RawEvent(text='event: error\ndata: {"error": "overloaded"}\n\n'))
    with pytest.raises(GatewayError, match="overloaded"), client.stream(PROMPT) as stream:
        list(stream)
