"""Processes that call in threads until they are killed: each line of stdin, a task in JSON, begins one of them.

Prints the id of each process. They are forked from one that has imported everything, so that they pay at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

from opengradient_x402 import GatewayClient, Payments, SpendPolicy
from opengradient_x402.errors import OpenGradientError

BODY = {"model": "openai/gpt-5", "max_tokens": 40, "messages": [{"role": "user", "content": "Count to 40, please"}]}


def main(task: dict[str, Any]) -> None:
    payments = Payments.open(
        network=task["network"],
        private_key=task["private_key"],
        ledger=task["ledger"],
        policy=SpendPolicy(max_per_day=10**26),
    )
    client = GatewayClient(payments)

    def work(number: int) -> None:
        rng = random.Random(f"{task['seed']} {number}")
        while True:
            try:
                if rng.random() < 0.5:
                    client.chat(BODY)
                else:
                    stream = client.stream(BODY)
                    for _ in zip(stream, range(rng.randrange(6)), strict=False):
                        pass
                    stream.close()
            except OpenGradientError:
                pass

    for number in range(4):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    while True:
        with suppress(OpenGradientError):
            payments.reconciler.reconcile()
        time.sleep(0.2)


if __name__ == "__main__":
    for lazily in ("ledger.statements", "ledger.tables", "settlement.reconciler", "chain.questions"):
        import_module(f"opengradient_x402.{lazily}")
    import_module("sqlalchemy.dialects.sqlite")
    import_module("psycopg")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                main(json.loads(line))
            finally:
                os._exit(1)
        print(child, flush=True)
