"""The ledger's tables, and the engine that opens them (SQLAlchemy Core).

Amounts are kept as decimal text, since 256-bit integers fit no database integer; `reserved_gwei` is the same
amount in billionths of a token, rounded up, so that the database can add up budgets by itself. Knows no statements.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event

_BUSY_TIMEOUT_S = 30.0
_BUSY_PAUSE_S = 0.01
VERSION = 2
"""Of the tables. A change of the tables raises it and adds a step to `create`."""
_metadata = sa.MetaData()

authorizations = sa.Table(
    "authorizations",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("network", sa.Text, nullable=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("nonce", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("settlement_mode", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("settled_atomic", sa.Text),
    sa.Column("tx_hash", sa.Text),
    sa.Column("block_number", sa.BigInteger),
    sa.Column("block_hash", sa.Text),
    sa.Column("confirmations", sa.BigInteger),
    sa.Column("confirmations_needed", sa.BigInteger),
    sa.Column("dispute", sa.Text),
    # Of the signatures, for the sum that a budget is checked against
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("signed_at", sa.BigInteger, nullable=False),
    sa.Column("reserved_gwei", sa.BigInteger, nullable=False),
    sa.Index("authorizations_budget", "payer", "network", "asset", "signed_at"),
    sa.Index("authorizations_status", "status"),
)

signatures = sa.Table(
    "signatures",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("authorization_id", sa.Text, nullable=False, index=True),
    sa.Column("scheme", sa.Text, nullable=False),
    sa.Column("transfer_method", sa.Text, nullable=False),
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("facilitator", sa.Text),
    sa.Column("spender", sa.Text, nullable=False),
    sa.Column("amount_atomic", sa.Text, nullable=False),
    sa.Column("signed_at", sa.BigInteger, nullable=False),
    sa.Column("deadline", sa.BigInteger, nullable=False),
)

calls = sa.Table(
    "calls",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("call_id", sa.Text, nullable=False, unique=True),
    sa.Column("authorization_id", sa.Text, nullable=False, index=True),
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("receipt", sa.Text, nullable=False),
    sa.Column("answered_as", sa.Text),  # the status before the chain had a say: a reorganisation leads back to it
    sa.Column("dispute", sa.Text),
)

pins = sa.Table(
    "pins",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

schema = sa.Table("schema", _metadata, sa.Column("version", sa.Integer, nullable=False))


def open_engine(url: str) -> Engine:
    """An engine for `url`; for SQLite the folder is made, and the journal is write-ahead."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        path = Path(parsed.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)
    engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own transaction handling is off: BEGIN IMMEDIATE below takes the write lock before the
        # budget is read, so two processes can never both see the same free budget.
        dbapi_connection.isolation_level = None
        _write_ahead(dbapi_connection)

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        conn.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _write_ahead(dbapi_connection: Any) -> None:
    """Switches the journal. Two connections that do it at once make SQLite refuse one of them without waiting."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            dbapi_connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return


def lock(conn: Connection) -> None:
    """Holds everybody else off until the transaction ends."""
    if conn.dialect.name != "sqlite":  # SQLite has held the write lock since BEGIN IMMEDIATE
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(402402)"))


class NewerSchema(Exception):
    """The database was written by a newer version of this package."""


def create(conn: Connection) -> None:
    """Makes what is missing of the tables, and brings an older database to this version. Raises NewerSchema."""
    with conn.begin():
        lock(conn)  # two processes may open a new database at once
        found = _version_of(conn)
        if found > VERSION:
            raise NewerSchema(f"its tables have version {found}, and this package knows version {VERSION}")
        if found == 1:
            _separate_signatures(conn)
        _metadata.create_all(conn)
        if found != VERSION:
            conn.execute(schema.delete())
            conn.execute(schema.insert().values(version=VERSION))


def _version_of(conn: Connection) -> int:
    """The version of the tables that are there; 0 for none, 1 for those of the time before versions were noted."""
    names = set(sa.inspect(conn).get_table_names())
    if schema.name in names:
        return int(conn.execute(sa.select(schema.c.version)).scalar_one())
    return 1 if authorizations.name in names else 0


def _separate_signatures(conn: Connection) -> None:
    """Version 1 to 2: what was signed moves from the authorizations to a table of signatures.

    The first databases of version 1 lack columns that were added to it later.
    """
    inspector = sa.inspect(conn)
    for table in (authorizations, calls):
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                kind = column.type.compile(conn.dialect)
                conn.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
    signatures.create(conn)
    moved = [column.name for column in signatures.c if column.name not in ("sequence", "authorization_id")]
    columns = ", ".join(moved)
    conn.exec_driver_sql(
        f"INSERT INTO signatures (authorization_id, {columns}) "  # noqa: S608  (names of columns, no values)
        f"SELECT id, {columns} FROM authorizations ORDER BY sequence"
    )
    for name in moved:
        if name not in authorizations.c:
            conn.exec_driver_sql(f"ALTER TABLE authorizations DROP COLUMN {name}")
