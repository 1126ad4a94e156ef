"""`opengradient-x402`: the command line. Every command has `--json`; exit codes are in `--help`.

Commands of this package are registered here; other installed packages add theirs through the entry-point
group `opengradient_x402.commands` (the demo is LangChain's, so it lives with the LangChain face). A command's
own work is in its own module; this one only knows that they exist.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
import typer

from opengradient_x402.errors import BudgetExceeded, NotPaid, OpenGradientError

COMMAND_GROUP = "opengradient_x402.commands"
EXIT_CODES = {
    0: "done",
    1: "a check or a verification failed",
    2: "wrong usage, or configuration that cannot be used",
    3: "nothing was paid: the call was refused or the gateway was not reached",
    4: "a payment was sent: see the receipt",
    130: "interrupted",
}
_EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="opengradient-x402",
    help="Verifiable, pay-per-call LLMs: pay, prove, and keep the receipts.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Verifiable, pay-per-call LLMs: pay, prove, and keep the receipts."""


def main() -> None:
    """Runs the command line; the console script."""
    _register(app)
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as exc:
        exc.show()
        code = 2
    except KeyboardInterrupt:
        code = 130
    except OpenGradientError as exc:
        typer.echo(f"{type(exc).__name__}: {exc}", err=True)
        code = exit_code(exc)
    sys.exit(code if isinstance(code, int) else 0)


def exit_code(exc: OpenGradientError) -> int:
    """What the shell is told about an error."""
    if isinstance(exc, ValueError):
        return 2
    return 3 if isinstance(exc, NotPaid | BudgetExceeded) else 4


def _register(target: typer.Typer) -> None:
    for point in sorted(entry_points(group=COMMAND_GROUP), key=lambda point: point.name):
        target.command(point.name, epilog=_EPILOG)(_loaded(point))


def _loaded(point: EntryPoint) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(point.module), point.attr)  # type: ignore[no-any-return]
    except ImportError as exc:
        missing = exc.name or str(exc)

        def unavailable() -> None:
            typer.echo(
                f"`{point.name}` needs the package {missing!r}. Install it: "
                "pip install 'opengradient-integrations[all]'",
                err=True,
            )
            raise typer.Exit(2)

        unavailable.__doc__ = f"(not installed: needs {missing})"
        return unavailable
