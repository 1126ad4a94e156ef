"""The RAG example, run as a user runs it: a process of its own, its settings in the environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opengradient_devnet import Account, Devnet

EXAMPLE = Path(__file__).parents[2] / "examples" / "rag_llamaindex"


def run_example(net: Devnet, account: Account, tmp_path: Path, *arguments: str) -> str:
    settings = {
        "OG_PRIVATE_KEY": account.private_key,
        "OG_NETWORK": f"{net.gateway_url}/network",
        "OG_LEDGER_URL": f"sqlite:///{tmp_path / 'example.sqlite'}",
    }
    return run(settings, tmp_path, *arguments)


def run(settings: dict[str, str], tmp_path: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLE / "rag.py"), *arguments],
        env={**os.environ, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_answers_from_the_documents_and_prints_its_receipts(net: Devnet, account: Account, tmp_path: Path):
    said = run_example(net, account, tmp_path)
    answers = said.split("\nQ: ")[1:]
    for told, fact, source in zip(
        answers, ("1911", "40", "Ines Okafor"), ("bridges.md", "ferry.md", "harbour.md"), strict=True
    ):
        assert fact in told
        assert source in told
    assert len(set(re.findall(r"call_[0-9a-f]{24}", said))) == 3
    assert "calls: 3, payments: 1" in said


@pytest.mark.notebook
def test_it_answers_questions_of_the_user(net: Devnet, account: Account, tmp_path: Path):
    said = run_example(net, account, tmp_path, "How long is the Kestrel Bridge?", "--model", "openai/gpt-5-nano")
    assert "212" in said
    assert "gpt-5-nano" in said
    assert "calls: 1, payments: 1" in said


@pytest.mark.notebook
def test_without_a_key_it_pays_with_test_money(tmp_path: Path):
    said = run({"HOME": str(tmp_path)}, tmp_path)
    assert "1911" in said
    assert "calls: 3, payments: 1" in said
