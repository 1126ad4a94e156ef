"""`opengradient-x402 receipts list`, `show` and `clear-dispute`: what was paid, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from opengradient_x402.cli.bundles import BundleArgument, receipts_in
from opengradient_x402.cli.groups import day_of, grouped, model_of
from opengradient_x402.cli.options import (
    FullOption,
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
    place_of,
)
from opengradient_x402.cli.output import (
    AMOUNT_WORDS,
    STATUS_WORDS,
    amount_of,
    can_link,
    columns,
    counted,
    is_terminal,
    linked,
    local_time,
    print_json,
    print_marks,
    print_pairs,
    print_table,
    rounded,
    shown,
    status_text,
    status_word,
    terminal,
    working,
)
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.money import format_amount

if TYPE_CHECKING:
    from rich.text import Text

    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt

_T = TypeVar("_T")
_SHORT_ID = len("call_") + 8
_FULL_WIDTH = 200
"""Columns that a table needs for everything; narrower terminals get a receipt in several lines."""


def list_receipts(
    bundle: BundleArgument = None,
    since: SinceOption = None,
    status: Annotated[
        str | None, typer.Option(help="Only those authorized, served, settled, expired, cancelled or disputed.")
    ] = None,
    payer: PayerOption = None,
    run: Annotated[str | None, typer.Option(help="Only the calls of this run.", show_default=False)] = None,
    by: Annotated[str | None, typer.Option(help="Add up all receipts: by run, model or day.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest ones.")] = 50,
    is_full: FullOption = False,
    network: NetworkOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List receipts by day, oldest first, and what they cost (`reconcile` updates them from the chain)."""
    wanted, start = None if status is None else _status(status), parse_since(since)

    def is_wanted(receipt: SettlementReceipt) -> bool:
        return wanted in (None, receipt.status) and run in (None, receipt.run)

    if by is not None:
        _print_sums(by, bundle, ledger, network, is_wanted, since=start, payer=payer, limit=limit, as_json=as_json)
        return
    if bundle is not None:
        chosen = list(filter(is_wanted, receipts_in(bundle, since=start, payer=payer)))[-limit:]
        where = str(bundle)
    else:
        with opened_ledger(ledger) as book:
            chosen = book.newest_receipts(limit, since=start, payer=payer, status=wanted, run=run).result()
            where = place_of(book)
    if as_json:
        print_json([receipt.to_json() for receipt in chosen])
        return
    if not chosen:
        typer.echo(f"There are no such receipts in {where}.")
        return
    _print_chosen(chosen, KnownNetworks(network, is_own=bundle is None), limit=limit, is_full=is_full)


def _print_chosen(chosen: list[SettlementReceipt], known: KnownNetworks, *, limit: int, is_full: bool) -> None:
    of_tokens = grouped(chosen, lambda receipt: (receipt.network, receipt.asset))
    for (caip2, _), receipts in of_tokens.items():
        of_network = known.of(caip2)
        title = caip2 if of_network is None else f"{of_network.name} ({caip2})"
        _print_list(receipts, known, is_full=is_full, title=None if len(of_tokens) == 1 else title)
    if len(chosen) == limit:
        typer.echo(f"These are the newest {limit}. For more, use `--limit`.")
    print_marks((amount_of(receipt)[1] for receipt in chosen), is_own=known.is_own)


def _print_sums(
    by: str,
    bundle: Path | None,
    ledger: str | None,
    network: str | None,
    is_wanted: Callable[[SettlementReceipt], bool],
    *,
    since: int,
    payer: str | None,
    limit: int,
    as_json: bool,
) -> None:
    from opengradient_x402.cli.report.tallies import KEYS, print_tallies

    if by not in KEYS:
        raise typer.BadParameter(f"{by!r} is not one of {', '.join(KEYS)}", param_hint="--by")
    known = KnownNetworks(network, is_own=bundle is None)
    if bundle is not None:
        held = filter(is_wanted, receipts_in(bundle, since=since, payer=payer))
        print_tallies(by, held, known, where=str(bundle), limit=limit, as_json=as_json)
        return
    with opened_ledger(ledger) as book:
        recorded = (receipt for page in book.pages_of_receipts(since=since, payer=payer) for receipt in page)
        chosen = filter(is_wanted, recorded)
        print_tallies(by, chosen, known, where=place_of(book), limit=limit, as_json=as_json)


def total_of(receipts: Iterable[SettlementReceipt]) -> int:
    """What calls cost together, in atomic units, as far as it is known."""
    return sum(amount_of(receipt)[0] for receipt in receipts)


def _print_list(receipts: list[SettlementReceipt], known: KnownNetworks, *, is_full: bool, title: str | None) -> None:
    """Receipts of one token."""
    decimals, symbol = known.token(receipts[0])
    if is_full and is_terminal() and columns() < _FULL_WIDTH:
        for receipt in receipts:
            _print_whole(receipt, known)
        typer.echo(
            f"total  {format_amount(total_of(receipts), decimals=decimals)} {symbol}, {counted(len(receipts), 'call')}"
        )
        return
    view = _View(receipts, known, is_full=is_full or not is_terminal(), width=columns())
    print_table(view.kept(*_HEADINGS, symbol, "", "transaction"), view.rows(), right=(symbol,), title=title)


