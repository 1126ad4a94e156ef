"""`opengradient-x402 ledger`: check, repair and compact the database that holds authorizations and receipts."""

from __future__ import annotations

import typer

from opengradient_x402.cli.options import JsonOption, LedgerOption


def check(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Look for damage, and for a ledger that is not the one that was used before; exit code 1 when there is any."""
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.ledger.upkeep import check as checked

    url = _url(ledger)
    problems = checked(url)
    if as_json:
        print_json({"problems": problems})
    else:
        for problem in problems:
            typer.echo(problem)
        advice = "Run `opengradient-x402 ledger repair`; it keeps a copy." if problems else "The ledger is sound."
        typer.echo(advice)
    if problems:
        raise typer.Exit(1)


def repair(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Restore what can be read, compute budgets anew, and go on with the ledger as it is then. Keeps a copy."""
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.ledger.upkeep import repair as repaired

    result = repaired(_url(ledger))
    if as_json:
        print_json({"done": result.done, "copy": None if result.copy is None else str(result.copy)})
        return
    for sentence in result.done or ["There was nothing to correct."]:
        typer.echo(sentence)
    if result.copy is not None:
        typer.echo(f"A copy of the ledger as it was is at {result.copy}.")


def compact(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Give back the space that nothing uses. Calls wait meanwhile."""
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.ledger.upkeep import compact as compacted

    before, after = compacted(_url(ledger))
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
    else:
        typer.echo(f"The ledger has {after} bytes now; it had {before}.")


def _url(choice: str | None) -> str:
    from opengradient_x402.ledger.place import location
    from opengradient_x402.settings import Settings

    return location(choice if choice is not None else Settings.load().ledger_url)
