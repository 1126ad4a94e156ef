"""What the drivers of all runners share. They run in the runner's own environment, and know it and LangChain only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
TASK: dict[str, Any] = json.loads(sys.stdin.readline())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(calls: list[str], **more: Any) -> None:
    """Ends the driver: the calls whose answers were given out, and whatever else is worth saying."""
    print(json.dumps({"answers": calls, **more}))


@contextmanager
def started(
    *command: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen]:
    """A program of this environment, with the applications beside this file, until the block ends."""
    program = Path(sys.executable).with_name(command[0])
    wanted = {"PATH": f"{program.parent}:{os.defpath}", "HOME": TASK["folder"], "LANG": "C.UTF-8"}
    with (Path(TASK["folder"]) / f"{command[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            [*prefix, str(program), *command[1:]],
            env={**wanted, **TASK["env"], "PYTHONPATH": str(HERE), **(env or {})},
            cwd=TASK["folder"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write((Path(TASK["folder"]) / f"{command[0]}.log").read_text()[-4000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def wait_for(is_up: Callable[[], bool], *, timeout_s: float = 60) -> None:
    ends = time.monotonic() + timeout_s
    while not is_up():
        if time.monotonic() > ends:
            raise TimeoutError("The runner did not come up, or did not end its work.")
        time.sleep(0.1)


def listens(port: int) -> Callable[[], bool]:
    def is_up() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    return is_up


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask_all(
    ask: Callable[[int], str], *, at_once: int = 8, meanwhile: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Asks until there are as many answers as wanted. A question whose connection broke is asked again, as users do."""
    broken = 0

    def one(number: int) -> str:
        nonlocal broken
        meanwhile(number)
        while True:
            try:
                return ask(number)
            except httpx.HTTPError:
                broken += 1
                time.sleep(0.1)

    with ThreadPoolExecutor(at_once) as pool:
        calls = list(pool.map(one, range(TASK["calls"])))
    return {"calls": calls, "broken": broken}


def asks_of_web(port: int) -> Callable[[int], str]:
    """Half of the answers whole, half of them streamed: the last line of a stream is the call's id."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def ask(number: int) -> str:
        if number % 2:
            said = client.get("/ask", params={"question": f"Say {number}."}).raise_for_status().json()
            SERVED_BY.append(said["worker"])
            return said["call_id"]
        with client.stream("GET", "/tell", params={"question": f"Say {number}."}) as response:
            response.raise_for_status()
            return response.read().decode().splitlines()[-1]

    return ask


SERVED_BY: list[int] = []
"""The process of each whole answer."""


def killer(pid: int, *, at: tuple[int, ...]) -> Callable[[int], None]:
    """Kills the worker that answered last when these questions are asked, and waits until there is another one."""

    def meanwhile(number: int) -> None:
        if number in at:
            before = children_of(pid)
            os.kill(SERVED_BY[-1], signal.SIGKILL)
            wait_for(lambda: bool(set(children_of(pid)) - set(before)))
            time.sleep(3)  # until it serves

    return meanwhile
