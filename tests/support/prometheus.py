"""Prometheus's own programs, out of Debian's package; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support.venvs import PROJECT


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    if (found := shutil.which(name)) is not None:
        return found
    folder = PROJECT / ".interop" / "prometheus"
    if not (folder / "usr" / "bin" / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", "prometheus"]):
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=600)
        (package,) = folder.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", package.name, "."], check=True, cwd=folder)
        package.unlink()
    return str(Path(folder, "usr", "bin", name))
