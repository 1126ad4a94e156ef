"""A table on a local Ray cluster with two workers, killed in the middle and started again: no row is paid twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.settlement.reconciler import Reconciler
from support.batches import Holding, environment
from support.payers import network_of, opg_balance
from support.postgresql import running_server
from support.venvs import ScriptFailed, Venv, install_wheel, make_venv

_HERE = Path(__file__).parent
_SCRIPT = _HERE / "scripts" / "ray_job.py"
AT_ONCE = 16


@pytest.fixture(scope="session")
def ray_venv(wheel: Path) -> Venv:
    """Ray Data, and a wheel of this checkout."""
    requirements = _HERE / "requirements" / "ray.txt"
    venv = make_venv(requirements)
    install_wheel(venv, wheel, requirements, extras="postgresql")
    return venv


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray puts sockets into it."""
    place = Path(tempfile.mkdtemp(prefix="og", dir="/tmp"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


class Cluster:
    """Jobs over the same rows, each on a cluster of its own, one after another."""

    def __init__(self, venv: Venv, net: Devnet, folder: Path, *, rows: int, ledger: str | None = None) -> None:
        self._venv, self._net, self._folder = venv, net, folder
        self.account = net.account(opg="1000", approved=True)
        self.before = opg_balance(net, self.account.address)
        self._env = environment(net, self.account, folder)
        if ledger is not None:
            self._env["OG_LEDGER_URL"] = ledger
        self.rows = [{"id": number, "prompt": f"Row {number}, please"} for number in range(rows)]
        self._runs = 0

    def _task(self, *, on_ray: bool, **options: Any) -> str:
        self._runs += 1
        task = {
            "ray": on_ray,
            "rows": self.rows,
            # Ray hands a worker two batches at a time: of a few large ones, one worker might get all.
            "blocks": 16,
            "batch_size": max(len(self.rows) // 16, 2 * AT_ONCE),
            "workers": 2,
            "temp_dir": str(self._folder / f"r{self._runs}"),
            "env": self._env,
            "options": {
                "model": "openai/gpt-5",
                "parameters": {"max_tokens": 20},
                "call_key": "id",
                "answers": str(self._folder / "answers"),
                "max_in_flight": AT_ONCE if on_ray else 2 * AT_ONCE,
                "wait_settled_s": 60,
                **options,
            },
        }
        return json.dumps(task) + "\n"

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self._venv.python), "-I", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, "HOME": str(self._folder)},
            text=True,
        )

    def run(self, *, on_ray: bool = True, **options: Any) -> dict[str, Any]:
        """How the job ended."""
        with self._start() as process:
            out, errors = process.communicate(self._task(on_ray=on_ray, **options), timeout=600)
            if process.returncode:
                raise ScriptFailed(errors[-8000:])
        return json.loads(out.splitlines()[-1])

    def kill_when(self, is_so: Any) -> None:
        """Starts the job, and kills it: its workers and the cluster die with it."""
        with self._start() as process:
            process.stdin.write(self._task(on_ray=True))
            process.stdin.flush()
            until = time.monotonic() + 300
            while not is_so():
                assert time.monotonic() < until, "the moment for the kill never came"
                assert process.poll() is None, process.stderr.read()[-8000:]
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def settle(self) -> tuple[int, list[Any], list[Any]]:
        """What the chain took from the wallet, and the ledger's authorizations and receipts."""
        self._net.close_sessions()
        ledger = Ledger(self._env["OG_LEDGER_URL"])
        until = time.monotonic() + 300
        while True:
            try:
                Reconciler(network_of(self._net), ledger).reconcile()
                break
            except ChainUnavailable:  # thousands of nonces at once, on a machine that does much else
                assert time.monotonic() < until
        books = ledger.authorizations().result(), ledger.receipts().result()
        ledger.close()
        return self.before - opg_balance(self._net, self.account.address), *books


