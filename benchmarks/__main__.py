"""`uv run python -m benchmarks`: what a call costs with our faces, and with others, side by side.

Starts one server and one process for each client, each with an environment of its own (uv makes and keeps them), and
asks them in turn, round by round, so that whatever else the machine does falls on all of them. The table shows the
median of each figure, and its ratio to the free peer of the same framework: the median of the rounds' ratios. Only
ratios mean anything on another machine. Nothing here passes or fails. Five rounds take about eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.clients import CLIENTS, Client, client_named
from benchmarks.works import COLD, WORKS, Work

_HERE = Path(__file__).resolve().parent
_PEERS = {"langchain": "ChatOpenAI", "llamaindex": "OpenAILike"}
_UNTIL = "2026-11-27T00:00:00Z"  # as `exclude-newer` in pyproject.toml: everybody's dependencies of the same day
_AGENTS = ("agent", "agent, async")
Rounds = dict[str, dict[str, list[dict[str, float]]]]
"""Figures by work, then by client, one for each round."""


class Worker:
    """The process of one client."""

    def __init__(self, client: Client, process: subprocess.Popen[str], server: str) -> None:
        self.client = client
        self._process = process
        self._server = server
        self._python = self._answer()["python"]

    def does(self, work: str) -> bool:
        """Whether the client has this work."""
        lacks = {"llamaindex": _AGENTS, "bare": (*_AGENTS, "tool delta", "tool delta, async")}
        return work not in self.client.lacks and work not in lacks.get(self.client.face, ())

    def measure(self, work: Work, *, scale: float) -> dict[str, float]:
        """One figure."""
        number = max(1, round(work.number * scale * (0.5 if self.client.is_slow else 1)))
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(json.dumps({"work": work.name, "number": number}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def cold(self) -> dict[str, float]:
        """Seconds from the start of a process to its first token."""
        began = time.perf_counter()
        command = [self._python, str(_HERE / "works.py"), self.client.name, self._server, COLD]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True, env=_surroundings()) as process:  # noqa: S603
            assert process.stdout is not None  # noqa: S101
            if not process.stdout.readline():
                raise SystemExit(f"{self.client.name} has no first token.")
            return {"value": time.perf_counter() - began}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.client.name} ended.")
        return json.loads(line)  # type: ignore[no-any-return]


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=_surroundings()
        )
        try:
            yield process
        except BaseException:
            errors.seek(0)
            sys.stderr.write(errors.read()[-4000:])
            raise
        finally:
            assert process.stdin is not None  # noqa: S101
            process.stdin.close()  # its sign to end: uv, which may stand in between, passes no signal on
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _surroundings() -> dict[str, str]:
    """Those of this process, where modules may be kept compiled, as they are where a package was installed for use."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # noqa: TID251


def environment_of(client: Client) -> list[str]:
    """The command that runs Python in an environment that has what the client needs, and nothing else."""
    wanted = [part for name in client.requirements for part in ("--with-editable" if "/" in name else "--with", name)]
    return ["uv", "run", "--quiet", "--isolated", "--no-project", "--exclude-newer", _UNTIL, *wanted, "python"]


def run(names: list[str], works: list[str], *, rounds: int, scale: float, here: bool) -> Rounds:
    """All figures. `here` runs every client in this interpreter's environment."""
    with ExitStack() as stack:
        server = stack.enter_context(_process([sys.executable, str(_HERE / "server.py")]))
        assert server.stdout is not None  # noqa: S101
        where = server.stdout.readline().strip()
        workers = []
        for client in map(client_named, names):
            python = [sys.executable] if here else environment_of(client)
            process = stack.enter_context(_process([*python, str(_HERE / "works.py"), client.name, where]))
            workers.append(Worker(client, process, where))
        return _in_turn(workers, works, rounds=rounds, scale=scale)


def _in_turn(workers: list[Worker], works: list[str], *, rounds: int, scale: float) -> Rounds:
    found: Rounds = defaultdict(lambda: defaultdict(list))
    tasks = [(work, worker) for work in WORKS if work.name in works for worker in workers if worker.does(work.name)]
    for work, worker in tasks:
        worker.measure(work, scale=min(scale, 0.2))
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for work, worker in tasks if number % 2 else reversed(tasks):
            found[work.name][worker.client.name].append(worker.measure(work, scale=scale))
        for worker in workers if COLD in works else ():
            found[COLD][worker.client.name].append(worker.cold())
    return found


def medians(rounds: Rounds, field: str = "value") -> dict[str, dict[str, tuple[float, float | None]]]:
    """By work and client: the median figure, and the median of its ratio to the free peer, round by round."""
    table: dict[str, dict[str, tuple[float, float | None]]] = {}
    for work, by_client in rounds.items():
        table[work] = {}
        for name, figures in by_client.items():
            values = [figure[field] for figure in figures if field in figure]
            if not values:
                continue
            peers = by_client.get(_PEERS.get(client_named(name).face, ""), [])
            ratios = [value / peer[field] for value, peer in zip(values, peers, strict=False)]
            table[work][name] = statistics.median(values), statistics.median(ratios) if ratios else None
    return table


def as_text(rounds: Rounds) -> str:
    """The table of figures, each with its ratio to the free peer of its framework."""
    units = {work.name: work.unit for work in WORKS} | {COLD: "s"}
    table = medians(rounds)
    rows = {f"{work} [{unit}]": table[work] for work, unit in units.items() if work in table}
    rows |= {f"{work}, p99 [ms]": row for work, row in medians(rounds, "p99_ms").items() if row}
    rows |= {f"{work}, CPU [ms]": row for work, row in medians(rounds, "cpu_ms").items() if row}
    names = [client.name for client in CLIENTS if any(client.name in row for row in rows.values())]
    lines = ["| work | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for work, row in rows.items():
        cells = []
        for name in names:
            value, ratio = row.get(name, (None, None))
            cells.append("" if value is None else f"{value:.3g}" + ("" if ratio is None else f" ({ratio:.2f})"))
        lines.append(f"| {work} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    every = [*(work.name for work in WORKS), COLD]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the usual number of calls")
    parser.add_argument("--client", action="append", choices=[client.name for client in CLIENTS])
    parser.add_argument("--work", action="append", choices=every)
    parser.add_argument("--here", action="store_true", help="use this environment for every client: no uv, no others")
    parser.add_argument("--json", type=Path, help="write all figures of all rounds into this file")
    asked = parser.parse_args()
    clients = asked.client or [client.name for client in CLIENTS]
    began = time.perf_counter()
    rounds = run(clients, asked.work or every, rounds=asked.rounds, scale=asked.scale, here=asked.here)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "requirements": {
            client.name: [r.rpartition("/")[2] for r in client.requirements]
            for client in CLIENTS
            if client.name in clients
        },
    }
    if asked.json is not None:
        asked.json.write_text(json.dumps({**about, "rounds": rounds}, indent=1))
    print(as_text(rounds))
    print(
        f"\n{about['date']}, Python {about['python']}, {asked.rounds} rounds in "
        f"{(time.perf_counter() - began) / 60:.1f} minutes; in brackets: ratio to the free peer."
    )


if __name__ == "__main__":
    main()
