"""The channels in the ledger: a voucher, the budget that it must fit into and its channel change in one transaction.

What is known of a channel is in the database alone, so that processes which share a ledger share its channels. Each
function gives a `Future`; those that precede a signature are flushed to disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.ledger.authorizations import Authorization, Budget
from opengradient_x402.ledger.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.ledger.statements import Book

_NUMBERS = ("salt", "charged_atomic", "signed_atomic", "balance_atomic", "claimed_atomic")
"""Kept as text: they fit no database integer."""
_AS_BEFORE = "The channel is as it was before; the chain says what was taken."


class ChannelBook:
    """The channels of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def channels(self, *, network: str, payer: str | None = None) -> Future[list[Channel]]:
        """All channels, oldest first."""
        return self._ledger.read(lambda _book, conn: _channels(conn, network=network, payer=payer))

    def add(self, channel: Channel) -> Future[Channel]:
        """Remembers a channel, before anything is signed for it; what is known of it already, if it is there."""

        def added(_book: Book, conn: Connection) -> Channel:
            known = _channel(conn, channel.id)
            if known is None:
                conn.execute(_table("channels").insert().values(_row(channel)))
            return known or channel

        return self._ledger.submit(added, durable=True)

    def reserve(
        self,
        channel: Channel,
        authorization: Authorization,
        *,
        budget: Budget,
        deposit: Deposit | None = None,
        is_first: bool = False,
    ) -> Future[tuple[Channel, Voucher]]:
        """Writes the next voucher, for this authorization's amount on top of what was charged so far.

        Vouchers before it, whose charge is known, count with that from here on: the new one includes them. Raises
        BudgetExceeded; CallKnown when it `is_first` and the ledger has its call already.
        """

        def reserved(book: Book, conn: Connection) -> tuple[Channel, Voucher]:
            if is_first:
                book.check_unknown(conn, authorization.call_id)
            now = _known(conn, channel.id)
            for earlier in _vouchers(conn, channel.id, "newest"):
                if earlier.charged_atomic is None:
                    continue
                before = book.authorization(conn, earlier.authorization_id)
                if before is not None and before.status == "signed":
                    charged = replace(before, status="charged", settled_atomic=earlier.charged_atomic)
                    book.update(conn, before, charged)
                is_final = before is not None and before.status == "settled"
                _set_state(conn, earlier.authorization_id, "final" if is_final else "included")
            book.authorize(conn, authorization, budget)
            most = now.charged_atomic + authorization.terms.amount_atomic
            voucher = Voucher(
                authorization_id=authorization.id,
                channel_id=channel.id,
                base_atomic=now.charged_atomic,
                max_atomic=most,
            )
            _put_voucher(conn, voucher)
            now = replace(
                now,
                signed_atomic=max(now.signed_atomic, most),
                used_at=int(time.time()),
                deposit=deposit or now.deposit,
            )
            _put(conn, now)
            return now, voucher

        return self._ledger.submit(reserved, durable=True)

    def charge(self, voucher: Voucher, charged_atomic: int) -> Future[None]:
        """Records what a call was charged, once that was checked."""

        def charged(_book: Book, conn: Connection) -> None:
            now = _known(conn, voucher.channel_id)
            for earlier in _vouchers(conn, voucher.channel_id, "newest"):
                if earlier.charged_atomic is None:  # the gateway's sum shows that it was not charged
                    _put_voucher(conn, replace(earlier, charged_atomic=0))
            _put_voucher(conn, replace(voucher, charged_atomic=charged_atomic))
            _put(conn, replace(now, charged_atomic=voucher.base_atomic + charged_atomic, used_at=int(time.time())))

        return self._ledger.submit(charged, otherwise=_AS_BEFORE)

    def correct(self, voucher: Voucher, charged_atomic: int, *, signed_atomic: int) -> Future[Voucher | None]:
        """Takes over what was charged before this voucher, once that was checked; the voucher, made anew on top of it.

        Calls whose outcome was unknown cost what this leaves for them, the oldest first. None, and nothing is changed,
        when the calls of this ledger cannot have cost so much; unless the gateway has a voucher for `signed_atomic`,
        higher than any of this ledger, so that somebody else uses this key as well.
        """

        def corrected(_book: Book, conn: Connection) -> Voucher | None:
            now = _known(conn, voucher.channel_id)
            others = _vouchers(conn, voucher.channel_id, "newest", "included")
            most = max([now.charged_atomic, *(one.end_atomic for one in others if one != voucher)])
            is_alone = signed_atomic <= now.signed_atomic and _has_others(conn, voucher)
            if charged_atomic > most and is_alone:
                return None
            sum_atomic = now.charged_atomic
            for earlier in _vouchers(conn, voucher.channel_id, "newest", "included"):
                if earlier.authorization_id == voucher.authorization_id:
                    continue
                if earlier.charged_atomic is None:
                    cost = min(max(0, charged_atomic - sum_atomic), earlier.max_atomic - earlier.base_atomic)
                    _put_voucher(conn, replace(earlier, base_atomic=sum_atomic, charged_atomic=cost))
                    sum_atomic += cost
                elif earlier.end_atomic > charged_atomic:  # the gateway counts less than it said before
                    cost = max(0, charged_atomic - earlier.base_atomic)
                    _put_voucher(conn, replace(earlier, charged_atomic=cost))
            most = charged_atomic + voucher.max_atomic - voucher.base_atomic
            anew = replace(voucher, base_atomic=charged_atomic, max_atomic=most)
            _put_voucher(conn, anew)
            signed = max(now.signed_atomic, most, signed_atomic)
            _put(conn, replace(now, charged_atomic=charged_atomic, signed_atomic=signed))
            return anew

        return self._ledger.submit(corrected, durable=True)

    def deposit(self, channel_id: str, deposit: Deposit) -> Future[None]:
        """Writes a deposit, before it is signed."""

        def deposited(_book: Book, conn: Connection) -> None:
            _put(conn, replace(_known(conn, channel_id), deposit=deposit))

        return self._ledger.submit(deposited, durable=True)

    def drop(self, voucher: Voucher) -> Future[None]:
        """Forgets a voucher that never left, with its reservation."""

        def dropped(book: Book, conn: Connection) -> None:
            vouchers = _table("vouchers")
            conn.execute(vouchers.delete().where(vouchers.c.authorization_id == voucher.authorization_id))
            book.mark_unsent(conn, voucher.authorization_id)

        return self._ledger.submit(dropped, otherwise="The voucher never left; its amount stays reserved.")

    def see(
        self,
        channel_id: str,
        *,
        balance_atomic: int,
        claimed_atomic: int,
        withdrawing_since: int,
        is_deposit_over: bool,
    ) -> Future[Channel]:
        """Records what the chain shows of a channel; `is_deposit_over`: the signed deposit is used, or void."""

        def seen(_book: Book, conn: Connection) -> Channel:
            now = _known(conn, channel_id)
            now = replace(
                now,
                balance_atomic=balance_atomic,
                claimed_atomic=max(now.claimed_atomic, claimed_atomic),
                withdrawing_since=withdrawing_since,
                deposit=None if is_deposit_over else now.deposit,
            )
            is_empty = balance_atomic <= now.claimed_atomic
            if withdrawing_since:
                now = replace(now, status="closing")
            elif is_empty and now.status == "closing":
                now = replace(now, status="closed")
            elif not is_empty and now.status == "closed":
                now = replace(now, status="open")
            _put(conn, now)
            return now

        return self._ledger.submit(seen, otherwise=_AS_BEFORE)

    def close(self, channel_id: str, *, status: str) -> Future[None]:
        """No further call uses the channel: it is `closing`, or `closed`."""

        def closed(_book: Book, conn: Connection) -> None:
            _put(conn, replace(_known(conn, channel_id), status=status))

        return self._ledger.submit(closed, durable=True, otherwise=_AS_BEFORE)

    def unsettled(self, channel_ids: Sequence[str]) -> Future[dict[str, list[Voucher]]]:
        """The vouchers of which the chain has not said the last word, by channel, oldest first; and the newest."""
        return self._ledger.read(
            lambda _book, conn: {each: _vouchers(conn, each, "newest", "included") for each in channel_ids}
        )

    def finish(self, authorization_ids: Sequence[str]) -> Future[None]:
        """These vouchers are settled for good. The newest one of a channel stays in sight."""

        def finished(_book: Book, conn: Connection) -> None:
            table = _table("vouchers")
            for each in authorization_ids:
                this = (table.c.authorization_id == each, table.c.state == "included")
                conn.execute(table.update().where(*this).values(state="final"))

        return self._ledger.submit(finished, otherwise=_AS_BEFORE)


