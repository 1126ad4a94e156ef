"""The leaves of a ledger's history: one for every version of a record that was ever exported, in order.

Nothing of a call waits for it: leaves are added when a bundle is made. What a leaf is, and what can be proven with
it, is known in `proofs.history`. A leaf that was added is never changed or removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.ledger.tables import heads, leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All leaves (32 bytes each), where the wanted records stand among them, and the sizes at earlier exports."""

    leaves: tuple[bytes, ...]
    places: tuple[int, ...]
    sizes: tuple[int, ...]


def extend(conn: Connection, records: Sequence[tuple[str, bytes]]) -> History:
    """Adds a leaf for every record (its name, its leaf) whose last version is another one, and notes the new size."""
    known = conn.execute(sa.select(leaves.c.record, leaves.c.hash).order_by(leaves.c.sequence)).all()
    everything = [bytes.fromhex(row.hash) for row in known]
    last = {row.record: index for index, row in enumerate(known)}
    sizes = tuple(conn.execute(sa.select(heads.c.size).order_by(heads.c.size)).scalars())
    for name, leaf in records:
        if name not in last or everything[last[name]] != leaf:
            last[name] = len(everything)
            everything.append(leaf)
            conn.execute(leaves.insert().values(sequence=len(everything), record=name, hash=leaf.hex()))
    if everything and len(everything) not in sizes:
        conn.execute(heads.insert().values(size=len(everything)))
    return History(leaves=tuple(everything), places=tuple(last[name] for name, _ in records), sizes=sizes)
