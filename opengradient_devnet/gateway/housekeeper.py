"""A thread that runs chores: at a regular interval, and at once when somebody has work for it.

A chore that fails is logged and tried again the next time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)


class Housekeeper:
    """Runs chores one after another until `stop`."""

    def __init__(self, *, beat_s: float) -> None:
        self._beat_s = beat_s
        self._wake = threading.Event()
        self._is_stopping = False
        self._chores: list[Callable[[], object]] = []
        self._thread = threading.Thread(target=self._run, name="opengradient-devnet-housekeeper")

    def start(self, chores: Sequence[Callable[[], object]]) -> None:
        """Begin; the first round is one beat away."""
        self._chores = list(chores)
        self._thread.start()

    def wake(self) -> None:
        """Run the chores now."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the round that is running, and end."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._beat_s)
            self._wake.clear()
            if self._is_stopping:
                return
            for chore in self._chores:
                try:
                    chore()
                except Exception:  # noqa: BLE001 - the boundary of a thread: one bad session must not strand the rest
                    _log.exception("A chore of the devnet failed; it is tried again.")