# -- rows


def _table(name: str) -> Any:
    from opengradient_x402.ledger import tables

    return tables.named(name)


def _row(channel: Channel) -> dict[str, Any]:
    row = {field.name: getattr(channel, field.name) for field in fields(channel) if field.name != "deposit"}
    deposit = channel.deposit
    row |= {name: str(row[name]) for name in _NUMBERS}
    row["deposit_atomic"] = None if deposit is None else str(deposit.amount_atomic)
    row["deposit_salt"] = None if deposit is None else str(deposit.salt)
    row["deposit_deadline"] = None if deposit is None else deposit.deadline
    return row


def _channel_in(row: Any) -> Channel:
    values = {field.name: row[field.name] for field in fields(Channel) if field.name != "deposit"}
    values |= {name: int(values[name]) for name in _NUMBERS}
    deposit = None
    if row["deposit_salt"] is not None:
        deposit = Deposit(
            amount_atomic=int(row["deposit_atomic"]), salt=int(row["deposit_salt"]), deadline=row["deposit_deadline"]
        )
    return Channel(**values, deposit=deposit)


def _channels(conn: Connection, *, network: str, payer: str | None) -> list[Channel]:
    table = _table("channels")
    query = table.select().where(table.c.network == network)
    if payer is not None:
        query = query.where(table.c.payer == payer)
    return [_channel_in(row) for row in conn.execute(query.order_by(table.c.sequence)).mappings()]


