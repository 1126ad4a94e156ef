"""The tables of `docs/migration.md` that say what becomes of each parameter of another model."""

from __future__ import annotations

import re

from support.venvs import PROJECT

PAGE = PROJECT / "docs" / "migration.md"
_ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)


def rows_about(model: str) -> dict[str, str]:
    """What the page says of each parameter of `model`."""
    (section,) = re.findall(rf"^### `{model}` .*?(?=^###? |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(_ROW.findall(section))
