"""Real runners, each in an environment of its own with a wheel of this checkout. Started by hand: `-m soak`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.venvs import Venv, build_wheel, install_wheel, make_venv

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker("soak")
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Venv]:
    """The environment of a runner, with our wheel as a LangChain user has it."""
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))

    def made(name: str) -> Venv:
        requirements = _HERE / "requirements" / f"{name}.txt"
        venv = make_venv(requirements)
        install_wheel(venv, wheel, requirements, extras="langchain")
        return venv

    return made