def check_once(ray_venv: Venv, folder: Path, *, rows: int, ledger: str | None = None) -> None:
    """A gateway that gives answers again: all rows are answered, with one settlement for each."""
    model = Holding(delay_s=0.05)
    with Devnet(upstream=model, sessions=False, gives_answers_again=True) as net:
        cluster = Cluster(ray_venv, net, folder, rows=rows, ledger=ledger)
        cluster.kill_when(lambda: model.answered.total() > rows // 3)
        at_kill = model.answered.total()
        ended = cluster.run()
        taken, authorizations, receipts = cluster.settle()
    print(f"{rows} rows: {at_kill} answered at the kill, {ended['reused']} on disk, {ended['errors']} errors")
    assert ended["rows"] == rows
    assert ended["errors"] == {}
    assert 0 < ended["reused"] < rows
    assert model.answered == Counter(row["prompt"] for row in cluster.rows)
    assert Counter(one.status for one in authorizations) == {"settled": rows}
    assert len({one.nonce for one in authorizations}) == rows
    assert taken == sum(one.settled_atomic for one in authorizations)
    assert taken == sum(receipt.settled_atomic for receipt in receipts)
    assert {receipt.call_id for receipt in receipts} == {call_id for call_id, _, _ in ended["out"].values()}


@pytest.mark.timeout(400)
def test_a_killed_job_on_a_cluster_pays_for_each_row_once(ray_venv, folder):
    check_once(ray_venv, folder, rows=200)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_job_of_2000_rows_pays_for_each_row_once(ray_venv, folder, kind):
    with ExitStack() as stack:
        ledger = None if kind == "sqlite" else stack.enter_context(running_server()).new_database()
        check_once(ray_venv, folder, rows=2000, ledger=ledger)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_killed_job_in_sessions_says_which_rows_were_paid_and_lost(ray_venv, folder):
    model = Holding(delay_s=0.05)
    with Devnet(upstream=model, idle_timeout_s=2.0) as net:
        cluster = Cluster(ray_venv, net, folder, rows=2000)
        cluster.kill_when(lambda: model.answered.total() > 700)
        second = cluster.run()
        twice = {prompt for prompt, times in model.answered.items() if times > 1}
        third = cluster.run(pay_again=True)
        taken, authorizations, receipts = cluster.settle()
    print(f"2000 rows in {len(authorizations)} sessions: {second['reused']} on disk, {second['errors']}")
    assert twice == set()
    assert second["errors"].keys() <= {"AnswerLost"}
    assert second["errors"].get("AnswerLost", 0) <= 2 * AT_ONCE
    assert third["errors"] == {}
    assert third["rows"] == 2000
    # A session settles in one sum: where it took more than its answered rows cost, all that were under way count as
    # lost, served or not.
    lost = {cluster.rows[int(number)]["prompt"] for number, (_, _, answer) in second["out"].items() if answer is None}
    assert len(lost) == second["errors"].get("AnswerLost", 0)
    assert {prompt for prompt, times in model.answered.items() if times > 1} <= lost
    assert set(model.answered) == {row["prompt"] for row in cluster.rows}
    assert max(model.answered.values()) <= 2
    assert taken == sum(one.settled_atomic or 0 for one in authorizations)
    assert taken == sum(receipt.settled_atomic or 0 for receipt in receipts)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_workers_make_nearly_as_many_calls_as_one_process_without_ray(ray_venv, folder):
    model, rates = Holding(delay_s=1.0), {}
    with Devnet(upstream=model) as net:
        for name in ("without ray", "on ray"):
            model.times.clear()
            place = folder / name[:2]
            place.mkdir()
            ended = Cluster(ray_venv, net, place, rows=2000).run(on_ray=name == "on ray")
            assert ended["errors"] == {}
            rates[name] = (len(model.times) - 1) / (model.times[-1] - model.times[0])
            print(f"{name}: {rates[name]:.1f} calls/s, {ended['took_s']:.1f} s in all", flush=True)
    print(f"ratio {rates['on ray'] / rates['without ray']:.3f}")
    assert rates["on ray"] >= 0.9 * rates["without ray"]
