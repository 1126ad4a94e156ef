"""The report as one page: no script, nothing to load, light and dark, and every figure leads to its records."""

from __future__ import annotations

import html as escaping
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.metadata import version
from importlib.resources import files
from typing import Final

from opengradient_x402.cli.groups import day_of, model_of
from opengradient_x402.cli.options import KnownNetworks
from opengradient_x402.cli.output import (
    AMOUNT_WORDS,
    STATUS_WORDS,
    amount_of,
    counted,
    local_time,
    rounded,
    shown,
    status_word,
)
from opengradient_x402.cli.report.figures import ASPECTS, BASES, Figures, Sum, basis_of, sources_of
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import format_amount
from opengradient_x402.proofs.findings import Finding, Refuted, Statement

_MOST_DAYS: Final = 400
"""With more days between the first call and the last, the plot shows only those that have calls."""


_SHARES: Final = (
    "A payment serves all calls of a session, and is settled in one transaction. The chain shows the sum. Only the "
    "payer says what each call cost. So a sum over a part of the calls of a payment is stated, and not read."
)
_RUNS: Final = (
    "A run is one chain, graph, agent, workflow or query, with all calls in it, or a name that the payer gave. Only "
    "the payer says which run a call belongs to."
)
_UNITS: Final = (
    "The decimals of the token {token} are not known here, and those in a file could be wrong. So amounts are whole "
    "numbers of its smallest unit. A report that is made with --network has decimal amounts."
)
DECISIONS: Final = "Nobody signed these decisions, and no chain shows them: only the payer says what persons decided."
_FEWEST_PLACES: Final = 7
"""The widest column: a single day must not fill the whole plot."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is reported: figures for each token, and everything that was found out. `how` says how it was checked."""

    source: str
    how: str
    parts: Sequence[Figures]
    findings: Sequence[Finding]
    known: KnownNetworks
    is_checked: bool
    signed_by: str | None = None
    made_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def refuted(self) -> int:
        """How many statements the evidence contradicts."""
        return sum(isinstance(finding, Refuted) for finding in self.findings)

    @property
    def decisions(self) -> list[Finding]:
        """What persons decided about payments."""
        return [finding for finding in self.findings if finding.statement is Statement.DECIDED]

    @property
    def verdict(self) -> str:
        """The first sentence."""
        if not self.is_checked:
            return "Nothing was checked."
        return f"{counted(self.refuted, 'statement')} refuted." if self.refuted else "Nothing is refuted."

    @property
    def tone(self) -> str:
        """The color of the verdict."""
        return "bad" if self.refuted else "good" if self.is_checked else "hint"

    def symbol(self, figures: Figures) -> str:
        """The token's name."""
        return self.known.token(figures.records[0])[1]

    def exact(self, figures: Figures, amount_atomic: int) -> str:
        """Every digit of an amount."""
        return format_amount(amount_atomic, decimals=self.known.token(figures.records[0])[0])

    def brief(self, figures: Figures, amount_atomic: int) -> str:
        """An amount with six decimals, so that points stand below each other."""
        decimals, _ = self.known.token(figures.records[0])
        return rounded(amount_atomic, decimals=decimals) if decimals else f"{amount_atomic:,}"

    def cost(self, figures: Figures, record: SettlementReceipt) -> str:
        """A record's cost, and the word for how sure it is."""
        amount, word = amount_of(record)
        return word if word == "unknown" else f"{self.exact(figures, amount)} ({word})"


class _Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _tag(name: str, /, *children: str | Iterable[str], **attributes: str) -> _Html:
    opened = "".join(f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items())
    return _Html(f"<{name}{opened}>" if name == "meta" else f"<{name}{opened}>{_join(*children)}</{name}>")


def _join(*children: str | Iterable[str]) -> _Html:
    """Children one after another: text is escaped, elements are taken as they are."""
    return _Html("".join(_text(child) if isinstance(child, str) else _join(*child) for child in children))


