"""`receipts list --by`: what runs, models or days cost, added up while the receipts are read; none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import typer

from opengradient_x402.cli.groups import day_of, model_of, run_of
from opengradient_x402.cli.options import KnownNetworks
from opengradient_x402.cli.output import (
    AMOUNT_WORDS,
    PIPE_WIDTH,
    amount_of,
    columns,
    is_terminal,
    local_time,
    print_json,
    print_marks,
    print_table,
    rounded,
)
from opengradient_x402.ledger.receipts import SettlementReceipt

_OTHER_WIDTH: Final = len("11-29 01:44 - 11-29 01:44  1,000,000  1000.000000  ?  ") + 2
"""Columns that a row needs besides its name."""
_LEAST_WIDTH: Final = 20
KEYS: Final[dict[str, Callable[[SettlementReceipt], str]]] = {"run": run_of, "model": model_of, "day": day_of}


@dataclass(slots=True)
class _Tally:
    """Calls that belong together. Times are Unix seconds, the amount is atomic units."""

    first: SettlementReceipt
    calls: int = 0
    amount_atomic: int = 0
    last_at: int = 0
    words: dict[str, None] = field(default_factory=dict)
    """How sure the amounts are."""

    def add(self, receipt: SettlementReceipt) -> None:
        amount, word = amount_of(receipt)
        self.calls += 1
        self.amount_atomic += amount
        self.last_at = max(self.last_at, receipt.created_at)
        self.words[word] = None


def _mark(*tallies: _Tally) -> str:
    """The mark behind a sum: that of its least sure amount."""
    words = {word for tally in tallies for word in tally.words}
    return next((AMOUNT_WORDS[word][0] for word in ("unknown", "quoted", "estimated") if word in words), "")


def print_tallies(
    by: str, receipts: Iterable[SettlementReceipt], known: KnownNetworks, *, where: str, limit: int, as_json: bool
) -> None:
    """A row for each run, model or day, the newest last, and the sum of all. Tokens are not added to each other."""
    key = KEYS[by]
    tallies: dict[tuple[str, str, str], _Tally] = {}
    for receipt in receipts:
        name = (receipt.network, receipt.asset, key(receipt))
        tallies.setdefault(name, _Tally(receipt)).add(receipt)
    ordered = dict(sorted(tallies.items(), key=lambda item: item[1].last_at))
    if as_json:
        print_json([_json(by, name, tally) for (_, _, name), tally in list(ordered.items())[-limit:]])
        return
    if not ordered:
        typer.echo(f"There are no such receipts in {where}.")
        return
    tokens = list(dict.fromkeys(name[:2] for name in ordered))
    for token in tokens:
        _print_token(by, {name[2]: one for name, one in ordered.items() if name[:2] == token}, known, limit, tokens)
    print_marks((word for one in ordered.values() for word in one.words), is_own=known.is_own)


def _print_token(
    by: str, of_token: dict[str, _Tally], known: KnownNetworks, limit: int, tokens: list[tuple[str, str]]
) -> None:
    first = next(iter(of_token.values())).first
    decimals, symbol = known.token(first)
    network = known.of(first.network)
    width = max(_LEAST_WIDTH, columns() - _OTHER_WIDTH) if is_terminal() else PIPE_WIDTH
    shown, left_out = list(of_token.items())[-limit:], len(of_token) - limit
    rows = [_row(_fitting(name, width), _times(tally), decimals, tally) for name, tally in shown]
    rows.append(
        _row(f"total, with {left_out:,} older ones" if left_out > 0 else "total", "", decimals, *of_token.values())
    )
    title = None if len(tokens) == 1 else first.network if network is None else f"{network.name} ({first.network})"
    print_table((by, "when", "calls", symbol, ""), rows, right=("calls", symbol), title=title)


def _row(name: str, times: str, decimals: int, *tallies: _Tally) -> tuple[str, ...]:
    calls, amount = sum(one.calls for one in tallies), sum(one.amount_atomic for one in tallies)
    return name, times, f"{calls:,}", rounded(amount, decimals=decimals), _mark(*tallies)


def _fitting(name: str, width: int) -> str:
    """As much of a long name as there is room for: its beginning says what it is, its end which one."""
    return name if len(name) <= width else f"{name[: width - 9]}…{name[-8:]}"


def _times(tally: _Tally) -> str:
    """When the first and the last call began: as much of it as is needed."""
    began, ended = (local_time(at, "%m-%d %H:%M") for at in (tally.first.created_at, tally.last_at))
    if began == ended:
        return began
    return f"{began} - {ended[6:] if began[:5] == ended[:5] else ended}"


def _json(by: str, name: str, tally: _Tally) -> dict[str, str | int | None]:
    return {
        by: None if by == "run" and tally.first.run is None else name,
        "calls": tally.calls,
        "amount_atomic": str(tally.amount_atomic),
        "amount_is": " and ".join(tally.words),
        "network": tally.first.network,
        "asset": tally.first.asset,
        "first_at": tally.first.created_at,
        "last_at": tally.last_at,
    }
