"""The statements over the ledger's tables: reservations, calls, settlements and how they are shared.

Runs inside the ledger's transaction; it does not know threads or when to commit. No statement of a call looks at
more rows than the call has, and what lists receipts or authorizations can do so page by page.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import Connection

from opengradient_x402.errors import CallKnown
from opengradient_x402.ledger import disputes, tables
from opengradient_x402.ledger.authorizations import Authorization, Budget, budget_exceeded, unanswered
from opengradient_x402.ledger.queries import KEYS, LOSS, OPEN, Queries, beginning, dispute_prefix
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.ledger.recorder import CallUnderWay
from opengradient_x402.ledger.tables import (
    TERMS,
    Prepared,
    as_row,
    authorizations,
    calls,
    channels,
    pins,
    receipt_in,
    reserved,
    row_of_call,
    signatures,
    vouchers,
)

_log = logging.getLogger(__name__)
_NEWEST_VOUCHERS = Prepared(
    sa.select(
        channels.c.id,
        channels.c.claimed_atomic,
        sa.func.coalesce(vouchers.c.signed_atomic, vouchers.c.max_atomic).label("most_atomic"),
        authorizations.c.status,
    )
    .join_from(channels, vouchers, vouchers.c.channel_id == channels.c.id)
    .join(authorizations, authorizations.c.id == vouchers.c.authorization_id)
    .where(*(channels.c[name] == sa.bindparam(name) for name in ("payer", "network", "asset")))
    .where(channels.c.status != "closed", channels.c.used_at > sa.bindparam("since"), vouchers.c.state == "newest")
)
_CALLS_BY, _PROCESS, _UNDECIDED = "calls by the process of ", "process ", "undecided "
"""Keys of notes: which process knows an authorization's calls, that it ended in order, what waits for its answer."""
_STATUS = {"settled": ReceiptStatus.SETTLED, "expired": ReceiptStatus.EXPIRED, "cancelled": ReceiptStatus.CANCELLED}

# Statements of every call, built once: SQLAlchemy takes longer to build one than SQLite takes to run it.


def _given(*names: str) -> dict[str, sa.BindParameter[Any]]:
    return {name: sa.bindparam(name) for name in names}


_CALL = ("authorization_id", "created_at", "receipt", "payer", "status", "run")
_THIS_CALL = calls.c.call_id == sa.bindparam("wanted")
_UPDATE_CALL = Prepared(calls.update().where(_THIS_CALL).values(_given(*_CALL)))
_INSERT_CALL = Prepared(calls.insert().values(_given("call_id", *_CALL)))
_UPDATE_ANSWER = Prepared(calls.update().where(_THIS_CALL).values(_given(*_CALL, "answered_as")))
_INSERT_ANSWER = Prepared(calls.insert().values(_given("call_id", *_CALL, "answered_as")))
_PAYS_FOR = Prepared(sa.select(calls.c.authorization_id).where(_THIS_CALL))
_FORGET_CALL = Prepared(
    calls.delete().where(
        _THIS_CALL, calls.c.authorization_id == sa.bindparam("paid_by"), calls.c.answered_as == sa.bindparam("begun")
    )
)
_GIVE_UP_CALL = Prepared(
    calls.update()
    .where(
        _THIS_CALL, calls.c.authorization_id == sa.bindparam("paid_by"), calls.c.answered_as == sa.bindparam("begun")
    )
    .values(answered_as=ReceiptStatus.EXPIRED.value)
)
_CALLS_OF = Prepared(
    sa.select(calls.c.receipt, calls.c.answered_as, calls.c.dispute)
    .where(calls.c.authorization_id == sa.bindparam("wanted"))
    .order_by(calls.c.sequence)
)
_THIS = authorizations.c.id == sa.bindparam("wanted")
_STATUS_OF = Prepared(sa.select(authorizations.c.status).where(_THIS))
_STORED = [column.name for column in authorizations.c if column.name != "sequence"]
_INSERT_AUTHORIZATION = Prepared(authorizations.insert().values(_given(*_STORED)))
_UPDATE_AUTHORIZATION = Prepared(authorizations.update().where(_THIS).values(_given(*_STORED)))
_INSERT_SIGNATURE = Prepared(signatures.insert().values(_given("authorization_id", *TERMS)))
_MINUTE_KEY = ("payer", "network", "asset", "minute")
_ADD_RESERVED = Prepared(
    reserved.update()
    .where(*(reserved.c[name] == sa.bindparam(f"of_{name}") for name in _MINUTE_KEY))
    .values({name: reserved.c[name] + sa.bindparam(f"of_{name}") for name in ("gwei", "rest")})
)
_INSERT_RESERVED = Prepared(reserved.insert().values(_given(*_MINUTE_KEY, "gwei", "rest")))


