"""`opengradient-x402 approve`: let Permit2 move a bounded amount of the wallet's tokens. Sends a transaction."""

from __future__ import annotations

from typing import Annotated

import typer

from opengradient_x402.cli.options import JsonOption, NetworkOption, network_of, signer_of_environment


def approve(
    amount: Annotated[str, typer.Argument(help="Tokens that payments must be able to take, such as 5 or 0.5.")],
    approve_amount: Annotated[
        str | None,
        typer.Option("--approve", help="What to approve if that is not allowed yet (twice AMOUNT), or `unlimited`."),
    ] = None,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Allow payments up to an amount, once per wallet; does nothing when they are allowed already."""
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.money import MAX_UINT256
    from opengradient_x402.payment.wallet import Wallet

    chosen = network_of(network)
    approval = Wallet(chosen, signer_of_environment()).ensure_opg_approval(amount, approve_amount)
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
        typer.echo(f"Payments may take {allowed} on {chosen.name} now (transaction {approval.tx_hash}).")
