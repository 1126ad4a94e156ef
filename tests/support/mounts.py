"""A table of mounts, as Linux shows it, for tests of where a ledger is."""

from __future__ import annotations

from pathlib import Path

import pytest

from opengradient_x402.ledger import place

_TABLE = """22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / {point} rw,nosuid shared:1 - {kind} none rw
"""


def mounts(monkeypatch: pytest.MonkeyPatch, point: Path, *, kind: str) -> Path:
    """From now on a file system of this kind is mounted there; the file that says so."""
    table = point / "mountinfo"
    table.write_text(_TABLE.format(point=point, kind=kind))
    monkeypatch.setattr(place, "_MOUNTS", table)
    return table
