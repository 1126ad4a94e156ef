"""What the parts of the suite share: the properties to set, and the fixtures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
from llama_index.core.llms.function_calling import FunctionCallingLLM

from llamaindex.suite.server import ScriptedServer


class LLMTestBase:
    """Properties and fixtures. Set `llm_class` and `llm_params`; the rest has defaults that fit most LLMs."""

    model_param: ClassVar[str] = "model"
    """The constructor's name for the model's name."""
    base_url_param: ClassVar[str] = "base_url"
    """The constructor's name for the base URL of an OpenAI-shaped server, up to and with `/v1`."""
    tool_calls_come_whole: ClassVar[bool] = False
    """Whether a gateway in front of the scripted server holds a streamed tool call back until it is complete."""

    @property
    @abstractmethod
    def llm_class(self) -> type[FunctionCallingLLM]:
        """The class under test."""

    @property
    @abstractmethod
    def llm_params(self) -> dict[str, Any]:
        """Arguments for an LLM whose model can follow LlamaIndex's prompts and call tools."""

    @property
    def secrets(self) -> Sequence[str]:
        """Texts in `llm_params` that must not turn up anywhere; by default what its secret-looking names hold."""
        return [
            str(value)
            for name, value in self.llm_params.items()
            if name in ("api_key", "private_key", "token") and isinstance(value, str)
        ]

    @property
    def params_missing_from_dict(self) -> dict[str, Any]:
        """What `to_dict` rightly leaves out, and `from_dict` needs again."""
        names = ("api_key", "private_key", "token")
        return {name: value for name, value in self.llm_params.items() if name in names}

    @property
    def params_missing_from_pickle(self) -> dict[str, Any]:
        """What a pickle rightly leaves out; set on the unpickled LLM. Empty if the environment provides it."""
        return {}

    def make_llm(self, **overrides: Any) -> Any:
        """A fresh LLM. `Any`, since the tests call what `FunctionCallingLLM` only promises."""
        return self.keep(self.llm_class(**{**self.llm_params, **overrides}))

    def keep(self, llm: Any) -> Any:
        """Note an LLM that has to be closed after the test, and give it back."""
        self._made.append(llm)
        return llm

    def dispose(self, llm: Any) -> None:
        """Close an LLM, if it can be closed."""
        close = getattr(llm, "close", None)
        if callable(close):
            close()

    def call_was_dropped(self, script: ScriptedServer) -> bool:
        """Whether a cancelled call, which is not a stream, gave up its connection.

        A gateway need not pass that on to the scripted server behind it: then say here how it shows.
        """
        return script.client_hung_up()

    @pytest.fixture(autouse=True)
    def _close_llms(self) -> Iterator[None]:
        self._made: list[Any] = []
        yield
        for llm in self._made:
            self.dispose(llm)

    @pytest.fixture
    def llm(self) -> Any:
        """An LLM with a capable model behind it."""
        return self.make_llm()

    @pytest.fixture(scope="class")
    @classmethod
    def scripted_server(cls) -> Iterator[ScriptedServer]:
        """The server that says what tests tell it to."""
        with ScriptedServer() as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def scripted_base_url(cls, scripted_server: ScriptedServer) -> Iterator[str]:
        """Where an LLM reaches the scripted server. Override it to put a gateway in front."""
        yield scripted_server.url  # noqa: PT022 - overriding fixtures have something to tear down

    @pytest.fixture
    def script(self, scripted_server: ScriptedServer) -> Iterator[ScriptedServer]:
        """The scripted server, with nothing left over from the test before."""
        scripted_server.reset()
        yield scripted_server
        scripted_server.reset()

    @pytest.fixture
    def scripted_llm(self, scripted_base_url: str, script: ScriptedServer) -> Any:
        """An LLM that talks to the scripted server."""
        return self.make_llm(**{self.base_url_param: scripted_base_url})
