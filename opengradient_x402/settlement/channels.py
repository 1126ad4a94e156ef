"""Chain -> ledger for payment channels: which vouchers were claimed, what went back, and whether the sums agree.

A gateway claims the sum of its charges when it likes. A call is settled as soon as a claim reaches the end of its
charge (one that cost nothing: as soon as a claim goes beyond it), or nothing is left in the channel. Channels are read
at a block that has enough confirmations, so what is found is final. The transaction of a call is that of the claim that
first included it; other calls can have the same one. More claimed than was charged is a dispute of the last call, with
the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from opengradient_x402.chain.questions import Question, block_before
from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Channel, Voucher
from opengradient_x402.channels.events import CLAIMED, ChannelMove, moves_of
from opengradient_x402.channels.on_chain import ChannelState, channel_state
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.errors import RpcError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network
from opengradient_x402.settlement.search import CLOCK_MARGIN_S

SCHEME: Final = "batch-settlement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was taken for one call; `dispute` says what was taken beyond the charges.

    `reached_atomic` is the total of claims that includes it.
    """

    amount_atomic: int
    reached_atomic: int
    dispute: str | None = None


def judge(
    channel: Channel,
    vouchers: Sequence[Voucher],
    state: ChannelState,
    *,
    settled_atomic: int = 0,
    write: Callable[[int], str] = str,
) -> dict[str, Taken]:
    """What the chain says of a channel's calls, by their authorizations' ids; calls that are still open are missing.

    `channel` is as the ledger has it after this look, `settled_atomic` what was taken for calls that are not among the
    vouchers, `write` gives the text of an amount. Pure. A call whose charge is known gets that, in order; what is left
    was taken for those whose outcome is unknown.
    """
    claimed = state.claimed_atomic
    is_news = state.block.number >= channel.seen_block
    is_empty = channel.status == "closed" and is_news and state.balance_atomic <= claimed
    left = claimed - channel.foreign_atomic - settled_atomic
    taken: dict[str, Taken] = {}
    if left < 0:  # a node that is behind: more was settled before
        return taken
    forgotten = _forgotten(vouchers)
    for voucher in sorted(vouchers, key=lambda one: one.charged_atomic is None and one not in forgotten):
        amount = 0 if voucher in forgotten else min(left, voucher.end_atomic - voucher.base_atomic)
        end = max(forgotten.get(voucher, voucher.end_atomic), voucher.base_atomic + 1)
        if is_empty or claimed >= end:
            left -= amount
            taken[voucher.authorization_id] = Taken(amount_atomic=amount, reached_atomic=max(end, claimed - left))
    if left and len(taken) == len(vouchers):
        _share(left, channel, vouchers, forgotten, taken, claimed_atomic=claimed, write=write)
    return taken


def _share(
    left: int,
    channel: Channel,
    vouchers: Sequence[Voucher],
    forgotten: Collection[Voucher],
    taken: dict[str, Taken],
    *,
    claimed_atomic: int,
    write: Callable[[int], str],
) -> None:
    """What was taken above all charges was for calls that the gateway forgot; the rest is booked to the last call."""
    explained = max([channel.charged_atomic, *(one.end_atomic for one in vouchers if one not in forgotten)])
    for voucher in forgotten:
        if amount := min(left, voucher.max_atomic - voucher.base_atomic):
            taken[voucher.authorization_id] = Taken(amount_atomic=amount, reached_atomic=claimed_atomic)
            left, explained = left - amount, explained + amount
    if not left or not vouchers:
        return
    last, text, excess = vouchers[-1].authorization_id, None, claimed_atomic - explained
    if excess > 0:
        text = (
            f"{write(claimed_atomic)} was claimed from the payment channel {channel.id}, and its calls were charged "
            f"{write(explained)}: {write(excess)} too much. If another process used this key with a ledger of its own, "
            "its calls are missing here; otherwise this is an overcharge."
        )
    taken[last] = Taken(amount_atomic=taken[last].amount_atomic + left, reached_atomic=claimed_atomic, dispute=text)


