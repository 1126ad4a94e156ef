"""Printing for people and for programs.

Tables go to standard output at full width when that is not a terminal, so that a pipe loses nothing. JSON amounts
are decimal strings of atomic units. Does not know what is printed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from textwrap import indent
from typing import Any

import typer

_PIPE_WIDTH = 240
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves cursors, changes colours, reverses lines, or (lone surrogates) cannot be written as UTF-8."""


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


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), title: str | None = None
) -> None:
    """A table; the columns named in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(shown(cell)) for cell in row)
        )  # as text: a model's name or a gateway's words are no markup
    Console(width=None if is_terminal() else _PIPE_WIDTH, highlight=False).print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        typer.echo(f"{name:<{width}}  {shown(value)}")


def note(text: str) -> None:
    """Something to read beside the output, on standard error."""
    typer.echo(shown(text, keep="\n"), err=True)
