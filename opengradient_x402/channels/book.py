"""The channels in the ledger. A voucher, its channel and the budget change together, in one transaction.

What is known of a channel is in the database alone, so that processes which share a ledger share its channels. Each
function gives a `Future`; those that precede a signature are flushed to disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.ledger.authorizations import Authorization, Budget
from opengradient_x402.ledger.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.channels.on_chain import ChannelState
    from opengradient_x402.ledger.statements import Book

_NUMBERS = ("salt", "charged_atomic", "signed_atomic", "balance_atomic", "claimed_atomic", "foreign_atomic")
"""Kept as text: they fit no database integer."""
_STATES = ("newest", "included", "final")
_FREE: Final[dict[str, Any]] = {"held_by": "", "held_until": 0}
_UNSEEN: Final[dict[str, Any]] = dict.fromkeys(
    ("tx_hash", "block_number", "block_hash", "confirmations", "confirmations_needed", "dispute")
)
_AS_BEFORE = "The channel is as it was before; the chain says what was taken."


class ChannelBook:
    """The channels of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._name = secrets.token_hex(4)

    def renew(self) -> None:
        """In a forked child: what the parent holds is not the child's."""
        self._name = secrets.token_hex(4)

    def channels(self, *, network: str, payer: str | None = None, anew: bool = False) -> Future[list[Channel]]:
        """All channels, oldest first; `held_by` is empty where it means nothing any more.

        With `anew`, channels that dead processes held are freed first.
        """

        def found(book: Book, conn: Connection) -> list[Channel]:
            channels = _channels(conn, network=network, payer=payer)
            return [one if self._is_held(one, book) else replace(one, held_by="", held_until=0) for one in channels]

        return self._ledger.submit(found, writes=False, needs_all_calls=anew, otherwise="Nothing was paid by asking.")

    def _is_held(self, channel: Channel, book: Book) -> bool:
        """Whether a call of another wallet object or process has it."""
        if channel.held_by in ("", self._holder()) or channel.held_until <= time.time():
            return False
        return not self._ledger.under_way.open() or book.knows(channel.held_by.partition(" ")[0])

    def _holder(self) -> str:
        self._ledger.under_way.open()
        return f"{self._ledger.under_way.name} {self._name}"

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
        hold_s: float = 0.0,
        is_first: bool = False,
    ) -> Future[tuple[Channel, Voucher] | None]:
        """Writes the next voucher, for this authorization's amount on top of what was charged so far.

        Vouchers before it, whose charge is known, count with that from here on, unless more than the new one allows
        was signed before. None when a call of another process has the channel, put something into it or closed it;
        otherwise it is held for `hold_s`, or until `charge`, `drop` or `free`. Raises BudgetExceeded; CallKnown when
        it `is_first` and the ledger has its call already.
        """

        def reserved(book: Book, conn: Connection) -> tuple[Channel, Voucher] | None:
            if is_first:
                book.check_unknown(conn, authorization.call_id)
            now, holder = _known(conn, channel.id), self._holder()
            is_changed = (now.balance_atomic, now.deposit) != (channel.balance_atomic, channel.deposit)
            if self._is_held(now, book) or now.status != "open" or (deposit is not None and is_changed):
                return None
            most = now.charged_atomic + authorization.terms.amount_atomic
            for earlier in _vouchers(conn, channel.id, "newest"):
                if earlier.charged_atomic is None or most < now.signed_atomic:
                    continue
                before = book.authorization(conn, earlier.authorization_id)
                if before is not None and before.status == "signed":
                    charged = replace(before, status="charged", settled_atomic=earlier.charged_atomic)
                    book.update(conn, before, charged)
                _set_state(conn, earlier.authorization_id, "included")
            self._ledger.authorize_in(book, conn, authorization, budget)
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
                held_by=holder,
                held_until=int(time.time() + hold_s),
            )
            _put(conn, now)
            return now, voucher

        return self._ledger.submit(reserved, durable=True)

    def charge(self, voucher: Voucher, charged_atomic: int) -> Future[None]:
        """Records what a call was charged, once that was checked."""

        def charged(book: Book, conn: Connection) -> None:
            now = _known(conn, voucher.channel_id)
            newest = _vouchers(conn, voucher.channel_id, "newest")
            place = next((i for i, one in enumerate(newest) if one.authorization_id == voucher.authorization_id), None)
            is_last = place == len(newest) - 1
            if is_last or (place is not None and newest[place].charged_atomic is None):
                for earlier in newest[:place]:
                    if earlier.charged_atomic is None:  # the gateway's sum shows that it cost nothing
                        _put_charge(book, conn, replace(earlier, charged_atomic=0))
                _put_charge(book, conn, replace(voucher, charged_atomic=charged_atomic))
            sum_atomic = voucher.base_atomic + charged_atomic
            if not is_last:  # another process began a call meanwhile: what it learned of the sum is newer
                sum_atomic = max(sum_atomic, now.charged_atomic)
            now = replace(now, charged_atomic=sum_atomic, used_at=int(time.time()))
            _put(conn, replace(now, **_FREE) if now.held_by == self._holder() else now)

        return self._ledger.submit(charged, otherwise=_AS_BEFORE)

    def free(self, channel_id: str) -> Future[None]:
        """The call that had the channel has ended, and nothing is known of its charge."""

        def freed(_book: Book, conn: Connection) -> None:
            now = _known(conn, channel_id)
            if now.held_by == self._holder():
                _put(conn, replace(now, **_FREE))

        return self._ledger.submit(freed, otherwise=_AS_BEFORE)

    def correct(
        self, voucher: Voucher, charged_atomic: int, *, signed_atomic: int, is_found: bool
    ) -> Future[Voucher | None]:
        """Takes over what was charged before this voucher, once that was checked; the voucher, made anew on top of it.

        Calls whose outcome was unknown cost what this leaves for them, the oldest first; what others were charged stays
        as the gateway said before, also when it counts less now. None, and nothing is changed, when other calls of this
        ledger cannot have cost so much; unless the gateway has a voucher for `signed_atomic`, higher than any of this
        ledger, so that somebody else uses this key as well, or this is the first call on a channel that was found on
        the chain (`is_found`).
        """

        def corrected(book: Book, conn: Connection) -> Voucher | None:
            now = _known(conn, voucher.channel_id)
            own, others = voucher.authorization_id, _vouchers(conn, voucher.channel_id, "newest", "included")
            others = [one for one in others if one.authorization_id != own]
            claimed = min(now.claimed_atomic, max((one.max_atomic for one in others), default=0))
            most = max([now.charged_atomic, claimed, *(one.end_atomic for one in others)])
            is_alone = signed_atomic <= now.signed_atomic and (not is_found or _has_others(conn, voucher))
            if charged_atomic > most and is_alone:
                return None
            sum_atomic = now.charged_atomic
            for earlier in others:
                if earlier.charged_atomic is None:
                    cost = min(max(0, charged_atomic - sum_atomic), earlier.max_atomic - earlier.base_atomic)
                    _put_charge(book, conn, replace(earlier, base_atomic=sum_atomic, charged_atomic=cost))
                    sum_atomic += cost
            _book_taken(book, conn, others, min(charged_atomic, max(most, sum_atomic)) - sum_atomic)
            foreign = max(0, charged_atomic - max(most, sum_atomic))
            most = charged_atomic + voucher.max_atomic - voucher.base_atomic
            anew = replace(voucher, base_atomic=charged_atomic, max_atomic=most)
            _put_voucher(conn, anew)
            signed = max(now.signed_atomic, most, signed_atomic)
            now = replace(now, foreign_atomic=now.foreign_atomic + foreign)
            _put(conn, replace(now, charged_atomic=charged_atomic, signed_atomic=signed))
            return anew

        return self._ledger.submit(corrected, durable=True)

    def deposit(self, channel_id: str, deposit: Deposit) -> Future[None]:
        """Writes a deposit, before it is signed."""

        def deposited(_book: Book, conn: Connection) -> None:
            _put(conn, replace(_known(conn, channel_id), deposit=deposit))

        return self._ledger.submit(deposited, durable=True)

    def drop(self, voucher: Voucher) -> Future[None]:
        """Forgets a voucher that never left, with its reservation; those that it included count by themselves again."""

        def dropped(book: Book, conn: Connection) -> None:
            vouchers = _table("vouchers")
            conn.execute(vouchers.delete().where(vouchers.c.authorization_id == voucher.authorization_id))
            book.mark_unsent(conn, voucher.authorization_id)
            for earlier in _vouchers(conn, voucher.channel_id, "included"):
                before = book.authorization(conn, earlier.authorization_id)
                if earlier.max_atomic > voucher.base_atomic and before is not None and before.status == "charged":
                    book.update(conn, before, replace(before, status="signed", settled_atomic=None))
                    _set_state(conn, earlier.authorization_id, "newest")
            now = _known(conn, voucher.channel_id)
            if now.held_by == self._holder():
                _put(conn, replace(now, **_FREE))

        return self._ledger.submit(dropped, otherwise="The voucher never left; its amount stays reserved.")

    def see(self, channel: Channel, state: ChannelState) -> Future[Channel]:
        """Records what the chain shows of a channel; a block older than one that was seen before says nothing new.

        `channel` is what the look was about. One that was emptied is closed for good when vouchers for more are out:
        they could be claimed from later deposits.
        """

        def seen(_book: Book, conn: Connection) -> Channel:
            now = _known(conn, channel.id)
            claimed = max(now.claimed_atomic, state.claimed_atomic)
            if state.block.number < now.seen_block:
                now = replace(now, claimed_atomic=claimed)
            else:
                is_over = state.is_deposit_over and now.deposit == channel.deposit
                now = replace(
                    now,
                    balance_atomic=state.balance_atomic,
                    claimed_atomic=claimed,
                    withdrawing_since=state.withdrawing_since,
                    seen_block=state.block.number,
                    deposit=None if is_over else now.deposit,
                )
                is_emptied = state.balance_atomic <= claimed and now.deposit is None
                if state.withdrawing_since:
                    now = replace(now, status="closing")
                elif is_emptied and (now.status == "closing" or now.signed_atomic > claimed):
                    now = replace(now, status="closed")
            _put(conn, now)
            return now

        return self._ledger.submit(seen, otherwise=_AS_BEFORE)

    def close(self, channel_id: str, *, status: str, is_forced: bool = False) -> Future[bool]:
        """No further call uses the channel: it is `closing`; or it is `open` again.

        False, and nothing is changed, while a call of another process has it, unless `is_forced`.
        """

        def closed(book: Book, conn: Connection) -> bool:
            now = _known(conn, channel_id)
            if not is_forced and self._is_held(now, book):
                return False
            _put(conn, replace(now, status=status))
            return True

        return self._ledger.submit(closed, durable=True, otherwise=_AS_BEFORE)

    def unsettled(self, channel_ids: Sequence[str]) -> Future[dict[str, list[Voucher]]]:
        """The vouchers that are not final on the chain yet, by channel, oldest first; and the newest one."""
        return self._ledger.read(
            lambda _book, conn: {each: _vouchers(conn, each, "newest", "included") for each in channel_ids}
        )

    def vouchers(self, channel_ids: Sequence[str]) -> Future[dict[str, Voucher]]:
        """All vouchers of these channels, by the authorization that each belongs to."""
        return self._ledger.read(
            lambda _book, conn: {
                voucher.authorization_id: voucher for each in channel_ids for voucher in _vouchers(conn, each, *_STATES)
            }
        )

    def to_judge(self, channel_id: str) -> Future[tuple[list[Voucher], int]]:
        """The unsettled vouchers of a channel, and what was taken for its other calls, as they are together."""

        def summed(_book: Book, conn: Connection) -> tuple[list[Voucher], int]:
            import sqlalchemy as sa

            vouchers, paid = _table("vouchers"), _table("authorizations")
            query = (
                sa.select(sa.func.sum(paid.c.reserved_gwei), sa.func.sum(paid.c.reserved_rest))
                .join_from(vouchers, paid, paid.c.id == vouchers.c.authorization_id)
                .where(vouchers.c.channel_id == channel_id, vouchers.c.state == "final")
            )
            gwei, rest = conn.execute(query).one()
            settled = int(gwei or 0) * 10**9 + int(rest or 0)
            return _vouchers(conn, channel_id, "newest", "included"), settled

        return self._ledger.read(summed)

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


