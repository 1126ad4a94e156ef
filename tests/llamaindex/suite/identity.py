"""What an LLM is before it is called, and what it is after it was stored, copied, or sent to a worker."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import socket
from typing import Any

import pytest
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import ALL, ask, subject, text_of
from llamaindex.suite.server import ScriptedServer


class IdentityTests(LLMTestBase):
    """Shape, metadata, dumps, copies."""

    def test_is_a_concrete_function_calling_llm(self) -> None:
        assert issubclass(self.llm_class, FunctionCallingLLM)
        assert not inspect.isabstract(self.llm_class)

    def test_class_name_is_its_own(self) -> None:
        name = self.llm_class.class_name()
        assert name
        assert name not in {base.class_name() for base in (LLM, FunctionCallingLLM)}
        assert self.make_llm().class_name() == name

    def test_metadata_is_pure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_network(*_: Any) -> None:
            raise AssertionError("metadata opened a connection")

        monkeypatch.setattr(socket.socket, "connect", no_network)
        llm = self.make_llm()
        assert llm.metadata == llm.metadata
        assert llm.metadata.is_chat_model
        assert llm.metadata.is_function_calling_model

    def test_metadata_of_an_unknown_model_does_not_raise(self) -> None:
        metadata = self.make_llm(**{self.model_param: "nobody/never-heard-of-it-1"}).metadata
        assert metadata.model_name == "nobody/never-heard-of-it-1"
        assert metadata.context_window > 0

    def test_secrets_are_in_no_repr_and_no_dump(self) -> None:
        llm = self.make_llm()
        channels = {
            "repr": repr(llm),
            "str": str(llm),
            "to_dict": json.dumps(llm.to_dict(), default=str),
            "to_json": llm.to_json(),
        }
        for secret in self.secrets:
            leaks = [name for name, text in channels.items() if secret in text]
            assert not leaks, f"a secret is in {leaks}"

    def test_a_dict_makes_an_llm_that_answers(self, scripted_llm: Any) -> None:
        data = json.loads(json.dumps(scripted_llm.to_dict()))
        again = self.keep(self.llm_class.from_dict(data, **self.params_missing_from_dict))
        assert again.metadata == scripted_llm.metadata
        assert again.complete("Say hello.").text == "Hello from the script."

    @pytest.mark.parametrize("form", ALL)
    def test_a_pickled_llm_answers_after_use(self, scripted_llm: Any, form: str) -> None:
        ask(scripted_llm, form, subject(form))
        again = self.keep(pickle.loads(pickle.dumps(scripted_llm)))
        for name, value in self.params_missing_from_pickle.items():
            setattr(again, name, value)
        assert text_of(ask(again, form, subject(form))[-1]) == "Hello from the script."

    @pytest.mark.parametrize("form", ALL)
    def test_a_deep_copy_answers_after_use(self, scripted_llm: Any, form: str) -> None:
        ask(scripted_llm, form, subject(form))
        again = self.keep(copy.deepcopy(scripted_llm))
        assert text_of(ask(again, form, subject(form))[-1]) == "Hello from the script."

    def test_a_deep_copy_has_fields_of_its_own(self, scripted_llm: Any, script: ScriptedServer) -> None:
        scripted_llm.temperature = 0.5
        copy.deepcopy(scripted_llm).temperature = 0.75
        scripted_llm.complete("Say hello.")
        assert script.last_request["temperature"] == 0.5
