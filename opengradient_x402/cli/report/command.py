"""`opengradient-x402 receipts report`: what was spent, with which proof, from a bundle or from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.bundles import BundleArgument, read_contents, read_file, readers_network
from opengradient_x402.cli.exports import write
from opengradient_x402.cli.options import (
    JsonOption,
    KnownNetworks,
    LedgerOption,
    NetworkOption,
    PayerOption,
    RpcOption,
    SinceOption,
    network_of,
    opened_ledger,
    parse_since,
)
from opengradient_x402.cli.output import is_terminal, working

if TYPE_CHECKING:
    from opengradient_x402.cli.report.page import Report
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.networks import Network
    from opengradient_x402.proofs.findings import Finding

_FORMATS = ("html", "csv", "markdown")


def report(
    bundle: BundleArgument = None,
    since: SinceOption = None,
    format_: Annotated[
        str, typer.Option("--format", "-f", help="html (one page, with plots), csv or markdown.")
    ] = "html",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output if not given.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no chain.")] = False,
    payer: PayerOption = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report what was spent, by model, day, run and payment, and what of it is proven, read, stated or refuted.

    Reads a bundle, or the ledger. `--json` says what was written (with --output).
    """
    from opengradient_x402.cli.report import page, texts

    if format_ not in _FORMATS:
        raise typer.BadParameter(f"{format_!r} is not one of {', '.join(_FORMATS)}", param_hint="--format")
    if format_ == "html" and output is None and is_terminal():
        raise typer.BadParameter(
            "a page is for a browser: give `--output report.html`, or read it here with `--format markdown`",
            param_hint="--output",
        )
    with working("Checking the receipts"):
        if bundle is not None:
            made = _of_bundle(bundle, parse_since(since), payer, network, rpc_url, is_offline=offline)
        else:
            chosen = network_of(network, rpc_url)
            with opened_ledger(ledger) as book:
                made = _of_ledger(book, chosen, parse_since(since), payer, is_offline=offline)
    writer = {"html": page.html, "csv": texts.table, "markdown": texts.markdown}[format_]
    write(output, iter([writer(made).encode("utf-8", "replace")]), as_json=as_json, format_=format_)


def _of_bundle(
    path: Path, since: int, payer: str | None, network: str | None, rpc_url: str | None, *, is_offline: bool
) -> Report:
    from opengradient_x402.proofs.verification import verify_bundle

    content = read_file(path)
    read_contents(content)  # what is no bundle ends here, in a sentence
    checked = verify_bundle(
        content, network=readers_network(network, content), rpc_url=rpc_url or None, is_offline=is_offline
    )
    records = [
        receipt
        for receipt in checked.contents.receipts
        if receipt.created_at >= since and payer in (None, receipt.payer)
    ]
    how = "with a node" if checked.is_live else "offline, from the file alone"
    return _made(
        f"the bundle {path.name}, digest {checked.bundle.digest}",
        how,
        records,
        checked.findings,
        KnownNetworks(network, is_own=False),
        signed_by=checked.bundle.signed_by,
    )


def _of_ledger(book: Ledger, network: Network, since: int, payer: str | None, *, is_offline: bool) -> Report:
    """A session's calls belong together: those of a session that began earlier are included."""
    everything = book.receipts(payer=payer).result()
    here = [receipt for receipt in everything if receipt.network == network.caip2]
    wanted = {receipt.authorization_id for receipt in here if receipt.created_at >= since}
    records = [receipt for receipt in here if receipt.authorization_id in wanted]
    findings = None if is_offline else _audited(book, network, records)
    others = len(everything) - len(here)
    left_out = f"; {others} of other networks are left out" if others else ""
    how = "offline: nothing was checked" if is_offline else f"with the node of {network.name}"
    known = KnownNetworks(network.given_as)
    return _made(f"the ledger of this machine, {network.name}{left_out}", how, records, findings, known)


def _audited(book: Ledger, network: Network, records: Sequence[SettlementReceipt]) -> Sequence[Finding]:
    from opengradient_x402.chain.node import look_up
    from opengradient_x402.chain.sources import Sources
    from opengradient_x402.proofs.audit import audit
    from opengradient_x402.proofs.bundle import Contents, cases_of, places_of
    from opengradient_x402.proofs.checks.decisions import decisions_in
    from opengradient_x402.proofs.data_settlement import find_data_settlements
    from opengradient_x402.proofs.export import uncharged, with_channels

    sources = Sources()
    entries = map(uncharged, book.authorizations(network=network.caip2).result())
    cases, channels = look_up(with_channels(tuple(cases_of(entries, records)), book, network))
    places = places_of(look_up(find_data_settlements(records, network=network, sources=sources)))
    called = {record.call_id for record in records}
    decided = (one for one in decisions_in(book, network=network).result() if one.call_id in called)
    contents = Contents(cases=cases, data_places=places, channels=channels, decisions=tuple(decided))
    return look_up(audit(contents, network=network, sources=sources)).findings


def _made(
    source: str,
    how: str,
    records: Sequence[SettlementReceipt],
    findings: Sequence[Finding] | None,
    known: KnownNetworks,
    *,
    signed_by: str | None = None,
) -> Report:
    from opengradient_x402.cli.groups import grouped
    from opengradient_x402.cli.report.figures import Figures
    from opengradient_x402.cli.report.page import Report

    is_checked = findings is not None
    found = tuple(findings or ())
    of_tokens = grouped(records, lambda record: (record.network, record.asset))
    parts = [Figures(of_token, found, is_checked=is_checked) for of_token in of_tokens.values()]
    return Report(
        source=source, how=how, parts=parts, findings=found, known=known, is_checked=is_checked, signed_by=signed_by
    )
