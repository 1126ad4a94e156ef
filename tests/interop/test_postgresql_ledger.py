"""The ledger in a real PostgreSQL: several processes make its tables, and share one budget, at the same time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from support.ledger_rows import OPG, entry
from support.venvs import install_wheel, make_venv

_REQUIREMENTS = Path(__file__).parent / "requirements" / "postgresql.txt"


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        assert os.geteuid() == 0, "There is no PostgreSQL, and only root can install it: apt-get install postgresql"
        for command in (["update"], ["install", "-y", "postgresql"]):
            subprocess.run(["apt-get", "-q", *command], check=True, stdout=subprocess.DEVNULL, timeout=600)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty database of its own. The server refuses to run as root, so it runs as `postgres` then."""
    binaries, folder = _binaries(), Path("/tmp") / f"opengradient-postgresql-{os.getpid()}"
    folder.mkdir()
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"

    def run(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")

    run(f"{binaries}/initdb", "-D", str(data), "-A", "trust", "-U", "postgres")
    run(f"{binaries}/pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        run(f"{binaries}/pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_four_processes_open_a_new_ledger_at_once_and_cannot_overdraw_it_together(database_url, wheel, scripts):
    venv = make_venv(_REQUIREMENTS)
    install_wheel(venv, wheel, _REQUIREMENTS)
    tasks = [
        {"url": database_url, "first": 100 * number, "entry": asdict(entry(amount_atomic=OPG // 10))}
        for number in range(1, 5)
    ]
    with ThreadPoolExecutor(len(tasks)) as pool:
        answers = list(pool.map(lambda task: venv.run(scripts / "postgresql_ledger.py", task), tasks))
    assert sum(answer["won"] for answer in answers) == 10
    late = venv.run(scripts / "postgresql_ledger.py", tasks[0] | {"first": 900})
    assert late == {"won": 0, "entries": 10}