def _forgotten(vouchers: Sequence[Voucher]) -> dict[Voucher, int]:
    """Lost calls that the gateway counts nothing for, oldest first, each with the sum of claims that shows it.

    A later call was charged on top of the same sum. If more than all charges was claimed nevertheless, it was for one
    of these: claimed first, and forgotten by the gateway afterwards, as one that restarts does.
    """
    found: dict[Voucher, int] = {}
    later: Voucher | None = None
    for voucher in reversed(vouchers):
        if voucher.charged_atomic is not None:
            later = voucher
        elif later is not None and later.base_atomic == voucher.base_atomic:
            found[voucher] = later.end_atomic
    return dict(reversed(found.items()))


def settle_channels(
    ask: Callable[[Network, Any], Steps[Any]],
    record: Callable[[Sequence[Authorization]], Steps[None]],
    *,
    network: Network,
    ledger: Ledger,
    needed: int,
    payer: str | None,
    ids: Collection[str],
    with_open: bool,
) -> Steps[list[Authorization]]:
    """The authorizations of calls on channels as they are now, where the chain says something new of them.

    `ask` asks the chain, `record` writes what it says; `ids` are those of the channels to look at, `with_open` adds all
    that are not closed.
    """
    book = ChannelBook(ledger)
    known: list[Channel] = yield Wait(book.channels(network=network.caip2, payer=payer))
    wanted = [one for one in known if one.id in ids or (with_open and one.status != "closed")]
    found: list[Authorization] = []
    for channel in wanted:
        state: ChannelState = yield from ask(
            network, channel_state(channel, network=network, confirmations=max(1, needed))
        )
        now: Channel = yield Wait(book.see(channel, state))
        vouchers, settled_before = yield Wait(book.to_judge(channel.id))
        taken = judge(now, vouchers, state, settled_atomic=settled_before, write=network.asset.format)
        new = yield from _authorizations(taken, ledger, network)
        claims: list[ChannelMove] = []
        if new and state.claimed_atomic:
            claims = yield from ask(network, _claims(channel, new, state))
        settled = [_settled(one, taken[one.id], claims, state, needed) for one in new]
        yield from record(settled)
        judged = [one for one in vouchers if one.authorization_id in taken]
        yield Wait(book.finish(channel.id, judged))  # last: after a crash in between they are looked at again
        found += settled
    return found


def _authorizations(taken: dict[str, Taken], ledger: Ledger, network: Network) -> Steps[list[Authorization]]:
    """Those that change by it: open ones, and a settled one for which another amount was taken than was known."""
    news: list[Authorization] = []
    asked = [(each, ledger.authorizations(authorization_id=each, network=network.caip2)) for each in taken]
    for each, future in asked:
        for one in (yield Wait(future)):
            is_other = one.settled_atomic != taken[each].amount_atomic
            if one.status in ("signed", "charged") or (one.status == "settled" and is_other):
                news.append(one)
    return news


def _claims(channel: Channel, calls: Sequence[Authorization], state: ChannelState) -> Question[list[ChannelMove]]:
    """The claims in which these calls can be, up to the block that was looked at. None where the node has no events."""
    since_s = min(call.signed_at for call in calls) - CLOCK_MARGIN_S
    try:
        start = yield from block_before(since_s, head=state.block)
        return (yield from moves_of([channel.id], from_block=start, to_block=state.block.number, events=[CLAIMED]))
    except RpcError:  # the amounts are facts without them
        return []


def _settled(
    authorization: Authorization, taken: Taken, claims: Sequence[ChannelMove], state: ChannelState, needed: int
) -> Authorization:
    claim = next((one.log for one in claims if taken.reached_atomic <= one.total_atomic <= state.claimed_atomic), None)
    return replace(
        authorization,
        status="settled",
        settled_atomic=taken.amount_atomic,
        tx_hash=None if claim is None else claim.tx_hash,
        block_number=state.block.number if claim is None else claim.block_number,
        block_hash=state.block.hash if claim is None else claim.block_hash,
        confirmations=needed,
        confirmations_needed=needed,
        dispute=taken.dispute,
    )
