"""The ledger's schema: makes the tables, brings older databases to the version of today, refuses newer ones.

What is derived from records (sums, states, spellings) is computed again here, also for a ledger that is repaired.
"""

from __future__ import annotations

import json
import secrets
import time

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.addresses import checksum_address
from opengradient_x402.ledger.place import Seen
from opengradient_x402.ledger.tables import (
    PROOF_KEPT_S,
    Prepared,
    authorizations,
    calls,
    lock,
    make_missing,
    proofs,
    reserved,
    signatures,
    versions,
    vouchers,
)
from opengradient_x402.networks import PRESETS

VERSION = 5
"""Of the tables. A change of the tables raises it and adds a step to `create`."""


_SEEN = Prepared(
    sa.select(
        versions.c.version,
        versions.c.ledger_id,
        # The last number is how many were ever recorded: none is ever deleted.
        sa.select(sa.func.coalesce(sa.func.max(authorizations.c.sequence), 0)).scalar_subquery(),
    )
)


class NewerSchema(Exception):
    """The database was written by a newer version of this package."""


def create(conn: Connection) -> None:
    """Makes what is missing of the tables, and brings an older database to this version.

    Raises NewerSchema.
    """
    with conn.begin():
        lock(conn)  # two processes may open a new database at once
        found = version_of(conn)
        _check_version(found)
        if found == 1:
            _separate_signatures(conn)
        elif found in (2, 3, 4):
            complete(conn)
            _index_anew(conn)
        make_missing(conn)
        if found in (2, 3, 4):
            conn.execute(versions.update().values(version=VERSION))
        elif found != VERSION:
            conn.execute(versions.delete())
            conn.execute(versions.insert().values(version=VERSION, ledger_id=secrets.token_hex(16)))
        if found in (1, 2):
            _name_assets(conn)
            derive(conn)
        conn.execute(proofs.delete().where(proofs.c.used_at < int(time.time()) - PROOF_KEPT_S))


def seen_in(conn: Connection) -> Seen:
    """Which ledger this is, and how much is in it, for a database of this version. Raises NewerSchema."""
    [(version, ledger_id, count)] = _SEEN.rows(conn, {})
    _check_version(version)
    return Seen(ledger_id=str(ledger_id), authorizations=int(count))


def _check_version(found: int) -> None:
    if found > VERSION:
        raise NewerSchema(f"its tables have version {found}, and this package knows version {VERSION}")


def derive(conn: Connection) -> None:
    """Computes again what is derived from an authorization's amount and state, and from a receipt."""
    conn.execute(reserved.delete())
    conn.exec_driver_sql(_RESERVE)
    conn.exec_driver_sql(
        f"UPDATE calls SET payer = {member_of_receipt(conn, 'payer')}, "  # noqa: S608  (names)
        f"status = {member_of_receipt(conn, 'status')}, run = {member_of_receipt(conn, 'run')}"
    )
    conn.exec_driver_sql(
        "UPDATE authorizations SET is_open = CASE WHEN status = 'signed' OR confirmations < confirmations_needed "
        "OR recheck_at IS NOT NULL THEN 1 ELSE 0 END"
    )
    for column in (authorizations.c.payer, authorizations.c.asset, calls.c.payer):
        for found in conn.execute(sa.select(column).distinct()).scalars().all():
            if found is not None and (spelled := checksum_address(found)) != found:
                conn.execute(column.table.update().where(column == found).values({column.name: spelled}))
    conn.exec_driver_sql(
        "INSERT INTO reserved (payer, network, asset, minute, gwei, rest) "
        "SELECT payer, network, asset, signed_at / 60, SUM(reserved_gwei), coalesce(SUM(reserved_rest), 0) FROM "
        "authorizations "
        "GROUP BY payer, network, asset, signed_at / 60"
    )


_RESERVED = (
    "(CASE WHEN status = 'unsent' THEN '0' WHEN status <> 'signed' AND (confirmations_needed IS NULL OR "
    "coalesce(confirmations, 0) >= confirmations_needed) THEN coalesce(settled_atomic, '0') ELSE "
    "(SELECT amount_atomic FROM signatures WHERE authorization_id = authorizations.id "
    "ORDER BY length(amount_atomic) DESC, amount_atomic DESC LIMIT 1) END)"
)
"""SQL for `Authorization.reserved_atomic`, as decimal text."""
_RESERVE = (
    f"UPDATE authorizations SET reserved_gwei = CASE WHEN length({_RESERVED}) > 9 "  # noqa: S608  (constants)
    f"THEN CAST(substr({_RESERVED}, 1, length({_RESERVED}) - 9) AS BIGINT) ELSE 0 END, "
    f"reserved_rest = CAST(substr('000000000' || {_RESERVED}, length({_RESERVED}) + 1, 9) AS BIGINT) "
    "WHERE EXISTS (SELECT 1 FROM signatures WHERE authorization_id = authorizations.id)"
)


def member_of_receipt(conn: Connection, name: str) -> str:
    """The SQL for one member of a call's stored receipt."""
    return f"json_extract(receipt, '$.{name}')" if conn.dialect.name == "sqlite" else f"receipt::json ->> '{name}'"


def _name_assets(conn: Connection) -> None:
    """Adds symbol and decimals to records of the time before records had them, for the tokens of presets."""
    is_sqlite = conn.dialect.name == "sqlite"
    for address, asset in {network.asset.address: network.asset for network in PRESETS.values()}.items():
        named_so = {"asset_symbol": asset.symbol, "asset_decimals": asset.decimals}
        conn.execute(
            authorizations.update().where(sa.func.lower(authorizations.c.asset) == address.lower()).values(named_so)
        )
        patch = json.dumps(named_so)
        whole = f"json_patch(receipt, '{patch}')" if is_sqlite else f"(receipt::jsonb || '{patch}'::jsonb)::text"
        conn.exec_driver_sql(
            f"UPDATE calls SET receipt = {whole} "  # noqa: S608  (constants)
            f"WHERE lower({member_of_receipt(conn, 'asset')}) = '{address.lower()}'"
        )


def version_of(conn: Connection) -> int:
    """The version of the tables that are there; 0 for none, 1 for those of the time before versions were noted."""
    names = set(sa.inspect(conn).get_table_names())
    if versions.name in names:
        return int(conn.execute(sa.select(versions.c.version)).scalar_one())
    return 1 if authorizations.name in names else 0


def _separate_signatures(conn: Connection) -> None:
    """Version 1 to 2: what was signed moves from the authorizations to a table of signatures.

    The first databases of version 1 lack columns that were added to it later.
    """
    complete(conn)
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
    _index_anew(conn)


def _index_anew(conn: Connection) -> None:
    conn.exec_driver_sql("DROP INDEX IF EXISTS authorizations_budget")  # it has other columns now
    for index in (*authorizations.indexes, *calls.indexes):
        index.create(conn, checkfirst=True)


def complete(conn: Connection) -> None:
    """Adds the columns that older tables lack."""
    inspector = sa.inspect(conn)
    for table in (authorizations, calls, reserved, vouchers):
        if not inspector.has_table(table.name):
            continue
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                kind = column.type.compile(conn.dialect)
                conn.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
