"""The versions that the tests passed with are written down in two places, which agree, and name no registry."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_pip_and_uv_are_told_the_same_versions():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["uv"]["constraint-dependencies"] == PINS
    assert len(PINS) > 100


def test_the_pins_are_names_and_numbers_only():
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.+!]*", pin) for pin in PINS)


def test_the_lock_file_is_not_committed_since_it_names_registries():
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
