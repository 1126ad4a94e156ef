"""Checks, repairs and compacts a ledger's database, and extends its history: what an operator does, never a call.

A check changes nothing. A repair keeps a copy of a SQLite file, reads out of a damaged one what can be read, computes
again what is derived from signatures and receipts, and takes the ledger as it is then for the one that was used here.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.ledger import schema, tables
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.place import LedgerReplaced, Mark, sqlite_file, without_password
from opengradient_x402.ledger.queries import LOSS, Queries
from opengradient_x402.ledger.tables import (
    WITH_SIGNATURES,
    as_row,
    authorizations,
    authorizations_in,
    calls,
    heads,
    leaves,
    pins,
    reserved,
    signatures,
)

_AT_ONCE = 500
_DERIVED = ("asset", "signed_at", "reserved_gwei", "reserved_rest", "is_open")
_TABLES = ("authorizations", "signatures", "calls", "pins", "channels", "vouchers")
"""What holds facts; `schema` and `reserved` are computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was done, in sentences, and where the copy of the database is."""

    done: list[str]
    copy: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a ledger has of one wallet's payments in one token, to compare with the chain."""

    first_signed_at: int | None
    """When its first authorization was signed, in Unix seconds; None where there is none."""
    authorizations: list[Authorization]
    """Those that could be settled in the time that was asked about."""
    channels: frozenset[str]
    """The ids of its payment channels."""


def known_of(url: str, *, payer: str, network: str, asset: str, since: int) -> Known | None:
    """What the ledger has of the wallet's payments; `authorizations` are those valid at `since` or later.

    Changes nothing, and makes no ledger where there is none. None for tables of another version. Raises
    LedgerUnavailable.
    """
    nothing = Known(first_signed_at=None, authorizations=[], channels=frozenset())
    file = sqlite_file(url)
    if file is not None and not (file.exists() and file.stat().st_size):
        return nothing
    with _connected(url) as conn, tables.begin(conn, writes=False):
        version = schema.version_of(conn)
        if version != schema.VERSION:
            return None if version else nothing
        return known_in(conn, payer=payer, network=network, asset=asset, since=since)


def known_in(conn: Connection, *, payer: str, network: str, asset: str, since: int) -> Known:
    """As `known_of`, for a database that is open."""
    of_wallet = [
        authorizations.c[name] == value for name, value in (("payer", payer), ("network", network), ("asset", asset))
    ]
    lately = sa.select(signatures.c.authorization_id).where(signatures.c.deadline >= since)
    query = WITH_SIGNATURES.where(*of_wallet, authorizations.c.id.in_(lately))
    own = sa.select(tables.channels.c.id).where(tables.channels.c.payer == payer, tables.channels.c.network == network)
    return Known(
        first_signed_at=conn.execute(sa.select(sa.func.min(authorizations.c.signed_at)).where(*of_wallet)).scalar(),
        authorizations=authorizations_in(conn.execute(query)),
        channels=frozenset(conn.execute(own).scalars()),
    )


def check(url: str) -> list[str]:
    """What is wrong with the ledger, in sentences; nothing for a sound one. Changes nothing.

    Raises LedgerUnavailable when the database cannot be reached.
    """
    file, mark = sqlite_file(url), Mark(url)
    before, lately = mark.read(), mark.read_far()  # before the database: others may write meanwhile
    try:
        mark.check_file(file)
    except LedgerReplaced as exc:
        return [f"This is not the ledger that was used here: {exc}."]
    if file is not None and not (file.exists() and file.stat().st_size):
        return []
    if file is not None and (damage := _damage(file)):
        return [f"The file is damaged: {line}." for line in damage]
    with _connected(url) as conn, tables.begin(conn, writes=False):
        version = schema.version_of(conn)
        if version > schema.VERSION:
            return [f"Its tables have version {version}; this package knows version {schema.VERSION}. Upgrade it."]
        if version < schema.VERSION:
            return []  # the next use brings it to this version
        try:
            mark.is_loss(before, lately, schema.seen_in(conn))
        except LedgerReplaced as exc:
            return [f"This is not the ledger that was used here: {exc}.", *_contradictions(conn)]
        return _contradictions(conn)


