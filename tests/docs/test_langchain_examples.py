"""The LangChain examples run as they are written, on a wallet and a network from the environment."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from opengradient_devnet import Account, Devnet

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _environment(net: Devnet, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")


def test_the_agent_answers_and_says_what_it_cost(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(HERE / "langchain_agent.py"))
    shown = capsys.readouterr().out
    assert "42" in shown
    assert "2 calls, 1 payment, 0.00" in shown


def test_the_graph_shows_tokens_and_receipts(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(HERE / "langchain_graph.py"))
    shown = capsys.readouterr().out
    assert "claude-sonnet-4-6 served" in shown
    assert "gemini-2.5-flash served" in shown
    assert "rain" in shown


@pytest.mark.parametrize("example", ["langchain_agent.py", "langchain_graph.py"])
def test_the_readme_shows_them_as_they_are(example: str):
    _docstring, _, code = (HERE / example).read_text().partition('"""\n\n')
    assert f"```python\n{code}```" in (HERE.parents[1] / "README.md").read_text()
