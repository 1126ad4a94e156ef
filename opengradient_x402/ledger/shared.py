"""The ledgers of a process: one for each database, shared by all wallets that pay into it.

A ledger has a thread and connections. All users of a database share its ledger; the last one
that releases it closes it.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Final

from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.place import is_in_memory, location
from opengradient_x402.process import OwnLock


class Ledgers:
    """Ledgers by their database. Thread-safe."""

    def __init__(self) -> None:
        self._lock = OwnLock()
        self._open: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()
        self._users: weakref.WeakKeyDictionary[Ledger, int] = weakref.WeakKeyDictionary()

    def opened(self, url: str | Path) -> Ledger:
        """The ledger of this database, for one more user."""
        if is_in_memory(str(url)):  # each of them is another database
            return Ledger(url)
        with self._lock:
            place = location(url)
            ledger = self._open.get(place)
            if ledger is None or ledger.is_closed:
                ledger = self._open[place] = Ledger(url)
            self._users[ledger] = self._users.get(ledger, 0) + 1
            return ledger

    def found(self, url: Ledger | str | Path) -> Ledger:
        """The ledger of this database, for somebody who asks it now and then: others may close it."""
        if isinstance(url, Ledger):
            return url
        with self._lock:
            place = location(url)
            ledger = self._open.get(place)
            if ledger is None or ledger.is_closed:
                ledger = self._open[place] = Ledger(url)
            return ledger

    def used(self, ledger: Ledger) -> None:
        """Counts one more user, who does not close the ledger."""
        with self._lock:
            self._users[ledger] = self._users.get(ledger, 0) + 1

    def left(self, ledger: Ledger) -> None:
        """Counts one of these users less. The ledger stays open: receipts that were given out may still ask it."""
        with self._lock:
            self._users[ledger] = max(0, self._users.get(ledger, 0) - 1)

    def released(self, ledger: Ledger) -> None:
        """Counts one user less. The last one closes the ledger; for the others it writes what waits."""
        with self._lock:
            left = self._users[ledger] = self._users.get(ledger, 1) - 1
        if left > 0:
            ledger.flush()
        else:
            ledger.close()


OF_THE_PROCESS: Final = Ledgers()
