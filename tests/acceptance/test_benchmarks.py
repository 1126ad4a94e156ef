"""The benchmarks run, against their own server and without anybody else's software; what they measure is not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
RATES = ("concurrent 100", "threads 64")
WORKS = ("call, async", "chunk in a burst", "tool delta, async", "first token", *RATES)


@pytest.mark.matrix
def test_every_kind_of_work_gives_a_figure_and_a_row(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--here", "--rounds=1", "--scale=0.01", f"--json={figures}"]
    names = ["ours[fast], LangChain", "httpx alone"]
    asked = [*(f"--client={name}" for name in names), *(f"--work={work}" for work in WORKS)]
    ended = subprocess.run([*command, *asked], cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    rounds = json.loads(figures.read_text())["rounds"]
    for work in WORKS:
        assert f"| {work} [" in ended.stdout
        (figure,) = rounds[work][names[0]]
        assert figure["value"] > 0
        assert ("p99_ms" in figure) == (work in RATES)
    assert "httpx alone" in rounds["call, async"]
    assert "httpx alone" not in rounds["tool delta, async"]
