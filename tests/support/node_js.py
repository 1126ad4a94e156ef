"""Programs in JavaScript, with the npm packages that they name, run by Node.js: the machine's, or one from a wheel.

Packages are kept in `.interop/` under the hash of their list, as the environments of `venvs` are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.venvs import PROJECT, ScriptFailed, make_venv

_CACHE = PROJECT / ".interop"
_NODE = PROJECT / "tests" / "interop" / "requirements" / "node.txt"


def run_lines(program: Path, tasks: Sequence[Any], *arguments: str, timeout_s: float = 120) -> list[Any]:
    """What a program answers to a JSON line each, with the packages in the `package.json` beside it."""
    tools = _tools()
    home = _installed(program.with_name("package.json"), tools)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        script = Path(shutil.copy(program, folder))  # where it is, Node.js looks for packages
        ended = subprocess.run(
            [str(tools / "node"), str(script), *arguments],
            input="".join(json.dumps(task) + "\n" for task in tasks),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    if ended.returncode != 0:
        raise ScriptFailed(f"{program.name} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def _tools() -> Path:
    """The folder that has node and npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Path(node).parent
    return make_venv(_NODE).python.parent


def _installed(package: Path, tools: Path) -> Path:
    home = _CACHE / f"node-{hashlib.sha256(package.read_bytes()).hexdigest()[:16]}"
    if not (home / "node_modules").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(package, home)
        command = [str(tools / "npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        ended = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300, check=False)
        if ended.returncode != 0:
            raise ScriptFailed(f"npm install failed:\n{ended.stderr[-4000:]}")
    return home
