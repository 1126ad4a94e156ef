"""`opengradient-x402 ledger`, and `receipts reconcile`: maintains the database, and updates it from the chain."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

import typer

from opengradient_x402.cli.options import (
    JsonOption,
    KnownNetworks,
    LedgerOption,
    NetworkOption,
    PayerOption,
    RpcOption,
    address_of,
    network_of,
    opened_ledger,
    signer_of_environment,
)
from opengradient_x402.cli.output import (
    can_link,
    counted,
    is_terminal,
    shown,
    status_text,
    status_word,
    terminal,
    working,
)
from opengradient_x402.ledger.authorizations import BUDGET_WINDOW_S

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger
    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.networks import Network
    from opengradient_x402.proofs.data_settlement import DataSettlement
    from opengradient_x402.settlement.reconciler import Reconciler
    from opengradient_x402.settlement.unrecorded import Unrecorded


def reconcile(
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="The most seconds to wait until all is final.")] = 0,
    data: Annotated[
        bool, typer.Option("--data", help="Prove the data settlements of the changed receipts too.")
    ] = False,
    payer: PayerOption = None,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read from the chain how open payments ended. Exit code 1: a receipt is disputed."""
    from opengradient_x402.cli.output import print_json_as_it_comes
    from opengradient_x402.settlement.reconciler import Reconciler

    with opened_ledger(ledger) as book, _CallIds() as changed:
        reconciler = Reconciler(network_of(network, rpc_url), book)
        with working("Reading the chain"):
            counts = _reconciled(reconciler, changed, payer=payer, wait_s=wait_s)
        proofs = _proofs(reconciler, book, changed) if data else iter(())
        if as_json:  # what the proofs find out is in the receipts: the proofs come first
            receipts = (one.to_json() for one in _latest(book, changed))
            print_json_as_it_comes(counts, data=(one.to_json() for one in proofs), changed=receipts)
        else:
            typer.echo(", ".join(f"{name} {count}" for name, count in counts.items()))
            for finding in (finding for proof in proofs for finding in proof.findings):
                typer.echo(shown(f"{finding.about}  data {finding.kind}: {finding.why}"))
            known = KnownNetworks(network)
            for receipt in _latest(book, changed):
                _print_change(receipt, known)
    if changed.disputed:
        raise typer.Exit(1)


def _print_change(receipt: SettlementReceipt, known: KnownNetworks) -> None:
    url = known.transaction_url(receipt.network, receipt.payment_tx_hash)
    if not is_terminal():
        typer.echo(f"{receipt.call_id}  {status_word(receipt)}  {url or receipt.payment_tx_hash or ''}")
        return
    terminal().print(f"{receipt.call_id} ", status_text(status_word(receipt), url))
    if url is not None and not can_link():
        typer.echo(f"  {url}")


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


