"""The environments of the opponents, and the path of the scripts that run in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.chain.accounts import new_account
from support.venvs import Venv, build_wheel, install_wheel, make_venv

_HERE = Path(__file__).parent
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--window-size=1200,1000",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_HERE):
            if item.get_closest_marker("soak") is None:
                item.add_marker("interop")
            # The first run installs; a test that comes first waits for that.
            item.add_marker(pytest.mark.timeout(400))


def _environment(name: str) -> Venv:
    return make_venv(_HERE / "requirements" / f"{name}.txt")


@pytest.fixture(scope="session")
def official() -> Venv:
    """The official x402 SDK."""
    return _environment("official")


@pytest.fixture(scope="session")
def sdk() -> Venv:
    """The OpenGradient SDK."""
    return _environment("sdk")


@pytest.fixture(scope="session")
def sessions_fork() -> Venv:
    """OpenGradient's fork of the x402 SDK, the last one that has sessions."""
    return _environment("sessions-fork")


@pytest.fixture(scope="session")
def newer_fork() -> Venv:
    """OpenGradient's fork of the x402 SDK, newer than the one that their SDK pins; it has no sessions any more."""
    return _environment("newer-fork")


@pytest.fixture(scope="module")
def official_facilitator(official: Venv, net: Devnet) -> Iterator[dict[str, Any]]:
    """The official facilitator's URL and address, on the devnet's chain. Its account has gas money and no OPG."""
    account = new_account()
    net.chain.fund(account.address, native_wei=10**18)
    task = {"private_key": account.private_key, "rpc_url": net.rpc_url, "network": net.network["network"]}
    with official.serve(_HERE / "scripts" / "official_facilitator.py", task) as announced:
        assert announced["address"] == account.address
        yield announced


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built once."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def beside(wheel: Path) -> Venv:
    """The OpenGradient SDK and a wheel of this checkout."""
    venv = _environment("beside")
    install_wheel(venv, wheel, _HERE / "requirements" / "beside.txt")
    return venv


@pytest.fixture
def scripts() -> Path:
    return _HERE / "scripts"


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser: the one that is there, or Debian's, installed now."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        assert os.geteuid() == 0, "There is no Chromium, and only root can install it: apt-get install chromium"
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-q", *command], check=True, stdout=subprocess.DEVNULL, timeout=600)
        found = shutil.which("chromium")
    assert found is not None
    return found


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    def run(url: str, *flags: str) -> tuple[str, str]:
        """What it prints, and what it complains of."""
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        shutil.rmtree(tmp_path / "profile", ignore_errors=True)
        command = [chromium, *_FLAGS, profile, *flags, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)

    return run
