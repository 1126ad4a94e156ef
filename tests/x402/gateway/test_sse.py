"""Server-sent events are split the same however the bytes arrive, and only those of the answer are part of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.gateway.answer import EventDecoder


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


def test_a_byte_order_mark_is_ignored_also_when_it_comes_in_pieces():
    marked = b"\xef\xbb\xbfdata: x\n\ndata: y\n\n"
    assert decode(marked) == [b"x", b"y"]
    assert decode(*(marked[i : i + 1] for i in range(len(marked)))) == [b"x", b"y"]
    assert decode(b"\xef\xbb", b"\xbfdata: x") == [b"x"]


def test_an_event_without_data_is_none_and_blanks_around_data_mean_nothing():
    assert decode(b"data:\n\ndata: \n\ndata\n\nevent: message\ndata:\ndata:\n\ndata:  x\n\n") == [b"x"]
    assert decode(b"data:  [DONE]\n\n", b"data: [DONE] \n\n", b"data:[DONE]\t\n\n") == [b"[DONE]"] * 3


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
