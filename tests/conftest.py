"""What every test has: a devnet, a funded wallet, and an environment in which nothing of the user's is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from opengradient_devnet import Account, Devnet

# Two shared cores: how long one example takes says nothing.
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")


@pytest.fixture(autouse=True)
def _isolated_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `OG_*` variable, `.env` or ledger of the person who runs the tests can reach them."""
    for name in list(os.environ):
        if name.startswith("OG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    for tracing in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(tracing, "false")


@pytest.fixture(scope="session")
def devnet() -> Iterator[Devnet]:
    """One network for the whole run; tests that inject faults or change its timing start their own."""
    with Devnet() as net:
        yield net


@pytest.fixture
def wallet(devnet: Devnet) -> Account:
    """A fresh wallet with 10 OPG that Permit2 may move."""
    return devnet.account(opg="10", approved=True)
