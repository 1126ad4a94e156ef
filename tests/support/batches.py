"""Jobs over tables for tests: a gateway whose answers can be held back, and a process that is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from opengradient_devnet import Account, Devnet
from opengradient_devnet.model.protocol import Answer, Delivery
from opengradient_devnet.model.rules import RulesModel
from opengradient_x402.payment.challenge import SIGNATURE_HEADER
from opengradient_x402.payment.sessions import SESSION_HEADER
from support.relay import Relay

_PROGRAM = Path(__file__).with_name("batch_worker.py")


class Holding:
    """Answers so many calls by rule, and holds the others back until it is let go."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self._model = RulesModel()
        self._delay_s = delay_s
        self.free = 10**9
        self.held = 0
        self.times: list[float] = []
        """When calls were answered, by a clock that only runs on."""
        self.answered: Counter[str] = Counter()
        """How often each last message was answered."""

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery) -> Answer:
        self.free -= 1
        if self.free < 0:
            self.held += 1
            while self.free < 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(self._delay_s)
        self.answered[request["messages"][-1]["content"]] += 1
        self.times.append(time.monotonic())
        return await self._model.complete(request, delivery=delivery)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hold_after(self, calls: int) -> None:
        self.held, self.free = 0, calls

    def let_go(self) -> None:
        self.free = 10**9


class Swallowing(Relay):
    """Lets everything pass to the gateway but requests with this header, after the first few: they vanish."""

    def __init__(self, url: str, *, header: str, after: int) -> None:
        super().__init__(url)
        self._header = header.encode().lower()
        self._spared = after
        self.swallowed = 0

    def _copy(self, source: Any, sink: Any, from_client: bool) -> None:
        if not from_client:
            return super()._copy(source, sink, from_client)
        is_swallowing = False
        with suppress(OSError):
            while data := source.recv(65536):
                if not is_swallowing and self._header in data.lower():
                    is_swallowing = self._spared <= 0
                    self._spared -= 1
                    self.swallowed += is_swallowing
                if not is_swallowing:
                    sink.sendall(data)
        return None


SIGNATURES, SESSIONS = SIGNATURE_HEADER, SESSION_HEADER


def environment(net: Devnet, account: Account, folder: Path, **more: str) -> dict[str, str]:
    """What a worker finds in its environment."""
    return {
        "OG_PRIVATE_KEY": account.private_key,
        "OG_NETWORK": f"{net.gateway_url}/network",
        "OG_LEDGER_URL": f"sqlite:///{folder / 'job.sqlite'}",
        "XDG_STATE_HOME": str(folder / "state"),
        **more,
    }


class Job:
    """A job in a process of its own."""

    def __init__(self, rows: list[dict[str, Any]], options: dict[str, Any], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.defpath, **env},
        )
        task = json.dumps({"rows": rows, "options": options})
        threading.Thread(target=self._give, args=(task,), daemon=True).start()

    def _give(self, task: str) -> None:
        with suppress(OSError):
            self._process.stdin.write(task)
            self._process.stdin.close()

    def kill_when(self, is_so: Any, *, within_s: float = 60.0) -> None:
        """SIGKILL, as soon as something is so."""
        until = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < until, "the moment for the kill never came"
            assert self._process.poll() is None, "the job ended before it was killed"
            time.sleep(0.01)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
