"""`opengradient-x402 channels`: what is in payment channels, and how to get it back: by refund, or by withdrawal.

A refund is asked of the gateway, which claims what it is owed and sends back the rest; it costs this wallet no gas. A
withdrawal needs no help: it is begun with one transaction and finished with another, after the delay of the channel.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opengradient_x402.cli.options import (
    JsonOption,
    LedgerOption,
    NetworkOption,
    RpcOption,
    opened_payments,
)

if TYPE_CHECKING:
    from opengradient_x402.channels.channel import Channel
    from opengradient_x402.payment.channels.taking_back import TakenBack

ChannelArgument = Annotated[
    str | None, typer.Argument(help="The id of a channel, or the beginning of one; all of this wallet when left out.")
]

_WIDE = 110
"""Columns of the table with everything."""
_FIELDS = {
    "deposited": "balance_atomic",
    "charged": "charged_atomic",
    "claimed": "claimed_atomic",
    "signed": "signed_atomic",
    "free": "free_atomic",
}
"""The amount of a channel that a column shows."""


def list_channels(
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the payment channels of this wallet: what is in them, what was charged, claimed, and can be claimed."""
    from opengradient_x402.cli.output import columns, note, print_json, print_table, rounded, working
    from opengradient_x402.gateway.exchange import CHAT_PATH

    with opened_payments(network, ledger, rpc_url) as payments, working("Reading the chain"):
        found = payments.channels.list()
        asset = payments.network.asset
    if as_json:
        print_json([_as_json(channel) for channel in found])
        return
    if not found:
        typer.echo("This wallet has no payment channels in this ledger.")
        return
    decimals, is_narrow = asset.decimals, columns() < _WIDE
    amounts = ("deposited", "claimed", "free") if is_narrow else tuple(_FIELDS)
    print_table(
        ["channel", "status", *amounts, *(() if is_narrow else ("gateway",))],
        [
            [
                channel.id[:18],
                channel.status,
                *(rounded(getattr(channel, _FIELDS[name]), decimals=decimals) for name in amounts),
                *(() if is_narrow else (channel.endpoint.removesuffix(CHAT_PATH),)),
            ]
            for channel in found
        ],
        right=amounts,
    )
    note(f"Amounts in {asset.symbol}. claimed: what the gateway took on chain. free: what is left for further calls.")


def refund(
    channel_id: ChannelArgument = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask gateways to send back what is left in channels. Costs no gas. If a gateway refuses, use `withdraw`."""
    from opengradient_x402.cli.output import sending

    with opened_payments(network, ledger, rpc_url) as payments, sending("Asking gateways", shown_by="channels list"):
        outcomes = payments.channels.refund(channel_id)
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
    from opengradient_x402.cli.output import sending

    with (
        opened_payments(network, ledger, rpc_url) as payments,
        sending("Sending transactions, and waiting for their blocks", shown_by="channels list"),
    ):
        outcomes = payments.channels.withdraw(channel_id)
    _show(outcomes, as_json=as_json)


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


def _show(outcomes: Sequence[TakenBack], *, as_json: bool) -> None:
    from opengradient_x402.cli.output import print_json

    if as_json:
        print_json(
            [
                {**_as_json(each.channel), "done": each.is_done, "what": each.what, "transaction": each.tx_hash}
                for each in outcomes
            ]
        )
    elif not outcomes:
        typer.echo("This wallet has no payment channels in this ledger; nothing was sent.")
    else:
        for each in outcomes:
            transaction = f" (transaction {each.tx_hash})" if each.tx_hash else ""
            typer.echo(f"{each.channel.id[:18]}: {each.what}{transaction}.")
    if not all(each.is_done for each in outcomes):
        raise typer.Exit(1)
