"""What is certain in JSON that is still arriving."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_opengradient.partial_json import parse_partial_object
from llamaindex.suite.tools import is_beginning

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)


@given(OBJECTS, st.booleans())
def test_the_view_only_grows_and_ends_with_the_whole(value: dict, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    views = [parse_partial_object(text[:end]) for end in range(len(text) + 1)]
    assert views[-1] == value
    for earlier, later in pairwise(views):
        assert is_beginning(earlier, later)


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert isinstance(parse_partial_object(text), dict)
    assert isinstance(parse_partial_object("{" + text), dict)


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ("", {}),
        ("{", {}),
        ('{"a', {}),
        ('{"a"', {}),
        ('{"a":', {}),
        ('{"a": 1', {}),
        ('{"a": 1,', {"a": 1}),
        ('{"a": tru', {}),
        ('{"a": true}', {"a": True}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": "x\\', {"a": "x"}),
        ('{"a": "x\\u00', {"a": "x"}),
        ('{"a": "\\ud83d', {"a": ""}),
        ('{"a": "\\ud83d\\ude00', {"a": "😀"}),
        ('{"a": [1, [2', {"a": [1, []]}),
        ('{"a": {"b": "c", "d', {"a": {"b": "c"}}),
        ('{"a": "line\nfeed"}', {"a": "line\nfeed"}),
        ('{"a" 1}', {}),
        ('{"a": 1; "b": 2}', {}),
        ("[1, 2]", {}),
        ("12", {}),
        ("nonsense", {}),
    ],
)
def test_what_is_certain(text: str, certain: dict) -> None:
    assert parse_partial_object(text) == certain
