"""Where a ledger is: what its URL means, what this machine remembers of it, and how far a budget in it reaches.

Beside a ledger stand its id, and how many authorizations it held. A database that was emptied, deleted or put back
from an old copy does not know them, and a budget that counts in it would begin at zero again. This can only be
noticed for a ledger that was used from here before. For a day the same stands in the user's cache directory: a ledger
whose whole folder was deleted, or put back from an old copy, is noticed too.

A budget in a file is a budget of that file. A container that is started again, a second container, and a second ledger
of the same wallet each begin with the whole budget. That is said once, with a process's first authorization. Nothing
here reads the database, or knows what was spent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.authorizations import BUDGET_WINDOW_S
from opengradient_x402.settings import cache_directory, platform_of_many, state_directory

_log = logging.getLogger(__name__)
_LENGTH: Final = 96
"""The content always has this length, so that one write replaces all of it."""


class LedgerReplaced(Exception):
    """The database is not the one that was used here before, or it lacks what that one had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A ledger as it was seen last."""

    ledger_id: str
    authorizations: int


_SEEN_HERE: Final[dict[Path, Seen]] = {}
"""What this process saw last of each ledger: the file that remembers can be lost together with the database."""


class Mark:
    """The file that keeps what was seen. Where no file can be kept, nothing is remembered."""

    def __init__(self, url: str) -> None:
        place = beside(url)
        self.path = self._name = None if place is None else place.with_name(place.name + ".mark")
        self._file: int | None = None
        self._written: Seen | None = None
        self._far = _FarMark(url)

    def read(self) -> Seen | None:
        """What was seen last; by this process, where the file is gone or cannot be read. None for a new ledger."""
        try:
            known = json.loads(_content(self.path)) if self.path is not None else {}
            return Seen(ledger_id=str(known["ledger"]), authorizations=int(known["authorizations"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None if self._name is None else _SEEN_HERE.get(self._name)

    def check_file(self, file: Path | None) -> None:
        """Refuses a SQLite file that is gone or empty now, and was not before. Raises LedgerReplaced."""
        seen = self.read()
        if file is not None and seen is not None and seen.authorizations and not _size(file):
            what = "is empty" if file.exists() else "is gone"
            raise LedgerReplaced(f"its file {what}, and {_counted(seen.authorizations)} were recorded in it")

    def read_far(self) -> Seen | None:
        """What the user's cache directory remembers of the last day; None where it remembers nothing."""
        return self._far.read()

    def is_loss(self, before: Seen | None, lately: Seen | None, now: Seen) -> bool:
        """Whether another ledger was used here lately, of which only the user's cache directory knows.

        `before` and `lately` were read (`read`, `read_far`) before the database: others may write meanwhile. Raises
        LedgerReplaced for another ledger than that of `before`, and for an older state of either.
        """
        self.check(before, now)
        if lately is None:
            return False
        if lately.ledger_id == now.ledger_id:
            self.check(lately, now)
            return False
        is_known = before is not None and before.ledger_id == now.ledger_id
        return not is_known and self._far.is_of_lasting_place

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
        if seen == self._written:
            return
        self._written = seen
        self._far.write(seen)
        if self._name is not None:
            _SEEN_HERE[self._name] = seen
        if self.path is None:
            return
        text = json.dumps({"ledger": seen.ledger_id, "authorizations": seen.authorizations}).ljust(_LENGTH - 1) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(self.path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o600)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text.encode())
        except OSError as exc:
            _log.warning("%s cannot be written (%s): if the ledger is lost, this will not be noticed.", self.path, exc)
            self.close()
            self.path = None

    def accept(self, seen: Seen) -> None:
        """From now on this is the ledger of this place, also if it is empty."""
        self._far.write(seen, also_empty=True)
        self.write(seen)
        self.close()

    def check_again(self, now: Seen) -> None:
        """Refuses a database that lost what it held: when it was last looked at here, or when another process wrote.

        A file can be overwritten in place, and a server's tables emptied. Raises LedgerReplaced.
        """
        for before in (self._written, self.read()):
            self.check(before, now)

    def close(self) -> None:
        """Gives up the file; the next `write` opens it again."""
        if self._written is not None:
            self._far.write_rest(self._written)
        file, self._file, self._written = self._file, None, None
        if file is not None:
            os.close(file)


