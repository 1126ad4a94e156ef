"""`opengradient-devnet`: starting, saying where it is, and ending, whoever asks for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from opengradient_devnet.cli import app
from support.payer import Payer

COMMAND = [sys.executable, "-W", "error", "-m", "opengradient_devnet"]
PATIENCE_S = 120.0


@pytest.fixture
def network_file(tmp_path) -> Path:
    return tmp_path / "devnet.json"


def start(network_file: Path, *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "--network-file", str(network_file), *options],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> dict:
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if path.exists():
            return json.loads(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process_id}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def assert_ends(process_id: int) -> None:
    limit = time.monotonic() + PATIENCE_S
    while is_alive(process_id):
        assert time.monotonic() < limit, "the devnet did not end"
        time.sleep(0.02)


def test_interrupt_ends_it_cleanly_after_settling_what_is_open(network_file):
    with start(network_file) as process:
        network = wait_for(network_file)
        account = httpx.post(network["accounts_url"], json={"approved": True}, trust_env=False).json()
        with Payer(network["gateway_url"], private_key=account["private_key"]) as payer:
            assert payer.chat().status_code == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, err
    assert err == ""
    assert network["gateway_url"] in out
    assert re.search(r"1 settlement, 0\.\d+ OPG together, 0 failed; 1 data batch\.", out)
    assert not network_file.exists()


def test_signal_in_the_middle_of_starting_ends_it_too(network_file):
    with start(network_file) as process:
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)

    assert process.returncode in (0, -signal.SIGTERM)
    assert not network_file.exists()


def test_options_reach_the_network_and_a_termination_ends_it(network_file):
    with start(
        network_file, "--chain-id", "4711", "--idle-timeout", "7", "--no-sessions", "--scheme", "exact-permit2"
    ) as process:
        network = wait_for(network_file)
        challenge = httpx.post(f"{network['gateway_url']}/v1/chat/completions", json={}, trust_env=False)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0
    assert not network_file.exists()
    assert (network["chain_id"], network["session_idle_s"]) == (4711, 7)
    assert challenge.status_code == 402


def test_token_for_faults_is_printed_and_can_be_chosen(network_file):
    with start(network_file, "--fault-route", "--fault-token", "chosen") as process:
        faults_url = f"{wait_for(network_file)['gateway_url']}/faults"
        answers = [httpx.get(faults_url, headers={"x-fault-token": token}) for token in ("chosen", "guessed")]
        process.terminate()
        out, _err = process.communicate(timeout=PATIENCE_S)

    assert [answer.status_code for answer in answers] == [200, 403]
    assert re.search(r"fault token +chosen$", out, re.MULTILINE)


def test_it_ends_with_its_parents_pipe(network_file):
    with start(network_file, "--exit-with-parent", stdin=subprocess.PIPE) as process:
        wait_for(network_file)
        assert process.poll() is None
        process.stdin.close()
        process.wait(timeout=PATIENCE_S)
        assert process.returncode == 0


def test_it_does_not_outlive_a_parent_that_is_killed(network_file, tmp_path):
    id_file = tmp_path / "devnet.pid"
    parent_code = (
        "import pathlib, subprocess, sys, time\n"
        f"command = {[*COMMAND, '--network-file', str(network_file), '--exit-with-parent']!r}\n"
        "child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(id_file)!r}).write_text(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code]) as parent:
        wait_for(network_file)
        process_id = int(id_file.read_text())
        parent.kill()

    assert_ends(process_id)
    assert not network_file.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--chain-id", "8453"], "--unsafe-live-chain-id"),
        (["--upstream", "magic"], "magic"),
        (["--prices", "/nonexistent/prices.json"], "/nonexistent/prices.json"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(network_file, options, complaint):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = CliRunner().invoke(app, ["--network-file", str(network_file), *options])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("opengradient-devnet: ")
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr
    assert not network_file.exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_start_screen_names_a_wallet_that_pays_and_every_place_at_80_columns(network_file):
    with start(network_file) as process:
        network = wait_for(network_file)
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline().rstrip("\n"))
        screen = "\n".join(lines)
        key = screen.partition("export OG_PRIVATE_KEY=")[2].split()[0]
        with Payer(network["gateway_url"], private_key=key) as payer:
            assert payer.chat().status_code == 200
        shown = screen.partition("export OG_NETWORK=")[2].split()[0]
        assert httpx.get(shown, trust_env=False).json() == network
        for name in ("gateway_url", "https_gateway_url", "explorer_url", "rpc_url"):
            assert network[name] in screen
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)

    # What is copied (the key's line, the file's path) may be longer; what is read is not.
    assert [line for line in lines if len(line) > 80 and "export" not in line and str(network_file) not in line] == []


def test_the_version_is_an_option():
    result = CliRunner().invoke(app, ["--version"], prog_name="opengradient-devnet")
    assert result.exit_code == 0
    assert re.fullmatch(r"opengradient-devnet \d+\.\d+\.\d+\S*\n", result.output)


def test_the_help_is_whole_in_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["--help"], prog_name="opengradient-devnet").output
    assert "--unsafe-live-chain-id" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
