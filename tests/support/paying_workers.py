"""Many processes that pay at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("paying_worker.py")


def work_at_once(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of the tasks' calls; no process begins before all of them are ready."""
    running = [
        subprocess.Popen([sys.executable, str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in tasks
    ]
    try:
        for process, task in zip(running, tasks, strict=True):
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=600)[0]) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
