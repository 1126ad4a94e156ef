"""Fifty users in one process: half of them threads, half of them coroutines, in both frameworks, over five wallets.

Its task comes as JSON on stdin. Every few seconds it prints as JSON what the process holds; at the end, how the
calls ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient
from opengradient_x402 import Payments, SpendPolicy
from opengradient_x402.errors import OpenGradientError
from opengradient_x402.settlement.background import BackgroundReconciler

MODEL = "openai/gpt-5"
_C_LIBRARY = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
TEXTS = ("Say hello", "Count to 40, please, and take your time", "What is x402?")


class Users:
    """What the users share, and how their calls ended."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.until = time.monotonic() + task["seconds"]
        self.ended: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.foreign: list[str] = []
        self.payments = [
            Payments.open(
                network=task["network"],
                private_key=key,
                ledger=task["ledger"],
                policy=SpendPolicy(max_per_day=10**26, max_price_increase_percent=1000),
            )
            for key in task["private_keys"]
        ]
        self.chats = [
            ChatOpenGradient(model=MODEL, payments=one, max_tokens=60, timeout=20.0, max_retries=1)
            for one in self.payments
        ]
        self.llms = [OpenGradient(model=MODEL, payments=one, max_tokens=60, timeout=20.0) for one in self.payments]

    def note(self, exc: Exception | None) -> None:
        self.ended["ok" if exc is None else type(exc).__name__] += 1
        if exc is not None:
            self.said.setdefault(type(exc).__name__, str(exc)[:300])
        if exc is not None and not isinstance(exc, OpenGradientError):
            self.foreign.append(f"{type(exc).__name__}: {exc}"[:300])

    def user(self, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.until:
            try:
                self._call(rng, number % 5)
            except Exception as exc:
                self.note(exc)
            else:
                self.note(None)
            time.sleep(rng.random() * 0.2)

    def _call(self, rng: random.Random, wallet: int) -> None:
        text = rng.choice(TEXTS)
        match rng.randrange(5):
            case 0:
                self.chats[wallet].invoke(text)
            case 1:
                list(self.chats[wallet].stream(text))
            case 2:
                stream = self.chats[wallet].stream(text)
                next(stream)
                stream.close()
            case 3:
                self.llms[wallet].complete(text)
            case _:
                list(self.llms[wallet].stream_complete(text))

    async def auser(self, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.until:
            try:
                await self._acall(rng, number % 5)
            except Exception as exc:
                self.note(exc)
            else:
                self.note(None)
            await asyncio.sleep(rng.random() * 0.2)

    async def _acall(self, rng: random.Random, wallet: int) -> None:
        text = rng.choice(TEXTS)
        match rng.randrange(5):
            case 0:
                await self.chats[wallet].ainvoke(text)
            case 1:
                [_ async for _ in self.chats[wallet].astream(text)]
            case 2:
                task = asyncio.ensure_future(self.chats[wallet].ainvoke(text))
                await asyncio.sleep(rng.random() * 0.05)
                task.cancel()
                await asyncio.wait([task])
            case 3:
                await self.llms[wallet].acomplete(text)
            case _:
                [_ async for _ in await self.llms[wallet].astream_complete(text)]

    def clear_disputes(self, gateway: str) -> None:
        """As a user does who has looked at them."""
        for one in self.payments[:1]:
            one.ledger.clear_disputes(network=one.network.caip2, origin=gateway).result()


def held() -> dict[str, int]:
    """What the process holds now. What it has freed, and the C library keeps for later, is given back before."""
    gc.collect()
    if _C_LIBRARY is not None:
        _C_LIBRARY.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_kb": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


async def main(task: dict[str, Any]) -> None:
    users = Users(task)
    threads = [threading.Thread(target=users.user, args=(number,)) for number in range(25)]
    background = BackgroundReconciler(users.payments[0].reconciler, interval_s=5)
    background.start()
    for thread in threads:
        thread.start()
    tasks = [asyncio.create_task(users.auser(number)) for number in range(25, 50)]
    while time.monotonic() < users.until:
        await asyncio.sleep(min(task["every_s"], max(0.1, users.until - time.monotonic())))
        await asyncio.to_thread(users.clear_disputes, task["gateway"])
        print(json.dumps({"calls": users.ended.total(), **held()}), flush=True)
    await asyncio.gather(*tasks)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    background.stop()
    for one in users.payments:
        one.close()
    print(json.dumps({"ended": users.ended, "said": users.said, "foreign": users.foreign[:5]}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
