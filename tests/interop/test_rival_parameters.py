"""The newest releases of the models that users come from have no parameter of which our migration page says nothing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from langchain_opengradient import ChatOpenGradient
from support.migration_table import rows_about
from support.venvs import make_venv

RIVALS = ("ChatOpenAI", "ChatOpenRouter", "OpenAI")


@pytest.fixture(scope="module")
def found(scripts_folder: Path) -> dict:
    venv = make_venv(scripts_folder.parent / "requirements" / "rivals.txt")
    return venv.run(scripts_folder / "rival_parameters.py", {}, timeout_s=120)


@pytest.fixture(scope="module")
def scripts_folder() -> Path:
    return Path(__file__).parent / "scripts"


@pytest.mark.parametrize("model", RIVALS)
def test_the_page_names_every_parameter_and_no_other(found: dict, model: str):
    assert sorted(rows_about(model)) == found["parameters"][model]


def test_the_methods_that_bind_take_the_same_arguments(found: dict):
    for model, methods in found["methods"].items():
        for method, arguments in methods.items():
            ours = inspect.signature(getattr(ChatOpenGradient, method)).parameters
            assert set(arguments) <= set(ours), f"{model}.{method}"
