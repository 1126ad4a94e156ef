"""A seat on a payment channel for one call: a free channel, a new one where the policy allows it, or the next one.

A channel serves one call at a time, in all processes that share a ledger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.channels.channel import Channel
from opengradient_x402.channels.on_chain import ChannelState, channel_state
from opengradient_x402.channels.rides import Ride
from opengradient_x402.effects import Steps, Wait, in_thread
from opengradient_x402.errors import ChainUnavailable, GatewayUnreachable, PolicyRefused
from opengradient_x402.payment.call import Call
from opengradient_x402.payment.challenge import ChannelTerms, PaymentTerms
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.steps import from_ledger

_LOOK_AGAIN_S: Final = 0.25
"""Seconds between two looks whether another process has freed a channel."""
_SOON_S: Final = 5.0


def wanted_channel(terms: PaymentTerms, wanted: ChannelTerms, payments: Payments, endpoint: str) -> Channel:
    return Channel(
        id="",
        network=payments.network.caip2,
        endpoint=endpoint,
        payer=payments.payer,
        payer_authorizer=payments.payer,
        receiver=terms.pay_to,
        receiver_authorizer=wanted.receiver_authorizer,
        asset=terms.asset,
        withdraw_delay_s=wanted.withdraw_delay_s,
        salt=0,
        transfer_method=terms.transfer_method,
        used_at=int(time.time()),
    )


def seated(call: Call, payments: Payments, wanted: Channel, began_s: float) -> Steps[Ride]:
    """A seat on a channel that serves these terms: one that is free, a new one if there may be one, or the next."""
    rides, anew = payments.rides, False
    while True:
        change = rides.change()  # before looking: what becomes free meanwhile is not missed
        asked = rides.book.channels(network=wanted.network, payer=wanted.payer, anew=anew)
        beside = [one for one in (yield from from_ledger(asked, call)) if one.endpoint == wanted.endpoint]
        known = [channel for channel in beside if _serves(channel, wanted)]
        usable = [channel for channel in known if channel.status == "open"]
        elsewhere = [channel for channel in usable if channel.held_by]
        ride = _first_free(sorted(usable, key=lambda one: -one.free_atomic), payments)
        if ride is not None:
            return ride
        if elsewhere and not anew:
            anew = True  # the processes that hold them may be dead
            continue
        others = [one for one in beside if one not in known and one.status == "open" and _is_filled(one)]
        room = range(payments.policy.max_channels - len(usable) - len(others))
        fresh = [rides.numbered(wanted, len(known) + more) for more in room]
        ride = _first_free(fresh, payments)
        if ride is None:
            _check_wait(call, payments, usable=[*usable, *fresh], elsewhere=elsewhere, others=others)
            yield from _wait(change, call, began_s, is_elsewhere=bool(elsewhere))
        elif (yield from _opened(ride, call, payments)):
            return ride


def _first_free(channels: Sequence[Channel], payments: Payments) -> Ride | None:
    return next((ride for one in channels if not one.held_by and (ride := payments.rides.take(one)) is not None), None)


def _opened(ride: Ride, call: Call, payments: Payments) -> Steps[bool]:
    """Whether the new channel of this seat can be used; one that the chain shows as used up is only remembered."""
    try:
        ride.channel = yield from _found(ride.channel, payments, call)
    except BaseException:
        payments.rides.leave(ride)
        raise
    if ride.channel.status == "open":
        ride.is_found = ride.channel.balance_atomic > 0
        return True
    payments.rides.leave(ride)
    return False


def _check_wait(
    call: Call,
    payments: Payments,
    *,
    usable: Sequence[Channel],
    elsewhere: Sequence[Channel],
    others: Sequence[Channel],
) -> None:
    """Raises PolicyRefused where waiting for a channel would never end."""
    if not usable:
        tied_up = payments.network.asset.format(sum(one.free_atomic for one in others))
        raise PolicyRefused(
            f"The gateway asks for a payment channel of another kind, and {len(others)} channels with it have "
            f"{tied_up} in them, which is as many as `max_channels` allows. Nothing was signed. `opengradient-x402 "
            "channels refund` takes back what is in them."
        )
    if call.is_blocking and not elsewhere and payments.rides.are_held_here(usable):
        raise PolicyRefused(
            f"All {len(usable)} payment channels with this gateway serve calls of this very thread, which have not "
            f"ended, so call {call.id} would wait for itself. Nothing was signed for it. Read those streams to their "
            "end or close them, or raise `max_channels`."
        )


def _is_filled(channel: Channel) -> bool:
    return channel.is_pending or channel.free_atomic > 0


def _serves(channel: Channel, wanted: Channel) -> bool:
    same = ("endpoint", "receiver", "receiver_authorizer", "asset", "withdraw_delay_s", "transfer_method")
    return all(getattr(channel, name) == getattr(wanted, name) for name in same)


def _wait(change: Any, call: Call, began_s: float, *, is_elsewhere: bool) -> Steps[None]:
    """Until a channel of this process is free, or it is time to look at those of others again."""
    left_s = None if call.timeout_s is None else max(0.0, call.timeout_s - (time.monotonic() - began_s))
    look_s = _LOOK_AGAIN_S if is_elsewhere else None
    try:
        yield Wait(change, min((limit for limit in (left_s, look_s) if limit is not None), default=None))
    except TimeoutError as exc:
        if look_s is not None and (left_s is None or left_s > look_s):
            return
        raise GatewayUnreachable(
            f"Call {call.id} waited {call.timeout_s or 0:g} s for a payment channel: all serve other calls. Nothing "
            "was signed for this call. Try again, raise `timeout`, or raise `max_channels` of the policy.",
            call_id=call.id,
            kind="timeout",
        ) from exc


def _found(channel: Channel, payments: Payments, call: Call) -> Steps[Channel]:
    """A channel that this ledger does not know, as the chain has it: a ledger may have been lost."""
    state = yield from looked(channel, payments, call)
    is_used_up = 0 < state.balance_atomic <= state.claimed_atomic
    found = replace(
        channel,
        status="closed" if is_used_up else "closing" if state.withdrawing_since else "open",
        balance_atomic=state.balance_atomic,
        claimed_atomic=state.claimed_atomic,
        charged_atomic=state.claimed_atomic,
        signed_atomic=state.claimed_atomic,
        foreign_atomic=state.claimed_atomic,
        seen_block=state.block.number,
        withdrawing_since=state.withdrawing_since,
    )
    return (yield from from_ledger(payments.rides.book.add(found), call))


def looked(channel: Channel, payments: Payments, call: Call) -> Steps[ChannelState]:
    """The channel at the last block. Raises ChainUnavailable, also when that takes longer than the call may."""
    try:
        state: ChannelState = yield Wait(_look(channel, payments), call.left_s)
    except TimeoutError as exc:
        raise ChainUnavailable(
            f"The payment channel {channel.id} could not be looked at within the {call.timeout_s or 0:g} s of call "
            f"{call.id}: the node does not answer. Try again, raise `timeout`, or use another `rpc_url`.",
            call_id=call.id,
        ) from exc
    return state


def _look(channel: Channel, payments: Payments) -> Future[ChannelState]:
    return in_thread(
        lambda: ChainReader.at(payments.network).ask(channel_state(channel, network=payments.network)),
        name="opengradient-channel",
    )


def up_to_date(channel: Channel, payments: Payments, call: Call) -> Steps[Channel]:
    """The channel as the chain has it, if a node says so soon; as it was, otherwise."""
    try:
        state: ChannelState = yield Wait(_look(channel, payments), _SOON_S)
    except (ChainUnavailable, TimeoutError):
        return channel
    return (yield from seen(channel, state, payments, call))


def seen(channel: Channel, state: ChannelState, payments: Payments, call: Call) -> Steps[Channel]:
    return (yield from from_ledger(payments.rides.book.see(channel, state), call))
