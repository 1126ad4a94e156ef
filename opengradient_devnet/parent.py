"""Notices that the process which started this one has ended, so that no devnet is left behind.

Two signs: the parent's process id changes (another process adopts the orphan), or the pipe at standard input ends
(it has no writer left). The command line then stops the devnet.
"""

from __future__ import annotations

import os
import select
import stat
import sys


class ParentWatch:
    """Remembers the parent of now; ask `is_gone` from time to time."""

    def __init__(self) -> None:
        self._parent_id = os.getppid()
        self._stdin = _stdin_pipe()

    def is_gone(self) -> bool:
        """True once the parent has ended, or has closed our standard input."""
        return os.getppid() != self._parent_id or self._has_stdin_ended()

    def _has_stdin_ended(self) -> bool:
        if self._stdin is None:
            return False
        readable, _, _ = select.select([self._stdin], [], [], 0)
        return bool(readable) and os.read(self._stdin, 4096) == b""


def _stdin_pipe() -> int | None:
    """Standard input, if it is a pipe that somebody holds open: a terminal or /dev/null says nothing."""
    if sys.stdin is None or sys.platform == "win32":
        return None
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):
        return None
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
