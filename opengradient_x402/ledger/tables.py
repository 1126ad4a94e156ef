"""The ledger's tables, and the engine that opens them (SQLAlchemy Core).

Amounts are kept as decimal text, since 256-bit integers fit no database integer. What is reserved is kept once more
as two integers, billions of atomic units (`reserved_gwei`) and the rest (`reserved_rest`), so that the database can
add up budgets by itself, exactly, for any number of decimals of a token. Every statement of a call finds its rows by
an index, however many there are. Every wait for a database has a limit. The statements are in `statements`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.schema import CreateIndex, CreateTable

from opengradient_x402.ledger.authorizations import Authorization, SignedTerms
from opengradient_x402.ledger.receipts import SettlementReceipt

_BUSY_TIMEOUT_S = 30.0
_BUSY_PAUSE_S = 0.01
_SERVER_LIMITS = {"lock_timeout": "10s", "statement_timeout": "30s", "idle_in_transaction_session_timeout": "30s"}
"""Time limits of a session with a PostgreSQL server. The last one is for a process that was stopped."""
_LINE_LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Options of libpq: a server that does not answer, or is gone, is an error after 30 s."""
_LIBPQ = ("psycopg", "psycopg2", "psycopg_async")
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
    sa.Column("asset_symbol", sa.Text),
    sa.Column("asset_decimals", sa.Integer),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("settled_atomic", sa.Text),
    sa.Column("tx_hash", sa.Text),
    sa.Column("block_number", sa.BigInteger),
    sa.Column("block_hash", sa.Text),
    sa.Column("confirmations", sa.BigInteger),
    sa.Column("confirmations_needed", sa.BigInteger),
    sa.Column("dispute", sa.Text),
    sa.Column("recheck_at", sa.BigInteger),  # when an expired one is looked at once more
    # Derived from the signatures and the state, for the sum that a budget is checked against
    sa.Column("asset", sa.Text, nullable=False),
    sa.Column("signed_at", sa.BigInteger, nullable=False),
    sa.Column("reserved_gwei", sa.BigInteger, nullable=False),
    sa.Column("reserved_rest", sa.BigInteger, nullable=False),
    sa.Column("is_open", sa.Integer),  # 1 while the chain may still say something new
    sa.Index("authorizations_budget", "payer", "network", "asset", "signed_at", "reserved_gwei", "reserved_rest"),
    sa.Index("authorizations_status", "status"),
    sa.Index("authorizations_of_call", "call_id"),
)
IS_OPEN = sa.text("is_open = 1")
"""As a literal: a partial index serves only a statement that repeats its words."""
_OPEN = sa.Index("authorizations_open", authorizations.c.network, authorizations.c.sequence, sqlite_where=IS_OPEN)

