"""Who imports whom, beyond what import-linter's contracts say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "package", ["opengradient_x402", "opengradient_devnet", "langchain_opengradient", "llama_index_opengradient"]
)
def test_no_two_modules_import_each_other_also_not_lazily_or_for_types(package):
    paths = [path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    assert len(modules) > 10
    imports = {name: imported_by(path) & modules.keys() for name, path in modules.items()}

    assert {(one, other) for one in imports for other in imports[one] if one < other and one in imports[other]} == set()


def imported_by(path: Path) -> set[str]:
    froms = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {name for node in froms for name in (str(node.module), *(f"{node.module}.{one.name}" for one in node.names))}
