"""What is read from the ledger's tables: receipts and authorizations, by what picks them. Every query uses an index."""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.ledger.tables import (
    IS_OPEN,
    WITH_SIGNATURES,
    authorizations,
    calls,
    read_authorizations,
    receipt_in,
)

_AUTHORIZATION = WITH_SIGNATURES.where(authorizations.c.id == sa.bindparam("wanted"))
_MOST_VARIABLES = 500  # of one statement; SQLite has a limit


class Queries:
    """Reads over one connection. `dialect` is the database's name in SQLAlchemy."""

    def __init__(self, dialect: str) -> None:
        self._is_sqlite = dialect == "sqlite"

    def receipts(
        self,
        conn: Connection,
        *,
        since: int,
        call_ids: list[str] | None,
        authorization_ids: list[str] | None,
        payer: str | None,
    ) -> list[SettlementReceipt]:
        queries = [sa.select(calls.c.sequence, calls.c.receipt).where(*_chosen(since=since, payer=payer))]
        for column, wanted in ((calls.c.call_id, call_ids), (calls.c.authorization_id, authorization_ids)):
            if wanted is not None:
                parts = [wanted[first : first + _MOST_VARIABLES] for first in range(0, len(wanted), _MOST_VARIABLES)]
                queries = [query.where(column.in_(part)) for query in queries for part in parts]
        rows = sorted({(row.sequence, row.receipt) for query in queries for row in conn.execute(query)})
        return [receipt_in(receipt) for _, receipt in rows]

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
        query = WITH_SIGNATURES
        for column, value in (
            (authorizations.c.status, status),
            (authorizations.c.payer, payer),
            (authorizations.c.network, network),
            (authorizations.c.id, authorization_id),
        ):
            if value is not None:
                query = query.where(column == value)
        return read_authorizations(conn, query)

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
        is_due = sa.or_(authorizations.c.recheck_at.is_(None), authorizations.c.recheck_at <= int(time.time()))
        query = sa.select(authorizations.c.id).where(authorizations.c.network == network, IS_OPEN, is_due)
        if payer is not None:
            query = query.where(authorizations.c.payer == payer)
        if authorization_id is not None:
            query = query.where(authorizations.c.id == authorization_id)
        if after is not None:
            last = sa.select(authorizations.c.sequence).where(authorizations.c.id == after).scalar_subquery()
            query = query.where(authorizations.c.sequence > last)
        if most is not None:
            query = query.order_by(authorizations.c.sequence).limit(most)
        return read_authorizations(conn, WITH_SIGNATURES.where(authorizations.c.id.in_(query)))

    def authorization(self, conn: Connection, authorization_id: str) -> Authorization | None:
        found = read_authorizations(conn, _AUTHORIZATION, {"wanted": authorization_id})
        return found[0] if found else None


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
