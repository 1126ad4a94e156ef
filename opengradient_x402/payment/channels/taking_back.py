"""How the payer gets money out of payment channels: by a refund from the gateway, or by a withdrawal without it.

A refund is asked of the gateway, which claims what it is owed and sends back the rest; it costs this wallet no gas. A
withdrawal needs no help: one transaction begins it, another ends it after the delay of the channel, and both cost gas.
Generators, for threads and coroutines alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT
from opengradient_x402.chain.node import alook_up, ask, limited_to, look_up
from opengradient_x402.chain.questions import chain_time
from opengradient_x402.chain.readers import node_at
from opengradient_x402.chain.transactions import send_transaction
from opengradient_x402.channels.channel import Channel
from opengradient_x402.channels.on_chain import ChannelState, channel_state, finalization_call, withdrawal_call
from opengradient_x402.channels.rides import Rides
from opengradient_x402.channels.vouchers import STALE, corrected_base, refund_payload
from opengradient_x402.effects import Read, Send, Sleep, Steps, Wait
from opengradient_x402.errors import ChainUnavailable, ConfigurationError
from opengradient_x402.keys.signer import Signer
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import (
    CHALLENGE_HEADER,
    SIGNATURE_HEADER,
    Challenge,
    PaymentTerms,
    parse_challenge,
)
from opengradient_x402.payment.gateways import KnownGateways
from opengradient_x402.payment.permits import payment_header
from opengradient_x402.payment.policy import SpendPolicy

_MOST_ATTEMPTS: Final = 2
_TIMEOUT_S: Final = 60.0
_LAG_S: Final = 20.0
"""A node may be this far behind the one that mined a transaction."""
_FIRST_LOOK_S: Final = 0.1
_LONGEST_LOOK_S: Final = 2.0
_IN_USE: Final = "a call uses it now; try again when the call has ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """What was done with one channel: `what` in words, `amount_atomic` came back by it."""

    channel: Channel
    what: str
    is_done: bool = True
    amount_atomic: int = 0
    tx_hash: str | None = None


class PayerChannels:
    """The payment channels of one wallet, in its ledger. Everything here looks at the chain.

    `channel_id` is the id of a channel, or the beginning of one; None means all. Raises ChainUnavailable,
    LedgerUnavailable; ConfigurationError where not exactly one channel begins so.
    """

    def __init__(
        self, *, network: Network, signer: Signer, policy: SpendPolicy, gateways: KnownGateways, rides: Rides
    ) -> None:
        self.network = network
        self.signer = signer
        self.policy = policy
        self.gateways = gateways
        self.rides = rides

    def list(self) -> list[Channel]:
        """The channels, oldest first."""
        return look_up(_listed(self))

    async def alist(self) -> Sequence[Channel]:
        """As `list`, for coroutines."""
        return await alook_up(_listed(self))

    def refund(self, channel_id: str | None = None) -> Sequence[TakenBack]:
        """Asks the gateways to send back what is left. Costs no gas."""
        return look_up(_each(self, channel_id, _refunded))

    async def arefund(self, channel_id: str | None = None) -> Sequence[TakenBack]:
        """As `refund`, for coroutines."""
        return await alook_up(_each(self, channel_id, _refunded))

    def withdraw(self, channel_id: str | None = None) -> Sequence[TakenBack]:
        """Takes back what is left without the gateways: call it twice, the second time after the delay. Costs gas.

        No call uses a channel from the first time on. Until the second time the gateway can still claim what was
        charged, up to the last voucher.
        """
        return look_up(_each(self, channel_id, _withdrawn))

    async def awithdraw(self, channel_id: str | None = None) -> Sequence[TakenBack]:
        """As `withdraw`, for coroutines."""
        return await alook_up(_each(self, channel_id, _withdrawn))

    def tidy(self) -> Sequence[TakenBack]:
        """Takes back what no call has used for `channel_idle_s`, as the policy's `idle_channels` says."""
        return look_up(_tidied(self))

    async def atidy(self) -> Sequence[TakenBack]:
        """As `tidy`, for coroutines."""
        return await alook_up(_tidied(self))


# -- which, and how they are


def _all(wallet: PayerChannels) -> Steps[list[Channel]]:
    known: list[Channel] = yield Wait(
        wallet.rides.book.channels(network=wallet.network.caip2, payer=wallet.signer.address)
    )
    return known


def _listed(wallet: PayerChannels) -> Steps[list[Channel]]:
    seen: list[Channel] = []
    for channel in (yield from _all(wallet)):
        now, _ = yield from _looked(wallet, channel)
        seen.append(now)
    return seen


