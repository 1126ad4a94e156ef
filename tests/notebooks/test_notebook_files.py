"""The notebooks as they are kept: small, run in order, without secrets, and each says how to run it for real."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from opengradient_x402.settings import Settings

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_BYTES = 200_000
PRIVATE_KEY = re.compile(r"0x[0-9a-fA-F]{64}(?![0-9a-fA-F])")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text()), request.param


def code_of(content) -> list[dict]:
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def source_of(cell) -> str:
    return "".join(cell["source"])


def test_there_are_six_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


def test_the_first_cell_says_how_to_run_it_live_and_starts_a_network_otherwise(notebook):
    content, _ = notebook
    first = source_of(code_of(content)[0])
    assert first.startswith("# To run this for real: put the key of a wallet that holds OPG into OG_PRIVATE_KEY")
    assert "DevnetProcess(" in first
    assert hasattr(Settings, "load")
    assert "Settings.load().private_key is None" in first


def test_the_setup_is_the_same_everywhere_but_for_the_options_of_the_network(notebook):
    _, path = notebook
    setups = {
        re.sub(r"DevnetProcess\(.*?\)\)", "DevnetProcess(…))", source_of(code_of(json.loads(other.read_text()))[0]))
        .partition("wallet.ensure_opg_approval")[0]
        .strip()
        for other in (path, NOTEBOOKS[0])
    }
    assert len(setups) == 1


def test_the_kept_outputs_are_those_of_one_run_in_order_without_errors(notebook):
    content, path = notebook
    code = code_of(content)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "error" not in kinds
    assert path.stat().st_size < LARGEST_BYTES


def test_no_notebook_keeps_a_private_key(notebook):
    """Transaction hashes have the form of a key, so they are told apart by the words around them."""
    content, _ = notebook
    for cell in code_of(content):
        assert "private_key=" not in source_of(cell) or not PRIVATE_KEY.search(source_of(cell))
        for output in cell["outputs"]:
            text = json.dumps(output)
            assert "OG_PRIVATE_KEY" not in text
            assert "private_key" not in text


def test_every_code_cell_parses_and_every_import_is_of_something_that_the_project_installs(notebook):
    content, _ = notebook
    allowed = {
        "IPython", "hashed_words", "httpx", "langchain", "langchain_core", "langchain_opengradient", "langgraph",
        "llama_index", "llama_index_opengradient", "matplotlib", "matplotlib_inline", "opengradient_x402",
        "asyncio", "contextlib", "dataclasses", "datetime", "decimal", "http", "json", "logging", "os", "pathlib",
        "subprocess", "sys", "tempfile", "threading", "time",
    }  # fmt: skip
    for cell in code_of(content):
        tree = compile(source_of(cell), cell["id"], "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] in allowed
            elif isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
