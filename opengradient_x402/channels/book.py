"""The channels in the ledger. A voucher, its channel and the budget change together, in one transaction.

What is known of a channel is in the database alone, so that processes which share a ledger share its channels. Each
function gives a `Future`; those that precede a signature are flushed to disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from opengradient_x402.channels.channel import Channel, Deposit, Voucher
from opengradient_x402.channels.rows import (
    channel_in,
    channels_in,
    has_others,
    known_channel,
    own_and_others,
    put_channel,
    put_voucher,
    row_of,
    set_state,
    settled_for_good,
    table_of,
    vouchers_of,
)
from opengradient_x402.ledger.authorizations import Authorization, Budget
from opengradient_x402.ledger.ledger import Ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from opengradient_x402.channels.on_chain import ChannelState
    from opengradient_x402.ledger.statements import Book

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
        """In a forked child: it holds none of the channels that the parent holds."""
        self._name = secrets.token_hex(4)

    def channels(self, *, network: str, payer: str | None = None, anew: bool = False) -> Future[list[Channel]]:
        """All channels, oldest first; `held_by` is empty where it means nothing any more.

        With `anew`, channels that dead processes held are freed first.
        """

        def found(book: Book, conn: Connection) -> list[Channel]:
            channels = channels_in(conn, network=network, payer=payer)
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
            known = channel_in(conn, channel.id)
            if known is None:
                conn.execute(table_of("channels").insert().values(row_of(channel)))
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
        was signed before. So do those whose answer was lost, with nothing, when a later call was charged on top of
        the same sum; the chain may still show that something was taken for them. None when a call of another process
        has the channel, put something into it or closed it; otherwise it is held for `hold_s`, or until `charge`,
        `drop` or `free`. Raises BudgetExceeded; CallKnown when it `is_first` and the ledger has its call already.
        """

        def reserved(book: Book, conn: Connection) -> tuple[Channel, Voucher] | None:
            if is_first:
                book.check_unknown(conn, authorization.call_id)
            now, holder = known_channel(conn, channel.id), self._holder()
            is_changed = (now.balance_atomic, now.deposit) != (channel.balance_atomic, channel.deposit)
            if self._is_held(now, book) or now.status != "open" or (deposit is not None and is_changed):
                return None
            own, newest = own_and_others(conn, channel.id, authorization.id, "newest")
            base = now.charged_atomic
            others: list[Voucher] = []
            if now.claimed_atomic > base:  # the answers to some calls may be lost
                _, others = own_and_others(conn, channel.id, authorization.id, "newest", "included")
                base = _base(now, others)
            most = base + authorization.terms.amount_atomic
            if most >= now.signed_atomic:
                _include(book, conn, newest)
            if base > now.charged_atomic:
                now = _raised(book, conn, now, others, base)
            self._ledger.authorize_in(book, conn, authorization, budget)
            voucher = Voucher(
                authorization_id=authorization.id,
                channel_id=channel.id,
                base_atomic=now.charged_atomic,
                max_atomic=most,
                signed_atomic=0 if own is None else own.ceiling_atomic,
            )
            voucher = put_voucher(conn, voucher)
            now = replace(
                now,
                signed_atomic=max(now.signed_atomic, most),
                used_at=int(time.time()),
                deposit=deposit or now.deposit,
                held_by=holder,
                held_until=int(time.time() + hold_s),
            )
            put_channel(conn, now)
            return now, voucher

        return self._ledger.submit(reserved, durable=True)

    def charge(self, voucher: Voucher, charged_atomic: int) -> Future[None]:
        """Records what a call was charged, once that was checked."""

        def charged(book: Book, conn: Connection) -> None:
            now = known_channel(conn, voucher.channel_id)
            newest = vouchers_of(conn, voucher.channel_id, "newest")
            place = next((i for i, one in enumerate(newest) if one.authorization_id == voucher.authorization_id), None)
            is_last = place == len(newest) - 1
            if is_last or (place is not None and newest[place].charged_atomic is None):
                _put_charge(book, conn, replace(voucher, charged_atomic=charged_atomic))
            sum_atomic = voucher.base_atomic + charged_atomic
            if not is_last:  # another process began a call meanwhile: what it learned of the sum is newer
                sum_atomic = max(sum_atomic, now.charged_atomic)
            now = replace(now, charged_atomic=sum_atomic, used_at=int(time.time()))
            put_channel(conn, replace(now, **_FREE) if now.held_by == self._holder() else now)

        return self._ledger.submit(charged, otherwise=_AS_BEFORE)

    def free(self, channel_id: str) -> Future[None]:
        """The call that had the channel has ended, and nothing is known of its charge."""

        def freed(_book: Book, conn: Connection) -> None:
            now = known_channel(conn, channel_id)
            if now.held_by == self._holder():
                put_channel(conn, replace(now, **_FREE))

        return self._ledger.submit(freed, otherwise=_AS_BEFORE)

    def correct(
        self, voucher: Voucher, charged_atomic: int, *, signed_atomic: int, is_found: bool
    ) -> Future[Voucher | None]:
        """Takes over what was charged before this voucher, once that was checked; the voucher, made anew on top of it.

        Calls whose outcome was unknown cost what is left for them, the oldest first. What others were charged stays as
        the gateway said before, also when it counts less now. None, and nothing is changed, when other calls of this
        ledger cannot have cost so much; unless the gateway has a voucher for `signed_atomic`, higher than any of this
        ledger, so that somebody else uses this key as well, or this is the first call on a channel that was found on
        the chain (`is_found`).
        """

        def corrected(book: Book, conn: Connection) -> Voucher | None:
            now = known_channel(conn, voucher.channel_id)
            _, others = own_and_others(conn, voucher.channel_id, voucher.authorization_id, "newest", "included")
            most = _most_charged(now, others)
            is_alone = signed_atomic <= now.signed_atomic and (not is_found or has_others(conn, voucher))
            if charged_atomic > most and is_alone:
                return None
            now = _raised(book, conn, now, others, charged_atomic)
            most = charged_atomic + voucher.max_atomic - voucher.base_atomic
            anew = put_voucher(conn, replace(voucher, base_atomic=charged_atomic, max_atomic=most))
            signed = max(now.signed_atomic, most, signed_atomic)
            put_channel(conn, replace(now, signed_atomic=signed))
            return anew

        return self._ledger.submit(corrected, durable=True)

    def deposit(self, channel_id: str, deposit: Deposit) -> Future[None]:
        """Writes a deposit, before it is signed."""

        def deposited(_book: Book, conn: Connection) -> None:
            put_channel(conn, replace(known_channel(conn, channel_id), deposit=deposit))

        return self._ledger.submit(deposited, durable=True)

    def drop(self, voucher: Voucher) -> Future[None]:
        """Forgets a voucher that never left, with its reservation; those that it included count by themselves again."""

        def dropped(book: Book, conn: Connection) -> None:
            vouchers = table_of("vouchers")
            conn.execute(vouchers.delete().where(vouchers.c.authorization_id == voucher.authorization_id))
            book.mark_unsent(conn, voucher.authorization_id)
            for earlier in vouchers_of(conn, voucher.channel_id, "included"):
                before = book.authorization(conn, earlier.authorization_id)
                if earlier.ceiling_atomic > voucher.base_atomic and before is not None and before.status == "charged":
                    book.update(conn, before, replace(before, status="signed", settled_atomic=None))
                    set_state(conn, earlier.authorization_id, "newest")
            now = known_channel(conn, voucher.channel_id)
            if now.held_by == self._holder():
                put_channel(conn, replace(now, **_FREE))

        return self._ledger.submit(dropped, otherwise="The voucher never left; its amount stays reserved.")

    def see(self, channel: Channel, state: ChannelState) -> Future[Channel]:
        """Records what the chain shows of a channel; a block older than one that was seen before says nothing new.

        `channel` is what the look was about. One that was emptied is closed for good when vouchers for more are out:
        they could be claimed from later deposits.
        """

        def seen(_book: Book, conn: Connection) -> Channel:
            now = known_channel(conn, channel.id)
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
            put_channel(conn, now)
            return now

        return self._ledger.submit(seen, otherwise=_AS_BEFORE)

    def close(self, channel_id: str, *, status: str, is_forced: bool = False) -> Future[bool]:
        """No further call uses the channel: it is `closing`; or it is `open` again.

        False, and nothing is changed, while a call of another process has it, unless `is_forced`.
        """

        def closed(book: Book, conn: Connection) -> bool:
            now = known_channel(conn, channel_id)
            if not is_forced and self._is_held(now, book):
                return False
            put_channel(conn, replace(now, status=status))
            return True

        return self._ledger.submit(closed, durable=True, otherwise=_AS_BEFORE)

    def unsettled(self, channel_ids: Sequence[str]) -> Future[dict[str, list[Voucher]]]:
        """The vouchers that are not final on the chain yet, by channel, oldest first; and the newest one."""
        return self._ledger.read(
            lambda _book, conn: {each: vouchers_of(conn, each, "newest", "included") for each in channel_ids}
        )

    def vouchers(self, channel_ids: Sequence[str]) -> Future[dict[str, Voucher]]:
        """All vouchers of these channels, by the authorization that each belongs to."""
        return self._ledger.read(
            lambda _book, conn: {
                voucher.authorization_id: voucher
                for each in channel_ids
                for voucher in vouchers_of(conn, each, *_STATES)
            }
        )

    def to_judge(self, channel_id: str) -> Future[tuple[list[Voucher], int]]:
        """The unsettled vouchers of a channel, and what was taken for its other calls, as they are together."""

        def summed(_book: Book, conn: Connection) -> tuple[list[Voucher], int]:
            return vouchers_of(conn, channel_id, "newest", "included"), settled_for_good(conn, channel_id)

        return self._ledger.read(summed)

    def finish(self, channel_id: str, vouchers: Sequence[Voucher]) -> Future[None]:
        """These vouchers are settled for good, if they are as they were then. The newest one of a channel stays."""

        def finished(_book: Book, conn: Connection) -> None:
            for unchanged in set(vouchers) & set(vouchers_of(conn, channel_id, "included")):
                set_state(conn, unchanged.authorization_id, "final")

        return self._ledger.submit(finished, otherwise=_AS_BEFORE)


