"""`opengradient-x402 receipts`: list, show, reconcile, export and verify what was paid, as tables, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import urlsplit

import typer

from opengradient_x402.cli.options import (
    JsonOption,
    LedgerOption,
    NetworkOption,
    RpcOption,
    address_of,
    network_of,
    opened_ledger,
)
from opengradient_x402.cli.output import print_json, shown
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.receipts import SettlementReceipt

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
    from opengradient_x402.proofs.data_settlement import DataSettlement
    from opengradient_x402.settlement.reconciler import Reconciler

SinceOption = Annotated[
    str | None, typer.Option("--since", help="24h, 7d, a date (2026-11-21), or Unix seconds; everything if not given.")
]
PayerOption = Annotated[str | None, typer.Option("--payer", callback=address_of, help="Only this wallet's.")]


def list_receipts(
    since: SinceOption = None,
    status: Annotated[
        str | None, typer.Option(help="Only those authorized, served, settled, expired, cancelled or disputed.")
    ] = None,
    payer: PayerOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List receipts, oldest first, as the ledger has them (`reconcile` brings them up to date)."""
    from opengradient_x402.cli.output import print_json, print_table

    wanted = None if status is None else _status(status)
    with opened_ledger(ledger) as book:
        chosen = book.newest_receipts(limit, since=parse_since(since), payer=payer, status=wanted).result()
    if as_json:
        print_json([receipt.to_json() for receipt in chosen])
        return
    headings = ("call", "when", "model", "mode", "status", "amount", "transaction")
    print_table(headings, [_row(receipt) for receipt in chosen], right=("amount",))


