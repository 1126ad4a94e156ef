"""The demo as a stranger runs it: its totals agree, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opengradient_x402.ledger.ledger import Ledger

COMMAND = [sys.executable, "-c", "from opengradient_x402.cli.main import main; main()", "demo"]


def children_of(pid: int) -> list[int]:
    """Direct children, from /proc."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_demo_pays_and_its_two_totals_are_equal_and_above_zero():
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert int(report["spent_atomic"]) == int(report["balance_delta_atomic"]) > 0
    assert report["calls"] == len(report["receipts"]) >= 10
    assert {receipt["status"] for receipt in report["receipts"]} == {"settled"}
    assert {receipt["settlement_mode"] for receipt in report["receipts"]} == {"private", "batch", "individual"}
    assert report["settlements"] == len({receipt["payment_tx_hash"] for receipt in report["receipts"]})
    assert sum(int(receipt["settled_atomic"]) for receipt in report["receipts"]) == int(report["spent_atomic"])


@pytest.mark.parametrize("moment", ["while the network starts", "after a payment was signed"])
def test_ctrl_c_leaves_no_process_behind_and_a_ledger_that_says_what_was_signed(tmp_path, moment):
    demo = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    folder = tmp_path / "state" / "opengradient"
    wait_for(lambda: children_of(demo.pid))
    (network,) = children_of(demo.pid)
    if moment == "after a payment was signed":
        wait_for(lambda: any(signed_in(path) for path in folder.glob("demo-*.sqlite")))
    os.killpg(demo.pid, signal.SIGINT)
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said.decode()
    wait_for(lambda: not is_alive(network))
    if moment == "after a payment was signed":
        (path,) = folder.glob("demo-*.sqlite")
        assert signed_in(path)
        assert path.name in said.decode().replace("\n", "")


def signed_in(path: Path) -> bool:
    ledger = Ledger(path)
    try:
        return bool(ledger.authorizations().result())
    finally:
        ledger.close()


def wait_for(condition, timeout_s: float = 120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
