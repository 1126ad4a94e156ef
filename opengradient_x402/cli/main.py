"""`opengradient-x402`: the command line. Every command has `--json`; exit codes are in `--help`.

Commands of other installed packages come in through the entry-point group `opengradient_x402.commands` (the
demo is LangChain's, so it lives with the LangChain face). A command's own work is in its own module; this one
knows that they exist, and what the shell is told when they fail.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer

from opengradient_x402.errors import NotPaid, OpenGradientError

_COMMANDS = {
    "approve": "wallet:approve",
    "balance": "wallet:balance",
    "cancel": "wallet:cancel",
    "chat": "chat:chat",
    "doctor": "doctor:doctor",
    "models": "models:models",
    "serve": "serve:serve",
}
_RECEIPTS = {
    "list": "receipts:list_receipts",
    "show": "receipts:show",
    "reconcile": "ledger:reconcile",
    "export": "exports:export",
    "report": "report.command:report",
    "verify": "bundles:verify",
    "clear-dispute": "receipts:clear_dispute",
}
_CHANNELS = {"list": "channels:list_channels", "refund": "channels:refund", "withdraw": "channels:withdraw"}
_LEDGER = {
    "check": "ledger:check",
    "repair": "ledger:repair",
    "compact": "ledger:compact",
    "anchor": "ledger:anchor",
}
_GROUPS = {
    "channels": (_CHANNELS, "List payment channels, and take back what is in them."),
    "ledger": (_LEDGER, "Check, repair and compact the ledger, and anchor its history."),
    "receipts": (_RECEIPTS, "List, show, reconcile, export, report and verify receipts."),
}
COMMAND_GROUP = "opengradient_x402.commands"
EXIT_CODES = {
    0: "done",
    1: "a check or a verification failed, or the output could not be written",
    2: "wrong usage, or configuration that cannot be used",
    3: "nothing was paid: the call was refused, or the gateway was not reached",
    4: "a payment was sent: see the receipt",
    130: "interrupted",
}
_EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


def main() -> None:
    """Runs the command line; the console script."""
    if sys.argv[1:] == ["--show-completion"]:
        _name_shell()
    try:
        build_app(sys.argv[1:])()
    except KeyboardInterrupt:  # before the command itself had begun
        sys.exit(130)
    except OSError as exc:
        _leave_output()
        print(
            f"The output could not be written ({exc.strerror}). What was paid is in the ledger: "
            "`opengradient-x402 receipts list`.",
            file=sys.stderr,
        )
        sys.exit(1)


def _name_shell() -> None:
    """Asks for the completion of `$SHELL` where no shell started this process, as in a container.

    Typer looks for a shell among the processes above this one, and ends with an error if there is none.
    """
    from shellingham import ShellDetectionFailure, detect_shell

    try:
        shell: str = detect_shell()[0]
    except ShellDetectionFailure:
        shell = Path(os.environ.get("SHELL", "")).name  # noqa: TID251 - the system's word, no setting of ours
    if shell:
        os.environ["_OPENGRADIENT_X402_COMPLETE"] = f"source_{shell}"  # noqa: TID251 - Typer reads it
        sys.argv[1:] = []


def _leave_output() -> None:
    """Discards output that could not be written: the interpreter would try again at its end, and print an error."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_app(arguments: list[str]) -> typer.Typer:
    """The application. A command is imported only when `arguments` ask for it, or for help."""
    app = _group("opengradient-x402", add_completion=True)

    @app.callback()
    def root(
        *,
        show_version: Annotated[
            bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        """Verifiable, pay-per-call LLMs: pay, prove, and keep the receipts."""

    points = {point.name: point for point in entry_points(group=COMMAND_GROUP)}
    for name in _wanted(arguments, {*_COMMANDS, *_GROUPS, *points}):
        if name in _GROUPS:
            commands, about = _GROUPS[name]
            app.add_typer(_group_of(name, commands), name=name, help=about)
        else:
            command = _own(_COMMANDS[name]) if name in _COMMANDS else _loaded(points[name])
            app.command(name, epilog=_EPILOG)(ending_well(command))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opengradient-x402 {version('opengradient-integrations')}")
        raise typer.Exit


def _wanted(arguments: list[str], known: set[str]) -> list[str]:
    """The command that is asked for; all of them for help, and for a typing error."""
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    return [first] if first in known else sorted(known)


def _group_of(group: str, commands: dict[str, str]) -> typer.Typer:
    app = _group(group)
    for name, place in commands.items():
        app.command(name, epilog=_EPILOG)(ending_well(_own(place)))
    return app


def _group(name: str, *, add_completion: bool = False) -> typer.Typer:
    return typer.Typer(
        name=name,
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _own(place: str) -> Callable[..., None]:
    module, _, name = place.partition(":")
    command: Callable[..., None] = getattr(importlib.import_module(f"opengradient_x402.cli.{module}"), name)
    return command


def exit_code(exc: OpenGradientError) -> int:
    """The exit code for an error."""
    if isinstance(exc, ValueError):
        return 2
    return 3 if isinstance(exc, NotPaid) else 4


def ending_well(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with our errors printed as what they are, and an exit code that says how it ended."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except OpenGradientError as exc:
            from opengradient_x402.cli.output import note

            note(f"{type(exc).__name__}: {exc}")
            raise typer.Exit(exit_code(exc)) from exc
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def _loaded(point: EntryPoint) -> Callable[..., None]:
    try:
        command: Callable[..., None] = getattr(importlib.import_module(point.module), point.attr)
    except ImportError as exc:
        missing = exc.name or str(exc)

        def unavailable() -> None:
            typer.echo(
                f"`{point.name}` needs the package {missing!r}, which is not installed. Nothing was paid. "
                "Install everything: pip install 'opengradient-integrations[all]'",
                err=True,
            )
            raise typer.Exit(2)

        unavailable.__doc__ = f"(needs the package {missing})"
        return unavailable
    return command
