"""Chain -> ledger for payment channels: which vouchers were claimed, what went back, and whether the sums agree.

A gateway claims the sum of its charges when it likes. A call is settled as soon as a claim reaches the end of its
charge, or nothing is left in the channel. Channels are read at a block that has enough confirmations, so what is found
is final. More claimed than was charged is a dispute of the last call, with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.channels.channel import Channel, Voucher
from opengradient_x402.channels.on_chain import ChannelState, channel_state
from opengradient_x402.effects import Steps, Wait
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network

SCHEME: Final = "batch-settlement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was taken for one call; `dispute` says what the charges do not allow."""

    amount_atomic: int
    dispute: str | None = None


def judge(
    channel: Channel, vouchers: Sequence[Voucher], state: ChannelState, *, write: Callable[[int], str] = str
) -> dict[str, Taken]:
    """What the chain says of a channel's calls, by their authorizations' ids; calls that are still open are missing.

    `channel` is as it was known before this look; `write` makes text of an amount. Pure.
    """
    claimed = state.claimed_atomic
    is_empty = state.balance_atomic <= claimed and channel.deposit is None
    taken: dict[str, Taken] = {}
    counted = 0
    for voucher in vouchers:
        if claimed >= voucher.end_atomic or is_empty:
            end = min(claimed, voucher.end_atomic)
            # Two calls whose answers were lost may begin at the same sum: what was claimed is counted for one of them.
            amount = end - max(voucher.base_atomic, counted)
            counted = max(counted, end)
            taken[voucher.authorization_id] = Taken(amount_atomic=max(0, amount))
    explained = max([channel.charged_atomic, *(voucher.end_atomic for voucher in vouchers)])
    if vouchers and claimed > explained:
        last, excess = vouchers[-1], claimed - explained
        text = (
            f"{write(claimed)} was claimed from the payment channel {channel.id}, and its calls were charged "
            f"{write(explained)}: {write(excess)} too much. If another process used this key with a ledger of its own, "
            "its calls are missing here; otherwise this is an overcharge."
        )
        taken[last.authorization_id] = Taken(
            amount_atomic=taken[last.authorization_id].amount_atomic + excess, dispute=text
        )
    return taken


def settle_channels(
    ask: Callable[[Network, Any], Steps[Any]],
    *,
    network: Network,
    ledger: Ledger,
    needed: int,
    payer: str | None,
    ids: Collection[str],
    with_open: bool,
) -> Steps[list[Authorization]]:
    """The authorizations of calls on channels as they are now, where the chain says something new of them.

    `ask` asks the chain; `ids` are those of the channels to look at, `with_open` adds all that are not closed.
    """
    book = ChannelBook(ledger)
    known: list[Channel] = yield Wait(book.channels(network=network.caip2, payer=payer))
    wanted = [one for one in known if one.id in ids or (with_open and one.status != "closed")]
    vouchers: dict[str, list[Voucher]] = yield Wait(book.unsettled([one.id for one in wanted]))
    found: list[Authorization] = []
    for channel in wanted:
        state: ChannelState = yield from ask(
            network, channel_state(channel, network=network, confirmations=max(1, needed))
        )
        taken = judge(channel, vouchers[channel.id], state, write=network.asset.format)
        new = yield from _authorizations(taken, ledger, network)
        found += [_settled(one, taken[one.id], state, needed) for one in new]
        seen = book.see(
            channel.id,
            balance_atomic=state.balance_atomic,
            claimed_atomic=state.claimed_atomic,
            withdrawing_since=state.withdrawing_since,
            is_deposit_over=state.is_deposit_over,
        )
        yield Wait(seen)
        yield Wait(book.finish([one.id for one in new]))
    return found


def _authorizations(taken: dict[str, Taken], ledger: Ledger, network: Network) -> Steps[list[Authorization]]:
    """Those of which it is news: open ones, and a settled one for which more was taken than was known."""
    news: list[Authorization] = []
    asked = [(each, ledger.authorizations(authorization_id=each, network=network.caip2)) for each in taken]
    for each, future in asked:
        for one in (yield Wait(future)):
            is_more = taken[each].dispute is not None and one.settled_atomic != taken[each].amount_atomic
            if one.status in ("signed", "charged") or (one.status == "settled" and is_more):
                news.append(one)
    return news


def _settled(authorization: Authorization, taken: Taken, state: ChannelState, needed: int) -> Authorization:
    return replace(
        authorization,
        status="settled",
        settled_atomic=taken.amount_atomic,
        block_number=state.block.number,
        block_hash=state.block.hash,
        confirmations=needed,
        confirmations_needed=needed,
        dispute=taken.dispute,
    )
