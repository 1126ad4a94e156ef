"""HTML in which text cannot become markup: everything is escaped, except what was built here.

element("a", "<b>", href="/x")  ->  <a href="/x">&lt;b&gt;</a>
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "input", "link", "meta"})


class Html(str):
    """Finished markup. Only `element` and `document` make it."""

    __slots__ = ()


Node = Html | str | int | None | Iterable["Node"]


def element(tag: str, /, *children: Node, **attributes: str | bool | None) -> Html:
    """One element. A trailing underscore in an attribute's name is dropped (`class_`), others become hyphens.

    `True` writes an attribute without a value; `False` and None leave it out.
    """
    opening = f"<{tag}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Html(opening) if tag in _VOID else Html(f"{opening}{fragment(*children)}</{tag}>")


def fragment(*children: Node) -> Html:
    """Nodes one after another, without an element around them."""
    return Html("".join(_text(child) for child in children))


def document(*children: Node, language: str = "en") -> Html:
    """A whole page."""
    return Html("<!doctype html>\n" + element("html", *children, lang=language) + "\n")


def _attribute(key: str, value: str | bool | None) -> str:  # noqa: FBT001 - HTML's own flags
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value, quote=True)}"'


def _text(node: Node) -> str:
    match node:
        case None:
            return ""
        case Html():
            return node
        case str():
            # Invalid characters (lone surrogates from JSON) could not be sent as UTF-8.
            return escape(node.encode("utf-8", "replace").decode())
        case int():
            return str(node)
        case _:
            return fragment(*node)