def repair(url: str) -> Repair:
    """Makes the ledger sound, as far as what it holds allows. End other programs that use it first.

    Raises LedgerUnavailable.
    """
    file, mark, done = sqlite_file(url), Mark(url), []
    before, lately, copy = mark.read(), mark.read_far(), None
    if file is not None and file.exists() and file.stat().st_size:
        copy = _copied(file)
        if damage := _damage(file):
            done += [f"The file was damaged: {damage[0]}.", *_recovered(file)]
    with _connected(url) as conn:
        schema.create(conn)
        with conn.begin():
            tables.lock(conn)
            schema.complete(conn)
            wrong = _contradictions(conn)
            _recompute(conn)
            now = schema.seen_in(conn)
            is_loss = Queries(conn.dialect.name).follows_loss(conn)
            conn.execute(pins.delete().where(pins.c.key == LOSS))
        done += [f"Corrected: {sentence}" for sentence in wrong]
    loss = ""
    try:
        if mark.is_loss(before, lately, now) or is_loss:
            loss = "another ledger was here before, and is gone"
    except LedgerReplaced as exc:
        loss = str(exc)
    if loss:
        done.append(
            f"Accepted: {loss}. What others have reserved of the day's budget is not counted: spend with care for a "
            "day."
        )
    mark.accept(now)
    return Repair(done=done, copy=copy)


def compact(url: str) -> tuple[int, int]:
    """Gives back the space that nothing uses; the size before and after, in bytes. Raises LedgerUnavailable."""
    file = sqlite_file(url)
    with _connected(url) as conn:
        schema.create(conn)
        if file is None:
            return _compact_server(conn)
        raw: Any = conn.connection.dbapi_connection  # SQLAlchemy would begin a transaction, and VACUUM refuses one
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = file.stat().st_size
        raw.execute("VACUUM")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, file.stat().st_size


def _compact_server(conn: Connection) -> tuple[int, int]:
    raw: Any = conn.connection.dbapi_connection
    size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname = ANY(%s) AND relkind = 'r'"
    raw.autocommit = True
    try:
        cursor = raw.cursor()
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(size, (list(_TABLES),))
        before = int(cursor.fetchone()[0])
        for name in (*_TABLES, "reserved"):
            cursor.execute(f"VACUUM (FULL, ANALYZE) {name}")
        cursor.execute(size, (list(_TABLES),))
        return before, int(cursor.fetchone()[0])
    finally:
        raw.autocommit = False
        conn.invalidate()


# -- what is wrong


def _damage(file: Path) -> list[str]:
    try:
        with closing(sqlite3.connect(file, timeout=30)) as conn:
            found = [str(row[0]) for row in conn.execute("PRAGMA integrity_check(10)")]
    except sqlite3.OperationalError as exc:
        raise _unavailable(str(file), exc) from exc
    except sqlite3.DatabaseError as exc:
        return [str(exc)]
    return [line.replace("\n", " ") for line in found if line != "ok"]


def _contradictions(conn: Connection) -> list[str]:
    wrong: list[str] = []
    for row, stored in _authorizations(conn):
        different = [name for name in _DERIVED if row[name] != stored[name]]
        if different:
            has, should = (one["reserved_gwei"] * 10**9 + (one["reserved_rest"] or 0) for one in (stored, row))
            wrong.append(f"Authorization {row['id']} reserves {has} atomic units, not {should}.")
    minute: sa.ColumnElement[int] = sa.literal_column("signed_at / 60")
    key = (authorizations.c.payer, authorizations.c.network, authorizations.c.asset, minute)
    both = (sa.func.sum(authorizations.c[name]) for name in ("reserved_gwei", "reserved_rest"))
    counted, kept = (
        {tuple(row[:4]): (int(row[4]), int(row[5])) for row in conn.execute(query) if row[4] or row[5]}
        for query in (sa.select(*key, *both).group_by(*key), sa.select(reserved))
    )
    if counted != kept:
        wrong.append("The sums that the budget is checked against are not those of the authorizations.")
    has_signature = sa.exists().where(signatures.c.authorization_id == authorizations.c.id)
    has_authorization = sa.exists().where(authorizations.c.id == calls.c.authorization_id)
    is_misplaced = sa.or_(*(calls.c[name].is_distinct_from(_member(conn, name)) for name in ("payer", "status", "run")))
    for what, query in (
        ("authorizations have no signature", sa.select(authorizations.c.id).where(~has_signature)),
        ("calls have no authorization", sa.select(calls.c.call_id).where(~has_authorization)),
        ("calls are not found by their payer, status or run", sa.select(calls.c.call_id).where(is_misplaced)),
    ):
        number = conn.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        if number:
            wrong.append(f"{number} {what}.")
    return wrong


