"""Options that several commands share, and what they are resolved to: network, ledger, signer.

A private key is never an option: arguments are visible to every process of the machine, and stay in shell
histories. It comes from OG_PRIVATE_KEY or `.env`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from opengradient_x402.keys.signer import Signer
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.money import Asset
    from opengradient_x402.networks import Network
    from opengradient_x402.payment.payments import Payments

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


FullOption = Annotated[bool, typer.Option("--full", help="Everything: whole ids, hashes, amounts and reasons.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="24h, 7d, a date (2026-11-21), or Unix seconds; everything if not given.")
]


def address_of(text: str | None) -> str | None:
    """An address in its EIP-55 spelling. Raises BadParameter for a text that is none."""
    from opengradient_x402.addresses import checksum_address

    try:
        return None if text is None else checksum_address(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


PayerOption = Annotated[str | None, typer.Option("--payer", callback=address_of, help="Only this wallet's.")]


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

    from opengradient_x402.keys.signer import Keystore, signer_of
    from opengradient_x402.settings import Settings

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


def place_of(ledger: Ledger) -> str:
    """Where a ledger is, for people: its file, or its URL without the password."""
    from opengradient_x402.ledger.place import sqlite_file, without_password

    return str(sqlite_file(ledger.url) or without_password(ledger.url))


@contextmanager
def opened_payments(network: str | None, ledger: str | None, rpc_url: str | None = None) -> Iterator[Payments]:
    """The paying side; closed at the end."""
    from opengradient_x402.payment.payments import Payments

    payments = Payments.open(network=network_of(network, rpc_url), ledger=ledger)
    try:
        yield payments
    finally:
        payments.close()


class KnownNetworks:
    """What is known here of the networks that receipts are about: the one that is set, and the presets.

    A network that cannot be loaded is no reason not to show a receipt. `is_own` says that the receipts are the
    user's: then they say themselves what their token is. In a stranger's file they do not.
    """

    def __init__(self, choice: str | None = None, *, is_own: bool = True) -> None:
        from opengradient_x402.errors import OpenGradientError
        from opengradient_x402.networks import PRESETS

        self._by_name: dict[str, Network] = {}
        self._tokens: dict[tuple[str, str], Asset] = {}
        self.is_own = is_own
        for network in PRESETS.values():
            self._add(network)
        try:
            own = network_of(choice)
        except OpenGradientError:
            if choice is not None:
                raise
        else:
            self._add(own)

    def _add(self, network: Network) -> None:
        self._by_name[network.caip2] = network
        self._tokens[network.caip2, network.asset.address] = network.asset

    def of(self, caip2: str) -> Network | None:
        """The network of a CAIP-2 name."""
        return self._by_name.get(caip2)

    def token(self, receipt: SettlementReceipt) -> tuple[int, str]:
        """Decimals and symbol of the token that was paid; no decimals, and its address, where it is not known here."""
        from opengradient_x402.money import units_of

        if (asset := self._tokens.get((receipt.network, receipt.asset))) is not None:
            return asset.decimals, asset.symbol
        if self.is_own and receipt.asset_decimals is not None:
            return receipt.asset_decimals, receipt.asset_symbol or receipt.asset
        return 0, units_of(receipt.asset)

    def transaction_url(self, caip2: str, tx_hash: str | None) -> str | None:
        """The page of a transaction in its network's explorer; None without one."""
        network = self.of(caip2)
        return None if network is None else self.page_of(network, tx_hash)

    @staticmethod
    def page_of(network: Network, tx_hash: str | None) -> str | None:
        """As `transaction_url`, for a network that is at hand."""
        from opengradient_x402.ledger.receipts import transaction_claim

        base = network.explorer_url
        if base is None or transaction_claim(tx_hash) is None or not base.startswith(("http://", "https://")):
            return None
        return f"{base.rstrip('/')}/tx/{tx_hash}"


_AGO = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNIX = re.compile(r"[0-9]{9,11}", re.ASCII)


def parse_since(text: str | None) -> int:
    """Unix seconds; 0 (everything) for None. Dates without a zone are UTC. Raises BadParameter."""
    if text is None:
        return 0
    if (ago := _AGO.fullmatch(text)) is not None:
        return int(time.time()) - int(ago[1]) * _UNIT_S[ago[2]]
    if _UNIX.fullmatch(text) is not None:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is no time: write 24h, 7d, 2026-11-21, 2026-11-21T10:00+01:00 or Unix seconds",
            param_hint="--since",
        ) from exc
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