# -- what is known of charges


def _base(channel: Channel, others: Sequence[Voucher]) -> int:
    """What the next voucher is on top of: all charges, and what the chain shows as claimed for calls without answer."""
    lost = max((one.max_atomic for one in others if one.charged_atomic is None), default=0)
    return max(channel.charged_atomic, min(channel.claimed_atomic, lost))


def _most_charged(channel: Channel, others: Sequence[Voucher]) -> int:
    """The highest sum that these calls and the chain explain."""
    claimed = min(channel.claimed_atomic, max((one.max_atomic for one in others), default=0))
    return max([channel.charged_atomic, claimed, *(one.end_atomic for one in others)])


def _explained(channel: Channel, others: Sequence[Voucher], settled_atomic: int) -> int:
    """What was taken for settled calls, with all known charges; what was claimed already is taken once only."""
    taken = channel.foreign_atomic + settled_atomic
    left = max(0, channel.claimed_atomic - taken)
    for one in others:
        charge = one.charged_atomic or 0
        if charge and one.end_atomic <= channel.claimed_atomic:
            charge = min(charge, left)
            left -= charge
        taken += charge
    return taken


def _raised(book: Book, conn: Connection, channel: Channel, others: list[Voucher], to_atomic: int) -> Channel:
    """The channel, charged up to this sum. Calls whose outcome was unknown cost what that leaves, the oldest first.

    What others were charged explains a part of it, also what the gateway forgot and counts again, as after a restart.
    """
    most, known = _most_charged(channel, others), []
    sum_atomic = max(channel.charged_atomic, _explained(channel, others, settled_for_good(conn, channel.id)))
    for one in others:
        if one.charged_atomic is not None:
            known.append(one)
            continue
        cost = max(0, min(to_atomic, one.max_atomic) - sum_atomic)  # its voucher allows no higher sum
        base = sum_atomic if cost else one.base_atomic
        known.append(replace(one, base_atomic=base, charged_atomic=cost))
        _put_charge(book, conn, known[-1], is_moved=base != one.base_atomic)
        sum_atomic += cost
    _book_taken(book, conn, known, min(to_atomic, max(most, sum_atomic)) - sum_atomic)
    foreign = max(0, to_atomic - max(most, sum_atomic))
    return replace(channel, charged_atomic=to_atomic, foreign_atomic=channel.foreign_atomic + foreign)


