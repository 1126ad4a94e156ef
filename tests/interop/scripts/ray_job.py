"""A table answered on a local Ray cluster, or without Ray: how its rows ended, and how long that took."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter

from opengradient_x402 import ChatBatch, SpendPolicy


def on_ray(task: dict) -> list[dict]:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 * 2**20,
        _temp_dir=task["temp_dir"],
    )
    table = ray.data.from_items(task["rows"], override_num_blocks=task["blocks"])
    answered = table.map_batches(
        ChatBatch,
        fn_constructor_kwargs=task["options"],
        batch_size=task["batch_size"],
        concurrency=task["workers"],
        num_cpus=0.25,
    )
    return answered.take_all()


def without_ray(task: dict) -> list[dict]:
    with ChatBatch(**task["options"]) as batch:
        return batch(task["rows"])


if __name__ == "__main__":
    task = json.loads(sys.stdin.readline())
    os.environ.update(task["env"])
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # this very interpreter
    task["options"]["policy"] = SpendPolicy(max_per_day=10**24)
    began = time.monotonic()
    out = on_ray(task) if task.get("ray", True) else without_ray(task)
    took_s = time.monotonic() - began
    errors = Counter(row["error_type"] for row in out if row["error"])
    ended = {"took_s": took_s, "rows": len(out), "errors": errors, "reused": sum(row["reused"] for row in out)}
    costs = {row["id"]: [row["call_id"], row["cost_atomic"], row["answer"]] for row in out}
    print(json.dumps(ended | {"out": costs}), flush=True)
