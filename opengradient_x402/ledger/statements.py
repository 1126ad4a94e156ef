"""The statements over the ledger's tables: reservations, calls, settlements and how they are shared.

Runs inside the ledger's transaction; it does not know threads, nor when to commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.ledger.authorizations import AuthorizationEntry, Budget, budget_exceeded, receipt_fields
from opengradient_x402.ledger.disputes import dispute_of
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.ledger.shares import split_settlement
from opengradient_x402.ledger.tables import authorizations, calls, lock, pins

_ATOMIC_PER_GWEI = 10**9
_ENTRY_COLUMNS = [column for column in authorizations.c if column.name not in ("reserved_gwei", "sequence")]
_STATUS = {"settled": ReceiptStatus.SETTLED, "expired": ReceiptStatus.EXPIRED, "cancelled": ReceiptStatus.CANCELLED}

# Statements of every call, built once: SQLAlchemy takes longer to build one than SQLite takes to run it.
_UPDATE_CALL = (
    calls.update()
    .where(calls.c.call_id == sa.bindparam("wanted"))
    .values({name: sa.bindparam(name) for name in ("authorization_id", "created_at", "receipt")})
)
_INSERT_CALL = calls.insert().values(
    {name: sa.bindparam(name) for name in ("call_id", "authorization_id", "created_at", "receipt")}
)
_NOTE_ANSWER = (
    calls.update().where(calls.c.call_id == sa.bindparam("wanted")).values(answered_as=sa.bindparam("answered_as"))
)
_STATUS_OF = sa.select(authorizations.c.status).where(authorizations.c.id == sa.bindparam("wanted"))


class Book:
    """The statements. Stateless but for the dialect's name."""

    def __init__(self, dialect: str) -> None:
        self._is_sqlite = dialect == "sqlite"

    def set_durable(self, conn: Connection, durable: bool) -> None:  # noqa: FBT001  (a pragma's two states)
        """Whether the coming commit is flushed to disk, or may be lost in a power cut (never in a crash)."""
        if self._is_sqlite:
            raw = conn.connection.dbapi_connection
            raw.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")  # type: ignore[union-attr]

    def authorize(self, conn: Connection, entry: AuthorizationEntry, budget: Budget | None) -> None:
        previous = self._entry(conn, entry.id)
        reserved = entry.amount_atomic
        if previous is not None:
            reserved = max(reserved, previous.amount_atomic)
        if budget is not None:
            lock(conn)
            since = int(time.time()) - budget.window_s
            spent = self.spent(conn, entry.payer, entry.asset, entry.network, since, without=entry.id)
            if spent + reserved > budget.limit_atomic:
                raise budget_exceeded(spent_atomic=spent, entry=entry, budget=budget)
        row = _as_row(entry) | {"reserved_gwei": _gwei(reserved)}
        if previous is None:
            conn.execute(authorizations.insert().values(row))
        else:
            conn.execute(authorizations.update().where(authorizations.c.id == entry.id).values(row))
        self._record(conn, _receipt_of(entry, status=ReceiptStatus.AUTHORIZED))

    def spent(
        self, conn: Connection, payer: str, asset: str, network: str, since: int, *, without: str | None = None
    ) -> int:
        """Atomic units, rounded up to a billionth of a token per authorization."""
        query = sa.select(sa.func.coalesce(sa.func.sum(authorizations.c.reserved_gwei), 0)).where(
            authorizations.c.payer == payer,
            authorizations.c.network == network,
            authorizations.c.asset == asset,
            authorizations.c.signed_at >= since,
        )
        if without is not None:
            query = query.where(authorizations.c.id != without)
        return int(conn.execute(query).scalar_one()) * _ATOMIC_PER_GWEI

    def mark_unsent(self, conn: Connection, authorization_id: str) -> None:
        conn.execute(
            authorizations.update()
            .where(authorizations.c.id == authorization_id)
            .values(status="unsent", reserved_gwei=0)
        )
        # The authorization stays on record; the call has no payment, hence no receipt.
        conn.execute(calls.delete().where(calls.c.authorization_id == authorization_id))

    def record_call(self, conn: Connection, receipt: SettlementReceipt) -> None:
        self._record(conn, receipt)
        status = conn.execute(_STATUS_OF, {"wanted": receipt.authorization_id}).scalar_one_or_none()
        if status in _STATUS and (entry := self._entry(conn, receipt.authorization_id)) is not None:
            # The settlement was seen before this call ended (its stream was slow to close): share anew.
            self._share_out(conn, entry)

    def record_settlement(self, conn: Connection, authorization_id: str, found: dict[str, Any]) -> None:
        previous = self._entry(conn, authorization_id)
        if previous is None:
            return
        entry = replace(previous, **found | {"settled_atomic": _int_or_none(found["settled_atomic"])})
        reserved = (entry.settled_atomic or 0) if _is_final(entry) else entry.amount_atomic
        conn.execute(
            authorizations.update()
            .where(authorizations.c.id == authorization_id)
            .values(reserved_gwei=_gwei(reserved), **found)
        )
        self._share_out(conn, entry)

    def record_dispute(self, conn: Connection, call_id: str, dispute: str) -> None:
        conn.execute(calls.update().where(calls.c.call_id == call_id).values(dispute=dispute))
        query = sa.select(calls.c.authorization_id).where(calls.c.call_id == call_id)
        authorization_id = conn.execute(query).scalar_one_or_none()
        entry = None if authorization_id is None else self._entry(conn, authorization_id)
        if entry is not None:
            self._share_out(conn, entry)

    def _share_out(self, conn: Connection, entry: AuthorizationEntry) -> None:
        rows = conn.execute(
            sa.select(calls.c.receipt, calls.c.answered_as, calls.c.dispute)
            .where(calls.c.authorization_id == entry.id)
            .order_by(calls.c.sequence)
        ).all()
        receipts = [SettlementReceipt.from_json(json.loads(row.receipt)) for row in rows]
        shares: Sequence[int | None] = [None] * len(receipts)
        if entry.settled_atomic is not None:
            shares = split_settlement(entry.settled_atomic, receipts)
        for row, receipt, share in zip(rows, receipts, shares, strict=True):
            status = _STATUS.get(entry.status) or ReceiptStatus(row.answered_as or ReceiptStatus.SERVED)
            dispute = dispute_of(receipt, entry=entry, siblings=receipts, recorded=row.dispute)
            self._store(
                conn,
                replace(
                    receipt,
                    status=status if dispute is None else ReceiptStatus.DISPUTED,
                    dispute=dispute,
                    settled_atomic=share,
                    authorization_settled_atomic=entry.settled_atomic,
                    payment_tx_hash=entry.tx_hash,
                    block_number=entry.block_number,
                    block_hash=entry.block_hash,
                    confirmations=entry.confirmations,
                    # Disputed while still open: the money is not final, whatever the status says.
                    confirmations_needed=1 if entry.status == "signed" else entry.confirmations_needed,
                ),
            )

    def _record(self, conn: Connection, receipt: SettlementReceipt) -> None:
        self._store(conn, receipt)
        conn.execute(_NOTE_ANSWER, {"wanted": receipt.call_id, "answered_as": receipt.status.value})

    def _store(self, conn: Connection, receipt: SettlementReceipt) -> None:
        row = {
            "authorization_id": receipt.authorization_id,
            "created_at": receipt.created_at,
            "receipt": json.dumps(receipt.to_json()),
        }
        changed = conn.execute(_UPDATE_CALL, row | {"wanted": receipt.call_id})
        if changed.rowcount == 0:
            conn.execute(_INSERT_CALL, row | {"call_id": receipt.call_id})

    def pin(self, conn: Connection, key: str, value: str) -> str:
        known = conn.execute(sa.select(pins.c.value).where(pins.c.key == key)).scalar_one_or_none()
        if known is None:
            conn.execute(pins.insert().values(key=key, value=value))
        return known or value

    def note(self, conn: Connection, key: str, value: str) -> None:
        changed = conn.execute(pins.update().where(pins.c.key == key).values(value=value))
        if changed.rowcount == 0:
            conn.execute(pins.insert().values(key=key, value=value))

    def noted(self, conn: Connection, key: str) -> str | None:
        return conn.execute(sa.select(pins.c.value).where(pins.c.key == key)).scalar_one_or_none()

    def receipts(
        self,
        conn: Connection,
        *,
        since: int,
        call_ids: list[str] | None,
        authorization_ids: list[str] | None,
        payer: str | None,
    ) -> list[SettlementReceipt]:
        query = sa.select(calls.c.receipt).where(calls.c.created_at >= since)
        if call_ids is not None:
            query = query.where(calls.c.call_id.in_(call_ids))
        if authorization_ids is not None:
            query = query.where(calls.c.authorization_id.in_(authorization_ids))
        rows = conn.execute(query.order_by(calls.c.sequence)).all()
        found = (SettlementReceipt.from_json(json.loads(row.receipt)) for row in rows)
        return [receipt for receipt in found if payer in (None, receipt.payer)]

    def authorizations(
        self, conn: Connection, *, status: str | None, payer: str | None, network: str | None
    ) -> list[AuthorizationEntry]:
        query = sa.select(*_ENTRY_COLUMNS).order_by(authorizations.c.sequence)
        for column, value in (
            (authorizations.c.status, status),
            (authorizations.c.payer, payer),
            (authorizations.c.network, network),
        ):
            if value is not None:
                query = query.where(column == value)
        return [_as_entry(row) for row in conn.execute(query).mappings()]

    def unfinished(self, conn: Connection, *, network: str, payer: str | None) -> list[AuthorizationEntry]:
        is_unconfirmed = authorizations.c.confirmations < authorizations.c.confirmations_needed
        query = (
            sa.select(*_ENTRY_COLUMNS)
            .where(authorizations.c.network == network)
            .where(sa.or_(authorizations.c.status == "signed", is_unconfirmed))
            .order_by(authorizations.c.sequence)
        )
        if payer is not None:
            query = query.where(authorizations.c.payer == payer)
        return [_as_entry(row) for row in conn.execute(query).mappings()]

    def _entry(self, conn: Connection, authorization_id: str) -> AuthorizationEntry | None:
        row = (
            conn.execute(sa.select(*_ENTRY_COLUMNS).where(authorizations.c.id == authorization_id))
            .mappings()
            .one_or_none()
        )
        return None if row is None else _as_entry(row)


def _is_final(entry: AuthorizationEntry) -> bool:
    if entry.status == "signed":
        return False
    return entry.confirmations_needed is None or (entry.confirmations or 0) >= entry.confirmations_needed


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _gwei(atomic: int) -> int:
    return -(-atomic // _ATOMIC_PER_GWEI)


def _as_row(entry: AuthorizationEntry) -> dict[str, Any]:
    row = asdict(entry)
    row["amount_atomic"] = str(entry.amount_atomic)
    row["settled_atomic"] = None if entry.settled_atomic is None else str(entry.settled_atomic)
    return row


def _as_entry(row: Any) -> AuthorizationEntry:
    values = dict(row)
    values["amount_atomic"] = int(values["amount_atomic"])
    values["settled_atomic"] = _int_or_none(values["settled_atomic"])
    return AuthorizationEntry(**values)


def _receipt_of(entry: AuthorizationEntry, *, status: ReceiptStatus) -> SettlementReceipt:
    """The receipt of a call of which nothing is known but its authorization."""
    return SettlementReceipt(
        call_id=entry.call_id,
        status=status,
        created_at=entry.signed_at,
        outcome="unknown",
        **receipt_fields(entry),
        model=entry.model,
        settlement_mode=entry.settlement_mode,
    )
