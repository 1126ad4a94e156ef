"""JSON from strangers: what is parsed and what is refused before it can hurt."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from opengradient_devnet.bounded_json import MAX_DEPTH, JsonRefused, parse_json
from opengradient_devnet.chain import evm  # noqa: F401  # py-evm raises the recursion limit, which is the danger


def test_nesting_is_allowed_up_to_the_limit_and_refused_beyond_it_even_in_a_thread():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with ThreadPoolExecutor(1) as pool, pytest.raises(JsonRefused, match="nested"):
        pool.submit(parse_json, b'{"a":[' * 200_000).result()


def test_brackets_inside_strings_do_not_count():
    for text in ("[" * 500, '"' + "[" * 500, "\\" + "{" * 500, 'a\\"' + "[" * 500):
        assert parse_json(json.dumps({"content": text}).encode()) == {"content": text}


@pytest.mark.parametrize("body", [b"", b"{", b"]", b"[" * 70, b'"' + b"\\" * 100_001, b"\xff\xfe", b'"[[['])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(JsonRefused):
        parse_json(body)
