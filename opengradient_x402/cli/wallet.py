"""`opengradient-x402 balance`, `approve` and `cancel`: what a wallet has, may pay, and takes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.options import (
    JsonOption,
    KnownNetworks,
    LedgerOption,
    NetworkOption,
    RpcOption,
    address_of,
    network_of,
    opened_ledger,
    signer_of_environment,
)
from opengradient_x402.cli.output import can_link, linked, print_json, print_pairs, sending
from opengradient_x402.money import MAX_UINT256, format_amount

if TYPE_CHECKING:
    from opengradient_x402.networks import Network


def balance(
    address: Annotated[
        str | None, typer.Argument(callback=address_of, help="Another wallet than that of OG_PRIVATE_KEY.")
    ] = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show tokens, gas and allowance, and what payments have spent and reserved today."""
    from opengradient_x402.chain.questions import ChainReader, allowance, balance_of, native_balance
    from opengradient_x402.channels.book import ChannelBook

    chosen = network_of(network, rpc_url)
    owner = address or signer_of_environment().address
    asset = chosen.asset
    with ChainReader.at(chosen) as chain:
        held = chain.ask(balance_of(asset.address, owner))
        allowed = chain.ask(allowance(asset.address, owner, chosen.permit2))
        gas_wei = chain.ask(native_balance(owner))
    with opened_ledger(ledger) as book:
        spent = book.spent(payer=owner, asset=asset.address, network=chosen.caip2).result()
        channels = ChannelBook(book).channels(network=chosen.caip2, payer=owner).result()
    tied_up = sum(channel.free_atomic for channel in channels if channel.status != "closed")
    if as_json:
        print_json(
            {
                "address": owner,
                "network": chosen.caip2,
                "balance_atomic": str(held),
                "allowance_atomic": str(allowed),
                "native_wei": str(gas_wei),
                "spent_or_reserved_today_atomic": str(spent),
                "in_channels_atomic": str(tied_up),
            }
        )
        return
    print_pairs(
        [
            ("wallet", f"{owner} on {chosen.name}"),
            ("balance", asset.format(held)),
            ("allowance", "unlimited" if allowed >= MAX_UINT256 // 2 else asset.format(allowed)),
            ("gas", f"{format_amount(gas_wei, decimals=18)} ETH"),
            ("today", f"{asset.format(spent)} spent or reserved"),
            *([("channels", f"{asset.format(tied_up)} free in payment channels")] if tied_up else []),
        ]
    )


def approve(
    amount: Annotated[str, typer.Argument(help="Tokens that payments must be able to take, such as 5 or 0.5.")],
    approve_amount: Annotated[
        str | None,
        typer.Option("--approve", help="Approve more than AMOUNT where AMOUNT is not allowed yet; or `unlimited`."),
    ] = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    as_json: JsonOption = False,
) -> None:
    """Allow payments up to an amount, once per wallet; does nothing when they are allowed already."""
    from opengradient_x402.payment.wallet import Wallet

    chosen = network_of(network, rpc_url)
    wallet = Wallet(chosen, signer_of_environment())
    with sending("Looking at the allowance, and changing it if it is too small", shown_by="balance"):
        approval = wallet.ensure_opg_approval(amount, amount if approve_amount is None else approve_amount)
    allowed = (
        "everything"
        if approval.allowance_after_atomic == MAX_UINT256
        else chosen.asset.format(approval.allowance_after_atomic)
    )
    if as_json:
        print_json(
            {
                "allowance_before_atomic": str(approval.allowance_before_atomic),
                "allowance_after_atomic": str(approval.allowance_after_atomic),
                "tx_hash": approval.tx_hash,
            }
        )
    elif approval.tx_hash is None:
        typer.echo(f"Payments may take {allowed} on {chosen.name} already; nothing was sent.")
    else:
        typer.echo(f"Payments may take {allowed} on {chosen.name} now.")
        _print_transaction(chosen, approval.tx_hash)


def cancel(
    call_id: Annotated[str, typer.Argument(help="The id of a call, or the beginning of one.")],
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Burn the nonce of a payment that is still open, so that nobody can take it. Costs gas.

    A payment of a session pays for all its calls: none of them can be taken then.
    """
    from opengradient_x402.cli.receipts import found_receipt
    from opengradient_x402.payment.wallet import Wallet
    from opengradient_x402.settlement.reconciler import Reconciler

    chosen = network_of(network, rpc_url)
    with opened_ledger(ledger) as book:
        receipt = found_receipt(book, call_id)
        [entry] = book.authorizations(authorization_id=receipt.authorization_id).result()
        if entry.network != chosen.caip2:
            raise typer.BadParameter(
                f"its payment was made on {receipt.network}: name that --network", param_hint="call_id"
            )
        wallet = Wallet(chosen, signer_of_environment())
        with sending("Cancelling, and waiting for the block", shown_by=f"receipts show {receipt.call_id} --refresh"):
            done = wallet.cancel(entry)
            now = Reconciler(chosen, book).refresh(receipt)
    if as_json:
        print_json({"call_id": now.call_id, "transaction": done.tx_hash, "status": now.status.value})
    elif done.tx_hash is None:
        typer.echo(f"{now.call_id}: its nonce was used already. The receipt is {now.status}; nothing was sent.")
    else:
        typer.echo(f"{now.call_id}: cancelled. The receipt is {now.status}.")
        _print_transaction(chosen, done.tx_hash)


def _print_transaction(network: Network, tx_hash: str) -> None:
    """The transaction, which is a link; and its page where the terminal cannot link."""
    url = KnownNetworks.page_of(network, tx_hash)
    print_pairs([("transaction", linked(tx_hash, url)), *([] if url is None or can_link() else [("", url)])])
