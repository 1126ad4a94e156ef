"""A PostgreSQL server of a test's own; installed by apt-get when there is none and root asks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        assert os.geteuid() == 0, "There is no PostgreSQL, and only root can install it: apt-get install postgresql"
        for command in (["update"], ["install", "-y", "postgresql"]):
            subprocess.run(["apt-get", "-q", *command], check=True, stdout=subprocess.DEVNULL, timeout=600)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent


@dataclass
class Server:
    """A PostgreSQL server of its own, which can be stopped, started and held."""

    control: list[str]
    admin: str
    pid_file: Path
    databases: int = 0

    def restart(self) -> None:
        subprocess.run(
            [*self.control, "-m", "fast", "restart"], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/"
        )

    def stop(self) -> None:
        subprocess.run(
            [*self.control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/"
        )

    def start(self) -> None:
        subprocess.run([*self.control, "start"], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")

    def new_database(self, *, language: str = "") -> str:
        """The URL of an empty database, whose texts are in the order of a language."""
        self.databases += 1
        name = f"ledger{self.databases}"
        with psycopg.connect(self.admin, autocommit=True) as admin:
            order = f"LOCALE_PROVIDER icu ICU_LOCALE '{language}' TEMPLATE template0" if language else ""
            admin.execute(f"CREATE DATABASE {name} {order}")
        return f"postgresql+psycopg://{self.admin.partition('://')[2].rpartition('/')[0]}/{name}"

    def make_anew(self, url: str) -> None:
        """Empties a database: it is dropped, and another one has its name."""
        name = url.rpartition("/")[2]
        with psycopg.connect(self.admin, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {name}")

    @contextmanager
    def held(self, url: str) -> Iterator[None]:
        """Every process of the server that serves this database stands still."""
        with psycopg.connect(self.admin, autocommit=True) as admin:
            query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
            pids = [row[0] for row in admin.execute(query, (url.rpartition("/")[2],))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def running_server() -> Iterator[Server]:
    """A new server, which ends with the block. It refuses to run as root, so it runs as `postgres` then."""
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
    control = [*prefix, f"{binaries}/pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w"]
    started = Server(
        control=control, admin=f"postgresql://postgres@127.0.0.1:{port}/postgres", pid_file=data / "postmaster.pid"
    )
    started.start()
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)
