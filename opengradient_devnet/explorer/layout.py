"""The frame of every page, and the shapes that pages are made of: facts, tables, cards, notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opengradient_devnet.explorer.markup import Html, Node, document, element, fragment
from opengradient_devnet.explorer.notation import BASE, link

_SECTIONS = (
    ("", "Overview"),
    ("/blocks", "Blocks"),
    ("/txs", "Transactions"),
    ("/payments", "Payments"),
    ("/sessions", "Sessions"),
    ("/data", "Data settlements"),
)


def page(title: str, *body: Node, chain_id: int, here: str | None, query: str = "") -> Html:
    """A whole page. `here` is the section it belongs to, `query` what the search box holds."""
    return document(
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{title} · devnet explorer"),
            element("link", rel="icon", href="data:,"),
            element("link", rel="stylesheet", href=f"{BASE}/style.css"),
        ),
        element(
            "body",
            _masthead(chain_id=chain_id, here=here, query=query),
            element("main", element("h1", title), *body),
            element(
                "footer",
                "An OpenGradient-like network on this machine. Its coins are worth nothing; it ends with its process.",
            ),
        ),
    )


def _masthead(*, chain_id: int, here: str | None, query: str) -> Html:
    brand = link("", element("span", "OpenGradient", class_="name"), " devnet", class_="brand")
    search = element(
        "form",
        element(
            "input",
            type="search",
            name="q",
            value=query,
            placeholder="Transaction, block, address, call, nonce, hash…",
            aria_label="Search the chain",
            autocomplete="off",
            spellcheck="false",
        ),
        element("button", "Search", type="submit"),
        action=f"{BASE}/search",
        method="get",
        role="search",
    )
    tabs = [
        element("a", name, href=f"{BASE}{path}", aria_current="page" if path == here else None)
        for path, name in _SECTIONS
    ]
    return element(
        "header",
        element("div", brand, element("span", f"chain {chain_id}", class_="chain"), search, class_="top"),
        element("nav", *tabs, aria_label="Sections"),
    )


def section(title: str, *body: Node, more: Html | None = None) -> Html:
    """A titled part of a page; `more` leads on."""
    return element("section", element("div", element("h2", title), more, class_="title"), *body)


def facts(*pairs: tuple[str, Node]) -> Html:
    """Names and values; a value of None leaves its name out."""
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in pairs if value is not None]
    return element("dl", *rows, class_="facts")


def table(head: Sequence[str], rows: Iterable[Sequence[Node]], *, empty: str) -> Html:
    """A table that becomes a list of cards on a narrow screen; `empty` stands for no rows."""
    lines = [
        element(
            "tr", *(element("td", element("div", cell), data_label=name) for name, cell in zip(head, row, strict=True))
        )
        for row in rows
    ]
    if not lines:
        return note(empty)
    columns = element("thead", element("tr", *(element("th", name, scope="col") for name in head)))
    return element("div", element("table", columns, element("tbody", *lines)), class_="scroll")


def cards(*pairs: tuple[str, Node, Node]) -> Html:
    """Big numbers: name, value, remark."""
    return element(
        "div",
        *(
            element("div", element("span", name), element("strong", value), element("small", remark), class_="card")
            for name, value, remark in pairs
        ),
        class_="cards",
    )


def lead(*children: Node) -> Html:
    """The sentence that says what the page is about."""
    return element("p", *children, class_="lead")


def note(*children: Node, tone: str = "") -> Html:
    return element("p", *children, class_=f"note {tone}".strip())


def unfolds(title: str, *children: Node) -> Html:
    """Something long that is shown on demand."""
    return element("details", element("summary", title), *children)


def raw(text: str) -> Html:
    """Preformatted text."""
    return element("pre", text)


def pager(*, newer: Html | None, older: Html | None) -> Html | None:
    if newer is None and older is None:
        return None
    return element("p", fragment(newer, " " if newer and older else None, older), class_="pager")