def _channel(conn: Connection, channel_id: str) -> Channel | None:
    table = _table("channels")
    row = conn.execute(table.select().where(table.c.id == channel_id)).mappings().one_or_none()
    return None if row is None else _channel_in(row)


def _known(conn: Connection, channel_id: str) -> Channel:
    channel = _channel(conn, channel_id)
    if channel is None:
        raise LookupError(f"channel {channel_id} is not in the ledger")
    return channel


def _put(conn: Connection, channel: Channel) -> None:
    table = _table("channels")
    conn.execute(table.update().where(table.c.id == channel.id).values(_row(channel)))


def _vouchers(conn: Connection, channel_id: str, *states: str) -> list[Voucher]:
    table = _table("vouchers")
    query = table.select().where(table.c.channel_id == channel_id, table.c.state.in_(states)).order_by(table.c.sequence)
    return [
        Voucher(
            authorization_id=row["authorization_id"],
            channel_id=row["channel_id"],
            base_atomic=int(row["base_atomic"]),
            max_atomic=int(row["max_atomic"]),
            charged_atomic=None if row["charged_atomic"] is None else int(row["charged_atomic"]),
        )
        for row in conn.execute(query).mappings()
    ]


def _has_others(conn: Connection, voucher: Voucher) -> bool:
    table = _table("vouchers")
    other = (table.c.channel_id == voucher.channel_id, table.c.authorization_id != voucher.authorization_id)
    return conn.execute(table.select().where(*other).limit(1)).first() is not None


def _put_voucher(conn: Connection, voucher: Voucher) -> None:
    table = _table("vouchers")
    row = {name: None if value is None else str(value) for name, value in asdict(voucher).items()}
    this = table.c.authorization_id == voucher.authorization_id
    if conn.execute(table.update().where(this).values(row)).rowcount == 0:
        conn.execute(table.insert().values(row | {"state": "newest"}))


def _set_state(conn: Connection, authorization_id: str, state: str) -> None:
    table = _table("vouchers")
    conn.execute(table.update().where(table.c.authorization_id == authorization_id).values(state=state))
