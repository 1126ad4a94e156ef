"""Streams whose reader went away without closing them: they end, and their receipts are recorded.

A web server drops the generator of a client that left, and what is dropped may wait for the garbage collector, which a
quiet server does not run. So a thread, which lives while streams are open, has the collector look for streams that
nobody has read for a moment, and closes those that nobody has read for long.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Final, Protocol

from opengradient_x402.process import Ending, Resident, belongs

COLLECT_AFTER_S: Final = 1.5
"""Seconds without a read until a stream is looked for; then after twice, four times as long, and so on."""
LEAST_LIMIT_S: Final = 60.0
"""A stream that is not read is closed after the time limit of its call, and not before this."""
_LOOK_EVERY_S: Final = 0.5
_LINGER_S: Final = 10.0
_REST_FACTOR: Final = 10
"""Looking takes at most one part in this many of the process's time."""


class Stream(Protocol):
    """An open stream."""

    read_at: float | None
    """When it was read last (monotonic seconds); None while somebody reads it."""

    @property
    def unread_limit_s(self) -> float: ...
    def give_up(self) -> None: ...


class Watch(Resident):
    """All open streams of a process. Thread-safe."""

    def __init__(self) -> None:
        self._renew()
        belongs(self, Ending.WATCHERS)

    def _renew(self) -> None:
        """In a forked child: its streams are the parent's, and so is the thread."""
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._looked: weakref.WeakKeyDictionary[Stream, tuple[float, float]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0

    def add(self, stream: Stream) -> None:
        """Watches this stream from now on: it is ended when it is not read any more."""
        with self._lock:
            self._streams.add(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="opengradient-streams", daemon=True)
                self._thread.start()

    def remove(self, stream: Stream) -> None:
        """The stream has ended. Safe in a finalizer."""
        self._streams.discard(stream)

    def _keep(self) -> None:
        used_at = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            if self._streams:
                used_at = time.monotonic()
                self.look()
            with self._lock:
                if not self._streams and time.monotonic() - used_at > _LINGER_S:
                    self._thread = None
                    return

    def look(self) -> None:
        """Ends the streams that are certainly not read any more."""
        now, is_due = time.monotonic(), False
        streams = self._open()
        for stream in streams:
            read_at = stream.read_at
            if read_at is None:
                continue
            if now - read_at >= stream.unread_limit_s:
                stream.give_up()
                continue
            known_at, after_s = self._looked.get(stream, (read_at, COLLECT_AFTER_S))
            after_s = after_s if known_at == read_at else COLLECT_AFTER_S
            if now - read_at >= after_s and now >= self._rest_until:
                is_due = True
                self._looked[stream] = read_at, 2 * after_s
        stream = None  # type: ignore[assignment]  # what is held here is never found
        streams.clear()
        if is_due:
            gc.collect()
            self._rest_until = now + _REST_FACTOR * (time.monotonic() - now)

    def _open(self) -> list[Stream]:
        while True:
            try:
                return list(self._streams)
            except RuntimeError:  # one was opened or closed meanwhile
                continue


OPEN_STREAMS: Final = Watch()