def check(
    payer: Annotated[
        str | None,
        typer.Option("--payer", callback=address_of, help="Another wallet than that of OG_PRIVATE_KEY."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Check only the ledger, without reading a chain.")] = False,
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for damage, for a ledger that replaced the one used before, and for payments that it does not have.

    The payments are those of the wallet that the chain shows in the last 24 hours. Exit code 1: there is a problem.
    Missing payments are a problem if the ledger has nothing of the wallet from before the first of them.
    """
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.ledger.upkeep import check as checked

    url = _url(ledger)
    damage = checked(url)
    if damage:
        seen: _Compared | str = "the ledger has other problems."
    else:
        seen = "`--offline` was given." if offline else _compared(url, payer, network, rpc_url)
    problems = [*damage, *([seen.sentence] if isinstance(seen, _Compared) and seen.is_problem else [])]
    if as_json:
        chain, why_not = (seen.to_json(), None) if isinstance(seen, _Compared) else (None, seen)
        print_json({"problems": problems, "chain": chain, "chain_not_read": why_not})
    else:
        _print_check(damage, seen)
    if problems:
        raise typer.Exit(1)


def _print_check(damage: list[str], seen: _Compared | str) -> None:
    """What was found; `seen` is the comparison with the chain, or why there is none."""
    from opengradient_x402.cli.output import note

    for sentence in damage:
        typer.echo(sentence)
    if damage:
        typer.echo("Run `opengradient-x402 ledger repair`; it keeps a copy.")
    elif isinstance(seen, _Compared) and seen.is_problem:
        typer.echo("The ledger is not damaged.")
    else:
        typer.echo("The ledger is sound.")
    if isinstance(seen, _Compared):
        terminal().print(shown(seen.sentence), markup=False)
    else:
        note(f"The ledger was not compared with the chain: {seen}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """A ledger beside what the chain shows of a wallet since a time (Unix seconds)."""

    payer: str
    network: Network
    since: int
    missing: Unrecorded

    @property
    def is_problem(self) -> bool:
        return self.missing.ledger_begins_later

    @property
    def sentence(self) -> str:
        missing, hours = self.missing, BUDGET_WINDOW_S // 3600
        if not missing.count:
            which = "All payments" if missing.is_whole else "Not all transactions could be read. All payments"
            read = "" if missing.is_whole else " and that were read"
            return (
                f"{which} of {self.payer} that {self.network.name} shows in the last {hours} hours{read} are in this "
                "ledger."
            )
        limit = "" if missing.is_whole else " Not all transactions could be read: there may be more."
        cause = "another ledger of this wallet paid them, or this ledger was put back from an old copy."
        if self.is_problem:
            cause = (
                "it has nothing of this wallet from before the first of them. It was emptied or replaced, or it is new "
                "and another ledger paid them."
            )
        return (
            f"{self.network.name} shows {counted(missing.count, 'payment')} of {self.payer} in the last {hours} hours "
            f"that this ledger does not have: {self.network.asset.format(missing.amount_atomic)} in total.{limit} The "
            f"newest transaction is {missing.newest_tx_hash}. This ledger's budget does not count them: {cause} If its "
            "file was lost, put it back from a backup. Use one ledger for all programs of a wallet "
            '(docs/how-to/budgets.md, "How far a budget reaches").'
        )

    def to_json(self) -> dict[str, object]:
        return {
            "network": self.network.caip2,
            "payer": self.payer,
            "since": self.since,
            "payments_missing": self.missing.count,
            "missing_atomic": str(self.missing.amount_atomic),
            "newest_transaction": self.missing.newest_tx_hash,
            "ledger_begins_later": self.missing.ledger_begins_later,
            "is_whole": self.missing.is_whole,
        }


def _compared(url: str, payer: str | None, network: str | None, rpc_url: str | None) -> _Compared | str:
    """The ledger beside the chain; or why they were not compared."""
    from opengradient_x402.chain.questions import ChainReader
    from opengradient_x402.errors import OpenGradientError
    from opengradient_x402.ledger.upkeep import known_of
    from opengradient_x402.settings import Settings
    from opengradient_x402.settlement.unrecorded import transfers_since, unrecorded

    if network is not None or rpc_url is not None:
        network_of(network, rpc_url)  # what was typed must be right
    try:
        if payer is None and Settings.load().key is None:
            return "no wallet is known. Set OG_PRIVATE_KEY, or name its address with `--payer`."
        wallet, chosen = payer or signer_of_environment().address, network_of(network, rpc_url)
        since = int(time.time()) - BUDGET_WINDOW_S
        with working("Reading the chain"), ChainReader.at(chosen) as chain:
            transfers = chain.ask(transfers_since(since, payer=wallet, network=chosen))
            token = chosen.asset.address
            known = known_of(url, payer=wallet, network=chosen.caip2, asset=token, since=transfers.since)
            if known is None:
                return "its tables have another version. The next call brings them to the version of today."
            missing = chain.ask(unrecorded(transfers.logs, known, payer=wallet, network=chosen))
    except OpenGradientError as exc:
        return exc.message
    return _Compared(payer=wallet, network=chosen, since=since, missing=missing)


def repair(ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Keep what can be read of the ledger, and add up its budgets again. A copy of the old ledger is kept."""
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
    """Make the ledger's file smaller, by the space that nothing uses. Calls wait until it has ended."""
    from opengradient_x402.cli.output import print_json
    from opengradient_x402.ledger.upkeep import compact as compacted

    before, after = compacted(_url(ledger))
    if as_json:
        print_json({"bytes_before": before, "bytes_after": after})
    else:
        typer.echo(f"The ledger has {after} bytes now; it had {before}.")


def anchor(
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the head of the history into a transaction. It proves that the records existed at that time. Costs gas."""
    from opengradient_x402.cli.output import linked, print_json, print_pairs
    from opengradient_x402.proofs.anchors import anchor_history

    chosen = network_of(network, rpc_url)
    with opened_ledger(ledger) as book, working("Sending the head, and waiting for the block"):
        anchored = anchor_history(book, network=chosen, signer=signer_of_environment())
    if as_json:
        print_json({"head": anchored.name, "transaction": anchored.tx_hash, "network": chosen.caip2})
        return
    typer.echo(f"The head of {anchored.size} records is anchored; bundles name the transaction from now on.")
    url = KnownNetworks.page_of(chosen, anchored.tx_hash)
    print_pairs(
        [
            ("head", anchored.name),
            ("transaction", linked(anchored.tx_hash, url)),
            *([] if url is None or can_link() else [("", url)]),
        ]
    )


def _url(choice: str | None) -> str:
    from opengradient_x402.ledger.place import location
    from opengradient_x402.settings import Settings

    return location(choice if choice is not None else Settings.load().ledger_url)
