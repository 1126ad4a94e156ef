"""LangChain's standard unit tests, all of them."""

from importlib import import_module
from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_opengradient import ChatOpenGradient

PRIVATE_KEY = "0x" + "4d" * 32
CLASS_PATH = ("langchain_opengradient", "chat_models", "ChatOpenGradient")

# The suite itself calls `model.dict()`, which core has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")


class TestChatOpenGradientStandardUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _known_to_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # `load()` finds classes of other packages through core's own table only.
        module = import_module("langchain_core.load.load")
        monkeypatch.setitem(module.ALL_SERIALIZABLE_MAPPINGS, CLASS_PATH, CLASS_PATH)
        if hasattr(module, "_default_class_paths_cache"):
            monkeypatch.setattr(module, "_default_class_paths_cache", {})

    @property
    def chat_model_class(self) -> type[ChatOpenGradient]:
        return ChatOpenGradient

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "openai/gpt-5"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"OG_PRIVATE_KEY": PRIVATE_KEY},
            {"model": "openai/gpt-5"},
            {"private_key": PRIVATE_KEY},
        )
