"""`opengradient-x402 receipts export`: receipts as lines, as a table for people or for programs, or as a bundle."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opengradient_x402.cli.bundles import BundleArgument, receipts_in
from opengradient_x402.cli.groups import model_of
from opengradient_x402.cli.options import (
    KnownNetworks,
    LedgerOption,
    NetworkOption,
    PayerOption,
    SinceOption,
    network_of,
    opened_ledger,
    parse_since,
)
from opengradient_x402.cli.output import amount_of, local_time, status_word, working
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import format_amount

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger

Pages = Iterable[Sequence[SettlementReceipt]]
_FORMATS = ("jsonl", "csv", "csv-raw", "bundle")


def export(
    bundle: BundleArgument = None,
    since: SinceOption = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="jsonl, csv (for people), csv-raw (every field), or bundle (with evidence)."
        ),
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output if not given.")] = None,
    payer: PayerOption = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Do not sign the bundle with OG_PRIVATE_KEY.")] = False,
    network: NetworkOption = None,
    ledger: LedgerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print in JSON what was written (with --output).")] = False,
) -> None:
    """Write receipts to a file: as lines, as a table, or as a bundle that anybody can check."""
    if format_ not in _FORMATS:
        raise typer.BadParameter(f"{format_!r} is not one of {', '.join(_FORMATS)}", param_hint="--format")
    start = parse_since(since)
    if bundle is not None:
        if format_ == "bundle":
            raise typer.BadParameter("a bundle is written from the ledger, not from a bundle", param_hint="--format")
        pages = [receipts_in(bundle, since=start, payer=payer)]
        write(output, _table(pages, format_, KnownNetworks(network, is_own=False)), as_json=as_json, format_=format_)
        return
    with opened_ledger(ledger) as book:
        if format_ == "bundle":
            with working("Reading the chain"):
                content = _bundle(book, since=start, payer=payer, network=network, is_signed=not unsigned)
            write(output, iter([content]), as_json=as_json, format_=format_)
            return
        content_of_pages = _table(book.pages_of_receipts(since=start, payer=payer), format_, KnownNetworks(network))
        write(output, content_of_pages, as_json=as_json, format_=format_)


def _table(pages: Pages, format_: str, known: KnownNetworks) -> Iterator[bytes]:
    match format_:
        case "csv":
            return people_csv(pages, known)
        case "csv-raw":
            return raw_csv(pages)
        case _:
            return jsonl_lines(pages)


def write(output: Path | None, content: Iterator[bytes], *, as_json: bool, format_: str) -> None:
    """Writes the parts to a file, and says so; or to standard output. Raises BadParameter."""
    from opengradient_x402.cli.output import note, print_json

    if output is None:
        for part in content:
            typer.echo(part, nl=False)
        return
    first = next(content, b"")  # what cannot be read leaves the file as it is
    try:
        with output.open("wb") as file:
            length = file.write(first) + sum(file.write(part) for part in content)
    except OSError as exc:
        raise typer.BadParameter(f"{output} cannot be written ({exc.strerror})", param_hint="--output") from exc
    if as_json:
        print_json({"file": str(output), "format": format_, "bytes": length})
    else:
        note(f"{output}: {length:,} bytes")


def _bundle(book: Ledger, *, since: int, payer: str | None, network: str | None, is_signed: bool) -> bytes:
    from opengradient_x402.cli.options import signer_of_environment
    from opengradient_x402.proofs.export import export_bundle

    signer, chosen = signer_of_environment() if is_signed else None, network_of(network)
    return export_bundle(book, network=chosen, since=since, payer=payer, signer=signer).to_bytes()


def jsonl_lines(pages: Pages) -> Iterator[bytes]:
    """One receipt per line, as `SettlementReceipt.to_json` writes it; a part of the file for each page."""
    for receipts in pages:
        yield "".join(json.dumps(receipt.to_json()) + "\n" for receipt in receipts).encode("utf-8")


def raw_csv(pages: Pages) -> Iterator[bytes]:
    """All fields as columns, under their names in `SettlementReceipt`: for programs."""
    names = [field.name for field in fields(SettlementReceipt)]
    return _csv(names, (map(SettlementReceipt.to_json, receipts) for receipts in pages))


_COLUMNS = (
    "date", "model", "mode", "run", "status", "amount", "token", "amount_is", "cost_usd", "prompt_tokens",
    "completion_tokens", "network", "call_id", "transaction", "explorer", "enclave_proof", "dispute",
)  # fmt: skip


def people_csv(pages: Pages, known: KnownNetworks) -> Iterator[bytes]:
    """What a spreadsheet can add up and sort: local dates, decimal amounts, and links to the explorer."""
    return _csv(_COLUMNS, ((_for_people(receipt, known) for receipt in receipts) for receipts in pages))


def _for_people(receipt: SettlementReceipt, known: KnownNetworks) -> dict[str, str | int]:
    decimals, symbol = known.token(receipt)
    amount, word = amount_of(receipt)
    network = known.of(receipt.network)
    cells: dict[str, str | int | None] = {
        "date": local_time(receipt.created_at),
        "model": model_of(receipt),
        "mode": receipt.settlement_mode,
        "run": receipt.run,
        "status": status_word(receipt),
        "amount": None if word == "unknown" else format_amount(amount, decimals=decimals),
        "token": symbol,
        "amount_is": word,
        "cost_usd": receipt.cost_usd,
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "network": receipt.network if network is None else network.name,
        "call_id": receipt.call_id,
        "transaction": receipt.payment_tx_hash,
        "explorer": known.transaction_url(receipt.network, receipt.payment_tx_hash),
        "enclave_proof": receipt.tee_verified,
        "dispute": receipt.dispute,
    }
    return {name: value for name, value in cells.items() if value is not None}


def _csv(names: Sequence[str], pages: Iterable[Iterable[dict[str, str | int]]]) -> Iterator[bytes]:
    """A header and the rows (RFC 4180), a part for each page. A cell that a spreadsheet would run is made text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\r\n")
    writer.writeheader()
    for rows in pages:
        for row in rows:
            writer.writerow({name: cell(value) for name, value in row.items()})
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def cell(value: str | int) -> str | int:
    """The value, made text where a spreadsheet would run it as a formula."""
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value
