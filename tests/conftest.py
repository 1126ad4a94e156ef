"""What every test has: a devnet, a funded wallet, and an environment in which nothing of the user's is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from opengradient_devnet import Account, Devnet

# Two shared cores: how long it takes to make an example, or to try it, says nothing.
settings.register_profile("shared-cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-cores")

# A shell starts background jobs with Ctrl-C ignored; programs that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
