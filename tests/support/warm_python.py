"""Runs scripts as `python script.py` does, in copies of a process that has loaded other people's packages before.

To load LangChain and LlamaIndex takes longer than most pages of the docs take to run. Nothing of ours is loaded before.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LOADED = (
    "langchain.agents",
    "langchain_core.language_models.chat_models",
    "llama_index.core",
    "httpx",
    "sqlalchemy",
    "cryptography.hazmat.primitives.asymmetric.rsa",
)


class Ended(NamedTuple):
    """How a script ended, and what it wrote to stderr."""

    returncode: int
    stderr: str


class WarmPython:
    """`with WarmPython() as python: python.run(script, …)`."""

    def __enter__(self) -> WarmPython:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes, and waits for it
            pass

    def run(self, script: Path, *, cwd: Path, env: dict[str, str]) -> Ended:
        """Runs it to its end, in this folder, with this environment and no other."""
        with tempfile.TemporaryFile() as errors:
            os.set_inheritable(errors.fileno(), True)
            written = f"/proc/{os.getpid()}/fd/{errors.fileno()}"
            order = {"script": str(script), "cwd": str(cwd), "env": env, "errors": written}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            errors.seek(0)
            return Ended(code, errors.read().decode())


def _become(order: dict[str, Any]) -> None:
    """In the copy: everything that a new process would have been given."""
    for descriptor, path, how in ((0, "/dev/null", os.O_RDONLY), (1, "/dev/null", os.O_WRONLY)):
        os.dup2(os.open(path, how), descriptor)
    os.dup2(os.open(order["errors"], os.O_WRONLY | os.O_APPEND), 2)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv, sys.path[0] = [order["script"]], str(Path(order["script"]).parent)
    # What Python does with PYTHONWARNINGS of the docs' tests when it starts.
    warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
    runpy.run_path(order["script"], run_name="__main__")


def main() -> None:
    """Reads an order a line, and answers with how it ended."""
    for name in LOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _become(json.loads(line))
            return  # and ends as a program does
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
