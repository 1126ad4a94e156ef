"""Virtual environments of other people's software, and JSON over pipes to the scripts that run in them.

An environment belongs to one list of pinned requirements and is kept in `.interop/` under the hash of that
list, so only the first run installs. A script reads one JSON line (the task, keys included: nothing secret is
on a command line) and prints one; a server prints it when it is up, and ends when its standard input does.

It does not know what any of the scripts is about.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).parents[2]
_CACHE = PROJECT / ".interop"
_STOP_TIMEOUT_S = 20


class ScriptFailed(AssertionError):
    """A foreign script ended with an error; the message holds what it wrote to standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Venv:
    """An environment that is installed completely."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(
        self, script: Path, task: Mapping[str, Any], *, env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> dict[str, Any]:
        """The answer of a script to its task."""
        ended = subprocess.run(
            self._command(script),
            input=json.dumps(task) + "\n",
            env=self._environment(env),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if ended.returncode != 0:
            raise ScriptFailed(f"{script.name} ended with {ended.returncode}:\n{ended.stderr[-8000:]}")
        return json.loads(ended.stdout.splitlines()[-1])

    def call(
        self, *command: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """How a program of this environment ended, whatever it says."""
        return subprocess.run(
            [str(self.python.with_name(command[0])), *command[1:]],
            env=self._environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def serve(self, script: Path, task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A server script while the block lasts; gives what it announced."""
        with tempfile.TemporaryFile("w+") as errors, self._start(script, errors) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                announced = process.stdout.readline()
                if not announced:
                    raise ScriptFailed(f"{script.name} did not come up:\n{_tail(errors)}")
                yield json.loads(announced)
                process.stdin.close()
                if process.wait(_STOP_TIMEOUT_S) != 0:
                    raise ScriptFailed(f"{script.name} ended with {process.returncode}:\n{_tail(errors)}")
            finally:
                process.kill()

    def _start(self, script: Path, errors: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=self._environment(None),
            cwd=self.root,
            text=True,
        )

    def _command(self, script: Path) -> list[str]:
        # Isolated: neither this checkout, nor PYTHONPATH, nor the user's site-packages can be imported.
        return [str(self.python), "-I", str(script)]

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        # A home of its own: the software must not find the user's configuration and keys.
        return {"PATH": os.defpath, "HOME": str(self.root), "LANG": "C.UTF-8", **(more or {})}


def make_venv(requirements: Path, *, python: Path | None = None) -> Venv:
    """The environment of a requirements file, installed now unless an earlier run did it.

    `name.overrides.txt` beside `name.txt` replaces what packages ask of each other. Without `python`, the
    environment has the interpreter that runs the tests.
    """
    interpreter = python or Path(sys.executable)
    wanted = "\n".join([_version(interpreter), *(file.read_text() for file in _files_of(requirements))])
    root = _CACHE / f"{requirements.stem}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if not root.exists():
        _CACHE.mkdir(exist_ok=True)
        # Made aside and moved: another run never sees half an environment.
        with tempfile.TemporaryDirectory(dir=_CACHE, prefix="new-") as aside:
            fresh = Venv(root=Path(aside) / "venv")
            _uv("venv", "--relocatable", "--python", interpreter, fresh.root)
            _uv("pip", "install", "--python", fresh.python, *_wanted(requirements))
            _move(fresh.root, root)
    return Venv(root=root)


def build_wheel(folder: Path) -> Path:
    """A wheel of this checkout, as a user would get it."""
    _uv("build", "--wheel", "--out-dir", folder, PROJECT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(venv: Venv, wheel: Path, requirements: Path, *, extras: str = "") -> None:
    """Puts the wheel into the environment of those requirements, which all stay as they are."""
    _uv(
        *("pip", "install", "--python", venv.python, "--reinstall-package", "opengradient-integrations"),
        *(f"{wheel}[{extras}]", *_wanted(requirements)),
    )


def _files_of(requirements: Path) -> list[Path]:
    overrides = requirements.with_suffix(".overrides.txt")
    return [requirements, overrides] if overrides.exists() else [requirements]


def _wanted(requirements: Path) -> list[str | Path]:
    options = ("--requirement", "--override")
    return [part for pair in zip(options, _files_of(requirements), strict=False) for part in pair]


def _version(python: Path) -> str:
    code = "import sys; print(sys.version_info[:2])"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _uv(*arguments: str | Path) -> None:
    uv: Sequence[str] = [found] if (found := shutil.which("uv")) else [sys.executable, "-m", "uv"]
    # Elsewhere: below the project, uv would apply the project's own version pins to what a test asks for.
    # Copies: some packages refuse to work when their files are hard links into uv's cache.
    env = {**os.environ, "UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1"}
    ended = subprocess.run(
        [*uv, *map(str, arguments)], env=env, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise ScriptFailed(f"uv {' '.join(map(str, arguments))} failed:\n{ended.stderr[-8000:]}")


def _move(fresh: Path, root: Path) -> None:
    try:
        fresh.rename(root)
    except OSError:
        # Somebody else was faster, and made the same.
        if not root.exists():
            raise


def _tail(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read()[-8000:]
