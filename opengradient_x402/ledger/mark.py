"""What this machine remembers of a ledger, beside it: its id, and how many authorizations it held.

A database that was emptied, deleted or put back from an old copy does not know it, and a budget that counts in it
would begin anew. Only what was used from here before can be noticed. Does not read the database.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opengradient_x402.errors import ConfigurationError
from opengradient_x402.settings import state_directory

_log = logging.getLogger(__name__)
_LENGTH: Final = 96
"""Always as long, so that one write replaces all of it."""


class LedgerReplaced(Exception):
    """The database is not the one that was used here before, or it lacks what that one had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A ledger as it was seen last."""

    ledger_id: str
    authorizations: int


class Mark:
    """The file that remembers; without a place for it nothing is remembered."""

    def __init__(self, place: Path | None) -> None:
        self.path = None if place is None else place.with_name(place.name + ".mark")
        self._file: int | None = None
        self._written: Seen | None = None

    def read(self) -> Seen | None:
        """What was seen last; None for a ledger that was not used from here, and for a file that cannot be read."""
        try:
            known = json.loads(self.path.read_bytes()) if self.path is not None else {}
            return Seen(ledger_id=str(known["ledger"]), authorizations=int(known["authorizations"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check_file(self, file: Path | None) -> None:
        """Refuses a SQLite file that is gone or empty, and was not. Raises LedgerReplaced."""
        seen = self.read()
        if file is not None and seen is not None and seen.authorizations and not _size(file):
            what = "is empty" if file.exists() else "is gone"
            raise LedgerReplaced(f"its file {what}, and {_counted(seen.authorizations)} were recorded in it")

    @staticmethod
    def check(before: Seen | None, now: Seen) -> None:
        """Refuses another ledger than that of `before`, and an older state of it. Raises LedgerReplaced."""
        if before is None or not before.authorizations:
            return
        if before.ledger_id != now.ledger_id:
            raise LedgerReplaced(
                f"it is another ledger than the one that was used here before, which held "
                f"{_counted(before.authorizations)}"
            )
        if now.authorizations < before.authorizations:
            raise LedgerReplaced(
                f"it holds {_counted(now.authorizations)}, and {before.authorizations} were recorded in it before"
            )

    def write(self, seen: Seen) -> None:
        """Remembers what is in the database now, after it was committed there."""
        if self.path is None or seen == self._written:
            return
        self._written = seen
        text = json.dumps({"ledger": seen.ledger_id, "authorizations": seen.authorizations}).ljust(_LENGTH - 1) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(self.path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o600)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text.encode())
        except OSError as exc:
            _log.warning("%s cannot be written (%s): should the ledger be lost, it is not noticed.", self.path, exc)
            self.close()
            self.path = None

    def close(self) -> None:
        """Gives up the file; the next `write` opens it again."""
        file, self._file, self._written = self._file, None, None
        if file is not None:
            os.close(file)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases, for those in memory, and for SQLite's own URIs."""
    text = url.removeprefix("sqlite:///")
    path = text.partition("?")[0]
    return Path(path) if text != url and path and path != ":memory:" and not path.startswith("file:") else None


def beside(url: str) -> Path | None:
    """Where a ledger's own small files begin; None where they cannot be kept.

    They stand beside a SQLite file, hidden, and in the state directory for a server.
    """
    if url.startswith("sqlite"):
        file = sqlite_file(url)
        return None if file is None else file.with_name(f".{file.name}")
    try:
        state = state_directory()
    except ConfigurationError:  # no home directory
        return None
    server = "".join(url.partition("://")[::2]).rpartition("@")[2]  # another password is the same ledger
    return state / "ledgers" / hashlib.sha256(server.encode()).hexdigest()[:16]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _counted(number: int) -> str:
    return f"{number} authorization{'' if number == 1 else 's'}"
