"""Every notebook runs from top to bottom in a fresh kernel, offline, in time, and shows something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from opengradient_devnet import Devnet

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT_S = 180


def outputs_of(cell):
    return cell.get("outputs", [])


def is_worth_looking_at(output) -> bool:
    data = output.get("data", {})
    return "image/png" in data or "text/markdown" in data or "text/html" in data


@pytest.mark.notebook
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_within_three_minutes_and_shows_tables_and_plots(notebook, tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--into", str(tmp_path), str(notebook)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < LIMIT_S
    code = [cell for cell in json.loads((tmp_path / notebook.name).read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in outputs_of(cell)]
    assert sum(is_worth_looking_at(output) for output in shown) >= 2


@pytest.mark.notebook
def test_the_python_of_the_page_on_notebooks_runs_in_cells(net: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OG_NETWORK", net.network_url)
    monkeypatch.setenv("OG_PRIVATE_KEY", net.account(approved=True).private_key)
    page = (ROOT / "docs" / "how-to" / "notebooks-and-servers.md").read_text()
    cells = [nbformat.v4.new_code_cell(code) for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=LIMIT_S, kernel_name="python3").execute()
