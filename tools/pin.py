"""Write down the versions that the tests have just passed with.

`python tools/pin.py` reads what is installed beside this interpreter and writes it to two places that must
agree: `constraints.txt` (for pip users: `pip install -c constraints.txt …`) and `constraint-dependencies` in
pyproject.toml (what `uv run` obeys, since `uv.lock` records registry addresses and is not committed).
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {"opengradient-integrations", "pip", "setuptools", "wheel", "uv"}
BEGIN, END = "# pinned by tools/pin.py: begin", "# pinned by tools/pin.py: end"


def installed() -> list[str]:
    """`name==version` of every distribution, sorted."""
    pins = set()
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in LEFT_OUT:
            pins.add(f"{name}=={distribution.version}")
    return sorted(pins)


def main() -> None:
    """Rewrites both places."""
    pins = installed()
    header = "# Known-good versions; written by tools/pin.py. pip install -c constraints.txt ...\n"
    (ROOT / "constraints.txt").write_text(header + "\n".join(pins) + "\n")
    pyproject = ROOT / "pyproject.toml"
    lines = "\n".join(f'    "{pin}",' for pin in pins)
    block = f"{BEGIN}\nconstraint-dependencies = [\n{lines}\n]\n{END}"
    text = re.sub(f"{BEGIN}.*?{END}", lambda _: block, pyproject.read_text(), flags=re.DOTALL)
    pyproject.write_text(text)


if __name__ == "__main__":
    main()
