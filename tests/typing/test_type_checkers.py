"""The constructors under mypy, with and without pydantic's plugin, and under pyright.

By hand: each fresh cache costs mypy ten seconds, and pyright's package fetches its program from npm. In every run
`.ci/run` checks the same file with this project's own settings, which are the strictest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.venvs import PROJECT, make_venv

pytestmark = pytest.mark.soak
MODELS = Path(__file__).with_name("models.py")
SETTINGS = {
    "alone": "warn_unused_ignores = true\n",
    "with the plugin": "plugins = pydantic.mypy\n",
    "with the plugin at its strictest": (
        "plugins = pydantic.mypy\nwarn_unused_ignores = true\n"
        "[pydantic-mypy]\ninit_typed = true\ninit_forbid_extra = true\n"
    ),
}


def test_mypy_takes_the_constructors_and_finds_wrong_arguments(tmp_path: Path):
    for name, settings in SETTINGS.items():
        config = tmp_path / "mypy.ini"
        config.write_text(f"[mypy]\nfollow_imports = silent\n{settings}")
        command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / name)]
        ended = subprocess.run([*command, str(MODELS)], cwd=PROJECT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{name}:\n{ended.stdout}{ended.stderr}"


def test_pyright_takes_the_constructors_and_finds_wrong_arguments(tmp_path: Path):
    pyright = make_venv(Path(__file__).parents[1] / "interop" / "requirements" / "pyright.txt").python.with_name(
        "pyright"
    )
    found = {}
    for name, text in (
        ("as they are", MODELS.read_text()),
        ("bare", MODELS.read_text().replace("# type: ignore", "#")),
    ):
        copy = tmp_path / f"{name}.py"
        copy.write_text(text)
        command = [pyright, "--outputjson", "--pythonpath", sys.executable, copy]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        found[name] = {one["range"]["start"]["line"] for one in json.loads(ended.stdout)["generalDiagnostics"]}
    wrong = {number for number, line in enumerate(MODELS.read_text().splitlines()) if "# type: ignore" in line}
    assert found == {"as they are": set(), "bare": wrong}
