"""Canonical JSON is RFC 8785, whichever way it is written: any language computes the same hash."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from opengradient_x402.proofs.bundle import canonical_json, read_json

NUMBERS = st.integers(-(2**54), 2**54) | st.floats(allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.characters(exclude_categories=())) | st.text('\x00\x1f\x7f"\\/é€😀\ufb33\u2028')
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def written(write, value):
    try:
        return write(value)
    except ValueError:
        return "no text"


@given(VALUES)
def test_plain_values_have_the_text_that_the_library_gives_all_values(value):
    assert written(canonical_json, value) == written(rfc8785.dumps, value)


@given(VALUES)
def test_what_was_written_is_read_back_to_the_same_text(value):
    text = written(canonical_json, value)
    again = written(read_json, text) if isinstance(text, bytes) else "no text"
    assert "no text" in (text, again) or canonical_json(again) == text


def test_the_standards_own_examples_come_out_as_it_prints_them():
    numbers = [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001]
    value = {"numbers": numbers, "string": '\u20ac$\u000f\nA\'B"\\\\"/', "literals": [None, True, False]}
    assert canonical_json(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical_json(dict.fromkeys(names, 0)))) == order


@pytest.mark.parametrize("text", [b"9007199254740992", b"-9007199254740992", b"1e16", b"9007199254740993.5", b"1e+30"])
def test_numbers_over_53_bits_are_not_read(text):
    with pytest.raises(ValueError, match="53 bits"):
        read_json(text)


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), "\ud800", {"\udfff": 1}, {1: 1}, {2}])
def test_what_no_two_languages_read_alike_has_no_text(value):
    assert written(canonical_json, value) == "no text"
