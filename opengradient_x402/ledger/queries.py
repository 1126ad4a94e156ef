"""What is read from the ledger's tables: receipts and authorizations, by what picks them. Every query uses an index."""

from __future__ import annotations

import time
from functools import cache
from itertools import product
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from opengradient_x402.ledger.authorizations import BUDGET_WINDOW_S, Authorization, Objections
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.tables import (
    IS_OPEN,
    WITH_SIGNATURES,
    Prepared,
    authorizations,
    authorizations_in,
    calls,
    pins,
    receipt_in,
)

_AUTHORIZATION = Prepared(WITH_SIGNATURES.where(authorizations.c.id == sa.bindparam("wanted")))
_NOTED = Prepared(sa.select(pins.c.value).where(pins.c.key == sa.bindparam("wanted")))
OPEN = "open"
LOSS = "another ledger was here"
"""A note's key: the value is when it was found to be gone."""


class _ByBytes(FunctionElement[str]):
    """A text that is compared byte by byte. The order of a server's language puts `~` before letters."""

    type = sa.Text()
    inherit_cache = True


@compiles(_ByBytes)
def _as_it_is(element: _ByBytes, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(_ByBytes, "postgresql")
def _collated(element: _ByBytes, compiler: Any, **kw: Any) -> str:
    return f'({compiler.process(element.clauses, **kw)} COLLATE "C")'


_key = _ByBytes(pins.c.key)
KEYS = sa.select(pins.c.key).where(_key > sa.bindparam("after"), _key < sa.bindparam("before"))
_FIRST_OPEN_KEY = Prepared(KEYS.where(pins.c.value == OPEN).limit(1))
_MOST_IDS = 256  # of one statement; SQLite has a limit


class Queries:
    """Reads over one connection. `dialect` is the database's name in SQLAlchemy."""

    def __init__(self, dialect: str) -> None:
        self._is_sqlite = dialect == "sqlite"

    def noted(self, conn: Connection, key: str) -> str | None:
        found: str | None = _NOTED.value(conn, {"wanted": key})
        return found

    def objections(self, conn: Connection, network: str, payer: str, origin: str) -> Objections:
        found = _FIRST_OPEN_KEY.value(conn, beginning(dispute_prefix(network, origin)))
        is_loss = self.follows_loss(conn) and self.noted(conn, f"{LOSS} {network} {payer}") is None
        return Objections(None if found is None else str(found).rpartition(" ")[2], is_loss)

    def follows_loss(self, conn: Connection) -> bool:
        """Whether another ledger was here within a day, and is gone."""
        return int(self.noted(conn, LOSS) or 0) > time.time() - BUDGET_WINDOW_S

    def receipts(
        self,
        conn: Connection,
        *,
        since: int,
        call_ids: list[str] | None,
        authorization_ids: list[str] | None,
        payer: str | None,
    ) -> list[SettlementReceipt]:
        found: set[tuple[int, str]] = set()
        values = {name: value for name, value in (("since", since), ("payer", payer)) if value}
        for of_calls, of_authorizations in product(_parts(call_ids), _parts(authorization_ids)):
            statement = _receipts_by(len(of_calls), len(of_authorizations), *values)
            ids = {f"call_{number}": one for number, one in enumerate(of_calls)}
            ids |= {f"authorization_{number}": one for number, one in enumerate(of_authorizations)}
            found.update((sequence, receipt) for sequence, receipt in statement.rows(conn, values | ids))
        return [receipt_in(receipt) for _, receipt in sorted(found)]

    def newest_receipts(
        self, conn: Connection, *, since: int, payer: str | None, status: str | None, run: str | None, most: int
    ) -> list[SettlementReceipt]:
        query = sa.select(calls.c.receipt).where(*_chosen(since=since, payer=payer, status=status, run=run))
        rows = conn.execute(query.order_by(calls.c.sequence.desc()).limit(most)).scalars().all()
        return [receipt_in(receipt) for receipt in reversed(rows)]

    def page_of_receipts(
        self, conn: Connection, *, since: int, payer: str | None, after: int | None, most: int
    ) -> tuple[list[SettlementReceipt], int | None]:
        """Receipts behind the number `after`, oldest first, and the number of the last one; None behind the end."""
        if after is None:  # an index finds the first one; from there on they are read in order
            first = sa.select(sa.func.min(calls.c.sequence)).where(*_chosen(since=since))
            after = (conn.execute(first).scalar_one() or 1) - 1
        query = sa.select(calls.c.sequence, calls.c.receipt).where(
            calls.c.sequence > after, *_chosen(since=since, payer=payer)
        )
        rows = conn.execute(query.order_by(calls.c.sequence).limit(most)).all()
        receipts = [receipt_in(row.receipt) for row in rows]
        return receipts, rows[-1].sequence if len(rows) == most else None

    def receipts_beginning(self, conn: Connection, call_id: str, most: int) -> list[SettlementReceipt]:
        query = sa.select(calls.c.receipt).where(calls.c.call_id.startswith(call_id, autoescape=True))
        if self._is_sqlite:  # LIKE uses no index there
            query = query.where(calls.c.call_id >= call_id, calls.c.call_id < call_id + "\U0010ffff")
        rows = conn.execute(query.order_by(calls.c.call_id).limit(most)).scalars().all()
        return [receipt_in(receipt) for receipt in rows]

    def authorizations(
        self,
        conn: Connection,
        *,
        status: str | None,
        payer: str | None,
        network: str | None,
        authorization_id: str | None,
    ) -> list[Authorization]:
        wanted = {"status": status, "payer": payer, "network": network, "id": authorization_id}
        given = {name: value for name, value in wanted.items() if value is not None}
        return authorizations_in(_authorizations_by(*given).rows(conn, given))

    def unfinished(
        self,
        conn: Connection,
        *,
        network: str,
        payer: str | None,
        authorization_id: str | None,
        after: str | None,
        most: int | None,
    ) -> list[Authorization]:
        wanted = {"payer": payer, "id": authorization_id, "after": after, "most": most}
        given = {name: value for name, value in wanted.items() if value is not None}
        values = given | {"network": network, "now": int(time.time())}
        return authorizations_in(_unfinished_by(*given).rows(conn, values))

    def authorization(self, conn: Connection, authorization_id: str) -> Authorization | None:
        found = authorizations_in(_AUTHORIZATION.rows(conn, {"wanted": authorization_id}))
        return found[0] if found else None


def _parts(wanted: list[str] | None) -> list[list[str]]:
    """Ids in lists that one statement can have; the last one is filled up, so that there are few statements."""
    if wanted is None:
        return [[]]
    parts = [wanted[first : first + _MOST_IDS] for first in range(0, len(wanted), _MOST_IDS)]
    return [part + part[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part)) for part in parts]


