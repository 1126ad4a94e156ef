"""CPythons on this machine beside the one that runs the tests.

They are looked for on the PATH and where pyenv and uv keep theirs; a shim that cannot run is none. It does not
install any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_HOMES = (
    Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
    Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python")),
)


@cache
def find_python(version: str) -> Path | None:
    """The interpreter of a version such as "3.13", if there is one."""
    return next((found for found in _candidates(version) if _runs(found, version)), None)


def _candidates(version: str) -> Iterator[Path]:
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    for home in _HOMES:
        yield from sorted(home.glob(f"*{version}*/bin/python{version}"), reverse=True)


def _runs(python: Path, version: str) -> bool:
    code = "import sys; print(*sys.version_info[:2], sys.implementation.name, sep='.')"
    ended = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return ended.stdout.strip() == f"{version}.cpython"