def _each(wallet: PayerChannels, beginning: str | None, take: Any) -> Steps[list[TakenBack]]:
    chosen = yield from _all(wallet)
    if beginning is not None:
        chosen = [channel for channel in chosen if channel.id.startswith(beginning.lower())]
        if len(chosen) != 1:
            what = "No payment channel begins" if not chosen else f"{len(chosen)} payment channels begin"
            raise ConfigurationError(
                f"{what} with {beginning}. Nothing was sent. `opengradient-x402 channels list` shows them."
            )
    done: list[TakenBack] = []
    for channel in chosen:
        taken = yield from take(wallet, channel)
        done.append(taken)
    return done


def _tidied(wallet: PayerChannels) -> Steps[list[TakenBack]]:
    policy, done = wallet.policy, []
    if policy.idle_channels == "keep":
        return []
    take = _refunded if policy.idle_channels == "refund" else _withdrawn
    for channel in (yield from _all(wallet)):
        is_idle = channel.used_at + policy.channel_idle_s <= time.time() and not channel.held_by
        if is_idle and channel.status != "closed" and (channel.balance_atomic or channel.is_pending):
            done.append((yield from take(wallet, channel)))
    return done


def _looked(wallet: PayerChannels, channel: Channel) -> Steps[tuple[Channel, ChannelState]]:
    """The channel with what the chain shows now, in the ledger too."""
    state = yield from ask(node_at(wallet.network), channel_state(channel, network=wallet.network))
    seen: Channel = yield Wait(wallet.rides.book.see(channel, state))
    return seen, state


def _looked_until(
    wallet: PayerChannels, channel: Channel, is_shown: Callable[[ChannelState], bool], *, limit_s: float
) -> Steps[tuple[Channel, ChannelState] | None]:
    """The channel as soon as a node shows what was done to it. None when none does in time: nodes fail, and lag."""
    until, pause_s = time.monotonic() + limit_s, _FIRST_LOOK_S
    while True:
        with suppress(ChainUnavailable, ConfigurationError):
            now, state = yield from _looked(wallet, channel)
            if is_shown(state):
                return now, state
        if time.monotonic() + pause_s > until:
            return None
        yield Sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_LOOK_S)


# -- withdrawal


def _withdrawn(wallet: PayerChannels, channel: Channel) -> Steps[TakenBack]:
    channel, state = yield from _looked(wallet, channel)
    asset, left = wallet.network.asset, state.balance_atomic - state.claimed_atomic
    if left <= 0:
        return TakenBack(channel=channel, what="nothing is left in it")
    if not state.withdrawing_since:
        yield Wait(wallet.rides.book.close(channel.id, status="closing", is_forced=True))
        tx_hash = yield from _transacted(wallet, withdrawal_call(channel, left))
        seen = yield from _looked_until(wallet, channel, lambda now: bool(now.withdrawing_since), limit_s=_LAG_S)
        channel = channel if seen is None else seen[0]
        again = f"withdraw once more in {channel.withdraw_delay_s} s to end it"
        begun = f"the withdrawal of {asset.format(left)} has begun; {again}"
        return TakenBack(channel=channel, what=begun, tx_hash=tx_hash)
    now_s = yield from ask(node_at(wallet.network), chain_time())
    wait_s = state.withdrawing_since + channel.withdraw_delay_s - now_s
    if wait_s > 0:
        waits = f"the withdrawal has begun; withdraw once more in {wait_s} s to end it"
        return TakenBack(channel=channel, what=waits, is_done=False)
    tx_hash = yield from _transacted(wallet, finalization_call(channel))
    seen = yield from _looked_until(
        wallet, channel, lambda now: now.balance_atomic < state.balance_atomic, limit_s=_LAG_S
    )
    if seen is None:
        mined = "the withdrawal is mined, and the node does not show yet what came back: look at your balance later"
        return TakenBack(channel=channel, what=mined, tx_hash=tx_hash)
    return _back(wallet, seen[0], state.balance_atomic - seen[1].balance_atomic, tx_hash=tx_hash)


def _transacted(wallet: PayerChannels, data: bytes) -> Steps[str]:
    sending = send_transaction(wallet.network, wallet.signer, to=BATCH_SETTLEMENT, data=data, what="The withdrawal")
    return (yield from ask(node_at(wallet.network), sending))


def _back(wallet: PayerChannels, channel: Channel, amount_atomic: int, *, tx_hash: str | None = None) -> TakenBack:
    what = f"{wallet.network.asset.format(amount_atomic)} came back"
    return TakenBack(channel=channel, what=what, amount_atomic=amount_atomic, tx_hash=tx_hash)


