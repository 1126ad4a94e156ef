"""The names that LangChain and LlamaIndex developers type bring this package, and no code of their own."""

from __future__ import annotations

import importlib
import os
import subprocess
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TAKEN_UP_TO = Version("0.1.2")
"""PyPI has these versions of another `langchain-opengradient`; a lower number could not be published or found."""
MAIN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("name", "extra", "is_free"),
    [("langchain-opengradient", "langchain", False), ("llama-index-llms-opengradient", "llama-index", True)],
)
def test_the_name_that_people_type_is_built_and_requires_the_right_extra(name, extra, is_free, tmp_path):
    version = tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["project"]["version"]
    if is_free:
        assert version == MAIN["version"]
    else:
        assert Version(version) > TAKEN_UP_TO
    subprocess.run(
        ["uv", "build", "-q", "--wheel", "--out-dir", tmp_path, ROOT / "packages" / name], check=True, timeout=120
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert {Path(file).parts[0] for file in files.namelist()} == {f"{name.replace('-', '_')}-{version}.dist-info"}
        [metadata] = [file for file in files.namelist() if file.endswith("METADATA")]
        said = Parser().parsestr(files.read(metadata).decode())
    assert said["Name"] == name
    assert said["Version"] == version
    assert said.get_all("Requires-Dist") == [f"{MAIN['name']}[{extra}]=={MAIN['version']}"]
    installed = tmp_path / "installed"
    subprocess.run(["uv", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], check=True, timeout=120)
    assert [found.name for found in distributions(path=[str(installed)])] == [name]
    assert extra in MAIN["optional-dependencies"]


def test_the_workflow_runs_every_python_that_the_package_names():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    named = [line.rpartition(" ")[2] for line in MAIN["classifiers"] if "Python :: 3." in line]
    assert job["strategy"]["matrix"]["python"] == named
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_report_of_a_fault_asks_for_what_the_doctor_says():
    for form in ("bug.yml", "feature.yml"):
        fields = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / form).read_text())["body"]
        asked = [field for field in fields if field["type"] != "markdown"]
        assert all(field["validations"]["required"] and field["attributes"]["label"] for field in asked)
        assert any("doctor --json" in field["attributes"]["label"] for field in asked) is (form == "bug.yml")


def test_llamahub_finds_the_class_where_it_looks():
    hub = tomllib.loads((ROOT / "packages" / "llama-index-llms-opengradient" / "pyproject.toml").read_text())["tool"]
    module = importlib.import_module(hub["llamahub"]["import_path"])
    assert [getattr(module, name).class_name() for name in hub["llamahub"]["class_authors"]] == ["OpenGradient"]
