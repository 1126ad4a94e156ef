"""Printing for people and for programs.

Tables go to standard output at full width when that is not a terminal, so that a pipe loses nothing. JSON amounts
are decimal strings of atomic units. What takes longer than a moment says so on standard error, where a person looks.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from textwrap import indent
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from opengradient_x402.ledger.receipts import SettlementReceipt

PIPE_WIDTH: Final = 240
_MOMENT_S: Final = 0.7
"""Longer waits are shown."""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves cursors, changes colors, reverses lines, or (lone surrogates) cannot be written as UTF-8."""


def shown(text: str, *, keep: str = "") -> str:
    """Words of gateways, models and bundles for a terminal: controls are written out, except those in `keep`."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def is_terminal() -> bool:
    """Whether somebody looks at standard output; it may also be closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_answer(text: str) -> None:
    """A piece of a model's answer, at once. A pipe gets it as it is."""
    typer.echo(shown(text, keep="\n\t") if is_terminal() else text.encode("utf-8", "replace").decode(), nl=False)


def print_json(value: Any) -> None:
    """One JSON document."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(shown(text, keep="\n"))


def print_json_as_it_comes(values: dict[str, Any], **lists: Iterable[Any]) -> None:
    """One JSON document of values and lists; the lists are written while they are made, in this order."""
    typer.echo(shown(json.dumps(values, indent=2, ensure_ascii=False)[:-2], keep="\n"), nl=False)
    for name, members in lists.items():
        typer.echo(f',\n  "{name}": [', nl=False)
        separator = "\n"
        for member in members:
            text = indent(json.dumps(member, indent=2, ensure_ascii=False), "    ")
            typer.echo(separator + shown(text, keep="\n"), nl=False)
            separator = ",\n"
        typer.echo("]" if separator == "\n" else "\n  ]", nl=False)
    typer.echo("\n}")


def terminal() -> Console:
    """Where people read: as wide as the window; in a pipe as wide as everything needs."""
    from rich.console import Console

    return Console(width=None if is_terminal() else PIPE_WIDTH, highlight=False, soft_wrap=not is_terminal())


def columns() -> int:
    """How many columns there are for a table."""
    return terminal().width


_LINKING: Final = ("KITTY_WINDOW_ID", "WT_SESSION", "KONSOLE_VERSION", "DOMTERM", "WEZTERM_PANE", "GHOSTTY_BIN_DIR")
_LINKING_PROGRAMS: Final = ("iTerm.app", "WezTerm", "vscode", "Hyper", "ghostty", "Tabby", "rio")


def can_link() -> bool:
    """Whether the terminal is one that shows links (OSC 8). Those that do not say who they are get URLs as text."""
    seen = os.environ  # noqa: TID251 - what the terminal says of itself is no setting of ours
    if not is_terminal() or seen.get("TERM") == "dumb":
        return False
    is_new_vte = seen.get("VTE_VERSION", "").isdigit() and int(seen["VTE_VERSION"]) >= 5000
    return is_new_vte or seen.get("TERM_PROGRAM") in _LINKING_PROGRAMS or any(name in seen for name in _LINKING)


def linked(text: str, url: str | None) -> Text:
    """The words as a link to a page, where the terminal can show links; elsewhere the words alone."""
    from rich.text import Text

    return Text(shown(text), style=f"link {url}" if url is not None and can_link() else "")


_STATUS: Final = {
    "settled": ("✓", "green"),
    "confirming": ("…", "yellow"),
    "served": ("…", "yellow"),
    "authorized": ("…", "yellow"),
    "expired": ("○", "dim"),
    "cancelled": ("○", "dim"),
    "disputed": ("✗", "bold red"),
}
STATUS_WORDS: Final = {
    "settled": "the chain shows the payment, under enough blocks",
    "confirming": "the chain shows the payment; further blocks have to follow",
    "served": "answered; no settlement of the payment is known yet",
    "authorized": "signed; no answer is known",
    "expired": "the deadline has passed, and nothing was taken",
    "cancelled": "the payer cancelled it, and nothing was taken",
    "disputed": "the chain and what the gateway said contradict each other",
}


def status_word(receipt: SettlementReceipt) -> str:
    """Where a receipt stands, in one of the `STATUS_WORDS`."""
    is_seen = receipt.settled_atomic is not None and not receipt.is_final and receipt.status.value == "settled"
    return "confirming" if is_seen else receipt.status.value


def status_text(word: str, url: str | None = None) -> Text:
    """The word with its symbol and color."""
    symbol, style = _STATUS.get(word, ("?", ""))
    text = linked(f"{symbol} {word}", url)
    text.stylize(style)
    return text


AMOUNT_WORDS: Final = {
    "settled": ("", "taken by the settlement on chain"),
    "quoted": ("?", "quoted by the gateway; no settlement is known yet"),
    "estimated": ("~", "estimated from usage and published prices; the gateway quoted nothing"),
    "nothing": ("", "nothing was taken, and nothing can be"),
    "unknown": ("-", "not known yet"),
}
"""How sure an amount is: the mark after it, and what the word means."""


def amount_of(receipt: SettlementReceipt) -> tuple[int, str]:
    """What a call cost, in atomic units, and how sure that is, in one of the `AMOUNT_WORDS`."""
    if receipt.settled_atomic is not None:
        return receipt.settled_atomic, "settled"
    if receipt.status.value in ("expired", "cancelled"):
        return 0, "nothing"
    if receipt.cost_atomic is not None:
        return receipt.cost_atomic, "quoted"
    if receipt.estimated_cost_atomic is not None:
        return receipt.estimated_cost_atomic, "estimated"
    return 0, "unknown"


def print_marks(words: Iterable[str], *, is_own: bool) -> None:
    """What the marks after amounts mean, and how the user's own ledger learns more."""
    for word in dict.fromkeys(words):
        mark, meaning = AMOUNT_WORDS[word]
        if mark:
            typer.echo(f"{mark}  {meaning}")
        if is_own and word == "quoted":
            typer.echo("   `opengradient-x402 receipts reconcile` asks the chain")