def _print_whole(receipt: SettlementReceipt, known: KnownNetworks) -> None:
    """A receipt in lines, where the table with everything has no room."""
    amount, word = amount_of(receipt)
    cost = "cost not known" if word == "unknown" else f"{_money(known, receipt)(amount)} {AMOUNT_WORDS[word][0]}"
    url = known.transaction_url(receipt.network, receipt.payment_tx_hash)
    paper = terminal()
    paper.print(receipt.call_id, style="bold")
    typer.echo(f"  {local_time(receipt.created_at)}  {shown(model_of(receipt))}, {receipt.settlement_mode}")
    paper.print(" ", status_text(status_word(receipt)), f" {cost}")
    if receipt.payment_tx_hash:
        paper.print(" ", linked(receipt.payment_tx_hash, url))


_HEADINGS = ("call", "time", "model", "mode", "status")


class _View:
    """The table of one token's receipts: the columns that there is room for, and what stands in them."""

    def __init__(self, receipts: list[SettlementReceipt], known: KnownNetworks, *, is_full: bool, width: int) -> None:
        self._receipts, self._known, self._is_full = receipts, known, is_full
        self._decimals, _ = known.token(receipts[0])
        self._has_mode, self._has_transaction = width >= 96, width >= 116
        self._has_marks = any(AMOUNT_WORDS[amount_of(receipt)[1]][0] for receipt in receipts)
        self._id_length = _telling_length([receipt.call_id for receipt in receipts])
        rest = self._id_length + len("00:00") + len("… authorized") + len("0.000000") + len("?") + 5 * 2
        self._model_width = 40 if self._has_mode else max(12, width - rest)

    def kept(
        self, call: _T, time: _T, model: _T, mode: _T, status: _T, amount: _T, mark: _T, transaction: _T
    ) -> list[_T]:
        """The cells of the columns that are shown."""
        cells = ((call, True), (time, True), (model, True), (mode, self._has_mode), (status, True), (amount, True))
        return [
            cell for cell, is_kept in (*cells, (mark, self._has_marks), (transaction, self._has_transaction)) if is_kept
        ]

    def rows(self) -> Iterator[list[str | Text]]:
        """A row for each day and its receipts, the sum, and a row for each model."""
        for day, receipts in grouped(self._receipts, day_of).items():
            yield self._sum(day, receipts, style="bold")
            yield from map(self._row, receipts)
        yield self._sum("total", self._receipts, style="bold")
        of_models = grouped(self._receipts, model_of)
        if len(of_models) > 1:
            for model, receipts in sorted(of_models.items(), key=lambda item: -total_of(item[1])):
                yield self._sum("", receipts, model=model, style="dim")

    def _row(self, receipt: SettlementReceipt) -> list[str | Text]:
        url = self._known.transaction_url(receipt.network, receipt.payment_tx_hash)
        tx_hash = receipt.payment_tx_hash or ""
        amount, word = amount_of(receipt)
        return self.kept(
            receipt.call_id if self._is_full else receipt.call_id[: self._id_length],
            local_time(receipt.created_at, "%Y-%m-%d %H:%M:%S" if self._is_full else "%H:%M"),
            self._fitting(model_of(receipt)),
            receipt.settlement_mode,
            status_text(status_word(receipt), url),
            "" if word == "unknown" else self._amount(amount),
            AMOUNT_WORDS[word][0],
            linked(tx_hash if self._is_full or not tx_hash else f"{tx_hash[:10]}…{tx_hash[-4:]}", url),
        )

    def _sum(self, name: str, receipts: list[SettlementReceipt], *, style: str, model: str = "") -> list[str | Text]:
        from rich.text import Text

        words = {amount_of(receipt)[1] for receipt in receipts}
        mark = next((AMOUNT_WORDS[word][0] for word in ("quoted", "estimated") if word in words), "")
        cost = self._amount(total_of(receipts))
        cells = (name, "", self._fitting(model), "", counted(len(receipts), "call"), cost, mark, "")
        styled = [Text(shown(cell), style=style) for cell in cells]
        return [*self.kept(*styled)]

    def _fitting(self, model: str) -> str:
        return model if self._is_full or len(model) <= self._model_width else f"…/{model.rpartition('/')[2]}"

    def _amount(self, amount_atomic: int) -> str:
        if self._is_full:
            return format_amount(amount_atomic, decimals=self._decimals)
        return rounded(amount_atomic, decimals=self._decimals)


def _telling_length(call_ids: list[str]) -> int:
    """How much of these ids tells them apart."""
    length = _SHORT_ID
    while length < max(map(len, call_ids)) and len({call_id[:length] for call_id in call_ids}) < len(set(call_ids)):
        length += 1
    return length