def _text(text: str) -> str:
    return text if isinstance(text, _Html) else escaping.escape(shown(text.encode("utf-8", "replace").decode()))


def html(report: Report) -> str:
    """The page."""
    style = files("opengradient_x402.cli.report").joinpath("page.css").read_text(encoding="utf-8")
    made = local_time(report.made_at, "%Y-%m-%d %H:%M %Z")
    program = f"opengradient-integrations {version('opengradient-integrations')}"
    facts = [
        ("Source", report.source),
        ("Checked", report.how),
        ("Signed by", report.signed_by or "nobody"),
        ("Read from", "; ".join(sources_of(report.findings)) or "no chain"),
        ("Made", f"{made} by {program}; all times are in this zone"),
    ]
    body: list[str | Iterable[str]] = [
        _tag("h1", "What was spent, and how it is known"),
        _tag("p", report.verdict, class_=f"verdict {report.tone}"),
        _explained(facts),
        [_part(report, figures, number) for number, figures in enumerate(report.parts)],
        [] if report.parts else _tag("p", "There are no receipts of that time."),
        _decisions(report),
        _found(report),
        _words(),
    ]
    head = _join(
        _tag("meta", charset="utf-8"),
        _tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        _tag("title", "Receipts: what was spent"),
        _tag("style", _Html(style)),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{_join(*body)}</main></body></html>\n'


def _part(report: Report, figures: Figures, number: int) -> _Html:
    """Everything about the receipts of one token."""
    network = report.known.of(figures.records[0].network)
    symbol, total = report.symbol(figures), figures.total
    name = figures.records[0].network if network is None else network.name
    numbers = [
        (f"{report.brief(figures, total.amount_atomic)} {symbol}", "cost, " + " and ".join(total.marks)),
        (f"{len(figures.records):,}", "calls"),
        (f"{len(figures.by_payment):,}", "payments"),
        (f"{len(figures.disputed):,}", "disputed calls"),
    ]
    return _tag(
        "section",
        _tag("h2", f"{symbol} on {name}"),
        _tag("div", [_tag("div", _tag("b", value), _tag("span", label)) for value, label in numbers], class_="cards"),
        _decimals(report, figures),
        _disputed(figures),
        _tag("h3", f"By day, in {symbol}"),
        _days(report, figures),
        _sums(report, figures, figures.by_day, "Day", is_plotted=False),
        _tag("h3", f"By model, in {symbol}"),
        _sums(report, figures, figures.by_model, "Model", is_plotted=True),
        _runs(report, figures),
        _tag("h3", f"By payment, in {symbol}"),
        _tag("p", _SHARES, class_="hint"),
        _sums(report, figures, figures.by_payment, "Payment", is_plotted=False),
        _tag("h3", "Records"),
        _records(report, figures),
        id=f"token-{number}",
    )


def _decimals(report: Report, figures: Figures) -> Iterable[str]:
    """What an amount means whose token is not known."""
    first = figures.records[0]
    if not report.known.token(first)[0]:
        yield _tag("p", _UNITS.format(token=first.asset), class_="hint")


def _runs(report: Report, figures: Figures) -> Iterable[str]:
    if figures.by_run:
        yield _tag("h3", f"By run, in {report.symbol(figures)}")
        yield _tag("p", _RUNS, class_="hint")
        yield _sums(report, figures, figures.by_run, "Run", is_plotted=True)


def _disputed(figures: Figures) -> Iterable[str]:
    if figures.disputed:
        yield _tag("h3", "Disputed")
        told = [_tag("li", _record_link(record), ": ", record.dispute or "") for record in figures.disputed]
        yield _tag("ul", told, class_="bad")


def _days(report: Report, figures: Figures) -> _Html:
    """A column for each day, also for those without calls."""
    spent = {one.name: one for one in figures.by_day}
    days = _calendar(list(spent))
    highest = max((one.amount_atomic for one in spent.values()), default=0)
    columns = []
    for place, day in enumerate(days):
        one = spent.get(day)
        amount = 0 if one is None else one.amount_atomic
        height = 100 * amount / highest if highest else 0
        calls = counted(len(one.records) if one else 0, "call")
        title = f"{day}: {report.exact(figures, amount)} {report.symbol(figures)}, {calls}"
        bar = _tag("title", title)
        columns.append(
            _tag("rect", bar, x=f"{place + 0.1:g}", y=f"{100 - height:.2f}", width="0.8", height=f"{height:.2f}")
        )
    places = max(len(days), _FEWEST_PLACES)
    plot = _tag("svg", columns, viewBox=f"0 0 {places} 100", preserveAspectRatio="none", role="img")
    named = (days[0], days[-1]) if len(days) == places else (", ".join(days),)
    ends = _tag("div", [_tag("span", name) for name in named], class_="ends")
    top = _tag("div", f"{report.brief(figures, highest)} on the highest day", class_="top")
    return _tag("figure", top, plot, ends)


def _calendar(days: list[str]) -> list[str]:
    try:
        first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    except ValueError:  # a time that no calendar has
        return days
    if (last - first).days > _MOST_DAYS:
        return days
    return [(first + timedelta(days=count)).isoformat() for count in range((last - first).days + 1)]


def _sums(report: Report, figures: Figures, sums: Sequence[Sum], name: str, *, is_plotted: bool) -> _Html:
    """A row for each sum; it opens, and shows the records that it was made of."""
    highest = max((one.amount_atomic for one in sums), default=0)
    rows = []
    for one in sums:
        links = [_join(_record_link(record), " ") for record in one.records]
        opened = _tag("details", _tag("summary", counted(len(one.records), "call")), _tag("p", links))
        bar = _bar(one.amount_atomic, highest) if is_plotted else _Html()
        rows.append(
            _tag(
                "tr",
                _tag("td", _name_of(report, one, name), bar, class_="name"),
                _tag("td", _amount(report, figures, one.amount_atomic), class_="number"),
                _tag("td", _rests(report, figures, one)),
                _tag("td", opened),
                _tag("td", "{:,} / {:,}".format(*one.tokens), class_="number"),
            )
        )
    heads = (name, report.symbol(figures), "Rests on", "Records", "Tokens in / out")
    return _table(heads, rows, numbers=(1, 4))


def _name_of(report: Report, one: Sum, name: str) -> str:
    if name != "Payment":
        return one.name
    record = one.records[0]
    url = report.known.transaction_url(record.network, record.payment_tx_hash)
    tx_hash = record.payment_tx_hash
    if tx_hash is None:
        return f"of {local_time(record.created_at, '%Y-%m-%d %H:%M')}, {status_word(record)}"
    short = _tag("code", f"{tx_hash[:10]}…{tx_hash[-6:]}", title=tx_hash)
    return short if url is None else _tag("a", short, href=url)


def _bar(amount: int, highest: int) -> _Html:
    width = 100 * amount / highest if highest else 0
    bar = _tag("rect", "", x="0", y="0", width=f"{width:.2f}", height="10")
    return _tag("svg", bar, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def _rests(report: Report, figures: Figures, one: Sum) -> list[_Html]:
    """How much of a sum rests on what; only the word, where it is all of it."""
    if len(one.by_basis) == 1:
        return [_chip(next(iter(one.by_basis)))]
    return [_tag("div", _chip(basis), " ", report.brief(figures, part)) for basis, part in one.by_basis.items()]


def _amount(report: Report, figures: Figures, amount_atomic: int) -> _Html:
    exact = f"{report.exact(figures, amount_atomic)} {report.symbol(figures)}"
    return _tag("span", report.brief(figures, amount_atomic), title=exact)


def _chip(basis: str) -> _Html:
    return _tag("span", basis, class_=f"chip {basis}", title=BASES[basis])


def _record_link(record: SettlementReceipt) -> _Html:
    return _tag("a", record.call_id[:13], href=f"#{record.call_id}", title=record.call_id)


def _records(report: Report, figures: Figures) -> _Html:
    """Each record, with what is proven of it."""
    rows = []
    for record in figures.records:
        url = report.known.transaction_url(record.network, record.payment_tx_hash)
        findings = figures.findings_of(record)
        reasons = [_tag("li", _chip(basis_of(finding)), f" {finding.statement}: {finding.why}") for finding in findings]
        named = f"{record.call_id}, of the run {record.run}" if record.run else record.call_id
        opened = _tag("details", _tag("summary", record.call_id[:13]), _tag("p", named), _tag("ul", reasons))
        amount, word = amount_of(record)
        status = status_word(record)
        rows.append(
            _tag(
                "tr",
                _tag("td", opened),
                _tag("td", f"{day_of(record)} {local_time(record.created_at, '%H:%M')}"),
                _tag("td", model_of(record), _tag("small", f" {record.settlement_mode}")),
                _tag("td", _tag("a", status, href=url) if url else status),
                _tag("td", "" if word == "unknown" else _amount(report, figures, amount), class_="number"),
                _tag("td", _tag("small", word)),
                [_tag("td", _chip(figures.basis(record, aspect))) for aspect in ASPECTS],
                id=record.call_id,
            )
        )
    heads = ("Call", "When", "Model", "Status", report.symbol(figures), "Cost is", *(name.title() for name in ASPECTS))
    return _table(heads, rows, numbers=(4,), kind="wide records")


def _decisions(report: Report) -> Iterable[str]:
    if report.decisions:
        yield _tag("h2", "Decisions of persons")
        yield _tag("p", DECISIONS, class_="hint")
        yield _tag("ul", [_tag("li", _tag("code", one.about), f": {one.why}") for one in report.decisions])


def _found(report: Report) -> Iterable[str]:
    """Every statement that was checked, counted by what it rests on, the worst first."""
    if not report.is_checked:
        return
    yield _tag("h2", "What was checked")
    groups: dict[tuple[int, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((-list(BASES).index(basis_of(finding)), finding.statement), []).append(finding)
    rows = [
        _tag(
            "tr",
            _tag("td", _chip(basis_of(same[0]))),
            _tag("td", statement, class_="statement"),
            _tag("td", f"{len(same):,}", class_="number"),
            _tag("td", same[0].why if len(same) == 1 else f"for example: {same[0].why}", class_="why"),
        )
        for (_, statement), same in sorted(groups.items())
    ]
    yield _table(("It is", "Statement", "Times", "Why"), rows, numbers=(2,))


def _words() -> _Html:
    """What each word means."""
    groups = (
        ("A statement is", BASES.items()),
        ("A record is", ((word, f"{meaning}.") for word, meaning in STATUS_WORDS.items())),
        ("A cost is", ((word, f"{meaning}.") for word, (_, meaning) in AMOUNT_WORDS.items())),
        (
            "Columns of a record",
            (
                ("signature", "The payer's signature over the payment."),
                ("settlement", "What the payment took, or that nothing was taken."),
                ("enclave", "An enclave's signature over the hashes of the question and the answer."),
                ("data", "That these hashes are on chain, or that they were not to be."),
            ),
        ),
    )
    listed = [_tag("div", _tag("h3", heading), _explained(words)) for heading, words in groups]
    return _tag("section", _tag("h2", "What the words mean"), _tag("div", listed, class_="words"))


def _explained(pairs: Iterable[tuple[str, str]]) -> _Html:
    return _tag("dl", [_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in pairs])


def _table(heads: Sequence[str], rows: Sequence[str], *, numbers: Sequence[int] = (), kind: str = "wide") -> _Html:
    cells = [_tag("th", head, class_="number" if place in numbers else "") for place, head in enumerate(heads)]
    table = _tag("table", _tag("thead", _tag("tr", cells)), _tag("tbody", rows))
    return _tag("div", table, class_=kind)
