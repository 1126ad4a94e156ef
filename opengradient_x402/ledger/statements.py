"""The statements over the ledger's tables: reservations, calls, settlements and how they are shared.

Runs inside the ledger's transaction; it does not know threads, nor when to commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.ledger.authorizations import Authorization, Budget, SignedTerms, budget_exceeded, receipt_fields
from opengradient_x402.ledger.disputes import dispute_of, split_settlement
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.ledger.tables import authorizations, calls, lock, pins, signatures

_ATOMIC_PER_GWEI = 10**9
_OPEN = "open"
_TERMS = [column.name for column in signatures.c if column.name not in ("sequence", "authorization_id")]
_OWN = [
    column.name for column in authorizations.c if column.name not in ("sequence", "asset", "signed_at", "reserved_gwei")
]
_WITH_SIGNATURES = (
    sa.select(
        *(authorizations.c[name] for name in _OWN),
        *(signatures.c[name].label(f"signed_{name}") for name in _TERMS),
    )
    .join_from(authorizations, signatures, signatures.c.authorization_id == authorizations.c.id)
    .order_by(authorizations.c.sequence, signatures.c.sequence)
)
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

    def authorize(self, conn: Connection, authorization: Authorization, budget: Budget | None) -> Authorization:
        if budget is not None:
            lock(conn)
        known = self._authorization(conn, authorization.id)
        whole = authorization
        if known is not None and known.status == "unsent":  # what was signed before has never left
            conn.execute(signatures.delete().where(signatures.c.authorization_id == known.id))
        elif known is not None:
            whole = replace(known, signed=(*known.signed, *authorization.signed), endpoint=authorization.endpoint)
        if budget is not None:
            since = int(time.time()) - budget.window_s
            spent = self.spent(conn, whole.payer, whole.asset, whole.network, since, without=whole.id)
            if spent + whole.reserved_atomic > budget.limit_atomic:
                raise budget_exceeded(spent_atomic=spent, authorization=whole, budget=budget)
        row = _as_row(whole)
        if known is None:
            conn.execute(authorizations.insert().values(row))
        else:
            conn.execute(authorizations.update().where(authorizations.c.id == whole.id).values(row))
        for terms in authorization.signed:
            stored = asdict(terms) | {"authorization_id": whole.id, "amount_atomic": str(terms.amount_atomic)}
            conn.execute(signatures.insert().values(stored))
        self._record(conn, _receipt_of(whole, status=ReceiptStatus.AUTHORIZED))
        return whole

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
        if status in _STATUS and (settled := self._authorization(conn, receipt.authorization_id)) is not None:
            # The settlement was seen before this call ended (its stream was slow to close): share anew.
            self._share_out(conn, settled)

    def record_settlement(self, conn: Connection, authorization: Authorization) -> None:
        known = self._authorization(conn, authorization.id)
        if known is None:
            return
        found = replace(authorization, signed=known.signed)  # a signature may have been added meanwhile
        conn.execute(authorizations.update().where(authorizations.c.id == found.id).values(_as_row(found)))
        self._share_out(conn, found)

    def record_dispute(self, conn: Connection, call_id: str, dispute: str) -> None:
        conn.execute(calls.update().where(calls.c.call_id == call_id).values(dispute=dispute))
        query = sa.select(calls.c.authorization_id).where(calls.c.call_id == call_id)
        authorization_id = conn.execute(query).scalar_one_or_none()
        authorization = None if authorization_id is None else self._authorization(conn, authorization_id)
        if authorization is not None:
            self._share_out(conn, authorization)

    def _share_out(self, conn: Connection, authorization: Authorization) -> None:
        rows = conn.execute(
            sa.select(calls.c.receipt, calls.c.answered_as, calls.c.dispute)
            .where(calls.c.authorization_id == authorization.id)
            .order_by(calls.c.sequence)
        ).all()
        receipts = [SettlementReceipt.from_json(json.loads(row.receipt)) for row in rows]
        shares: Sequence[int | None] = [None] * len(receipts)
        if authorization.settled_atomic is not None:
            shares = split_settlement(authorization.settled_atomic, receipts)
        disputes: list[str | None] = []
        for row, receipt, share in zip(rows, receipts, shares, strict=True):
            status = _STATUS.get(authorization.status) or ReceiptStatus(row.answered_as or ReceiptStatus.SERVED)
            dispute = dispute_of(receipt, authorization=authorization, siblings=receipts, recorded=row.dispute)
            disputes.append(dispute)
            self._store(
                conn,
                replace(
                    receipt,
                    status=status if dispute is None else ReceiptStatus.DISPUTED,
                    dispute=dispute,
                    settled_atomic=share,
                    authorization_settled_atomic=authorization.settled_atomic,
                    payment_tx_hash=authorization.tx_hash,
                    block_number=authorization.block_number,
                    block_hash=authorization.block_hash,
                    confirmations=authorization.confirmations,
                    # Disputed while still open: the money is not final, whatever the status says.
                    confirmations_needed=1 if authorization.status == "signed" else authorization.confirmations_needed,
                ),
            )
        self._note_dispute(conn, authorization, is_open=any(disputes))

    def _note_dispute(self, conn: Connection, authorization: Authorization, *, is_open: bool) -> None:
        key = f"{_dispute_prefix(authorization.network, _origin_of(authorization.endpoint))}{authorization.id}"
        known = self.noted(conn, key)
        if is_open and known is None:
            self.note(conn, key, _OPEN)
        elif not is_open and known == _OPEN:
            conn.execute(pins.delete().where(pins.c.key == key))

    def open_dispute(self, conn: Connection, network: str, origin: str) -> str | None:
        found = conn.execute(_disputes(network, origin).with_only_columns(pins.c.key).limit(1)).scalar_one_or_none()
        return None if found is None else str(found).rpartition(" ")[2]

    def clear_disputes(self, conn: Connection, network: str, origin: str) -> int:
        keys = list(conn.execute(_disputes(network, origin).with_only_columns(pins.c.key)).scalars())
        for key in keys:
            self.note(conn, key, "cleared")
        return len(keys)

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
    ) -> list[Authorization]:
        query = _WITH_SIGNATURES
        for column, value in (
            (authorizations.c.status, status),
            (authorizations.c.payer, payer),
            (authorizations.c.network, network),
        ):
            if value is not None:
                query = query.where(column == value)
        return _read(conn, query)

    def unfinished(self, conn: Connection, *, network: str, payer: str | None) -> list[Authorization]:
        is_unconfirmed = authorizations.c.confirmations < authorizations.c.confirmations_needed
        query = _WITH_SIGNATURES.where(authorizations.c.network == network).where(
            sa.or_(authorizations.c.status == "signed", is_unconfirmed)
        )
        if payer is not None:
            query = query.where(authorizations.c.payer == payer)
        return _read(conn, query)

    def _authorization(self, conn: Connection, authorization_id: str) -> Authorization | None:
        found = _read(conn, _WITH_SIGNATURES.where(authorizations.c.id == authorization_id))
        return found[0] if found else None


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _dispute_prefix(network: str, origin: str) -> str:
    return f"dispute {network} {origin} "


def _disputes(network: str, origin: str) -> sa.Select[Any]:
    prefix = _dispute_prefix(network, origin)
    return sa.select(pins).where(pins.c.key > prefix, pins.c.key < prefix + "~", pins.c.value == _OPEN)


def _read(conn: Connection, query: sa.Select[Any]) -> list[Authorization]:
    """The authorizations of a query over `_WITH_SIGNATURES`, which has a row for each signature."""
    found: list[Authorization] = []
    for _, rows in groupby(conn.execute(query).mappings(), key=itemgetter("id")):
        same = list(rows)
        values = {name: same[0][name] for name in _OWN}
        values["nonce"] = int(values["nonce"])
        values["settled_atomic"] = None if values["settled_atomic"] is None else int(values["settled_atomic"])
        found.append(Authorization(**values, signed=tuple(map(_terms_in, same))))
    return found


def _terms_in(row: Any) -> SignedTerms:
    values = {name: row[f"signed_{name}"] for name in _TERMS}
    return SignedTerms(**values | {"amount_atomic": int(values["amount_atomic"])})


def _as_row(authorization: Authorization) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(authorization, name) for name in _OWN}
    row["nonce"] = str(authorization.nonce)
    row["settled_atomic"] = None if authorization.settled_atomic is None else str(authorization.settled_atomic)
    row["asset"] = authorization.asset
    row["signed_at"] = authorization.terms.signed_at
    row["reserved_gwei"] = -(-authorization.reserved_atomic // _ATOMIC_PER_GWEI)
    return row


def _receipt_of(authorization: Authorization, *, status: ReceiptStatus) -> SettlementReceipt:
    """The receipt of a call of which nothing is known but its authorization."""
    return SettlementReceipt(
        call_id=authorization.call_id,
        status=status,
        created_at=authorization.signed_at,
        outcome="unknown",
        **receipt_fields(authorization),
        model=authorization.model,
        settlement_mode=authorization.settlement_mode,
    )
