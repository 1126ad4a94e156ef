"""Receipts on their way into the ledger, in a file of this process, which outlives the process.

A record that cannot be in the database at once is written here before the caller gets its answer: with one write,
which a killed process does not lose. It is dropped when the database has it. What a dead process leaves behind (this
file, and that of its calls under way) is taken up by the next process that opens the ledger, or records a settlement
in it; the lock on the file shows whether its process still lives.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: nothing tells whether the owner lives, so there is no journal
    flock = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)
CAN_TELL_WHO_LIVES: Final = flock is not None
JOURNAL: Final = ".calls-"
UNDER_WAY: Final = ".under-way-"
_LONGEST: Final = 65_536
"""Bytes. A file without records is emptied when it is longer than this, not after each record."""


class Journal:
    """The file of one ledger object. Thread-safe; begun when first needed."""

    def __init__(self, place: Path | None) -> None:
        self._place = place if flock is not None else None
        self._lock = threading.RLock()  # reentrant: the garbage collector may end a dropped stream anywhere
        self._path: Path | None = None
        self._file: int | None = None
        self._length = 0
        self._kept: dict[str, bytes] = {}

    @property
    def path(self) -> Path | None:
        """Where it is; None while there is none."""
        return self._path

    def keep(self, call_id: str, text: str) -> bool:
        """Writes the record. False when that was not possible."""
        line = text.encode() + b"\n"
        with self._lock:
            try:
                if self._file is None:
                    self._begin()
                if self._file is None:
                    return False
                self._kept[call_id] = line
                self._length += os.write(self._file, line)
            except OSError as exc:  # e.g. a full disk: the ledger says so too, with its advice
                _log.warning("A receipt could not be kept beside the ledger (%s).", exc)
                self._kept.pop(call_id, None)
                return False
            return True

    @property
    def promise(self) -> str:
        """The sentence for an error: the receipt is kept here, and recorded later."""
        return (
            f"The call was made, and its receipt is kept in {self._path}: it is recorded when the ledger can be "
            "written again."
        )

    def drop(self, call_id: str) -> None:
        """Drops a record that the database has."""
        with self._lock:
            self._kept.pop(call_id, None)
            if not self._kept and self._length > _LONGEST and self._file is not None:
                os.ftruncate(self._file, 0)
                self._length = 0
                for line in self._kept.values():  # one came in from the garbage collector meanwhile
                    self._length += os.write(self._file, line)

    def close(self) -> None:
        """Ends the file; what the database does not have stays in it, for the next opening."""
        with self._lock:
            file, path, self._file, self._path = self._file, self._path, None, None
            if file is not None and path is not None:
                if not self._kept:
                    path.unlink(missing_ok=True)
                os.close(file)
            self._kept, self._length = {}, 0

    def renew(self) -> None:
        """In a forked child: the file, and the lock on it, are the parent's."""
        self._lock = threading.RLock()
        if self._file is not None:
            os.close(self._file)
        self._file, self._path, self._kept, self._length = None, None, {}, 0

    def _begin(self) -> None:
        if self._place is None:
            return
        self._path, self._file = begun(self._place, JOURNAL, os.O_APPEND)


def begun(place: Path, kind: str, flags: int = 0) -> tuple[Path, int]:
    """A new file of this process beside the ledger, and its descriptor, which holds the lock. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        path = place.with_name(f"{place.name}{kind}{os.getpid()}-{secrets.token_hex(4)}")
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        if _is_mine(file):
            return path, file
        os.close(file)  # another process took it for one that was left behind


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A file of a process that is gone: its journal, or its calls under way."""

    path: Path
    file: int

    @property
    def is_journal(self) -> bool:
        """Whether it holds receipts, one a line."""
        return JOURNAL in self.path.name

    def records(self) -> Iterator[str]:
        """Its records, oldest first; the last one may be incomplete."""
        with open(self.file, encoding="utf-8", errors="replace", closefd=False) as lines:
            yield from lines

    def remove(self) -> None:
        """Deletes the file: the database has all of its records."""
        self.path.unlink(missing_ok=True)
        os.close(self.file)

    def leave(self) -> None:
        """Leaves the file for the next process that opens the ledger."""
        os.close(self.file)


def left_behind(place: Path | None) -> Iterator[LeftBehind]:
    """The files beside this ledger whose processes are gone, journals first."""
    if place is None or flock is None:
        return
    for path in (*_beside(place, JOURNAL), *_beside(place, UNDER_WAY)):
        with suppress(OSError):  # somebody else has taken it up meanwhile
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _is_mine(file):
                yield LeftBehind(path, file)
            else:
                os.close(file)


def noted(place: Path | None) -> Iterator[int]:
    """The files of calls under way beside this ledger, also of living processes; each is open while it is looked at."""
    for path in [] if place is None else _beside(place, UNDER_WAY):
        with suppress(OSError):  # it has ended meanwhile
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield file
            finally:
                os.close(file)


def _beside(place: Path, kind: str) -> list[Path]:
    """The files of this kind, in the order of their names."""
    with suppress(OSError):
        names = [name for name in os.listdir(place.parent) if name.startswith(place.name + kind)]  # noqa: PTH208
        return [place.with_name(name) for name in sorted(names)]
    return []


def _is_mine(file: int) -> bool:
    """Whether nobody else has this file, and it is still there."""
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return os.fstat(file).st_nlink > 0
