"""A bundle's verification, for people and for programs."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from opengradient_x402.cli.output import print_json, shown
from opengradient_x402.proofs.findings import Finding, Standing

if TYPE_CHECKING:
    from opengradient_x402.proofs.verification import Verification

_HEADINGS = {
    Standing.REFUTED: "Refuted",
    Standing.NOT_PROVEN: "Not proven",
    Standing.PROVEN: "Proven",
}
_SHOWN = 5


def print_verification(verification: Verification, *, as_json: bool) -> bool:
    """Prints it; whether nothing is refuted."""
    is_sound = not verification.of(Standing.REFUTED)
    if as_json:
        print_json(
            {
                "standing": verification.standing.value,
                "offline": not verification.is_live,
                "signed_by": verification.bundle.signed_by,
                "head": verification.bundle.links[-1],
                "receipts": len(verification.contents.receipts),
                "findings": [finding.to_json() for finding in verification.findings],
            }
        )
        return is_sound
    for standing, heading in _HEADINGS.items():
        _print_group(heading, verification.of(standing), in_full=standing is not Standing.PROVEN)
    counted = Counter(finding.standing for finding in verification.findings)
    where = "against the chain" if verification.is_live else "offline, from the file alone"
    typer.echo(
        f"{len(verification.contents.receipts)} receipts checked {where}: {counted[Standing.PROVEN]} statements "
        f"proven, {counted[Standing.NOT_PROVEN]} not proven, {counted[Standing.REFUTED]} refuted."
    )
    return is_sound


def _print_group(heading: str, findings: list[Finding], *, in_full: bool) -> None:
    if not findings:
        return
    typer.echo(heading)
    for statement, group in groupby(sorted(findings, key=_statement), key=_statement):
        same = list(group)
        typer.echo(f"  {statement}: {len(same)}")
        for finding in same if in_full else same[:_SHOWN]:
            typer.echo(shown(f"    {finding.about}: {finding.why}"))
        if not in_full and len(same) > _SHOWN:
            typer.echo(f"    … and {len(same) - _SHOWN} more (`--json` lists all)")
    typer.echo()


def _statement(finding: Finding) -> str:
    return finding.statement
