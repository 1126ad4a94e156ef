"""What is measured, and the process of one client that measures it. Standard library only, beside the client itself.

A work does something a number of times and returns one figure: CPU of this process for each call or chunk, waiting
time, or calls per second. Run as a script, it reads `{"work", "number"}` a line and prints `{"value", …}` a line.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BURST = 400
PACED = 100
Figure = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One row of the table. `number`: how often it is done in a round; `higher` is better for rates."""

    name: str
    unit: str
    number: int
    measure: Callable[[Any, asyncio.Runner, int], Figure]
    is_rate: bool = False


def _cpu_of(do: Callable[[], object], *, units: int, scale: float) -> Figure:
    before = time.process_time()
    do()
    return {"value": (time.process_time() - before) * scale / units}


def _call(client: Any, _runner: asyncio.Runner, number: int) -> Figure:
    return _cpu_of(lambda: [client.text("call") for _ in range(number)], units=number, scale=1e3)


def _acall(client: Any, runner: asyncio.Runner, number: int) -> Figure:
    async def calls() -> None:
        for _ in range(number):
            await client.atext("call")

    return _cpu_of(lambda: runner.run(calls()), units=number, scale=1e3)


def _drained(pieces: Iterable[Any]) -> int:
    return sum(1 for _ in pieces)


async def _adrained(pieces: AsyncIterator[Any]) -> int:
    number = 0
    async for _ in pieces:
        number += 1
    return number


def _chunks(way: str, kind: str, size: int) -> Callable[[Any, asyncio.Runner, int], Figure]:
    def measure(client: Any, _runner: asyncio.Runner, number: int) -> Figure:
        ask = getattr(client, way)

        def streams() -> None:
            for _ in range(number):
                if (seen := _drained(ask(f"{kind} {size}"))) < size:
                    raise AssertionError(f"{seen} of {size} chunks came")

        return _cpu_of(streams, units=number * size, scale=1e6)

    return measure


def _achunks(way: str, kind: str, size: int) -> Callable[[Any, asyncio.Runner, int], Figure]:
    def measure(client: Any, runner: asyncio.Runner, number: int) -> Figure:
        ask = getattr(client, way)

        async def streams() -> None:
            for _ in range(number):
                if (seen := await _adrained(ask(f"{kind} {size}"))) < size:
                    raise AssertionError(f"{seen} of {size} chunks came")

        return _cpu_of(lambda: runner.run(streams()), units=number * size, scale=1e6)

    return measure


def _first(client: Any, _runner: asyncio.Runner, number: int) -> Figure:
    waits = []
    for _ in range(number):
        began = time.perf_counter()
        stream = iter(client.stream("paced 2"))
        next(stream)
        waits.append(time.perf_counter() - began)
        _drained(stream)
    return {"value": statistics.median(waits) * 1e3}


def _afirst(client: Any, runner: asyncio.Runner, number: int) -> Figure:
    async def once() -> float:
        began = time.perf_counter()
        stream = aiter(client.astream("paced 2"))
        await anext(stream)
        waited = time.perf_counter() - began
        await _adrained(stream)
        return waited

    async def streams() -> list[float]:
        return [await once() for _ in range(number)]

    return {"value": statistics.median(runner.run(streams())) * 1e3}


def _rate(waits: list[float], do: Callable[[], object]) -> Figure:
    """`do` appends to `waits`."""
    began, before = time.perf_counter(), time.process_time()
    do()
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - before
    p99 = sorted(waits)[math.ceil(len(waits) * 0.99) - 1]
    return {"value": len(waits) / took_s, "p99_ms": p99 * 1e3, "cpu_ms": cpu_s / len(waits) * 1e3}


def _concurrent(width: int) -> Callable[[Any, asyncio.Runner, int], Figure]:
    def measure(client: Any, runner: asyncio.Runner, number: int) -> Figure:
        waits: list[float] = []

        async def worker(calls: Iterable[int]) -> None:
            for _ in calls:
                began = time.perf_counter()
                await client.atext("slow")
                waits.append(time.perf_counter() - began)

        async def all_of_them() -> None:
            left = iter(range(max(number, width)))
            await asyncio.gather(*(worker(left) for _ in range(width)))

        return _rate(waits, lambda: runner.run(all_of_them()))

    return measure


def _threads(client: Any, _runner: asyncio.Runner, number: int) -> Figure:
    waits: list[float] = []

    def once(_: int) -> None:
        began = time.perf_counter()
        client.text("slow")
        waits.append(time.perf_counter() - began)

    with ThreadPoolExecutor(64) as pool:
        return _rate(waits, lambda: list(pool.map(once, range(number))))


def _agent(client: Any, _runner: asyncio.Runner, number: int) -> Figure:
    return _cpu_of(lambda: [client.agent() for _ in range(number)], units=number, scale=1e3)


def _aagent(client: Any, runner: asyncio.Runner, number: int) -> Figure:
    async def runs() -> None:
        for _ in range(number):
            await client.aagent()

    return _cpu_of(lambda: runner.run(runs()), units=number, scale=1e3)


def _memory(_client: Any, _runner: asyncio.Runner, _number: int) -> Figure:
    unit = 1 if sys.platform == "darwin" else 1024
    return {"value": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


COLD = "cold process"
WORKS = (
    Work(name="call", unit="CPU ms", number=200, measure=_call),
    Work(name="call, async", unit="CPU ms", number=200, measure=_acall),
    Work(name="chunk in a burst", unit="CPU µs", number=8, measure=_chunks("stream", "burst", BURST)),
    Work(name="chunk in a burst, async", unit="CPU µs", number=8, measure=_achunks("astream", "burst", BURST)),
    Work(name="chunk each ms", unit="CPU µs", number=5, measure=_chunks("stream", "paced", PACED)),
    Work(name="chunk each ms, async", unit="CPU µs", number=5, measure=_achunks("astream", "paced", PACED)),
    Work(name="tool delta", unit="CPU µs", number=6, measure=_chunks("tools", "tools", BURST)),
    Work(name="tool delta, async", unit="CPU µs", number=6, measure=_achunks("atools", "tools", BURST)),
    Work(name="first token", unit="ms", number=40, measure=_first),
    Work(name="first token, async", unit="ms", number=40, measure=_afirst),
    Work(name="concurrent 100", unit="calls/s", number=500, measure=_concurrent(100), is_rate=True),
    Work(name="concurrent 500", unit="calls/s", number=1000, measure=_concurrent(500), is_rate=True),
    Work(name="threads 64", unit="calls/s", number=400, measure=_threads, is_rate=True),
    Work(name="agent", unit="CPU ms", number=20, measure=_agent),
    Work(name="agent, async", unit="CPU ms", number=20, measure=_aagent),
    Work(name="memory", unit="MB", number=1, measure=_memory),
)
"""Every work is done once before the first round, so that pools are open and paths are warm."""


def main() -> None:
    """The process of one client: its name and the server's addresses are its arguments."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.clients import client_named

    name, server, *mode = sys.argv[1:]
    client = client_named(name).make(json.loads(server))
    if mode == [COLD]:
        next(iter(client.stream("paced 2")))
        print("first token", flush=True)
        return
    by_name = {work.name: work for work in WORKS}
    with asyncio.Runner() as runner:
        print(json.dumps({"python": sys.executable}), flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            print(json.dumps(by_name[task["work"]].measure(client, runner, task["number"])), flush=True)


if __name__ == "__main__":
    main()
