"""Celery: processes that end after ten tasks, and are killed by some; or threads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import os

import driving

os.environ.update(driving.TASK["env"], APP_FOLDER=driving.TASK["folder"])
import celery_tasks

pool = driving.TASK["pool"]
options = ["--max-tasks-per-child=10"] if pool == "prefork" else []
with driving.started(
    *("celery", "-A", "celery_tasks", "worker", f"--pool={pool}", "--concurrency=3", "--loglevel=warning"),
    *(*options, "--without-gossip", "--without-mingle", "--without-heartbeat"),
    env={"APP_FOLDER": driving.TASK["folder"], "C_FORCE_ROOT": "1"},
) as worker:
    results, killed = [], 0
    for number in range(driving.TASK["calls"]):
        results.append(celery_tasks.ask.delay(f"Say {number}."))
        if pool == "prefork" and number % 40 == 20:
            celery_tasks.die.delay(f"Die {number}.")
            killed += 1
    driving.wait_for(lambda: all(result.ready() for result in results), timeout_s=180)
    calls = [result.get(timeout=10) for result in results]
driving.answer(calls, killed=killed)
