"""A process that pays: calls one after another, and prints as JSON what became of them.

Its task comes as JSON on stdin; it begins at the task's time, so that many of them run at once. A signer that spells
its address in its own way is a signer like others.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

from opengradient_x402 import GatewayClient, LocalSigner, Payments, SpendPolicy
from opengradient_x402.errors import OpenGradientError


class Spelled:
    """The signer of a wallet, which writes its address in lower case."""

    def __init__(self, key: str) -> None:
        self._signer = LocalSigner(key)

    @property
    def address(self) -> str:
        return self._signer.address.lower()

    def sign_digest(self, digest: bytes) -> bytes:
        return self._signer.sign_digest(digest)

    def nonce_for(self, call_id: str) -> int:
        return self._signer.nonce_for(call_id)


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Makes the calls of a task; how each ended, and how long all of them took."""
    key = task["private_key"]
    payments = Payments.open(
        network=task["network"],
        private_key=Spelled(key) if task.get("lower_case") else key,
        policy=SpendPolicy(max_per_day=task["max_per_day"]),
        ledger=task["ledger"],
    )
    body = {"model": "openai/gpt-5", "max_tokens": 20, "messages": [{"role": "user", "content": "What is x402?"}]}
    ended: Counter[str] = Counter()
    said: dict[str, str] = {}
    with GatewayClient(payments) as client:
        payments.ledger.noted("open it").result()
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        for _ in range(task["calls"]):
            try:
                client.chat(body)
                ended["ok"] += 1
            except OpenGradientError as exc:
                ended[type(exc).__name__] += 1
                said.setdefault(type(exc).__name__, str(exc))
        took_s = time.perf_counter() - began
    payments.close()
    return {"ended": ended, "said": said, "took_s": took_s}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.readline()))), flush=True)