def show(
    call_id: Annotated[str, typer.Argument(help="A call's id, or the beginning of one.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Read the chain first.")] = False,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one call's payment and proof: claims, facts, and disputes."""
    from opengradient_x402.cli.output import print_json, print_pairs
    from opengradient_x402.settlement.reconciler import Reconciler

    with opened_ledger(ledger) as book:
        receipt = found_receipt(book, call_id)
        if refresh:
            receipt = Reconciler(network_of(network, rpc_url), book).refresh(receipt)
    if as_json:
        print_json(receipt.to_json())
        return
    print_pairs([(name, _shown(name, value, receipt)) for name, value in receipt.to_json().items()])


def reconcile(
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Go on for so many seconds, until all is final.")] = 0,
    data: Annotated[
        bool, typer.Option("--data", help="Prove the data settlements of the changed receipts too.")
    ] = False,
    payer: PayerOption = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read from the chain what became of open payments; exit code 1 when a receipt turned out disputed."""
    from opengradient_x402.cli.output import print_json_as_it_comes
    from opengradient_x402.settlement.reconciler import Reconciler

    with opened_ledger(ledger) as book, _CallIds() as changed:
        reconciler = Reconciler(network_of(network, rpc_url), book)
        counts = _reconciled(reconciler, changed, payer=payer, wait_s=wait_s)
        proofs = _proofs(reconciler, book, changed) if data else iter(())
        if as_json:  # what the proofs find out is in the receipts: the proofs come first
            receipts = (one.to_json() for one in _latest(book, changed))
            print_json_as_it_comes(counts, data=(one.to_json() for one in proofs), changed=receipts)
        else:
            typer.echo(", ".join(f"{name} {count}" for name, count in counts.items()))
            for finding in (finding for proof in proofs for finding in proof.findings):
                typer.echo(shown(f"{finding.about}  data {finding.kind}: {finding.why}"))
            for receipt in _latest(book, changed):
                typer.echo(f"{receipt.call_id}  {receipt.status}  {receipt.payment_tx_hash or ''}")
    if changed.disputed:
        raise typer.Exit(1)


def _proofs(reconciler: Reconciler, book: Ledger, changed: _CallIds) -> Iterator[DataSettlement]:
    from opengradient_x402.proofs.data_settlement import DataSettlements

    proving = DataSettlements(reconciler.network, book)
    for ids in changed.pages():
        yield from proving.prove(book.receipts(call_ids=ids).result())


def _latest(book: Ledger, changed: _CallIds) -> Iterator[SettlementReceipt]:
    from opengradient_x402.cli.output import note

    for ids in changed.pages():
        for receipt in book.receipts(call_ids=ids).result():
            yield receipt
            if receipt.dispute is not None:
                changed.disputed += 1
                note(f"{receipt.call_id} is disputed: {shown(receipt.dispute)}")


class _CallIds:
    """Ids of calls, each once, in the order in which they came: kept on disk, since they may be very many."""

    def __init__(self) -> None:
        self.disputed = 0
        self._conn = sqlite3.connect("")  # a file without a name, which ends with the connection
        self._conn.execute("CREATE TABLE ids (number INTEGER PRIMARY KEY, call_id TEXT UNIQUE)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._conn.close()

    def add(self, call_ids: Iterable[str]) -> None:
        self._conn.executemany("INSERT OR IGNORE INTO ids (call_id) VALUES (?)", ((one,) for one in call_ids))

    def pages(self) -> Iterator[list[str]]:
        last = 0
        while rows := self._conn.execute(
            "SELECT number, call_id FROM ids WHERE number > ? ORDER BY number LIMIT 500", (last,)
        ).fetchall():
            yield [call_id for _, call_id in rows]
            last = rows[-1][0]


def _reconciled(reconciler: Reconciler, changed: _CallIds, *, payer: str | None, wait_s: float) -> dict[str, int]:
    deadline = time.monotonic() + wait_s
    totals = dict.fromkeys(("settled", "expired", "cancelled", "reopened"), 0)
    while True:
        still, waiting = dict.fromkeys(("open", "unexplained"), 0), 0
        for report in reconciler.reports(payer=payer):
            totals = {name: count + getattr(report, name) for name, count in totals.items()}
            still = {name: count + getattr(report, name) for name, count in still.items()}
            changed.add(receipt.call_id for receipt in report.changed)
            waiting += sum(not receipt.is_final for receipt in report.changed)
        if not (waiting or any(still.values())) or time.monotonic() >= deadline:
            return totals | still
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def export(
    since: SinceOption = None,
    format_: Annotated[str, typer.Option("--format", "-f", help="jsonl, csv, or bundle (with evidence).")] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output if not given.")] = None,
    payer: PayerOption = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Do not sign the bundle with OG_PRIVATE_KEY.")] = False,
    network: NetworkOption = None,
    ledger: LedgerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say in JSON what was written (with --output).")] = False,
) -> None:
    """Write receipts to a file: as lines, as a table, or as a bundle that anybody can check."""
    from opengradient_x402.cli.output import note, print_json
    from opengradient_x402.cli.receipts import csv_lines, jsonl_lines

    start = parse_since(since)
    with opened_ledger(ledger) as book:
        match format_:
            case "jsonl":
                content = jsonl_lines(book.pages_of_receipts(since=start, payer=payer))
            case "csv":
                content = csv_lines(book.pages_of_receipts(since=start, payer=payer))
            case "bundle":
                content = iter([_bundle(book, since=start, payer=payer, network=network, is_signed=not unsigned)])
            case _:
                raise typer.BadParameter(f"{format_!r} is not jsonl, csv or bundle", param_hint="--format")
        if output is None:
            for part in content:
                typer.echo(part, nl=False)
            return
        length = _written(output, content)
    if as_json:
        print_json({"file": str(output), "format": format_, "bytes": length})
    else:
        note(f"{output}: {length} bytes")


def _written(output: Path, content: Iterator[bytes]) -> int:
    first = next(content, b"")  # what cannot be read leaves the file as it is
    try:
        with output.open("wb") as file:
            return file.write(first) + sum(file.write(part) for part in content)
    except OSError as exc:
        raise typer.BadParameter(f"{output} cannot be written ({exc.strerror})", param_hint="--output") from exc


def _bundle(book: Ledger, *, since: int, payer: str | None, network: str | None, is_signed: bool) -> bytes:
    from opengradient_x402.cli.options import signer_of_environment
    from opengradient_x402.proofs.verification import export_bundle

    signer = signer_of_environment() if is_signed else None
    return export_bundle(book, network=network_of(network), since=since, payer=payer, signer=signer).to_bytes()


def clear_dispute(
    gateway: Annotated[str, typer.Argument(help="The gateway's address, as in the receipts: https://host[:port].")],
    network: NetworkOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pay a gateway again whose settlements were disputed. The receipts keep what was disputed."""
    parts = urlsplit(gateway)
    if not parts.scheme or not parts.netloc:
        raise ConfigurationError(
            f"{gateway!r} is not the address of a gateway. Nothing was changed. Give it as https://host[:port]."
        )
    with opened_ledger(ledger) as book:
        origin = f"{parts.scheme}://{parts.netloc}"
        count = book.clear_disputes(network=network_of(network).caip2, origin=origin).result()
    if as_json:
        print_json({"gateway": origin, "cleared": count})
    else:
        typer.echo(f"{count} disputed authorizations with {origin} are cleared; it is paid again.")


def _status(name: str) -> ReceiptStatus:
    from opengradient_x402.ledger.receipts import ReceiptStatus

    try:
        return ReceiptStatus(name.lower())
    except ValueError as exc:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(ReceiptStatus)}", param_hint="--status") from exc


def found_receipt(book: Ledger, call_id: str) -> SettlementReceipt:
    """The one receipt whose call id begins so. Raises BadParameter when there is none, or more than one."""
    exact = book.receipts(call_ids=[call_id]).result()
    matching = exact or book.receipts_beginning(call_id).result()
    if len(matching) == 1:
        return matching[0]
    problem = "there is no receipt of" if not matching else "several receipts begin with"
    raise typer.BadParameter(f"{problem} {call_id!r} in this ledger", param_hint="call_id")


def _row(receipt: SettlementReceipt) -> tuple[str, ...]:
    from datetime import UTC, datetime

    from opengradient_x402.money import amount_in

    amounts = {"": receipt.settled_atomic, " ?": receipt.cost_atomic, " ~": receipt.estimated_cost_atomic}
    mark, amount = next(((mark, amount) for mark, amount in amounts.items() if amount is not None), ("", None))
    return (
        receipt.call_id,
        datetime.fromtimestamp(receipt.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        receipt.model,
        receipt.settlement_mode,
        receipt.status.value if receipt.is_final or receipt.settled_atomic is None else "settled (seen)",
        "" if amount is None else amount_in(receipt, amount) + mark,
        receipt.payment_tx_hash or "",
    )


def _shown(name: str, value: str | int, receipt: SettlementReceipt) -> str:
    from opengradient_x402.money import amount_in

    return f"{amount_in(receipt, int(value))} ({value})" if name.endswith("_atomic") else str(value)


_AGO = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNIX = re.compile(r"[0-9]{9,11}", re.ASCII)


def parse_since(text: str | None) -> int:
    """Unix seconds; 0 (everything) for None. Dates without a zone are UTC. Raises BadParameter."""
    if text is None:
        return 0
    if (ago := _AGO.fullmatch(text)) is not None:
        return int(time.time()) - int(ago[1]) * _UNIT_S[ago[2]]
    if _UNIX.fullmatch(text) is not None:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is no time: write 24h, 7d, 2026-11-21, 2026-11-21T10:00+01:00 or Unix seconds",
            param_hint="--since",
        ) from exc
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def jsonl_lines(pages: Iterable[Sequence[SettlementReceipt]]) -> Iterator[bytes]:
    """One receipt per line, as `SettlementReceipt.to_json` writes it; a part of the file for each page."""
    for receipts in pages:
        yield "".join(json.dumps(receipt.to_json()) + "\n" for receipt in receipts).encode("utf-8")


def csv_lines(pages: Iterable[Sequence[SettlementReceipt]]) -> Iterator[bytes]:
    """All fields as columns, a header first (RFC 4180). What a spreadsheet would run as a formula is made text."""
    from opengradient_x402.ledger.receipts import SettlementReceipt

    names = [field.name for field in fields(SettlementReceipt)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\r\n")
    writer.writeheader()
    for receipts in pages:
        for receipt in receipts:
            writer.writerow({name: _cell(value) for name, value in receipt.to_json().items()})
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


def _cell(value: str | int) -> str | int:
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value
