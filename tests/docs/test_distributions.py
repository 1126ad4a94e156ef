"""The names that LangChain and LlamaIndex developers type bring this package, and no code of their own."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("name", "extra"), [("langchain-opengradient", "langchain"), ("llama-index-llms-opengradient", "llama-index")]
)
def test_the_name_that_people_type_is_built_and_requires_the_right_extra(name, extra, tmp_path):
    subprocess.run(
        ["uv", "build", "-q", "--wheel", "--out-dir", tmp_path, ROOT / "packages" / name], check=True, timeout=120
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert {Path(file).parts[0] for file in files.namelist()} == {
            f"{name.replace('-', '_')}-{MAIN['version']}.dist-info"
        }
        [metadata] = [file for file in files.namelist() if file.endswith("METADATA")]
        said = Parser().parsestr(files.read(metadata).decode())
    assert said["Name"] == name
    assert said["Version"] == MAIN["version"]
    assert said.get_all("Requires-Dist") == [f"{MAIN['name']}[{extra}]=={MAIN['version']}"]
    installed = tmp_path / "installed"
    subprocess.run(["uv", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], check=True, timeout=120)
    assert [found.name for found in distributions(path=[str(installed)])] == [name]
    assert extra in MAIN["optional-dependencies"]
