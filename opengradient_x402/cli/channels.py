"""`opengradient-x402 channels`: what is in payment channels, and how it comes back: by refund, or by withdrawal.

A refund is asked of the gateway, which claims what it is owed and sends back the rest; it costs this wallet no gas. A
withdrawal needs nobody: it is begun with one transaction and finished with another, after the delay of the channel.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from opengradient_x402.cli.options import (
    JsonOption,
    LedgerOption,
    NetworkOption,
    RpcOption,
    opened_payments,
)

if TYPE_CHECKING:
    import httpx

    from opengradient_x402.channels.channel import Channel, Voucher
    from opengradient_x402.channels.on_chain import ChannelState
    from opengradient_x402.payment.challenge import Challenge
    from opengradient_x402.payment.payments import Payments

ChannelArgument = Annotated[
    str | None, typer.Argument(help="The id of a channel, or the beginning of one; all of this wallet when left out.")
]
_MOST_ATTEMPTS = 2


class _Outcome(NamedTuple):
    """What was done with one channel."""

    channel: Channel
    done: str
    is_done: bool = True
    tx_hash: str | None = None


def list_channels(
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the payment channels of this wallet: what is in them, what was charged, claimed, and can be claimed."""
    from opengradient_x402.cli.output import print_json, print_table

    with opened_payments(network, ledger, rpc_url) as payments:
        found = [_looked(payments, channel)[0] for channel in _chosen(payments, None)]
        asset = payments.network.asset
    if as_json:
        print_json([_as_json(channel) for channel in found])
        return
    print_table(
        ["channel", "status", "deposited", "charged", "claimed", "signed", "free", "gateway"],
        [
            [
                channel.id[:18],
                channel.status,
                *(
                    asset.format(amount)
                    for amount in (
                        channel.balance_atomic,
                        channel.charged_atomic,
                        channel.claimed_atomic,
                        channel.signed_atomic,
                        channel.free_atomic,
                    )
                ),
                channel.endpoint,
            ]
            for channel in found
        ],
        right=["deposited", "charged", "claimed", "signed", "free"],
    )