def rounded(amount_atomic: int, *, decimals: int, places: int = 6) -> str:
    """An amount with `places` digits behind the point, so that points stand below each other."""
    if decimals <= places:
        return _scaled(amount_atomic, decimals)
    step = 10 ** (decimals - places)
    units = (2 * amount_atomic + step) // (2 * step)
    return f"<{_scaled(1, places)}" if amount_atomic and not units else _scaled(units, places)


def _scaled(units: int, places: int) -> str:
    whole, fraction = divmod(units, 10**places)
    return f"{whole}.{fraction:0{places}}" if places else str(whole)


def local_time(time_s: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A moment on this machine's clock; what no calendar has stays a number."""
    try:
        return datetime.fromtimestamp(time_s).astimezone().strftime(form)
    except (OverflowError, OSError, ValueError):
        return str(time_s)


def counted(number: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def table_of(headings: Sequence[str], *, right: Iterable[str] = (), title: str | None = None) -> Table:
    """A table without lines, whose cells are never folded: what does not fit ends with `…`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=title, title_justify="left", padding=(0, 2, 0, 0))
    table.header_style = "bold"
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True, overflow="ellipsis")
    return table


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    title: str | None = None,
) -> None:
    """A table; the columns named in `right` hold numbers."""
    from rich.text import Text

    table = table_of(headings, right=right, title=title)
    for row in rows:
        # As text: a model's name or a gateway's words are no markup.
        table.add_row(*(Text(shown(cell)) if isinstance(cell, str) else cell for cell in row))
    terminal().print(table)


def print_pairs(pairs: Iterable[tuple[str | Text, str | Text]]) -> None:
    """Names and values, aligned; in a terminal, a value that is longer than its line goes on below itself."""
    from rich.table import Table
    from rich.text import Text

    if not is_terminal():
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            typer.echo(f"{name!s:<{width}}  {shown(str(value))}".rstrip())
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(shown(value)) if isinstance(value, str) else value)
    terminal().print(table)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Shows what takes longer than a moment, on a terminal's standard error. The line is removed at the end."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from threading import Timer

    from rich.console import Console

    status = Console(stderr=True, highlight=False).status(f"[dim]{what}[/dim]", spinner="dots")
    late = Timer(_MOMENT_S, status.start)
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()
        late.join()  # it may be starting it just now
        status.stop()


@contextmanager
def sending(what: str, *, shown_by: str) -> Iterator[None]:
    """As `working`, for what cannot be called back. An interruption names the command that shows what became of it."""
    try:
        with working(what):
            yield
    except KeyboardInterrupt:
        note(f"\nInterrupted. What was sent by then can still take effect: `opengradient-x402 {shown_by}` shows it.")
        raise


def note(text: str) -> None:
    """Something to read beside the output, on standard error; in a terminal, no word of it is broken."""
    text = shown(text, keep="\n")
    if sys.stderr is None or not sys.stderr.isatty():
        typer.echo(text, err=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text(text))