reserved = sa.Table(
    "reserved",
    _metadata,
    # What the authorizations of one minute reserve together: a budget adds up minutes, not authorizations
    sa.Column("payer", sa.Text, primary_key=True),
    sa.Column("network", sa.Text, primary_key=True),
    sa.Column("asset", sa.Text, primary_key=True),
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("gwei", sa.BigInteger, nullable=False),
    sa.Column("rest", sa.BigInteger, nullable=False),
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
    sa.Column("answered_as", sa.Text),  # the status before a settlement was seen: a reorganisation restores it
    sa.Column("dispute", sa.Text),
    # Derived from the receipt, to find it by
    sa.Column("payer", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("run", sa.Text),
    sa.Index("calls_of_payer", "payer", "sequence"),
    sa.Index("calls_of_status", "status", "sequence"),
    sa.Index("calls_of_run", "run", "sequence"),
)

pins = sa.Table(
    "pins",
    _metadata,
    sa.Column("key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

proofs = sa.Table(
    "proofs",
    _metadata,
    # Each enclave's signature that came with an answer, and the first call that it came for
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("used_at", sa.BigInteger, nullable=False, index=True),
)
PROOF_KEPT_S = 86_400
"""How long proofs are remembered. Older ones are dropped when a ledger is opened: they are refused as stale anyway."""

leaves = sa.Table(
    "history_leaves",
    _metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, …
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

heads = sa.Table(
    "history_heads",
    _metadata,
    # How many leaves there were when a bundle was made
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
)

channels = sa.Table(
    "channels",
    _metadata,
    # Payment channels; what was signed, charged and deposited is updated with every call
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    *(
        sa.Column(name, sa.Text, nullable=False)
        for name in ("network", "endpoint", "payer", "payer_authorizer", "receiver", "receiver_authorizer", "asset")
    ),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("salt", "transfer_method", "status")),
    *(
        sa.Column(f"{name}_atomic", sa.Text, nullable=False)
        for name in ("charged", "signed", "balance", "claimed", "foreign")
    ),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("withdraw_delay_s", "withdrawing_since", "used_at")),
    sa.Column("seen_block", sa.BigInteger, nullable=False),
    # One call at a time, in all processes together
    sa.Column("held_by", sa.Text, nullable=False),
    sa.Column("held_until", sa.BigInteger, nullable=False),
    # The deposit that was signed last, while the chain does not show it
    sa.Column("deposit_atomic", sa.Text),
    sa.Column("deposit_salt", sa.Text),
    sa.Column("deposit_deadline", sa.BigInteger),
    sa.Index("channels_of_payer", "payer", "network"),
)

vouchers = sa.Table(
    "vouchers",
    _metadata,
    # One for each call on a channel, written before it is signed: it can be claimed up to `max_atomic` in total
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("authorization_id", sa.Text, nullable=False, unique=True),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("channel_id", "base_atomic", "max_atomic")),
    sa.Column("charged_atomic", sa.Text),  # by the gateway's word; none while the call's outcome is unknown
    sa.Column("signed_atomic", sa.Text),  # the highest sum that was signed for it; none: max_atomic
    sa.Column("state", sa.Text, nullable=False),  # newest, included (in a later one), or final (the chain shows it)
    sa.Index("vouchers_of_channel", "channel_id", "state", "sequence"),
)

versions = sa.Table(
    "schema",
    _metadata,
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("ledger_id", sa.Text),  # drawn once, when the tables are made
)


def connect(url: str) -> Connection:
    """A connection of its own to this database; for SQLite the folder is made, and the journal is write-ahead."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _server_engine(parsed, os.getpid()).connect()
    if parsed.database and not parsed.database.startswith((":memory:", "file:")):  # SQLite's own names: no paths
        path = Path(parsed.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)
    file = _FILE.set(parsed)
    try:
        return _file_engine(parsed.set(database=""), os.getpid()).connect()
    finally:
        _FILE.reset(file)


_FILE: ContextVar[sa.URL] = ContextVar("the file that is being connected to")


@lru_cache(maxsize=32)
def _file_engine(url: sa.URL, process: int) -> Engine:  # noqa: ARG001  (a child shares nothing with its parent)
    """One engine for all files: it remembers the statements that it has built, which takes longer than to run them.

    `url` names no file. A driver may read the rest of it for itself, as one that encrypts reads the password.
    """

    def opened() -> Any:
        where, options = engine.dialect.create_connect_args(_FILE.get())
        return engine.dialect.connect(*where, **{**options, "timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})

    engine = sa.create_engine(url, poolclass=sa.NullPool, creator=opened)

    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own transaction handling is off: BEGIN IMMEDIATE below takes the write lock before the
        # budget is read, so two processes can never both see the same free budget.
        dbapi_connection.isolation_level = None
        _write_ahead(dbapi_connection)

    # A listener for "begin" does the same, and lets every statement look for listeners.
    engine.dialect.do_begin = _begin  # type: ignore[method-assign]
    return engine


def _begin(dbapi_connection: Any) -> None:
    dbapi_connection.execute("BEGIN" if _READS.get() else "BEGIN IMMEDIATE")


_READS: ContextVar[bool] = ContextVar("whether a transaction only reads", default=False)


def begin(conn: Connection, *, writes: bool) -> RootTransaction:
    """A transaction. On SQLite one that only reads waits for nobody, and nobody waits for it."""
    reads = _READS.set(not writes)
    try:
        return conn.begin()
    finally:
        _READS.reset(reads)


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


@lru_cache(maxsize=32)
def _server_engine(url: sa.URL, process: int) -> Engine:  # noqa: ARG001  (as above)
    limits = _LINE_LIMITS if url.get_driver_name() in _LIBPQ else {}
    own = {name: value for name, value in limits.items() if name not in url.query}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=own)

    @event.listens_for(engine, "connect")
    def _limit(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        for name, value in _SERVER_LIMITS.items():
            if name not in str(url.query.get("options", "")):
                cursor.execute(f"SET {name} = '{value}'")
        cursor.close()
        dbapi_connection.commit()

    return engine


def lock(conn: Connection, *, durable: bool = True) -> None:
    """Holds all other writers off until the transaction ends.

    The first thing of every transaction that writes, so that no two of them wait for each other. On PostgreSQL it
    also says whether the commit waits for the disk.
    """
    if conn.dialect.name != "sqlite":  # SQLite has held the write lock since BEGIN IMMEDIATE
        conn.execute(_LOCK, {"waits": "on" if durable else "off"})


def set_durable(conn: Connection, *, durable: bool) -> None:
    """Whether the coming commit to SQLite is flushed to disk, or may be lost in a power cut (never in a crash)."""
    if conn.dialect.name == "sqlite":
        raw: Any = conn.connection.dbapi_connection
        raw.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")


_LOCK = sa.text("SELECT pg_advisory_xact_lock(402402), set_config('synchronous_commit', :waits, true)")


class Prepared:
    """A statement of every call: SQLite runs it itself, in a tenth of the time that it takes through SQLAlchemy.

    Values of the tables above need no conversion. Other databases run it through SQLAlchemy. Both work in the open
    transaction, and raise what their database says: errors of `sqlite3`, or of SQLAlchemy.
    """

    def __init__(self, statement: sa.Executable) -> None:
        self._statement = statement
        self._sql = ""
        self._names: list[str] = []
        self._own: dict[str, Any] = {}

    def rows(self, conn: Connection, values: Mapping[str, Any]) -> list[Any]:
        """What it finds, as tuples in the order of its columns."""
        if conn.dialect.driver == "pysqlite":
            return self._run(conn, values).fetchall()  # type: ignore[no-any-return]
        return list(conn.execute(self._statement, values))

    def value(self, conn: Connection, values: Mapping[str, Any]) -> Any:
        """The one value that it finds, or None."""
        rows = self.rows(conn, values)
        return rows[0][0] if rows else None

    def change(self, conn: Connection, values: Mapping[str, Any]) -> int:
        """How many rows it changed."""
        if conn.dialect.driver == "pysqlite":
            return int(self._run(conn, values).rowcount)
        return conn.execute(self._statement, values).rowcount

    def _run(self, conn: Connection, values: Mapping[str, Any]) -> Any:
        if not self._sql:
            compiled: Any = self._statement.compile(dialect=conn.dialect)  # type: ignore[attr-defined]
            # Of those that have none here, one that the caller forgets is a KeyError, and never NULL.
            self._own = {name: one.value for name, one in compiled.binds.items() if not one.required}
            self._names, self._sql = compiled.positiontup or [], str(compiled)
        given, raw = {**self._own, **values} if self._own else values, conn.connection.dbapi_connection
        return raw.execute(self._sql, [given[name] for name in self._names])  # type: ignore[union-attr]


def make_missing(conn: Connection) -> None:
    """Makes the tables and indexes that are not there."""
    dialect = conn.dialect
    if dialect.name not in _making:
        _making[dialect.name] = _statements_that_make(dialect)
    for statement in _making[dialect.name]:
        conn.exec_driver_sql(statement)


_making: dict[str, tuple[str, ...]] = {}
"""By the dialect's name: writing these statements takes ten times as long as running them."""


def _statements_that_make(dialect: sa.Dialect) -> tuple[str, ...]:
    if dialect.name == "postgresql":  # said here, since it loads all of that dialect
        _OPEN.dialect_options["postgresql"]["where"] = IS_OPEN
    made: list[CreateTable | CreateIndex] = []
    for table in _metadata.sorted_tables:
        made.append(CreateTable(table, if_not_exists=True))
        made += [CreateIndex(index, if_not_exists=True) for index in table.indexes]
    return tuple(str(one.compile(dialect=dialect)) for one in made)


def named(name: str) -> sa.Table:
    """The table of this name."""
    return _metadata.tables[name]


ATOMIC_PER_GWEI = 10**9
TERMS = [column.name for column in signatures.c if column.name not in ("sequence", "authorization_id")]
_DERIVED = {"asset", "signed_at", "reserved_gwei", "reserved_rest", "is_open"}
_OWN = [column.name for column in authorizations.c if column.name not in _DERIVED | {"sequence"}]
WITH_SIGNATURES = (
    sa.select(
        *(authorizations.c[name] for name in _OWN),
        *(signatures.c[name].label(f"signed_{name}") for name in TERMS),
    )
    .join_from(authorizations, signatures, signatures.c.authorization_id == authorizations.c.id)
    .order_by(authorizations.c.sequence, signatures.c.sequence)
)


_COUNT = len(_OWN)
_NONCE, _SETTLED, _AMOUNT = _OWN.index("nonce"), _OWN.index("settled_atomic"), TERMS.index("amount_atomic")


def authorizations_in(rows: Iterable[Sequence[Any]]) -> list[Authorization]:
    """The authorizations of a query over `WITH_SIGNATURES`, which has a row for each signature."""
    found: list[Authorization] = []
    for _, same in groupby(rows, key=itemgetter(_OWN.index("id"))):
        signed, own = [], []
        for row in same:
            own, terms = list(row[:_COUNT]), list(row[_COUNT:])
            terms[_AMOUNT] = int(terms[_AMOUNT])
            signed.append(SignedTerms(**dict(zip(TERMS, terms, strict=True))))
        own[_NONCE] = int(own[_NONCE])
        own[_SETTLED] = None if own[_SETTLED] is None else int(own[_SETTLED])
        found.append(Authorization(**dict(zip(_OWN, own, strict=True)), signed=tuple(signed)))
    return found


def as_row(authorization: Authorization) -> dict[str, Any]:
    """An authorization as it is stored, with what is derived from it."""
    row: dict[str, Any] = {name: getattr(authorization, name) for name in _OWN}
    row["nonce"] = str(authorization.nonce)
    row["settled_atomic"] = None if authorization.settled_atomic is None else str(authorization.settled_atomic)
    row["asset"] = authorization.asset
    row["signed_at"] = authorization.terms.signed_at
    row["reserved_gwei"], row["reserved_rest"] = divmod(authorization.reserved_atomic, ATOMIC_PER_GWEI)
    row["is_open"] = int(not authorization.is_final or authorization.recheck_at is not None)
    return row


def row_of_call(receipt: SettlementReceipt) -> dict[str, Any]:
    """A call's receipt as it is stored, with what it is found by."""
    return {
        "authorization_id": receipt.authorization_id,
        "created_at": receipt.created_at,
        "receipt": json.dumps(receipt.to_json()),
        "payer": receipt.payer,
        "status": receipt.status.value,
        "run": receipt.run,
    }


def receipt_in(stored: str) -> SettlementReceipt:
    """The receipt of a stored call."""
    return SettlementReceipt.from_json(json.loads(stored))
