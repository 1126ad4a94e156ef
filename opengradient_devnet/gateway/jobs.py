"""Settlements that wait in a queue for one worker, as with OpenGradient's facilitator: done seconds after the answer.

Each job is done once, one after another, in the order in which they came. Nothing runs by itself: the housekeeper calls
`run_due`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    due_s: float
    work: Callable[[], object]


class Jobs:
    """A queue of work. Usable from any thread."""

    def __init__(self, *, delay_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._delay_s = delay_s
        self._clock = clock
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._waiting: deque[_Job] = deque()

    def submit(self, kind: str, work: Callable[[], object]) -> str:
        """Put `work` at the end of the queue; returns the id of the job."""
        with self._lock:
            self._waiting.append(_Job(due_s=self._clock() + self._delay_s, work=work))
        return f"{kind}-{uuid.uuid4()}"

    def run_due(self) -> None:
        """Do what has waited long enough."""
        self._run(until_s=self._clock())

    def run_all(self) -> None:
        """Do everything that waits, without waiting."""
        self._run(until_s=float("inf"))

    def _run(self, *, until_s: float) -> None:
        with self._working:
            while (job := self._take(until_s)) is not None:
                job.work()

    def _take(self, until_s: float) -> _Job | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and self._waiting[0].due_s <= until_s else None