def _member(conn: Connection, name: str) -> sa.ColumnElement[str]:
    return sa.literal_column(schema.member_of_receipt(conn, name))


def _authorizations(conn: Connection) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each authorization as it should be stored, and as it is."""
    last = 0
    while True:
        query = sa.select(authorizations).where(authorizations.c.sequence > last)
        rows = conn.execute(query.order_by(authorizations.c.sequence).limit(_AT_ONCE)).mappings().all()
        if not rows:
            return
        stored = {row["id"]: dict(row) for row in rows}
        last = rows[-1]["sequence"]
        found: list[Authorization] = authorizations_in(
            conn.execute(WITH_SIGNATURES.where(authorizations.c.id.in_(stored)))
        )
        for one in found:
            yield as_row(one), stored[one.id]


# -- what is done about it


def _recompute(conn: Connection) -> None:
    for row, stored in _authorizations(conn):
        if any(row[name] != stored[name] for name in _DERIVED):
            values = {name: row[name] for name in _DERIVED}
            conn.execute(authorizations.update().where(authorizations.c.id == row["id"]).values(values))
    schema.derive(conn)


def _copied(file: Path) -> Path:
    copy = file.with_name(f"{file.name}.before-repair-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        for end in ("", "-wal"):
            if (part := file.with_name(file.name + end)).exists():
                shutil.copy2(part, copy.with_name(copy.name + end))
    except OSError as exc:
        raise _unavailable(str(file), exc) from exc
    return copy


def _recovered(file: Path) -> list[str]:
    """Puts what can be read of a damaged file into a new one, in its place."""
    new = file.with_name(f"{file.name}.repaired")
    for path in (new, new.with_name(new.name + "-wal"), new.with_name(new.name + "-shm")):
        path.unlink(missing_ok=True)
    counts: dict[str, int] = {}
    with _connected(f"sqlite:///{new}") as conn:
        schema.create(conn)
        with closing(sqlite3.connect(file)) as old, conn.begin():
            old.row_factory = sqlite3.Row
            with suppress(sqlite3.DatabaseError):
                [known] = old.execute("SELECT ledger_id FROM schema").fetchall()
                conn.execute(tables.versions.update().values(ledger_id=known[0]))
            for name in _TABLES:
                table = tables.named(name)
                counts[name] = 0
                for row in _readable(old, name):
                    values = {column: row[column] for column in row.keys() if column in table.c}  # noqa: SIM118  (no dict)
                    with suppress(SQLAlchemyError), conn.begin_nested():
                        conn.execute(table.insert().values(values))
                        counts[name] += 1
        raw: Any = conn.connection.dbapi_connection
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    new.replace(file)
    for end in ("-wal", "-shm"):
        new.with_name(new.name + end).unlink(missing_ok=True)
    return [f"Restored {counts['authorizations']} authorizations and {counts['calls']} calls that could be read."]


def _readable(old: sqlite3.Connection, name: str) -> Iterator[sqlite3.Row]:
    """The rows before the first damaged place, and those behind the last one."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError):
            for row in old.execute(f"SELECT rowid AS at, * FROM {name} ORDER BY rowid {order}"):  # noqa: S608  (a name)
                if row["at"] in seen:
                    break
                seen.add(row["at"])
                yield row


# -- connections


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    try:
        with tables.connect(url) as conn:
            yield conn
    except schema.NewerSchema as exc:
        raise _unavailable(url, exc) from exc
    except (SQLAlchemyError, sqlite3.Error) as exc:  # what `Prepared` executes raises errors of SQLite itself
        raise _unavailable(url, getattr(exc, "orig", None) or exc) from exc


def _unavailable(url: str, exc: BaseException) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"The ledger at {without_password(url)} cannot be read or written ({str(exc).splitlines()[0]}). Nothing was "
        "changed, signed or paid. End other programs that use it, check the permissions, and try again."
    )


# -- the history


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All leaves (32 bytes each), where the wanted records stand among them, and the sizes at earlier exports.

    There is a leaf for every version of a record that was ever exported; none is ever changed or removed. What can be
    proven with them is known in `proofs.history`.
    """

    leaves: tuple[bytes, ...]
    places: tuple[int, ...]
    sizes: tuple[int, ...]


def extend_history(conn: Connection, records: Sequence[tuple[str, bytes]]) -> History:
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