def _include(book: Book, conn: Connection, newest: Sequence[Voucher]) -> None:
    """These count with their charge from here on; the last ones, while it is unknown, with all that they allow."""
    last_charged = max((i for i, one in enumerate(newest) if one.charged_atomic is not None), default=-1)
    for earlier in newest[: last_charged + 1]:
        before = book.authorization(conn, earlier.authorization_id)
        if before is not None and before.status == "signed":
            book.update(conn, before, replace(before, status="charged", settled_atomic=earlier.charged_atomic or 0))
        set_state(conn, earlier.authorization_id, "included")


def _put_charge(book: Book, conn: Connection, voucher: Voucher, *, is_moved: bool = False) -> None:
    """Writes what is known of a call's charge now. What the chain shows of it is judged again, if that changes it."""
    put_voucher(conn, voucher)
    before, charged = book.authorization(conn, voucher.authorization_id), voucher.charged_atomic
    if before is None or charged is None:
        return
    is_more = (before.settled_atomic or 0) < charged
    if before.status == "settled" and (is_more or is_moved):
        book.update(conn, before, replace(before, status="signed", settled_atomic=None, **_UNSEEN))
    elif before.status == "charged" and is_more:
        book.update(conn, before, replace(before, settled_atomic=charged))


def _book_taken(book: Book, conn: Connection, others: list[Voucher], excess_atomic: int) -> None:
    """Books what was claimed above all charges to the last calls, within what was signed for each."""
    for one in reversed(others):
        known = one.charged_atomic or 0
        more = min(excess_atomic, max(0, one.max_atomic - one.base_atomic - known))
        if more > 0:
            _put_charge(book, conn, replace(one, charged_atomic=known + more))
            excess_atomic -= more
