"""How far a day's budget reaches: said once, with a process's first authorization, where users expect more of it.

A budget in a file is a budget of that file. A container that is started again, a second container, and a second ledger
of the same wallet each begin with the whole budget. Does not know what was spent.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from opengradient_x402.ledger.mark import sqlite_file
from opengradient_x402.ledger.writer import without_password
from opengradient_x402.settings import platform_of_many

_log = logging.getLogger(__name__)
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
    """What was found and said in this process."""

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
                "file: whoever starts with a new one starts with the whole budget, and without the receipts.",
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


OF_THE_PROCESS: Final = Scope()


def _file_system(file: Path) -> str:
    """The type of the file system that holds it; empty where nothing tells (other systems than Linux)."""
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
