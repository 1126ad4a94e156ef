"""What every test has: shared devnets, a funded account that pays, and an environment without anything of the user's.

A module with a special devnet says so in one line, `pytestmark = pytest.mark.devnet(pace_s=0.002)`, and shares it
with every module that says the same. A test that closes its devnet, or must be alone on it, starts its own.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from opengradient_devnet import Account, Devnet
from opengradient_devnet.faults import NeverSettle
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.payment.payments import Payments
from support.payers import client_for, payments_for
from support.threats import ROWS, rows_of

# Two shared cores: how long it takes to make an example, or to try it, says nothing.
settings.register_profile("shared-cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-cores")

# A shell starts background jobs with Ctrl-C ignored; programs that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Loggers(dict[str, object]):
    """All loggers. pytest (9.2) looks through them for each test, and fails when a thread makes one meanwhile."""

    def values(self) -> list[object]:  # type: ignore[override]
        return list(super().values())


logging.root.manager.loggerDict = _Loggers(logging.root.manager.loggerDict)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _isolated_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `OG_*` variable, `.env` or ledger of the person who runs the tests can reach them."""
    for name in list(os.environ):
        if name.startswith("OG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    for tracing in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(tracing, "false")


class Devnets:
    """Devnets by their options: `devnets(sessions=False)` starts one, or returns the one that runs already."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Devnet] = {}

    def __call__(self, **options: object) -> Devnet:
        name = repr(sorted(options.items()))
        if name not in self._running:
            self._running[name] = self._stack.enter_context(Devnet(**options))  # type: ignore[arg-type]
        return self._running[name]

    def clear_faults(self) -> None:
        for net in self._running.values():
            net.faults.clear()

    def forget_sessions(self) -> None:
        """Ends what is open and settles nothing: what it would settle for is no test's business any more."""
        for net in self._running.values():
            net.faults.inject(NeverSettle(), times=None)
            net.close_sessions(wait_s=0)
            net.faults.clear()


@pytest.fixture(scope="session")
def devnets() -> Iterator[Devnets]:
    """The devnets that all tests of a process share."""
    with ExitStack() as stack:
        yield Devnets(stack)


@pytest.fixture(autouse=True)
def _no_faults_left(devnets: Devnets) -> Iterator[None]:
    yield
    devnets.clear_faults()


@pytest.fixture(scope="module")
def net(request: pytest.FixtureRequest, devnets: Devnets) -> Iterator[Devnet]:
    """The shared devnet, with the options of the module's mark `devnet`."""
    mark = request.node.get_closest_marker("devnet")
    yield devnets(**(mark.kwargs if mark else {}))
    devnets.forget_sessions()


@pytest.fixture
def account(net: Devnet) -> Account:
    """A fresh wallet with 10 OPG that Permit2 may move."""
    return net.account(opg="10", approved=True)


@pytest.fixture
def payments(net: Devnet, account: Account, tmp_path: Path) -> Iterator[Payments]:
    """Payments of `account`, with a ledger of their own."""
    with payments_for(net, account, tmp_path / "payments.sqlite") as opened:
        yield opened


@pytest.fixture
def client(payments: Payments) -> Iterator[GatewayClient]:
    """A sync client that `account` pays for."""
    with client_for(payments) as opened:
        yield opened


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected lives to the end: each garbage collection would look through all of it once more."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `-m threats`: marks the tests that prove a row of the threats."""
    if "threats" not in config.option.markexpr:
        return
    for item in items:
        if (rows := rows_of(item.nodeid)) and item.get_closest_marker("soak") is None:
            item.add_marker("threats")
            item.user_properties += [("threat", row) for row in rows]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """For `-m threats`: the table of rows, and whether each held."""
    if config.option.markexpr != "threats":
        return
    outcomes: dict[str, list[str]] = {row: [] for row in ROWS}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" or outcome != "passed":
                for name, row in report.user_properties:
                    if name == "threat":
                        outcomes[row].append(outcome)
    terminalreporter.section("threats")
    for row, threat in ROWS.items():
        seen = outcomes[row]
        verdict = "NO TEST RAN" if not seen else "held" if set(seen) == {"passed"} else "BROKEN"
        terminalreporter.write_line(f"{row:>6}  {threat.done:<56} {len(seen):>3}  {verdict}")
        terminalreporter.write_line(f"        {threat.shown}")
