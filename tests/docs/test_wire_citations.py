"""A citation of the protocol facts leads to a section of docs/wire.md, and the code cites no other page for them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "wire.md"
PACKAGES = ("opengradient_x402", "opengradient_devnet", "langchain_opengradient", "llama_index_opengradient")
CITATION = re.compile(r'docs/wire\.md(?:, "(?P<section>[^"]+)")?')


def cited() -> list[tuple[str, str | None]]:
    """(file, section) of every citation in the packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = re.sub(r"\s*\n\s*(?:#:? )?", " ", path.read_text())  # a citation may run over a line's end
            found += [(str(path.relative_to(ROOT)), match["section"]) for match in CITATION.finditer(text)]
    return found


def test_every_citation_names_a_section_of_the_page():
    sections = set(re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE))
    citations = cited()
    assert citations
    assert [citation for citation in citations if citation[1] not in sections] == []


def test_the_code_cites_no_page_that_a_reader_of_the_repository_does_not_have():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"design/wire|wire\s+facts|\.\./shared", path.read_text()), path


def test_every_mark_of_a_source_on_the_page_is_explained():
    text = PAGE.read_text()
    explained = set(re.findall(r"^\| \[([\w-]+)\] \|", text, re.MULTILINE))
    used = set(re.findall(r"\[([a-z][\w-]*)\](?!\()", text))
    assert used - explained == set()
