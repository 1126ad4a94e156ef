"""`opengradient-x402 demo`: a tour for new users.

Starts the devnet, and loads LangChain meanwhile; the tour itself is in `tour`.
"""

from __future__ import annotations

import json
import select
import sys
import time
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console

from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.settings import Settings

SESSION_IDLE_S = 1.5
PACE_S = 0.03
OPEN_FOR_S = 300
_NEXT = """
[bold]Next[/]
  opengradient-devnet               a network that stays, and a wallet
  opengradient-x402 chat "Hello"    pay for a call on it
  opengradient-x402 receipts list   what was paid

Agents, budgets and reports
  https://github.com/OpenGradient/opengradient-integrations
"""
_NEEDED = ("langchain", "langchain_core", "eth", "starlette", "uvicorn")


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tour.")] = False,  # noqa: FBT002
) -> None:
    """See a LangChain agent answer over x402 on an embedded network, with a receipt for every call."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigurationError(
            f"The demo needs packages that are not installed ({', '.join(missing)}). Nothing was started. "
            "Install them: pip install 'opengradient-integrations[demo]'"
        )
    console = Console(quiet=as_json, highlight=False)
    ledger_path = Settings.load(dotenv=False).state_directory / f"demo-{time.strftime('%Y%m%d-%H%M%S')}.sqlite"
    console.print(
        "An OpenGradient network on this machine: real contracts, real payments,\n"
        "no internet. Rules answer in place of models."
    )
    try:
        with DevnetProcess(f"--idle-timeout={SESSION_IDLE_S}", f"--pace={PACE_S}") as devnet:
            with console.status("Starting the network …"):
                from langchain_opengradient.demo.tour import give_tour

                explorer_url = devnet.network["explorer_url"]
            report = give_tour(console, devnet, ledger_path)
            console.print(_NEXT, soft_wrap=True)
            if console.is_terminal and sys.stdin.isatty():
                console.print(
                    f"[bold]See it[/]: {explorer_url}\n"
                    f"(open until you press Enter, for {OPEN_FOR_S // 60} minutes at most)",
                    soft_wrap=True,
                )
                select.select([sys.stdin], [], [], OPEN_FOR_S)
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. What was signed until then, if anything, is in {ledger_path}.", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(report))
    if report["spent_atomic"] != report["balance_delta_atomic"]:
        raise typer.Exit(1)
