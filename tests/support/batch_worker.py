"""A process that answers a table: the task comes as JSON on stdin, the answers go as JSON to stdout."""

from __future__ import annotations

import json
import sys

from opengradient_x402 import ChatBatch

if __name__ == "__main__":
    task = json.loads(sys.stdin.read())
    with ChatBatch(**task["options"]) as batch:
        print(json.dumps(batch(task["rows"])), flush=True)