def _sum_of(table: sa.Table, prefix: str, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    of_wallet = (table.c[name] == sa.bindparam(name) for name in ("payer", "network", "asset"))
    return sa.select(*(sa.func.sum(table.c[prefix + name]) for name in ("gwei", "rest"))).where(*of_wallet, *conditions)


_SUMS = Prepared(
    sa.union_all(
        _sum_of(reserved, "", reserved.c.minute >= sa.bindparam("minute")),
        _sum_of(
            authorizations, "reserved_", authorizations.c.signed_at.between(sa.bindparam("since"), sa.bindparam("last"))
        ),
    )
)
_THIS_KEY = pins.c.key == sa.bindparam("wanted")
_UPDATE_NOTE = Prepared(pins.update().where(_THIS_KEY).values(_given("value")))
_INSERT_NOTE = Prepared(pins.insert().values(_given("key", "value")))
_DELETE_NOTE = Prepared(pins.delete().where(_THIS_KEY))
_KEYS = Prepared(KEYS)
_OPEN_KEYS = Prepared(KEYS.where(pins.c.value == OPEN))
_USE_PROOF = Prepared(
    sa.text(
        "INSERT INTO proofs (id, call_id, used_at) VALUES (:id, :call_id, :used_at) "
        "ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING call_id"
    )
)
_SAVEPOINT, _UNDO, _RELEASE = (
    Prepared(sa.text(f"{what} SAVEPOINT part".strip())) for what in ("", "ROLLBACK TO", "RELEASE")
)
_MINUTE_S = 60


class Book(Queries):
    """Statements. `knows` says whether a process's calls under way can be seen; `under_way` has an authorization's."""

    def __init__(self, dialect: str, *, knows: Callable[[str], bool], under_way: Callable[[str], set[str]]) -> None:
        super().__init__(dialect)
        self.knows, self._under_way = knows, under_way

    def begin_part(self, conn: Connection) -> None:
        """Begins a part of the transaction that can be undone by itself."""
        _SAVEPOINT.change(conn, {})

    def undo_part(self, conn: Connection) -> None:
        _UNDO.change(conn, {})

    def end_part(self, conn: Connection) -> None:
        _RELEASE.change(conn, {})

    def authorize(self, conn: Connection, authorization: Authorization, budget: Budget | None) -> Authorization:
        known = self.authorization(conn, authorization.id)
        whole, new = authorization, authorization.signed
        if known is not None and known.status == "unsent":  # what was signed before has never left
            conn.execute(signatures.delete().where(signatures.c.authorization_id == known.id))
        elif known is not None:
            new = tuple(terms for terms in new if terms not in known.signed)  # a transaction may be tried twice
            status = "signed" if known.status == "expired" else known.status  # the new signature can still be used
            whole = replace(known, signed=(*known.signed, *new), endpoint=authorization.endpoint, status=status)
        row = as_row(whole)
        self._reserve(conn, row, before=None if known is None else as_row(known))
        if budget is not None:
            since = int(time.time()) - budget.window_s
            spent = self.spent(conn, whole.payer, whole.asset, whole.network, since, without=row)
            spent += self._still_claimable(conn, whole, since)
            if spent + whole.reserved_atomic > budget.limit_atomic:
                raise budget_exceeded(spent_atomic=spent, authorization=whole, budget=budget)
        if known is None:
            _INSERT_AUTHORIZATION.change(conn, row)
        else:
            _UPDATE_AUTHORIZATION.change(conn, row | {"wanted": whole.id})
        for terms in new:
            stored = asdict(terms) | {"authorization_id": whole.id, "amount_atomic": str(terms.amount_atomic)}
            _INSERT_SIGNATURE.change(conn, stored)
        self._record(conn, unanswered(whole))
        return whole

    def _still_claimable(self, conn: Connection, new: Authorization, since: int) -> int:
        """Atomic units that vouchers allow and nothing reserves: a claim for less leaves the rest claimable.

        Of the new authorization's own channel only what the new reservation does not cover.
        """
        wallet = {"payer": new.payer, "asset": new.asset, "network": new.network, "since": since}
        covered: dict[str, int] = {f"0x{new.nonce:064x}": new.reserved_atomic}
        beyond: dict[str, int] = {}
        for channel_id, claimed_atomic, most_atomic, status in _NEWEST_VOUCHERS.rows(conn, wallet):
            left = int(most_atomic) - int(claimed_atomic)
            known = beyond if status == "settled" else covered
            known[channel_id] = max(known.get(channel_id, 0), left)
        return sum(max(0, left - covered.get(channel_id, 0)) for channel_id, left in beyond.items())

    def spent(
        self,
        conn: Connection,
        payer: str,
        asset: str,
        network: str,
        since: int,
        *,
        without: dict[str, Any] | None = None,
    ) -> int:
        """Atomic units; `without` this one's reservation."""
        until = -(-since // _MINUTE_S) * _MINUTE_S
        # The minute in which the window begins is added up authorization by authorization, the others as minutes.
        window = {"minute": until // _MINUTE_S, "since": since, "last": until - 1}
        rows = _SUMS.rows(conn, {"payer": payer, "asset": asset, "network": network} | window)
        spent = sum(int(gwei or 0) * tables.ATOMIC_PER_GWEI + int(rest or 0) for gwei, rest in rows)
        if without is not None and without["signed_at"] >= until:
            spent -= without["reserved_gwei"] * tables.ATOMIC_PER_GWEI + without["reserved_rest"]
        return spent

    def _reserve(self, conn: Connection, row: dict[str, Any], *, before: dict[str, Any] | None) -> None:
        """What this authorization reserves now, in place of what it did `before`."""
        changes: dict[tuple[str, str, str, int], tuple[int, int]] = {}
        for known, sign in ((before, -1), (row, 1)):
            if known is not None:
                key = (known["payer"], known["network"], known["asset"], known["signed_at"] // _MINUTE_S)
                gwei, rest = changes.get(key, (0, 0))
                changes[key] = gwei + sign * known["reserved_gwei"], rest + sign * known["reserved_rest"]
        for key, (gwei, rest) in changes.items():
            if gwei or rest:
                values = dict(zip(_MINUTE_KEY, key, strict=True)) | {"gwei": gwei, "rest": rest}
                if _ADD_RESERVED.change(conn, {f"of_{name}": values[name] for name in values}) == 0:
                    _INSERT_RESERVED.change(conn, values)

    def check_unknown(self, conn: Connection, call_id: str) -> None:
        """Raises CallKnown for a call that is there."""
        if _PAYS_FOR.value(conn, {"wanted": call_id}) is not None:
            raise CallKnown(
                f"The call {call_id} was made before, or another process is making it. It was not sent again, and "
                f"nothing was paid now. `opengradient-x402 receipts show {call_id}` shows what became of it.",
                call_id=call_id,
            )

    def begin_call(self, conn: Connection, authorization: Authorization, call: CallUnderWay) -> None:
        """Notes, for every process, that this authorization is about to pay for the call. Raises CallKnown."""
        self.check_unknown(conn, call.call_id)
        self._record(conn, unanswered(authorization, call))

    def forget_call(self, conn: Connection, call_id: str, authorization_id: str) -> None:
        """The call that was begun was not sent: what was settled is shared without it."""
        _FORGET_CALL.change(
            conn, {"wanted": call_id, "paid_by": authorization_id, "begun": ReceiptStatus.AUTHORIZED.value}
        )
        self.share_out(conn, authorization_id)

    def give_up_call(self, conn: Connection, call_id: str, authorization_id: str) -> bool:
        """Blocks the id of a call that was begun. False when the call is paid in another way now."""
        values = {"wanted": call_id, "paid_by": authorization_id, "begun": ReceiptStatus.AUTHORIZED.value}
        _GIVE_UP_CALL.change(conn, values)
        return bool(_PAYS_FOR.value(conn, {"wanted": call_id}) == authorization_id)

    def mark_unsent(self, conn: Connection, authorization_id: str) -> None:
        if (known := self.authorization(conn, authorization_id)) is not None:
            self.update(conn, known, replace(known, status="unsent"))
        # The authorization stays on record; the call has no payment, so it has no receipt.
        conn.execute(calls.delete().where(calls.c.authorization_id == authorization_id))

    def update(self, conn: Connection, known: Authorization, found: Authorization) -> None:
        row = as_row(found)
        self._reserve(conn, row, before=as_row(known))
        _UPDATE_AUTHORIZATION.change(conn, row | {"wanted": found.id})

    def record_call(self, conn: Connection, receipt: SettlementReceipt) -> str | None:
        self._record(conn, receipt)
        if _STATUS_OF.value(conn, {"wanted": receipt.authorization_id}) in _STATUS:
            self.share_out(conn, receipt.authorization_id)
        if receipt.proof_id is None:
            return None
        proof = {"id": receipt.proof_id, "call_id": receipt.call_id, "used_at": receipt.created_at}
        return str(_USE_PROOF.value(conn, proof))  # this call, unless the proof was used before

    def record_missed_call(self, conn: Connection, receipt: SettlementReceipt) -> None:
        """As `record_call`, for a record that waited in a file: what the ledger knows already is newer."""
        query = sa.select(calls.c.receipt).where(calls.c.call_id == receipt.call_id)
        known = conn.execute(query).scalar_one_or_none()
        if known is None or json.loads(known)["outcome"] == "unknown":
            self.record_call(conn, receipt)

    def record_killed_call(self, conn: Connection, call: CallUnderWay) -> None:
        """A call that was under way when its process ended: nothing is known of it but what pays for it."""
        query = sa.select(calls.c.sequence).where(calls.c.call_id == call.call_id)
        authorization = self.authorization(conn, call.authorization_id)
        if authorization is not None and conn.execute(query).scalar_one_or_none() is None:
            self.record_call(conn, unanswered(authorization, call))

    def share_out(self, conn: Connection, authorization_id: str) -> None:
        """Shares a settlement again that was seen before a call ended (its stream was slow to close)."""
        if (settled := self.authorization(conn, authorization_id)) is not None and settled.status in _STATUS:
            self._share_out(conn, settled)

    def record_settlement(self, conn: Connection, authorization: Authorization) -> bool:
        known = self.authorization(conn, authorization.id)
        if known is None:
            return False
        if authorization.status == "expired" and known.deadline > authorization.deadline:
            return False  # a signature was added meanwhile, and it lives longer
        if _knows_more(known, authorization):
            return False
        found = replace(authorization, signed=known.signed)
        self.update(conn, known, found)
        self._share_out(conn, found)
        return known.status != found.status

    def record_dispute(self, conn: Connection, call_id: str, dispute: str) -> None:
        conn.execute(calls.update().where(calls.c.call_id == call_id).values(dispute=dispute))
        query = sa.select(calls.c.authorization_id).where(calls.c.call_id == call_id)
        authorization_id = conn.execute(query).scalar_one_or_none()
        authorization = None if authorization_id is None else self.authorization(conn, authorization_id)
        if authorization is not None:
            self._share_out(conn, authorization)

    def _share_out(self, conn: Connection, authorization: Authorization) -> None:
        if authorization.status == "charged":  # a claim is no settlement
            authorization = replace(authorization, status="signed", settled_atomic=None)
        rows = _CALLS_OF.rows(conn, {"wanted": authorization.id})
        receipts = [receipt_in(text) for text, _, _ in rows]
        shares: Sequence[int | None] = [None] * len(receipts)
        if authorization.settled_atomic is not None:
            shares = disputes.split_settlement(authorization.settled_atomic, receipts)
        overcharged, found = self._overcharge(conn, authorization, receipts), []
        for (_, answered_as, recorded), receipt, share in zip(rows, receipts, shares, strict=True):
            status = _STATUS.get(authorization.status) or ReceiptStatus(answered_as or ReceiptStatus.SERVED)
            dispute = disputes.dispute_of(
                receipt, authorization=authorization, overcharged=overcharged, recorded=recorded
            )
            found.append(dispute)
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
                    # Disputed while still open: the status looks final, and the money is not.
                    confirmations_needed=1 if authorization.status == "signed" else authorization.confirmations_needed,
                ),
            )
        self._note_dispute(conn, authorization, is_open=any(found))

    def _overcharge(
        self, conn: Connection, authorization: Authorization, receipts: Sequence[SettlementReceipt]
    ) -> str | None:
        """What was taken too much; nothing while calls are under way, or may be missing that a killed process made."""
        text = disputes.overcharge(authorization, receipts)
        if text is None or (authorization.settled_atomic or 0) > authorization.amount_atomic:
            return text
        if self._under_way(authorization.id) - {receipt.call_id for receipt in receipts}:
            return None  # it is decided when they have ended
        process = self.noted(conn, _CALLS_BY + authorization.id)
        if process is None or self.knows(process) or self.noted(conn, _PROCESS + process) is not None:
            return text
        self.note(conn, f"{_UNDECIDED}{process} {authorization.id}", "")
        _log.warning(
            "%s The process that paid (authorization %s) runs elsewhere, or was killed and left nothing: calls may be "
            "missing here. No dispute is recorded before that process pays again or ends in order.",
            *(text, authorization.id),
        )
        return None

    def note_process(self, conn: Connection, authorization_id: str, process: str) -> None:
        """This process knows the calls that the authorization pays; others who read the database may not."""
        self.note(conn, _CALLS_BY + authorization_id, process)
        self._decide(conn, process)

    def end_process(self, conn: Connection, process: str) -> None:
        """Every call of this process is in the database."""
        self.note(conn, _PROCESS + process, "ended")
        self._decide(conn, process)

    def _decide(self, conn: Connection, process: str) -> None:
        """What others could not decide about the settlements of this process."""
        for (key,) in _KEYS.rows(conn, beginning(f"{_UNDECIDED}{process} ")):
            _DELETE_NOTE.change(conn, {"wanted": key})
            self.share_out(conn, key.rpartition(" ")[2])

    def _note_dispute(self, conn: Connection, authorization: Authorization, *, is_open: bool) -> None:
        parts = urlsplit(authorization.endpoint)
        key = f"{dispute_prefix(authorization.network, f'{parts.scheme}://{parts.netloc}')}{authorization.id}"
        known = self.noted(conn, key)
        if is_open and known is None:
            self.note(conn, key, OPEN)
        elif not is_open and known == OPEN:
            _DELETE_NOTE.change(conn, {"wanted": key})

    def clear_disputes(self, conn: Connection, network: str, origin: str) -> int:
        keys = _OPEN_KEYS.rows(conn, beginning(dispute_prefix(network, origin)))
        for (key,) in keys:
            self.note(conn, key, "cleared")
        return len(keys)

    def _record(self, conn: Connection, receipt: SettlementReceipt) -> None:
        row = row_of_call(receipt) | {"answered_as": receipt.status.value}
        if _UPDATE_ANSWER.change(conn, row | {"wanted": receipt.call_id}) == 0:
            _INSERT_ANSWER.change(conn, row | {"call_id": receipt.call_id})

    def _store(self, conn: Connection, receipt: SettlementReceipt) -> None:
        row = row_of_call(receipt)
        if _UPDATE_CALL.change(conn, row | {"wanted": receipt.call_id}) == 0:
            _INSERT_CALL.change(conn, row | {"call_id": receipt.call_id})

    def pin(self, conn: Connection, key: str, value: str) -> str:
        known = self.noted(conn, key)
        if known is None:
            _INSERT_NOTE.change(conn, {"key": key, "value": value})
        return known or value

    def note(self, conn: Connection, key: str, value: str) -> None:
        if _UPDATE_NOTE.change(conn, {"wanted": key, "value": value}) == 0:
            _INSERT_NOTE.change(conn, {"key": key, "value": value})

    def note_loss(self, conn: Connection) -> None:
        """Another ledger was at this place, and its payments of today may be missing here: of every wallet, again."""
        for (key,) in _KEYS.rows(conn, beginning(f"{LOSS} ")):
            _DELETE_NOTE.change(conn, {"wanted": key})
        self.note(conn, LOSS, str(int(time.time())))

    def accept_loss(self, conn: Connection, network: str, payer: str) -> None:
        """Nothing is missing of this wallet's payments."""
        self.note(conn, f"{LOSS} {network} {payer}", "and nothing is missing")


def _knows_more(known: Authorization, found: Authorization) -> bool:
    """Whether more was recorded while this was looked for, by another process: its node may be on another fork.

    What is not final is looked at again; and a block that is gone is recorded (`signed`) before anything else is.
    """
    if known.status not in ("settled", "cancelled"):
        return False
    if known.is_final:
        return found.status not in ("settled", "cancelled") or not found.is_final
    return found.status == "expired"
