"""Runs notebooks from top to bottom in fresh kernels: `python tools/notebooks.py [--write] notebooks/*.ipynb`.

Prints the duration of each run. The exit code is 1 when a cell fails or writes to stderr. `--write` stores the outputs
in the notebooks, without metadata that differs from run to run, such as timestamps.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

CELL_TIMEOUT_S = 170
ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")
MESSAGE_LENGTH = 6000


def execute(path: Path, *, folder: Path | None = None) -> NotebookNode:
    """Return the notebook with the outputs of a new run, in its own folder if no other is given.

    Raises CellExecutionError; ValueError for output on stderr.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets in a folder instead of ports, so that no other user can connect to the kernel.
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        NotebookClient(
            notebook,
            km=kernel,
            coalesce_streams=True,
            timeout=CELL_TIMEOUT_S,
            record_timing=False,
            resources={"metadata": {"path": str(folder or path.parent)}},
        ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise ValueError(f"{path.name}, cell {cell.id}, wrote to stderr:\n{output.text}")
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("--into", type=Path, help="write the executed notebooks into this folder instead")
    parser.add_argument("--folder", type=Path, help="run in this folder instead of each notebook's own")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.notebooks:
        began = time.monotonic()
        try:
            executed = execute(path, folder=options.folder)
        except (CellExecutionError, ValueError) as exc:
            failed = True
            sys.stderr.write(f"{path}: {ANSI_COLOR.sub('', str(exc))[:MESSAGE_LENGTH]}\n")
            continue
        sys.stdout.write(f"{path}: {time.monotonic() - began:.1f} s\n")
        if options.write or options.into:
            nbformat.write(executed, options.into / path.name if options.into else path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
