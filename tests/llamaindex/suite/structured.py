"""Structured prediction in its four forms, and the system prompt on every path that has one."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Generic, TypeVar

import pytest
from llama_index.core.base.llms.types import MessageRole
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import CHAT, STRUCTURED, ask, is_async, is_stream, run, user
from llamaindex.suite.server import Reply, ScriptedServer, call_to
from llamaindex.suite.tools import is_beginning

T = TypeVar("T")


class Colour(Enum):
    """A colour."""

    RED = "red"
    GREEN = "green"


class Wheel(BaseModel):
    """A wheel."""

    inches: int
    spare: bool = False


class Car(BaseModel):
    """A car."""

    name: str
    colour: Colour
    wheels: list[Wheel]
    note: str | None = None


class Box(BaseModel, Generic[T]):
    """A box with something in it."""

    content: T


CAR = {"name": "Zoe", "colour": "green", "wheels": [{"inches": 15, "spare": False}, {"inches": 13, "spare": True}]}
OUTPUTS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "flat": (Wheel, {"inches": 15, "spare": True}),
    "nested": (Car, CAR),
    "generic": (Box[int], {"content": 7}),
    "generic of nested": (Box[Car], {"content": CAR}),
}
PROMPT = PromptTemplate("Describe {thing}.")
PREDICTIONS = ("predict", "apredict", "stream", "astream")


class StructuredTests(LLMTestBase):
    """Objects out of answers, whole and growing."""

    def _say(self, script: ScriptedServer, output_cls: type[BaseModel], data: dict[str, Any]) -> None:
        name = "".join(ch if ch.isalnum() or ch in "_-" else "_" for ch in output_cls.model_json_schema()["title"])
        script.say(Reply(text=None, tool_calls=[call_to(name, data)]))

    @pytest.mark.parametrize("form", STRUCTURED)
    @pytest.mark.parametrize("kind", OUTPUTS)
    def test_an_object_comes_out(self, scripted_llm: Any, script: ScriptedServer, form: str, kind: str) -> None:
        output_cls, data = OUTPUTS[kind]
        self._say(script, output_cls, data)
        last = ask(scripted_llm, form, output_cls, PROMPT, thing="it")[-1]
        assert type(last) is output_cls
        assert last == output_cls.model_validate(data)

    @pytest.mark.parametrize("form", STRUCTURED)
    def test_the_output_tool_is_required(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        self._say(script, Car, CAR)
        ask(scripted_llm, form, Car, PROMPT, thing="it")
        request = script.last_request
        assert [tool["function"]["name"] for tool in request["tools"]] == ["Car"]
        assert request["tool_choice"] in ("required", {"type": "function", "function": {"name": "Car"}})
        assert request["messages"][-1]["content"] == "Describe it."

    @pytest.mark.parametrize("form", [form for form in STRUCTURED if is_stream(form)])
    def test_a_streamed_object_only_grows(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        self._say(script, Car, CAR)
        stages = ask(scripted_llm, form, Car, PROMPT, thing="it")
        assert stages[-1] == Car.model_validate(CAR)
        assert self.tool_calls_come_whole or len(stages) > 3
        shown = [json.loads(stage.model_dump_json(exclude_unset=True)) for stage in stages]
        shown = [{name: value for name, value in stage.items() if value is not None} for stage in shown]
        assert all(map(is_beginning, shown, shown[1:]))

    @pytest.mark.parametrize("form", STRUCTURED)
    def test_an_answer_in_words_is_an_error(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text="I would rather not."))
        with pytest.raises((ValueError, TypeError)):
            ask(scripted_llm, form, Car, PROMPT, thing="it")

    @pytest.mark.parametrize("form", STRUCTURED)
    def test_structured_prediction_sends_the_system_prompt(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        scripted_llm.system_prompt = "You sell cars."
        self._say(script, Car, CAR)
        ask(scripted_llm, form, Car, PROMPT, thing="it")
        assert [message["content"] for message in script.last_request["messages"]] == ["You sell cars.", "Describe it."]

    @pytest.mark.parametrize("form", PREDICTIONS)
    def test_prediction_sends_the_system_prompt(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        scripted_llm.system_prompt = "You sell cars."
        ask(scripted_llm, form, PROMPT, thing="it")
        sent = [(message["role"], message["content"]) for message in script.last_request["messages"]]
        assert sent == [("system", "You sell cars."), ("user", "Describe it.")]

    @pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # llama-index-core's StructuredLLM streams so
    @pytest.mark.parametrize("form", CHAT)
    def test_as_structured_llm_gives_objects(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        self._say(script, Car, CAR)
        last = ask(scripted_llm.as_structured_llm(Car), form, [user("Describe it.")])[-1]
        assert last.raw == Car.model_validate(CAR)
        assert last.message.role == MessageRole.ASSISTANT
        assert Car.model_validate_json(last.message.content) == last.raw

    @pytest.mark.parametrize("form", STRUCTURED)
    def test_a_capable_model_fills_a_nested_class(self, llm: Any, form: str) -> None:
        prompt = PromptTemplate("Describe the {thing} car Zoe, which has two wheels of 15 inches.")
        last = ask(llm, form, Car, prompt, thing="green")[-1]
        assert type(last) is Car

    @pytest.mark.parametrize("form", [form for form in STRUCTURED if is_stream(form)])
    def test_closing_a_streamed_prediction_closes_the_connection(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        # Nobody waits for the rest of a call that came whole: there is none.
        held = None if self.tool_calls_come_whole else 6
        script.say(Reply(text=None, tool_calls=[call_to("Car", CAR)], hold_after=held))

        async def abandon() -> Any:
            stages = await getattr(scripted_llm, form)(Car, PROMPT, thing="it")
            first = await anext(stages)
            await stages.aclose()
            return first

        if is_async(form):
            first = run(abandon())
        else:
            stages = getattr(scripted_llm, form)(Car, PROMPT, thing="it")
            first = next(stages)
            stages.close()
        assert first == Car.model_validate(CAR) if self.tool_calls_come_whole else script.client_hung_up()
