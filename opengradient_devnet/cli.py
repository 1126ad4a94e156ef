"""`opengradient-devnet`: runs a devnet until it is told to stop, and prints where it listens.

SIGINT and SIGTERM end it cleanly: open sessions are settled, batches written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from shellingham import ShellDetectionFailure, detect_shell

from opengradient_devnet.chain.accounts import LIVE_CHAIN_IDS
from opengradient_devnet.chain.anvil import AnvilNotFound
from opengradient_devnet.chain.chain import PRIVATE_CHAIN_ID
from opengradient_devnet.devnet import Devnet
from opengradient_devnet.gateway.payment.challenge import Scheme
from opengradient_devnet.gateway.profile import HELPFUL, PROFILES
from opengradient_devnet.parent import ParentWatch
from opengradient_devnet.server import ServerFailed

_LOOK_EVERY_S = 0.2
_WALLET_OPG = "100"

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts long names of options at 80 columns
)


class Engine(StrEnum):
    PYEVM = "pyevm"
    ANVIL = "anvil"


def default_network_file() -> Path:
    """Where clients look for `OG_NETWORK=devnet` (XDG Base Directory specification)."""
    state = os.environ.get("XDG_STATE_HOME")  # noqa: TID251 - the command line's only look at the environment
    return (Path(state) if state else Path.home() / ".local" / "state") / "opengradient" / "devnet.json"


def _print_version(wanted: bool) -> None:  # noqa: FBT001  (typer calls it)
    if wanted:
        typer.echo(f"opengradient-devnet {version('opengradient-integrations')}")
        raise typer.Exit


@app.command()
def serve(
    *,
    port: Annotated[int, typer.Option(help="Port of the gateway on 127.0.0.1; 0 picks a free one.")] = 0,
    chain_id: Annotated[int, typer.Option(help="Chain id of the embedded chain.")] = PRIVATE_CHAIN_ID,
    engine: Annotated[Engine, typer.Option(metavar="NAME", help="What runs the chain: pyevm or anvil.")] = Engine.PYEVM,
    upstream: Annotated[
        str,
        typer.Option(
            help='Who answers: "rules"; "openai:URL", any OpenAI-compatible server; or '
            '"langchain:module:attribute", a LangChain chat model (looked for in this folder, too).'
        ),
    ] = "rules",
    upstream_key: Annotated[
        str | None,
        typer.Option(help="The bearer token of an OpenAI-compatible upstream.", envvar="OPENGRADIENT_UPSTREAM_KEY"),
    ] = None,
    behaves_like: Annotated[
        str, typer.Option(help=f"How the gateway behaves where gateways differ: {', '.join(PROFILES)}.")
    ] = HELPFUL.name,
    idle_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds without a call after which a session is settled.", show_default="100"),
    ] = None,
    network_file: Annotated[
        Path | None, typer.Option(help="Where to write what clients need to know.", show_default="state folder")
    ] = None,
    sessions: Annotated[bool, typer.Option(help="Paid sessions, or settlement of every call.")] = True,
    prices: Annotated[Path | None, typer.Option(help="A price list to use instead of the built-in one.")] = None,
    opg_usd: Annotated[str | None, typer.Option(help="What one OPG costs in USD; decides what calls cost.")] = None,
    scheme: Annotated[
        list[Scheme] | None,
        typer.Option(
            metavar="NAME",
            help=f"A way to pay that is offered: {', '.join(Scheme)}. May be given several times. [default: upto]",
        ),
    ] = None,
    pace: Annotated[float, typer.Option(help="Seconds between the chunks of a streamed answer.")] = 0.0,
    unsafe_live_chain_id: Annotated[
        bool,
        typer.Option(
            "--unsafe-live-chain-id",
            help="Allow the chain ids of Base and Base Sepolia; serves only wallets made by this devnet.",
        ),
    ] = False,
    fault_route: Annotated[
        bool,
        typer.Option(
            "--fault-route",
            help="Serve POST /faults and POST /reorganise, which make it misbehave, for holders of the printed token.",
        ),
    ] = False,
    fault_token: Annotated[
        str | None,
        typer.Option(help="The token for --fault-route, instead of a random one.", envvar="OPENGRADIENT_FAULT_TOKEN"),
    ] = None,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="End when the starting process is gone.")
    ] = False,
    show_version: Annotated[  # noqa: ARG001  (its callback has printed it)
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run an OpenGradient-like network on this machine: chain, facilitator, paid gateway, model."""
    parent = ParentWatch() if exit_with_parent else None
    engine_name: Literal["pyevm", "anvil"] = "anvil" if engine is Engine.ANVIL else "pyevm"
    if upstream.startswith("langchain:"):
        sys.path.insert(0, str(Path.cwd()))  # a console script's own path is the folder of the script
    try:
        with (
            _stop_signals() as stop,
            Devnet(
                chain_id=chain_id,
                engine=engine_name,
                upstream=upstream,
                upstream_key=upstream_key,
                behaves_like=behaves_like,
                idle_timeout_s=idle_timeout,
                network_file=network_file or default_network_file(),
                port=port,
                sessions=sessions,
                unsafe_live_chain_id=unsafe_live_chain_id,
                prices=prices,
                opg_usd=opg_usd,
                schemes=scheme or [Scheme.UPTO],
                pace_s=pace,
                fault_route=fault_route,
                fault_token=fault_token,
            ) as net,
        ):
            typer.echo(start_screen(net, chain_id=chain_id))
            while not stop.wait(_LOOK_EVERY_S):
                if parent is not None and parent.is_gone():
                    break
    except (ValueError, AnvilNotFound, ServerFailed, OSError) as exc:
        typer.echo(f"opengradient-devnet: {exc}", err=True)
        raise typer.Exit(2) from exc
    typer.echo(f"Stopped. {_summary(net)}")


