"""The table of threats names tests that there are: a row without one would say nothing, and look like the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.threats import ROWS

TESTS = Path(__file__).parents[1]
SOURCES = {file.relative_to(TESTS).as_posix(): file.read_text() for file in TESTS.rglob("test_*.py")}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_tests_that_there_are(row):
    missing = []
    for name in ROWS[row].tests:
        function, _, case = name.rstrip("]").partition("[")
        if function.endswith(".py"):
            is_there = any(file.endswith(function) for file in SOURCES)
        else:
            is_there = any(
                f"def {function}" in text and (not case or f'id="{case}"' in text) for text in SOURCES.values()
            )
        missing += [] if is_there else [name]
    assert not missing


def test_the_rows_are_those_from_1_to_46():
    numbers = [number for row in ROWS for number in range(int(row.split("-")[0]), int(row.split("-")[-1]) + 1)]
    assert numbers == list(range(1, 47))
