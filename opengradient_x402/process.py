"""What belongs to this process: made again in a child after a fork, and ended in one order when the process ends.

Sockets, threads, database connections, locks, sessions and remembered terms must not be used by two processes.
An object that holds some of them is a `Resident`, and says what to do at each of these moments; when, and in which
order, is decided here alone: the only `os.register_at_fork` and the only `atexit` of the package. A child that
`multiprocessing` forked runs no `atexit`; there its own finalizers call the same chain.

Every wait has a limit: a fork or an exit may be late, and never hangs. Does not know what the residents are.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

_log = logging.getLogger(__name__)

FORK_WAIT_S: Final = 5.0
"""The longest that a fork waits for writers to come to rest."""
EXIT_WAIT_S: Final = 10.0
"""The longest that all residents together may take to end when the process ends."""


class Ending(IntEnum):
    """The order in which residents end: first who uses the others, last who is used."""

    WATCHERS = 0
    STREAMS = 1
    CONNECTIONS = 2
    LEDGERS = 3


class Resident:
    """Something that belongs to one process. Held weakly; everything here may be left as it is."""

    __slots__ = ("__weakref__",)

    def _come_to_rest(self) -> Callable[[float], object] | None:
        """Before a fork, in the parent: begin to give up what a child must not inherit; returns how to wait for it."""

    def _go_on(self) -> None:
        """After a fork, in the parent."""

    def _renew(self) -> None:
        """After a fork, in the child, where no other thread lives: take new locks, forget what is the parent's."""

    def _end(self, timeout_s: float, /) -> None:
        """At the end of the process: close, waiting no longer than this."""


class Process:
    """The residents of this process, and the moments at which their methods are called."""

    def __init__(self) -> None:
        self._residents: dict[Ending, weakref.WeakSet[Resident]] = {ending: weakref.WeakSet() for ending in Ending}
        self._forking = threading.Lock()
        self._is_in_multiprocessing = False

    def add(self, resident: Resident, ending: Ending) -> None:
        self._join_multiprocessing()
        self._residents[ending].add(resident)

    def end(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        for ending in Ending:
            for resident in self.known(ending):
                try:
                    resident._end(max(0.0, until - time.monotonic()))
                except Exception:  # noqa: BLE001  (the process's boundary: the others must still be ended)
                    _log.exception("%s could not be closed in good order", type(resident).__name__)

    def before_fork(self) -> None:
        self._forking.acquire(timeout=FORK_WAIT_S)  # two threads may fork at once
        self._join_multiprocessing()
        until = time.monotonic() + FORK_WAIT_S
        waits = [resident._come_to_rest() for ending in Ending for resident in self.known(ending)]
        for wait in waits:
            if wait is not None:
                wait(max(0.0, until - time.monotonic()))

    def after_fork_in_parent(self) -> None:
        for ending in Ending:
            for resident in self.known(ending):
                resident._go_on()
        if self._forking.locked():
            self._forking.release()

    def after_fork_in_child(self) -> None:
        self._forking = threading.Lock()
        for ending in Ending:
            known = self.known(ending)
            self._residents[ending] = weakref.WeakSet(known)  # the inherited set may be in use by a thread that is gone
            for resident in known:
                resident._renew()

    def known(self, ending: Ending) -> list[Resident]:
        while True:
            try:
                return list(self._residents[ending])
            except RuntimeError:  # another thread added one meanwhile
                continue

    def _join_multiprocessing(self) -> None:
        """Makes the children of `multiprocessing` end in order too: they exit by `os._exit`."""
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None and not self._is_in_multiprocessing:
            self._is_in_multiprocessing = True
            util.register_after_fork(self, lambda _: util.Finalize(None, end_all, exitpriority=0))
            if sys.modules["multiprocessing.process"].parent_process() is not None:  # a child that has begun
                util.Finalize(None, end_all, exitpriority=0)


_PROCESS: Final = Process()


def belongs(resident: Resident, ending: Ending) -> None:
    """Makes `resident` known; it is forgotten when nobody else holds it."""
    _PROCESS.add(resident, ending)


def residents(ending: Ending) -> list[Resident]:
    """Who ends at this moment, of those that live now."""
    return _PROCESS.known(ending)


def end_all(timeout_s: float = EXIT_WAIT_S) -> None:
    """Ends all residents in order. Calling it again ends what has come since."""
    _PROCESS.end(timeout_s)


class OwnLock(Resident):
    """A reentrant lock that is free in a forked child, also when a thread of the parent held it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()
        belongs(self, Ending.WATCHERS)

    def _renew(self) -> None:
        """Free, since no other thread lives here."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


atexit.register(end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_PROCESS.before_fork,
        after_in_parent=_PROCESS.after_fork_in_parent,
        after_in_child=_PROCESS.after_fork_in_child,
    )
