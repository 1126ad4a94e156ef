"""The troubleshooting page covers every error there is, and quotes messages that the code really says."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import opengradient_x402
from langchain_opengradient.content import UnsupportedContent
from langchain_opengradient.structured_output import ModelRefusal
from opengradient_x402 import errors
from opengradient_x402.errors import OpenGradientError
from opengradient_x402.gateway.request import GatewayLimitation, UnlistedModelWarning

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PACKAGES = ("opengradient_x402", "langchain_opengradient", "llama_index_opengradient")
ELSEWHERE = (GatewayLimitation, UnlistedModelWarning, UnsupportedContent, ModelRefusal)


def kinds() -> list[type]:
    """Every error class of the core, wherever it is defined, and the faces' own vocabulary."""
    for module in pkgutil.walk_packages(opengradient_x402.__path__, "opengradient_x402."):
        importlib.import_module(module.name)
    own = [kind for kind in descendants(OpenGradientError) if kind.__module__.startswith("opengradient_x402")]
    return [*sorted(own, key=lambda kind: kind.__name__), *ELSEWHERE]


def descendants(kind: type) -> set[type]:
    return {found for child in kind.__subclasses__() for found in (child, *descendants(child))}


def sections() -> dict[str, str]:
    found = re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return dict(found)


def quotes() -> list[tuple[str, str]]:
    """(section, message) for every entry that quotes one."""
    return [
        (title, " ".join(quote.split()))
        for title, text in sections().items()
        for quote in re.findall(r"^- `([^`]+)`", text, re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Every text of the product, with `…` for what is filled in."""
    return [" ".join(text.split()) for text in said_in_code()]


def said_in_code() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_an_entry_that_says_something(kind):
    assert len(sections().get(kind.__name__, "").split()) > 15, f"docs/troubleshooting.md says nothing of {kind}"


@pytest.mark.parametrize(("section", "quote"), quotes(), ids=lambda text: text[:40])
def test_every_quoted_message_is_one_that_the_code_says(texts, section, quote):
    pattern = re.compile(".*?".join(re.escape(piece) for piece in re.split("…+", quote)), re.DOTALL)
    assert any(pattern.search(text) for text in texts), f"nothing says {quote!r} any more ({section})"


def test_there_are_no_entries_for_errors_that_are_gone():
    assert set(sections()) == {kind.__name__ for kind in kinds()}


def test_entries_stand_under_what_they_mean_for_the_money():
    headings = re.findall(r"^(##|###) (.+)$", PAGE, re.MULTILINE)
    chapter, under = "", {}
    for level, title in headings:
        chapter = title if level == "##" else chapter
        under[title] = chapter
    for kind in kinds():
        if issubclass(kind, errors.NotPaid) and kind not in ELSEWHERE:
            assert under[kind.__name__] == "Nothing was paid"
        elif issubclass(kind, errors.PaidButFailed) and kind not in ELSEWHERE:
            assert under[kind.__name__] == "It was paid"
