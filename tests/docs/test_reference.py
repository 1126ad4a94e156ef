"""The reference page is what the docstrings say today, and every public name has one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "reference.py"
PACKAGES = ("langchain_opengradient", "llama_index_opengradient", "opengradient_x402", "opengradient_devnet")


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(reference):
    assert reference.PAGE.read_text() == reference.page(), "run `python tools/reference.py`"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring_and_an_entry(reference, package):
    page = reference.PAGE.read_text()
    module = importlib.import_module(package)
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), f"{package}.{name} has no docstring"
        assert re.search(rf"^### `{package}\.{name}\b", page, re.MULTILINE)


def test_check_says_whether_the_page_is_out_of_date(reference, tmp_path, monkeypatch):
    stale = tmp_path / "reference.md"
    monkeypatch.setattr(reference, "PAGE", stale)
    stale.write_text("something else")
    assert reference.main(["--check"]) == 1
    assert stale.read_text() == "something else"
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
