"""One reading of the chain for all processes of a wallet: the others wait for it, and share what it found.

A budget that is used up is used up for all processes at the same moment. Each of them would ask the node the same
questions, one after another, for as long as all of them together take. What a reading finds is in the ledger; that it
is under way, or ended a moment ago, is noted there too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from opengradient_x402.ledger.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book

_LOOK_AGAIN_S: Final = 0.2
_SIGN_OF_LIFE_S: Final = 3.0
_LONGEST_S: Final = 15.0
"""After this time without a sign of life the reader counts as gone: it was killed, or its program ended."""
_FRESH_S: Final = 10.0
"""For this time nobody reads again what somebody else has read."""
_SHARED_FAILURE_S: Final = 2.0
"""For this time a reading that failed counts as read, for those who waited for it. Later ones try for themselves."""


class _State(Enum):
    READING = "reading"
    READ = "read"
    FAILED = "failed"


_VALID_S: Final = {_State.READING: _LONGEST_S, _State.READ: _FRESH_S, _State.FAILED: _SHARED_FAILURE_S}


def read_together(ledger: Ledger, name: str, read: Callable[[], None]) -> None:
    """Calls `read`, which reads the chain into the ledger, unless another process does so now or did a moment ago.

    `name` says what is read. Returns when it is read, here or by the other one, or when the other one has failed.
    """
    key = f"chain {name}"
    while (found := ledger.submit(lambda book, conn: _begun(book, conn, key)).result()) is _State.READING:
        time.sleep(_LOOK_AGAIN_S)
    if found is not None:
        return
    ended, is_over = _State.FAILED, threading.Event()

    def say() -> None:
        while not is_over.wait(_SIGN_OF_LIFE_S):
            ledger.note(key, _now(_State.READING))

    saying = threading.Thread(target=say, name="opengradient-reading", daemon=True)
    saying.start()
    try:
        read()
        ended = _State.READ
    finally:
        is_over.set()
        saying.join()  # it must not note that this goes on, after the end is noted
        ledger.note(key, _now(ended))


def _begun(book: Book, conn: Connection, key: str) -> _State | None:
    """What somebody else has noted; None when nothing of it counts any more, and this process begins."""
    state, _, at = (book.noted(conn, key) or "").partition(" ")
    for known, valid_s in _VALID_S.items():
        if state == known.value and 0 <= time.time() - float(at) < valid_s:
            return known
    book.note(conn, key, _now(_State.READING))
    return None


def _now(state: _State) -> str:
    return f"{state.value} {time.time():.3f}"
