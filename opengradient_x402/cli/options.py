"""Options that several commands share, and what they are resolved to: network, ledger, signer.

A private key is never an option: arguments are visible to every process of the machine, and stay in shell
histories. It comes from OG_PRIVATE_KEY or `.env`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.networks import Network
    from opengradient_x402.payment.payments import Payments
    from opengradient_x402.signer import Signer

NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network", "-n", help="base, base-usdc, base-sepolia, devnet, or a network file or URL (OG_NETWORK)."
    ),
]
RpcOption = Annotated[
    str | None, typer.Option("--rpc-url", help="A node to read the chain from; several, with commas (OG_RPC_URL).")
]
GatewayOption = Annotated[str | None, typer.Option("--gateway", help="Another gateway's URL (OG_GATEWAY_URL).")]
LedgerOption = Annotated[str | None, typer.Option("--ledger", help="SQLite file or database URL (OG_LEDGER_URL).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def address_of(text: str | None) -> str | None:
    """An address in its EIP-55 spelling. Raises BadParameter for a text that is none."""
    from opengradient_x402.addresses import checksum_address

    try:
        return None if text is None else checksum_address(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def network_of(choice: str | None, rpc_url: str | None = None) -> Network:
    """The network that was named, or the environment's; read through the node that was named, if one was."""
    from opengradient_x402.networks import load_network, with_node
    from opengradient_x402.settings import Settings

    settings = Settings.load()
    network = load_network(choice if choice is not None else settings.network)
    return with_node(network, rpc_url=rpc_url or settings.rpc_url)


def gateway_of(choice: str | None, network: Network) -> str:
    """The gateway that was named, the environment's, or the network's."""
    from opengradient_x402.settings import Settings

    return network.gateway_at(choice or Settings.load().gateway_url)


def signer_of_environment() -> Signer:
    """The wallet of OG_PRIVATE_KEY or OG_KEYSTORE, whose password is asked for. Raises InvalidPrivateKey."""
    import sys

    from opengradient_x402.settings import Settings
    from opengradient_x402.signer import Keystore, signer_of

    key = Settings.load().require_key()
    if isinstance(key, Keystore) and key.password is None and sys.stdin.isatty():
        key = Keystore(key.path, typer.prompt(f"Password of {key.path}", hide_input=True, err=True))
    return signer_of(key)


@contextmanager
def opened_ledger(choice: str | None) -> Iterator[Ledger]:
    """The ledger that was named, or the environment's; closed at the end."""
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.settings import Settings

    ledger = Ledger(choice if choice is not None else Settings.load().ledger_url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def opened_payments(network: str | None, ledger: str | None, rpc_url: str | None = None) -> Iterator[Payments]:
    """The paying side; closed at the end."""
    from opengradient_x402.payment.payments import Payments

    payments = Payments.open(network=network_of(network, rpc_url), ledger=ledger)
    try:
        yield payments
    finally:
        payments.close()