def _put_charge(book: Book, conn: Connection, voucher: Voucher) -> None:
    """Writes what is known of a call's charge now. What the chain shows of it is judged again."""
    _put_voucher(conn, voucher)
    before = book.authorization(conn, voucher.authorization_id)
    if before is None or before.status != "settled" or voucher.charged_atomic is None:
        return
    if (before.settled_atomic or 0) < voucher.charged_atomic:
        book.update(conn, before, replace(before, status="signed", settled_atomic=None, **_UNSEEN))


def _book_taken(book: Book, conn: Connection, others: list[Voucher], excess_atomic: int) -> None:
    """Lets the budget count what was claimed above all charges. Which call it was taken from is judged later."""
    for one in reversed(others):
        before = book.authorization(conn, one.authorization_id)
        if excess_atomic <= 0 or before is None:
            return
        booked = before.reserved_atomic
        more = min(excess_atomic, max(0, one.max_atomic - one.base_atomic - booked))
        if more and before.status == "charged":
            book.update(conn, before, replace(before, settled_atomic=booked + more))
            excess_atomic -= more


def _set_state(conn: Connection, authorization_id: str, state: str) -> None:
    table = _table("vouchers")
    conn.execute(table.update().where(table.c.authorization_id == authorization_id).values(state=state))