def show(
    call_id: Annotated[str, typer.Argument(help="A call's id, or the beginning of one.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Read the chain first.")] = False,
    is_full: FullOption = False,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the payment and the proof of one call: what the chain shows, what the gateway says, and disputes."""
    from opengradient_x402.settlement.reconciler import Reconciler

    with opened_ledger(ledger) as book:
        receipt = found_receipt(book, call_id)
        if refresh:
            with working("Reading the chain"):
                receipt = Reconciler(network_of(network, rpc_url), book).refresh(receipt)
    if as_json:
        print_json(receipt.to_json())
        return
    known = KnownNetworks(network)
    if is_full:
        print_pairs([(name, _shown(name, value, known, receipt)) for name, value in receipt.to_json().items()])
    else:
        print_pairs((name, value) for name, value in _facts(receipt, known) if value)


def _facts(receipt: SettlementReceipt, known: KnownNetworks) -> Iterator[tuple[str, str | Text]]:
    """What people want to know of a receipt, in the order in which they ask."""
    network = known.of(receipt.network)
    amount, word = amount_of(receipt)
    money = _money(known, receipt)
    yield "call", receipt.call_id
    status = status_text(status_word(receipt))
    status.append(f": {STATUS_WORDS[status_word(receipt)]}", style="default")
    yield "status", status
    yield "disputed", receipt.dispute or ""
    yield "made", local_time(receipt.created_at, "%Y-%m-%d %H:%M:%S %Z")
    yield "model", model_of(receipt)
    if receipt.prompt_tokens is not None:
        yield "tokens", f"{receipt.prompt_tokens:,} in, {receipt.completion_tokens or 0:,} out"
    yield "outcome", receipt.outcome + (f": {receipt.error}" if receipt.error else "")
    yield "served by", receipt.endpoint
    yield "mode", receipt.settlement_mode
    yield "run", receipt.run or ""
    yield (
        "cost",
        AMOUNT_WORDS[word][1] if word in ("unknown", "nothing") else f"{money(amount)}, {AMOUNT_WORDS[word][1]}",
    )
    if receipt.cost_atomic is not None and receipt.settled_atomic is not None:
        yield "quoted", money(receipt.cost_atomic)
    if receipt.authorization_settled_atomic not in (None, receipt.settled_atomic):
        yield "payment", f"{money(receipt.authorization_settled_atomic or 0)}, for all calls of the session"
    yield "signed for", f"at most {money(receipt.authorized_atomic)}, until {local_time(receipt.deadline)}"
    yield "payer", receipt.payer
    yield "payee", receipt.payee
    yield "network", receipt.network if network is None else f"{network.name} ({receipt.network})"
    yield from _transaction_of("transaction", receipt.network, receipt.payment_tx_hash, known)
    if receipt.block_number is not None:
        seen = counted(receipt.confirmations or 0, "confirmation")
        yield "block", f"{receipt.block_number}, {seen} ({receipt.confirmations_needed} needed)"
    unchecked = "a proof came with the answer; it was not checked" if receipt.tee_signature else "no proof came"
    yield "enclave", f"proof {receipt.tee_verified}" if receipt.tee_verified else unchecked
    is_here = network is not None and network.relay is not None and network.relay.chain_id == network.chain_id
    yield from _transaction_of("data", receipt.network if is_here else "", receipt.data_tx_hash, known)
    yield "blob", receipt.data_blob_id or ""


def _transaction_of(
    name: str, caip2: str, tx_hash: str | None, known: KnownNetworks
) -> Iterator[tuple[str, str | Text]]:
    """A transaction, which is a link; and its page where the terminal cannot link."""
    url = known.transaction_url(caip2, tx_hash)
    if tx_hash:
        yield name, linked(tx_hash, url)
    if url is not None and not can_link():
        yield "", url


def _money(known: KnownNetworks, receipt: SettlementReceipt) -> Callable[[int], str]:
    decimals, symbol = known.token(receipt)
    return lambda amount_atomic: f"{format_amount(amount_atomic, decimals=decimals)} {symbol}"


def clear_dispute(
    gateway: Annotated[str, typer.Argument(help="The gateway's address, as in the receipts: https://host[:port].")],
    network: NetworkOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Allow payments to a gateway again after a dispute. The receipts still show what was disputed."""
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
        typer.echo(f"{count} disputed authorizations with {origin} are cleared. This gateway may be paid again.")


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
    problem = f"there is no receipt of {call_id!r} in this ledger"
    if Path(call_id).is_file():
        problem = f"{call_id!r} is a file: `receipts verify` and `receipts report` read it, `receipts list` lists it"
    if matching:
        names = " and ".join(receipt.call_id for receipt in matching)
        problem = f"several receipts begin with {call_id!r}, such as {names}"
    raise typer.BadParameter(problem, param_hint="call_id")


def _shown(name: str, value: str | int, known: KnownNetworks, receipt: SettlementReceipt) -> str:
    if name.endswith("_atomic"):
        return f"{_money(known, receipt)(int(value))} ({value})"
    return f"{local_time(int(value))} ({value})" if name in _TIMES else str(value)


_TIMES = ("created_at", "deadline", "tee_timestamp")