def start_screen(net: Devnet, *, chain_id: int) -> str:
    """What is printed at the start: a wallet that can pay, where everything is, and what to type next."""
    wallet = net.account(opg=_WALLET_OPG, approved=True)
    places = [
        ("gateway", net.gateway_url),
        ("", f"{net.https_gateway_url} (certificate in the TEE registry)"),
        ("explorer", net.explorer_url),
        ("RPC", f"{net.rpc_url} (chain {chain_id})"),
        ("unpaid model", net.unpaid_url),
        ("network file", str(net.network_file)),
    ]
    if net.fault_token is not None:
        places.append(("fault token", net.fault_token))
        places.append(("", "(header X-Fault-Token of POST /faults and /reorganise)"))
    lines = [
        "An OpenGradient network runs on this machine.",
        "",
        f"A wallet with {_WALLET_OPG} OPG, approved for payments (new at every start, worth nothing)",
        *_table([("address", wallet.address), ("private key", wallet.private_key)]),
        "",
        "Where it listens",
        *_table(places),
        "",
        "To pay with this wallet, paste into another terminal",
        f" export OG_NETWORK={net.network_url}",
        f" export OG_PRIVATE_KEY={wallet.private_key}",
        "",
        "Then",
        " opengradient-x402 doctor",
        ' opengradient-x402 chat "What is x402, in one sentence?"',
        " opengradient-x402 receipts list",
        "",
        "Another wallet",
        f" curl {net.gateway_url}/accounts --json '{{\"approved\": true}}'",
        "",
        "Ctrl-C ends it, and settles what is open.",
    ]
    if chain_id in LIVE_CHAIN_IDS:
        lines[-2:-2] = ["", "LIVE CHAIN ID: only wallets that it made are served; never use a wallet of your own."]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [f" {name:<13}{value}" for name, value in rows]


def _summary(net: Devnet) -> str:
    settled = [record for record in net.settlements if record.success]
    failed = len(net.settlements) - len(settled)
    total = sum(record.amount_atomic for record in settled)
    count, batches = len(settled), len(net.batches)
    taken = f"{net.chain.token.text(total)} {net.chain.token.symbol}"
    payments = f"{count} settlement{'' if count == 1 else 's'}, {taken} together"
    return f"{payments}, {failed} failed; {batches} data batch{'' if batches == 1 else 'es'}."


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, from before the devnet starts until after it has ended.

    An interrupt must not break off starting or closing: threads and unsettled sessions would stay behind.
    """
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> None:
    """The console script."""
    if sys.argv[1:] == ["--show-completion"]:
        _name_shell()
    app()


def _name_shell() -> None:
    """Asks for the completion of `$SHELL` where Typer finds no shell above this process, as in a container."""
    try:
        shell: str = detect_shell()[0]
    except ShellDetectionFailure:
        shell = Path(os.environ.get("SHELL", "")).name  # noqa: TID251 - the system's word, no setting of ours
    if shell:
        os.environ["_OPENGRADIENT_DEVNET_COMPLETE"] = f"source_{shell}"  # noqa: TID251 - Typer reads it
        sys.argv[1:] = []