# -- refund


def _refunded(wallet: PayerChannels, channel: Channel) -> Steps[TakenBack]:
    """Asks for the rest; once more when the gateway has another sum that can be believed."""
    channel, before = yield from _looked(wallet, channel)
    if before.balance_atomic <= before.claimed_atomic:
        return TakenBack(channel=channel, what="nothing is left in it")
    if (ride := wallet.rides.take(channel)) is None:
        return TakenBack(channel=channel, what=_IN_USE, is_done=False)
    try:
        if not (yield Wait(wallet.rides.book.close(channel.id, status="closing"))):
            return TakenBack(channel=channel, what=_IN_USE, is_done=False)
        return (yield from _asked_for(wallet, channel, before))
    finally:
        wallet.rides.leave(ride)


def _asked_for(wallet: PayerChannels, channel: Channel, before: ChannelState) -> Steps[TakenBack]:
    asked, why = channel, ""
    for _ in range(_MOST_ATTEMPTS):
        why, base = yield from _asked_back(wallet, asked, before)
        if base is not None:
            asked = replace(asked, charged_atomic=base)
            continue
        # The chain decides: an answer can be lost after the refund, and a gateway can say what is not so.
        seen = yield from _looked_until(
            wallet, channel, lambda now: now.balance_atomic < before.balance_atomic, limit_s=0.0 if why else _LAG_S
        )
        if seen is not None:
            return _back(wallet, seen[0], before.balance_atomic - seen[1].balance_atomic)
        why = why or "the gateway says that it was sent back, and the chain does not show it"
        break
    yield Wait(wallet.rides.book.close(channel.id, status="open"))
    kept = f"nothing came back ({why}); a withdrawal works without the gateway, and costs gas"
    return TakenBack(channel=channel, what=kept, is_done=False)


def _asked_back(wallet: PayerChannels, channel: Channel, state: ChannelState) -> Steps[tuple[str, int | None]]:
    """Why nothing came back, and what the gateway counts as charged if that can be believed; "" when it did."""
    wallet.gateways.check_endpoint(channel.endpoint)
    try:
        challenge = yield from _answered((yield Send(_request(channel, {}))))
        terms = None if challenge is None else _terms(challenge, channel)
        if challenge is None or terms is None:
            return "the gateway does not offer this channel any more", None
        payload = refund_payload(channel, signer=wallet.signer, network=wallet.network)
        header = payment_header(payload, accepted=terms, resource=challenge.resource)
        answer: httpx.Response = yield Send(_request(channel, {SIGNATURE_HEADER: header}))
        after = yield from _answered(answer)
    except httpx.HTTPError as exc:
        return f"the gateway was not reached ({type(exc).__name__})", None
    if answer.status_code == httpx.codes.OK:
        return "", None
    if after is None:
        return f"the gateway answered {answer.status_code}", None
    why, offered = after.error or "no reason given", _terms(after, channel)
    if not why.endswith(STALE) or offered is None:
        return why, None
    said = corrected_base(offered.raw["extra"], channel, claimed_atomic=state.claimed_atomic, network=wallet.network)
    if isinstance(said, str):
        return said, None
    charged, signed = said
    open_: dict[str, Any] = yield Wait(wallet.rides.book.unsettled([channel.id]))
    most = max([channel.charged_atomic, *(voucher.end_atomic for voucher in open_[channel.id])])
    if charged > max(most, signed if signed > channel.signed_atomic else 0):
        return f"it counts {charged} atomic units, more than the calls of this ledger can have cost", None
    return why, charged


def _request(channel: Channel, headers: dict[str, str]) -> httpx.Request:
    body = {"model": "gpt-5", "messages": [{"role": "user", "content": "refund"}], "max_tokens": 1}
    return httpx.Request("POST", channel.endpoint, json=body, headers=headers, extensions=limited_to(_TIMEOUT_S))


def _answered(response: httpx.Response) -> Steps[Challenge | None]:
    yield Read(response)
    header = response.headers.get(CHALLENGE_HEADER)
    is_asked = header is not None and response.status_code == httpx.codes.PAYMENT_REQUIRED
    return parse_challenge(header) if is_asked else None


def _terms(challenge: Challenge, channel: Channel) -> PaymentTerms | None:
    for terms in challenge.terms:
        asked = terms.channel
        if asked is not None and (terms.pay_to, asked.receiver_authorizer, terms.asset) == (
            channel.receiver,
            channel.receiver_authorizer,
            channel.asset,
        ):
            return terms
    return None