@cache
def _receipts_by(call_ids: int, authorization_ids: int, *names: str) -> Prepared:
    """The receipts of so many calls, or of so many authorizations; since a time, or of one payer."""
    query = sa.select(calls.c.sequence, calls.c.receipt)
    if "since" in names:
        query = query.where(calls.c.created_at >= sa.bindparam("since"))
    if "payer" in names:
        query = query.where(calls.c.payer == sa.bindparam("payer"))
    for column, name, count in (
        (calls.c.call_id, "call", call_ids),
        (calls.c.authorization_id, "authorization", authorization_ids),
    ):
        if count:
            query = query.where(column.in_([sa.bindparam(f"{name}_{number}") for number in range(count)]))
    return Prepared(query)


@cache
def _authorizations_by(*names: str) -> Prepared:
    """The authorizations that have these values in these columns."""
    return Prepared(WITH_SIGNATURES.where(*(authorizations.c[name] == sa.bindparam(name) for name in names)))


@cache
def _unfinished_by(*names: str) -> Prepared:
    """The authorizations that the chain may still change; of one payer or id, behind another one, or so many."""
    is_due = sa.or_(authorizations.c.recheck_at.is_(None), authorizations.c.recheck_at <= sa.bindparam("now"))
    query = sa.select(authorizations.c.id).where(authorizations.c.network == sa.bindparam("network"), IS_OPEN, is_due)
    query = query.where(*(authorizations.c[name] == sa.bindparam(name) for name in ("payer", "id") if name in names))
    if "after" in names:
        earlier = authorizations.c.id == sa.bindparam("after")
        query = query.where(
            authorizations.c.sequence > sa.select(authorizations.c.sequence).where(earlier).scalar_subquery()
        )
    if "most" in names:
        query = query.order_by(authorizations.c.sequence).limit(sa.bindparam("most"))
    return Prepared(WITH_SIGNATURES.where(authorizations.c.id.in_(query)))


def _chosen(
    *, since: int, payer: str | None = None, status: str | None = None, run: str | None = None
) -> list[sa.ColumnElement[bool]]:
    """The conditions for the calls that are asked for. A time of 0 adds none, which would mislead the planner."""
    conditions = [calls.c.created_at >= since] if since > 0 else []
    if payer is not None:
        conditions.append(calls.c.payer == payer)
    if status is not None:
        conditions.append(calls.c.status == str(status))
    if run is not None:
        conditions.append(calls.c.run == run)
    return conditions


def dispute_prefix(network: str, origin: str) -> str:
    """How the keys of notes on disputes with a gateway begin."""
    return f"dispute {network} {origin} "


def beginning(prefix: str) -> dict[str, str]:
    """What picks the keys that begin so."""
    return {"after": prefix, "before": prefix + "~"}
