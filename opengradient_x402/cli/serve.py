"""`opengradient-x402 serve`: any OpenAI client pays through it, from one wallet, each tool within its own limit."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.options import (
    GatewayOption,
    JsonOption,
    LedgerOption,
    NetworkOption,
    RpcOption,
    gateway_of,
    opened_payments,
)

if TYPE_CHECKING:
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.money import Asset
    from opengradient_x402.payment.payments import Payments
    from opengradient_x402.serve.keys import ApiKey

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONGEST_GOODBYE_S = 60
"""How long open calls may go on after Ctrl-C, in seconds; they are paid."""
_KEEP_ALIVE_S = 75


def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; other machines reach all but loopback.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 4020,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="NAME=AMOUNT: a key for a tool, which may spend so many tokens; for each tool."),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option("--keys", help="A file that keeps the keys for the next start; made if missing."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name of this server; may be given several times.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="private, batch or individual (OG_SETTLEMENT_MODE).")] = None,
    verify_tee: Annotated[
        str, typer.Option(help="The enclave's proof: off, warn, require or require-before.")
    ] = "warn",
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    gateway: GatewayOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve OpenAI's chat completions on this machine; each call is paid from the wallet."""
    _check_installed()
    import uvicorn

    from opengradient_x402.cli.chat import verify_tee_of
    from opengradient_x402.gateway.client import AsyncGatewayClient
    from opengradient_x402.serve.app import build_app
    from opengradient_x402.serve.heads import HeadLimits
    from opengradient_x402.serve.keys import count_earlier, kept, keys_of
    from opengradient_x402.settings import Settings

    keys = keys_of(budget or ())
    if keys_file is not None:
        keys = kept(keys, keys_file)
    with opened_payments(network, ledger, rpc_url) as payments:
        count_earlier(keys, payments.ledger, payer=payments.payer)
        client = AsyncGatewayClient(
            payments,
            base_url=gateway_of(gateway, payments.network),
            settlement_mode=mode or Settings.load().settlement_mode,
            verify_tee=verify_tee_of(verify_tee),
        )
        names = [*(allow_host or ()), f"[{host}]" if ":" in host else host]
        app = build_app(
            client, keys=keys, hosts=names, on_receipt=None if as_json else _reporter(payments.network.asset)
        )
        with _listening(host, port) as listener:
            url = _url(host, listener.getsockname()[1])
            config = uvicorn.Config(
                app,
                http=HeadLimits,
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LONGEST_GOODBYE_S,
            )

            class _Server(uvicorn.Server):
                async def main_loop(self) -> None:
                    # Not before: uvicorn does not end well on a signal that comes while it starts.
                    _announce(url, keys, payments, as_json=as_json, is_seen_by_others=host not in _LOOPBACK)
                    await super().main_loop()

            # uvicorn sends a signal again when it has ended; the ledger is closed after that, so it must not kill.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with suppress(KeyboardInterrupt):
                _Server(config).run(sockets=[listener])
        _take_leave(keys, as_json=as_json)


def _check_installed() -> None:
    """Raises ConfigurationError without the extra `serve`."""
    from opengradient_x402.errors import ConfigurationError

    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise ConfigurationError(
                f"`serve` needs the package {package!r}, which is not installed. Nothing was paid. Install it: "
                "pip install 'opengradient-integrations[serve]'"
            )


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigurationError when the address cannot be used."""
    from opengradient_x402.errors import ConfigurationError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        raise ConfigurationError(
            f"The server cannot listen at {_url(host, port)} ({exc.strerror}). Nothing was paid. Stop what listens "
            "there, or choose another `--port` (0 for a free one)."
        ) from exc


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"


def _announce(url: str, keys: Sequence[ApiKey], payments: Payments, *, as_json: bool, is_seen_by_others: bool) -> None:
    """What to paste into a tool. Keys are printed here, and nowhere else."""
    from opengradient_x402.cli.output import note, print_json

    if is_seen_by_others:
        note("Other machines can reach this server, and they send keys as plain text.")
    limits = {key.name: None if key.limit is None else key.limit.limit for key in keys}
    if as_json:
        listed = [{"name": key.name, "api_key": key.token, "budget": limits[key.name]} for key in keys]
        print_json({"base_url": url, "payer": payments.payer, "network": payments.network.name, "keys": listed})
        sys.stdout.flush()
        return
    asset = payments.network.asset
    lines = [
        f"Paying on {payments.network.name} from {payments.payer}",
        f"At most {asset.format(payments.budget_atomic)} a day over all keys. Ctrl-C ends the server.",
        "",
        f"  OPENAI_BASE_URL={url}",
    ]
    for key in keys:
        limit = limits[key.name]
        spent = "" if key.limit is None or key.since is None else f", {key.limit.spent} of it spent"
        lines += ["", f"  # {key.name}" + ("" if limit is None else f": at most {limit} {asset.symbol}{spent}")]
        lines.append(f"  OPENAI_API_KEY={key.token}")
    typer.echo("\n".join([*lines, ""]))
    sys.stdout.flush()


def _reporter(asset: Asset) -> Callable[[ApiKey, SettlementReceipt], None]:
    """Prints a line for each call."""
    from opengradient_x402.cli.output import note
    from opengradient_x402.ledger.receipts import cost_of

    def report(key: ApiKey, receipt: SettlementReceipt) -> None:
        cost = cost_of(receipt)
        paid = "cost not known yet" if cost is None else asset.format(cost)
        note(f"{time.strftime('%H:%M:%S')} {key.name} {receipt.model} {receipt.outcome}: {paid}\n  {receipt.call_id}")

    return report


def _take_leave(keys: Sequence[ApiKey], *, as_json: bool) -> None:
    from opengradient_x402.cli.output import note

    if not as_json:
        for key in keys:
            if key.limit is not None:
                note(f"{key.name}: {key.limit.spent} of {key.limit.limit} spent")
        note("Ended. All receipts: `opengradient-x402 receipts list`")
