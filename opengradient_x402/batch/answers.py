"""The folder that keeps a job's answers: rows with an answer in it are not called, and not paid, again.

Each process appends to a file of its own, a line an answer, and reads those of all others, so that many workers may
share the folder (a local one, or one that is mounted on every machine). However the process ends, no whole line is
lost. A file `job` says which job it is: the ids of its calls follow from it and from their keys.

Does not know rows, calls or payments.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.process import Ending, Resident, belongs

_JOB: Final = "job"
_SUFFIX: Final = ".jsonl"
_JOB_DIGITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer on disk: the digest of the request that it answers, and its columns."""

    asked: str
    columns: Mapping[str, Any]


class Answers(Resident):
    """The answers of one job. Thread-safe; a forked child writes a file of its own.

    Raises LedgerUnavailable when the folder cannot be used: nothing is paid then, since an answer would have no place.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._found: dict[bytes, tuple[str, int, int]] = {}
        self._read_until: dict[str, int] = {}
        self._renew()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.job = _job_in(self.folder)
        except OSError as exc:
            raise self._unusable(exc) from exc
        belongs(self, Ending.CONNECTIONS)

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._file: int | None = None
        self._name = ""
        self._written = 0

    def _end(self, timeout_s: float, /) -> None:  # noqa: ARG002  (closing waits for nobody)
        self.close()

    def __len__(self) -> int:
        return len(self._found)

    def find(self, key: str) -> Kept | None:
        """The answer of the row with this key, as far as `look` has read."""
        with self._lock:
            place = self._found.get(_digest(key))
        if place is None:
            return None
        name, start, length = place
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                line = json.loads(file.read(length))
        except (OSError, ValueError) as exc:
            raise self._unusable(exc) from exc
        return Kept(asked=line["asked"], columns=line["columns"])

    def look(self) -> None:
        """Reads what has come since, from every process's file."""
        with self._lock:
            try:
                names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(_SUFFIX)]
                for name in sorted(names):
                    self._read(name)
            except OSError as exc:
                raise self._unusable(exc) from exc

    def keep(self, key: str, kept: Kept) -> None:
        """Writes an answer. When this returns, it survives the end of the process; `flush` has it survive the machine.

        Raises LedgerUnavailable when it cannot be written.
        """
        record = {"key": key, "asked": kept.asked, "columns": dict(kept.columns)}
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                file = self._own_file()
                if os.write(file, line) != len(line):
                    raise OSError("the disk is full")
            except OSError as exc:
                raise self._unusable(exc) from exc
            self._found[_digest(key)] = self._name, self._written, len(line)
            self._written += len(line)
            self._read_until[self._name] = self._written

    def flush(self) -> None:
        """Returns when everything written so far is on the disk itself."""
        with self._lock:
            if self._file is not None:
                try:
                    os.fsync(self._file)
                except OSError as exc:
                    raise self._unusable(exc) from exc

    def close(self) -> None:
        """Gives up the file; the next answer begins another one."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                with suppress(OSError):
                    os.close(file)

    def _own_file(self) -> int:
        if self._file is None:
            self._name = f"{secrets.token_hex(8)}{_SUFFIX}"
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
            self._file, self._written = os.open(self.folder / self._name, flags, 0o600), 0
        return self._file

    def _read(self, name: str) -> None:
        start = self._read_until.get(name, 0)
        path = self.folder / name
        if path.stat().st_size <= start:
            return
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written, or its process was killed while it wrote
                with suppress(ValueError):  # a line that a full disk cut short, or that somebody edited
                    record = json.loads(line)
                    if _is_answer(record):
                        self._found.setdefault(_digest(record["key"]), (name, start, len(line)))
                start += len(line)
        self._read_until[name] = start

    def _unusable(self, exc: Exception) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"The folder of answers {self.folder} cannot be used ({type(exc).__name__}: {exc}). Nothing more is paid "
            "for this job: an answer would have no place. Free disk space, check the permissions, or give another "
            "folder as `answers` (then every row is paid anew)."
        )


def _is_answer(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("key"), str)
        and isinstance(record.get("asked"), str)
        and isinstance(record.get("columns"), dict)
    )


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogatepass")).digest()[:16]


def _job_in(folder: Path) -> str:
    """The id of this job; the first process makes it."""
    file = folder / _JOB
    if not file.exists():
        aside = folder / f".{_JOB}.{secrets.token_hex(8)}"
        aside.write_text(secrets.token_hex(_JOB_DIGITS // 2) + "\n")
        with suppress(FileExistsError):
            os.link(aside, file)  # whole, or not at all; and only once
        aside.unlink()
    job = file.read_text().strip()
    if len(job) != _JOB_DIGITS:
        raise OSError(f"its file {_JOB!r} is damaged")
    return job