def refund(
    channel_id: ChannelArgument = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask gateways to send back what is left in channels. Costs no gas; `withdraw` is for gateways that do not."""
    with opened_payments(network, ledger, rpc_url) as payments:
        outcomes = [_refunded(payments, channel) for channel in _chosen(payments, channel_id)]
    _show(outcomes, as_json=as_json)


def withdraw(
    channel_id: ChannelArgument = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what is in channels without the gateway's help: run it twice, the second time after the delay.

    Each time costs gas. No call uses a channel from the first time on. Until the second time the gateway can still
    claim what was charged, up to the last voucher.
    """
    with opened_payments(network, ledger, rpc_url) as payments:
        outcomes = [_withdrawn(payments, channel) for channel in _chosen(payments, channel_id)]
    _show(outcomes, as_json=as_json)


def _chosen(payments: Payments, beginning: str | None) -> list[Channel]:
    known = payments.rides.book.channels(network=payments.network.caip2, payer=payments.payer).result()
    if beginning is None:
        return known
    found = [channel for channel in known if channel.id.startswith(beginning.lower())]
    if len(found) != 1:
        what = "no channel begins so" if not found else f"{len(found)} channels begin so"
        raise typer.BadParameter(f"{what}: see `opengradient-x402 channels list`", param_hint="channel_id")
    return found


def _looked(payments: Payments, channel: Channel) -> tuple[Channel, ChannelState]:
    """The channel with what the chain shows now, in the ledger too."""
    from opengradient_x402.chain.questions import ChainReader
    from opengradient_x402.channels.on_chain import channel_state

    state = ChainReader.at(payments.network).ask(channel_state(channel, network=payments.network))
    return payments.rides.book.see(channel, state).result(), state


# -- withdrawal


def _withdrawn(payments: Payments, channel: Channel) -> _Outcome:
    from opengradient_x402.channels.on_chain import finalization_call, withdrawal_call

    channel, state = _looked(payments, channel)
    asset, left = payments.network.asset, state.balance_atomic - state.claimed_atomic
    if left <= 0:
        return _Outcome(channel, "nothing is left in it")
    if not state.withdrawing_since:
        payments.rides.book.close(channel.id, status="closing").result()
        tx_hash = _sent(payments, withdrawal_call(channel, left), what="The withdrawal")
        channel, _ = _looked(payments, channel)
        return _Outcome(
            channel,
            f"the withdrawal of {asset.format(left)} has begun; run this command again in {channel.withdraw_delay_s} s",
            tx_hash=tx_hash,
        )
    wait_s = state.withdrawing_since + channel.withdraw_delay_s - _chain_time(payments)
    if wait_s > 0:
        return _Outcome(channel, f"the withdrawal waits {wait_s} s more", is_done=False)
    tx_hash = _sent(payments, finalization_call(channel), what="The withdrawal")
    channel, after = _looked(payments, channel)
    back = state.balance_atomic - after.balance_atomic
    return _Outcome(channel, f"{asset.format(back)} came back", tx_hash=tx_hash)


def _sent(payments: Payments, data: bytes, *, what: str) -> str:
    from opengradient_x402.chain.eip712 import BATCH_SETTLEMENT
    from opengradient_x402.chain.questions import ChainReader
    from opengradient_x402.chain.transactions import send_transaction

    sending = send_transaction(payments.network, payments.signer, to=BATCH_SETTLEMENT, data=data, what=what)
    return ChainReader.at(payments.network).ask(sending)


def _chain_time(payments: Payments) -> int:
    from opengradient_x402.chain.questions import ChainReader, chain_time

    return ChainReader.at(payments.network).ask(chain_time())


# -- refund


def _refunded(payments: Payments, channel: Channel) -> _Outcome:
    """Asks for the rest; once more when the gateway has another sum that can be believed."""
    channel, before = _looked(payments, channel)
    if before.balance_atomic <= before.claimed_atomic:
        return _Outcome(channel, "nothing is left in it")
    book = payments.rides.book
    book.close(channel.id, status="closing").result()
    why = ""
    for _ in range(_MOST_ATTEMPTS):
        why, base = _asked_back(payments, channel, before)
        if not why:
            now, after = _looked(payments, channel)
            back = before.balance_atomic - after.balance_atomic
            if back > 0:
                return _Outcome(now, f"{payments.network.asset.format(back)} came back")
            why = "the gateway says that it was sent back, and the chain does not show it"
            break
        if base is None:
            break
        channel = replace(channel, charged_atomic=base)
    book.close(channel.id, status="open").result()
    return _Outcome(channel, f"nothing came back ({why}); `channels withdraw` needs nobody's help", is_done=False)


def _asked_back(payments: Payments, channel: Channel, state: ChannelState) -> tuple[str, int | None]:
    """Why nothing came back, and what the gateway counts as charged if that can be believed; "" when it did."""
    import httpx

    from opengradient_x402.chain.node import Line
    from opengradient_x402.channels.vouchers import STALE, corrected_base, refund_payload
    from opengradient_x402.payment.permits import payment_header
    from opengradient_x402.payment.steps import SIGNATURE_HEADER

    payments.gateways.check_endpoint(channel.endpoint)
    with Line() as line:
        try:
            challenge = _challenge(line.send(_request(channel, {})))
            terms = None if challenge is None else _terms(challenge, channel)
            if challenge is None or terms is None:
                return "the gateway does not offer this channel any more", None
            payload = refund_payload(channel, signer=payments.signer, network=payments.network)
            header = payment_header(payload, accepted=terms, resource=challenge.resource)
            answer = line.send(_request(channel, {SIGNATURE_HEADER: header}))
            if answer.status_code == httpx.codes.OK:
                return "", None
            after = _challenge(answer)
        except httpx.HTTPError as exc:
            return f"the gateway was not reached ({type(exc).__name__})", None
    if after is None:
        return f"the gateway answered {answer.status_code}", None
    why, offered = after.error or "no reason given", _terms(after, channel)
    if not why.endswith(STALE) or offered is None:
        return why, None
    said = corrected_base(offered.raw["extra"], channel, claimed_atomic=state.claimed_atomic, network=payments.network)
    if isinstance(said, str):
        return said, None
    unknown = max([channel.charged_atomic, *(voucher.end_atomic for voucher in _open_vouchers(payments, channel))])
    if said[0] > max(unknown, said[1] if said[1] > channel.signed_atomic else 0):
        return f"it counts {said[0]} atomic units, more than the calls of this ledger can have cost", None
    return why, said[0]


def _open_vouchers(payments: Payments, channel: Channel) -> list[Voucher]:
    return payments.rides.book.unsettled([channel.id]).result()[channel.id]


def _request(channel: Channel, headers: dict[str, str]) -> httpx.Request:
    import httpx

    from opengradient_x402.chain.node import limited_to

    body = {"model": "gpt-5", "messages": [{"role": "user", "content": "refund"}], "max_tokens": 1}
    return httpx.Request("POST", channel.endpoint, json=body, headers=headers, extensions=limited_to(60.0))


def _challenge(response: httpx.Response) -> Challenge | None:
    from opengradient_x402.payment.challenge import parse_challenge
    from opengradient_x402.payment.steps import CHALLENGE_HEADER

    response.close()
    header = response.headers.get(CHALLENGE_HEADER)
    return None if header is None or response.status_code != 402 else parse_challenge(header)


def _terms(challenge: Challenge, channel: Channel) -> Any:
    return next(
        (
            terms
            for terms in challenge.terms
            if terms.channel is not None
            and terms.pay_to == channel.receiver
            and terms.channel.receiver_authorizer == channel.receiver_authorizer
            and terms.asset == channel.asset
        ),
        None,
    )


# -- output


def _as_json(channel: Channel) -> dict[str, Any]:
    return {
        "channel_id": channel.id,
        "network": channel.network,
        "gateway": channel.endpoint,
        "status": channel.status,
        "deposited_atomic": str(channel.balance_atomic),
        "charged_atomic": str(channel.charged_atomic),
        "claimed_atomic": str(channel.claimed_atomic),
        "signed_atomic": str(channel.signed_atomic),
        "free_atomic": str(channel.free_atomic),
        "withdraw_delay_s": channel.withdraw_delay_s,
        "withdrawing_since": channel.withdrawing_since or None,
        "used_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(channel.used_at)),
    }


def _show(outcomes: list[_Outcome], *, as_json: bool) -> None:
    from opengradient_x402.cli.output import print_json

    if as_json:
        print_json(
            [
                {**_as_json(each.channel), "done": each.is_done, "what": each.done, "transaction": each.tx_hash}
                for each in outcomes
            ]
        )
    elif not outcomes:
        typer.echo("This wallet has no payment channels in this ledger; nothing was sent.")
    else:
        for each in outcomes:
            transaction = f" (transaction {each.tx_hash})" if each.tx_hash else ""
            typer.echo(f"{each.channel.id[:18]}: {each.done}{transaction}.")
    if not all(each.is_done for each in outcomes):
        raise typer.Exit(1)
