"""The report as CSV, a row for each sum, and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from opengradient_x402.cli.exports import cell
from opengradient_x402.cli.output import STATUS_WORDS, counted, local_time, shown, status_word
from opengradient_x402.cli.report.figures import BASES, Figures, Sum
from opengradient_x402.cli.report.page import DECISIONS, Report

_COLUMNS = ("part", "name", "calls", "prompt_tokens", "completion_tokens", "amount", "token", *BASES, "records")


def table(report: Report) -> str:
    """A row for each sum: its amount, what of it rests on what, and the ids of its records."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for figures in report.parts:
        for part, one in _sums(figures):
            writer.writerow(
                [
                    part,
                    cell(one.name),
                    len(one.records),
                    *one.tokens,
                    report.exact(figures, one.amount_atomic),
                    cell(report.symbol(figures)),
                    *(report.exact(figures, one.by_basis.get(basis, 0)) for basis in BASES),
                    cell(" ".join(record.call_id for record in one.records)),
                ]
            )
    return text.getvalue()


def _sums(figures: Figures) -> Iterator[tuple[str, Sum]]:
    yield "total", figures.total
    for part, sums in (
        ("model", figures.by_model),
        ("day", figures.by_day),
        ("run", figures.by_run),
        ("payment", figures.by_payment),
    ):
        for one in sums:
            yield part, one


def markdown(report: Report) -> str:
    """The page's tables."""
    source = f"{report.verdict} Source: {_plain(report.source)}; checked {report.how}."
    lines = ["# What was spent, and how it is known", "", source, ""]
    for figures in report.parts:
        symbol = report.symbol(figures)
        for part, sums in (
            ("Model", figures.by_model),
            ("Day", figures.by_day),
            *((("Run", figures.by_run),) if figures.by_run else ()),
            ("Payment", figures.by_payment),
        ):
            lines += [f"| {part} | Calls | {symbol} | On what it rests |", "|---|---:|---:|---|"]
            for one in (*sums, figures.total):
                rests = ", ".join(f"{basis} {report.exact(figures, part)}" for basis, part in one.by_basis.items())
                amount = report.exact(figures, one.amount_atomic)
                lines.append(f"| {_plain(one.name)} | {len(one.records)} | {amount} | {rests} |")
            lines.append("")
        lines += [f"## {counted(len(figures.records), 'record')}", ""]
        lines += ["| Call | When | Model | Status | Cost | Transaction |", "|---|---|---|---|---:|---|"]
        for record in figures.records:
            url = report.known.transaction_url(record.network, record.payment_tx_hash)
            tx_hash = record.payment_tx_hash or ""
            link = f"[{tx_hash}]({url})" if url else _plain(tx_hash)
            cells = (_plain(record.call_id), local_time(record.created_at), _plain(record.model), status_word(record))
            lines.append(f"| {' | '.join(cells)} | {report.cost(figures, record)} | {link} |")
        lines.append("")
        for record in figures.disputed:
            lines += [f"- {_plain(record.call_id)} is disputed: {_plain(record.dispute or '')}"]
    if report.decisions:
        lines += ["## Decisions of persons", "", DECISIONS, ""]
        lines += [f"- {_plain(one.about)}: {_plain(one.why)}" for one in report.decisions]
        lines += [""]
    lines += ["## Words", ""]
    lines += [f"- **{word}**: {meaning}" for word, meaning in BASES.items()]
    lines += [f"- **{word}**: {meaning}." for word, meaning in STATUS_WORDS.items()]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Words of strangers without what Markdown or HTML would act on."""
    escaped = shown(text).replace("\\", "\\\\")
    for sign in "|`*_[]<>&":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