_FAR_LENGTH: Final = 128
_AGAIN_S: Final = 60
_LATELY_S: Final = BUDGET_WINDOW_S + 3600
"""What was signed earlier counts in no budget: the hour is more than any signature lives."""


class _FarMark:
    """What the cache directory remembers of a ledger that was used lately.

    Written once a minute at most, and at the end: of a process that was killed, the ledger may hold more.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._file = sqlite_file(url)
        self._written = "", 0

    @cached_property
    def _path(self) -> Path | None:
        """Reads a file, and so only in the ledger's thread."""
        directory = None if beside(self._url) is None else cache_directory()
        return None if directory is None else directory / "ledgers" / f"{_hash_here(self._url)}.mark"

    def read(self) -> Seen | None:
        if self._path is None:
            return None
        try:
            known = json.loads(_content(self._path))
            seen = Seen(ledger_id=str(known["ledger"]), authorizations=int(known["authorizations"]))
            return seen if int(known["at"]) > time.time() - _LATELY_S else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    @property
    def is_of_lasting_place(self) -> bool:
        """Whether the ledger should still be there. What is in memory or in a container begins anew each time."""
        return self._file is None or _file_system(self._file) not in _SHORT_LIVED

    def write(self, seen: Seen, *, also_empty: bool = False) -> None:
        now = int(time.time())
        if self._path is None or not (seen.authorizations or also_empty):
            return
        ledger_id, at = self._written
        if ledger_id == seen.ledger_id and now - at < _AGAIN_S:
            return
        self._written = seen.ledger_id, now
        if not self.is_of_lasting_place:
            return  # else a volume that is put there later would be taken for its successor
        text = json.dumps({"ledger": seen.ledger_id, "authorizations": seen.authorizations, "at": now})
        try:
            if not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._forget_old(now)
            opened = os.open(self._path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                os.write(opened, (text.ljust(_FAR_LENGTH - 1) + "\n").encode())
            finally:
                os.close(opened)
        except OSError as exc:
            _log.debug("%s cannot be written (%s).", self._path, exc)
            self._path = None

    def write_rest(self, seen: Seen) -> None:
        """Writes what was left out within a minute, unless another process, or another ledger, came after it."""
        known = self.read()
        if known is not None and known.ledger_id == seen.ledger_id and known.authorizations < seen.authorizations:
            self._written = "", 0
            self.write(seen)

    def _forget_old(self, now: int) -> None:
        """Programs that begin a new ledger each time would leave files without end."""
        for known in self._path.parent.glob("*.mark") if self._path is not None else ():
            with suppress(OSError):
                if known.stat().st_mtime < now - _LATELY_S:
                    known.unlink()


def _content(file: Path) -> bytes:
    """The beginning of a file. Every authorization pays for it: it takes half as long as Path's way."""
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return os.read(opened, 4 * _LENGTH)
    finally:
        os.close(opened)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _counted(number: int) -> str:
    return f"{number} authorization{'' if number == 1 else 's'}"


# -- URLs


_NO_PATH: Final = re.compile(
    r"""(postgres|mysql|mariadb|mssql|oracle|sqlite)[a-z0-9]*(\+[a-z0-9]+)?:  # a scheme, and one slash or none
    | [^/\\:@]*:(?![/\\]).*@  # user:password@host, but no drive of Windows
    | [^/\\:@]+@[^/\\:@]+[:/]  # user@host/name
    | [a-z0-9.-]+:[0-9]+/""",  # host:5432/name
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def as_url(url: str | Path) -> str:
    """The URL of a database: a path is that of a SQLite file.

    Raises ConfigurationError, without the text, for a text that looks like a database's URL whose scheme is missing.
    """
    text = str(url)
    if "://" in text:
        return text
    if isinstance(url, str) and _NO_PATH.match(text):
        raise ConfigurationError(
            "The ledger (OG_LEDGER_URL, --ledger) looks like a database's URL, but has no `scheme://` before it; it "
            "would be the name of a file. Nothing was paid. Write `postgresql+psycopg://user:password@host/name`; "
            "for a file of this name, write `./` before it."
        )
    return f"sqlite:///{text}"


def location(url: str | Path) -> str:
    """The one URL of a database: a relative path means the working directory of now, also after it was changed."""
    text = as_url(url)
    if not text.startswith("sqlite:///") or is_in_memory(text):
        return text
    path, mark, query = text.removeprefix("sqlite:///").partition("?")
    return f"sqlite:///{Path(path).absolute()}{mark}{query}" if path and not path.startswith("file:") else text


def is_in_memory(url: str) -> bool:
    """Whether the database lives in its connection, and ends with it."""
    return url == "sqlite://" or (url.startswith("sqlite") and (":memory:" in url or "mode=memory" in url))


def without_password(url: str) -> str:
    """The URL, fit to be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


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
    return state / "ledgers" / _hash_of(url)


def _hash_of(url: str) -> str:
    if not url.startswith("sqlite"):
        url = "".join(url.partition("://")[::2]).rpartition("@")[2]  # another password is the same ledger
    return hashlib.sha256(url.encode()).hexdigest()[:16]


_MACHINE: Final = Path("/etc/machine-id")
"""Its name for each machine (machine-id(5)); containers have none."""


def _hash_here(url: str) -> str:
    """Names a file on this machine, however its URL is written: machines may share a home, and not the file's disk."""
    if (file := sqlite_file(url)) is None:
        return _hash_of(url)
    try:
        machine = _MACHINE.read_text().strip()
    except (OSError, ValueError):
        machine = ""
    return _hash_of(f"sqlite {machine} {file.absolute()}")


# -- how far a budget reaches

_MOUNTS: Final = Path("/proc/self/mountinfo")
_SHORT_LIVED: Final = {
    "aufs": "a container's own file system",
    "overlay": "a container's own file system",
    "ramfs": "memory",
    "tmpfs": "memory",
}
_WHAT_TO_SET: Final = (
    "For one budget of all of them, set OG_LEDGER_URL to a PostgreSQL server, or to a file on a volume that lasts and "
    'that they share (docs/how-to/budgets.md, "How far a budget reaches").'
)


class Scope:
    """What this process knows of the reach of its budgets, and which warnings it has given."""

    def __init__(self) -> None:
        self._ledger_of: dict[str, str] = {}
        self._looked_at: set[str] = set()
        self._is_said: set[str] = set()

    def look(self, location: str, payer: str) -> None:
        """Warns of what this wallet's budget in this ledger does not count. Reads files; raises nothing."""
        if location not in self._looked_at:
            self._looked_at.add(location)
            if (file := sqlite_file(location)) is not None:
                self._look_at(file)
        if self._ledger_of.setdefault(payer, location) != location:
            self._say(
                "ledgers",
                f"The wallet {payer} pays from two ledgers, {without_password(self._ledger_of[payer])} and "
                f"{without_password(location)}. Each counts its own payments: it may spend the day's budget of both.",
            )

    def _look_at(self, file: Path) -> None:
        kind = _SHORT_LIVED.get(_file_system(file))
        if kind is not None:
            self._say(
                "place",
                f"The ledger {file} is in {kind}, and is gone when that ends. The day's budget counts what is in this "
                "file: a program that starts with a new one has the whole budget again, and no receipts.",
            )
        elif (platform := platform_of_many()) is not None:
            self._say(
                "platform",
                f"The ledger {file} is a file, and this process runs on {platform}, which may run several copies of "
                "it. The day's budget counts what is in this file: a copy with another file has a whole budget too.",
            )

    def _say(self, what: str, text: str) -> None:
        if what not in self._is_said:
            self._is_said.add(what)
            _log.warning("%s %s", text, _WHAT_TO_SET)


SCOPE: Final = Scope()


def _file_system(file: Path) -> str:
    """The type of the file system that holds it; empty where it is not known (on other systems than Linux)."""
    try:
        place = file.absolute().parent
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    longest, kind = -1, ""
    for line in lines:
        # proc_pid_mountinfo(5): the fifth field is the mount point, the type stands behind " - ".
        fields, _, rest = line.partition(" - ")
        point = Path(fields.split()[4].replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= longest:
            longest, kind = len(point.parts), rest.split()[0]
    return kind
