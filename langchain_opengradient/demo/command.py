"""`opengradient-x402 demo`: a stranger's first minute.

Starts the devnet, and loads LangChain while that comes up; the tour itself is in `tour`.
"""

from __future__ import annotations

import json
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
    console.print("Starting an embedded OpenGradient network: real contracts, real payments, no internet.")
    try:
        with DevnetProcess(f"--idle-timeout={SESSION_IDLE_S}", f"--pace={PACE_S}") as devnet:
            from langchain_opengradient.demo.tour import give_tour

            report = give_tour(console, devnet, ledger_path)
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. What was signed until then, if anything, is in {ledger_path}.", err=True)
        raise
    if as_json:
        typer.echo(json.dumps(report))
    if report["spent_atomic"] != report["balance_delta_atomic"]:
        raise typer.Exit(1)
