"""Tools: what is asked for, and what becomes of every way in which models answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.tools import FunctionTool

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import CHAT_STREAMS, WITH_TOOLS, ask, run, user
from llamaindex.suite.server import Reply, ScriptedServer, call_to

STREAMS_WITH_TOOLS = tuple(f"{form}_with_tools" for form in CHAT_STREAMS)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def now() -> str:
    """The time of day."""
    return "12:00"


ADD = FunctionTool.from_defaults(add)
NOW = FunctionTool.from_defaults(now)
ODDLY_NAMED = FunctionTool.from_defaults(add, name="Box[int]")

ADD_1_2 = call_to("add", {"a": 1, "b": 2}, call_id="call_a")
ADD_3_4 = call_to("add", {"a": 3, "b": 4}, call_id="call_b")


def part(index: int | None, arguments: str, *, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    """One fragment of a tool call, as a delta."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    fragment: dict[str, Any] = {"index": index, "function": function}
    if call_id is not None:
        fragment |= {"id": call_id, "type": "function"}
    return {"tool_calls": [fragment]}


FRAGMENTS = {
    "by index": [
        part(0, "", call_id="call_a", name="add"),
        part(0, '{"a": 1,'),
        part(0, ' "b": 2}'),
        part(1, "", call_id="call_b", name="add"),
        part(1, '{"a": 3, "b"'),
        part(1, ": 4}"),
    ],
    "interleaved": [
        part(0, "", call_id="call_a", name="add"),
        part(1, "", call_id="call_b", name="add"),
        part(0, '{"a": 1,'),
        part(1, '{"a": 3,'),
        part(0, ' "b": 2}'),
        part(1, ' "b": 4}'),
    ],
    "without an index": [
        part(None, "", call_id="call_a", name="add"),
        part(None, '{"a": 1,'),
        part(None, ' "b": 2}'),
        part(None, "", call_id="call_b", name="add"),
        part(None, '{"a": 3,'),
        part(None, ' "b": 4}'),
    ],
    "with repeated ids": [
        part(0, '{"a": 1,', call_id="call_a", name="add"),
        part(0, ' "b": 2}', call_id="call_a", name="add"),
        part(1, '{"a": 3,', call_id="call_b", name="add"),
        part(1, ' "b": 4}', call_id="call_b", name="add"),
    ],
    "whole": [
        {"tool_calls": [{**ADD_1_2, "index": 0}, {**ADD_3_4, "index": 1}]},
    ],
}


class ToolTests(LLMTestBase):
    """Requests with tools, tool calls in every shape, and the way back."""

    def _calls(self, llm: Any, response: Any) -> list[tuple[str, str, dict[str, Any]]]:
        found = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        return [(call.tool_id, call.tool_name, call.tool_kwargs) for call in found]

    def _ask(self, llm: Any, form: str, tools: Sequence[Any] = (ADD, NOW), **kwargs: Any) -> list[Any]:
        return ask(llm, form, list(tools), user_msg="Add 1 and 2.", **kwargs)

    # -- what is asked for

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_tools_go_out_with_their_schemas(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        self._ask(scripted_llm, form)
        functions = {tool["function"]["name"]: tool["function"] for tool in script.last_request["tools"]}
        assert functions.keys() == {"add", "now"}
        assert functions["add"]["parameters"]["properties"].keys() == {"a", "b"}
        assert "Add two numbers" in functions["add"]["description"]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_required_tools_are_required_on_the_wire(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[ADD_1_2]))
        self._ask(scripted_llm, form, tool_required=True)
        assert script.last_request["tool_choice"] == "required"

    @pytest.mark.parametrize("form", WITH_TOOLS)
    @pytest.mark.parametrize(
        ("choice", "sent"),
        [
            ("auto", "auto"),
            ("none", "none"),
            ("required", "required"),
            ("any", "required"),
            ("add", {"type": "function", "function": {"name": "add"}}),
            ({"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "add"}}),
        ],
        ids=["auto", "none", "required", "any", "name", "object"],
    )
    def test_tool_choice_in_all_its_spellings(
        self, scripted_llm: Any, script: ScriptedServer, form: str, choice: Any, sent: Any
    ) -> None:
        self._ask(scripted_llm, form, tool_choice=choice)
        assert script.last_request["tool_choice"] == sent

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_without_tools_nothing_is_said_about_them(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        self._ask(scripted_llm, form, tools=())
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & script.last_request.keys()

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_names_that_no_provider_accepts_are_respelled_both_ways(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("Box_int_", {"a": 1, "b": 2})]))
        last = self._ask(scripted_llm, form, tools=[ODDLY_NAMED])[-1]
        assert script.last_request["tools"][0]["function"]["name"] == "Box_int_"
        assert self._calls(scripted_llm, last) == [("call_1", "Box[int]", {"a": 1, "b": 2})]

    # -- what comes back

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_a_tool_call_comes_back_as_a_block_with_a_mirror(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[ADD_1_2]))
        last = self._ask(scripted_llm, form)[-1]
        blocks = [block for block in last.message.blocks if isinstance(block, ToolCallBlock)]
        assert [(block.tool_call_id, block.tool_name) for block in blocks] == [("call_a", "add")]
        assert len(last.message.additional_kwargs["tool_calls"]) == 1, "core looks for it when it streams"
        assert self._calls(scripted_llm, last) == [("call_a", "add", {"a": 1, "b": 2})]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    @pytest.mark.parametrize("arguments", ["", None, "{}"], ids=["empty", "null", "object"])
    def test_a_tool_without_arguments(
        self, scripted_llm: Any, script: ScriptedServer, form: str, arguments: Any
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("now", arguments)]))
        last = self._ask(scripted_llm, form)[-1]
        assert self._calls(scripted_llm, last) == [("call_1", "now", {})]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_a_call_without_an_id(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("now", "{}", call_id=None)]))
        last = self._ask(scripted_llm, form)[-1]
        assert [call[1:] for call in self._calls(scripted_llm, last)] == [("now", {})]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_parallel_calls_keep_their_order(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=None, tool_calls=[ADD_1_2, ADD_3_4]))
        last = self._ask(scripted_llm, form, allow_parallel_tool_calls=True)[-1]
        assert self._calls(scripted_llm, last) == [
            ("call_a", "add", {"a": 1, "b": 2}),
            ("call_b", "add", {"a": 3, "b": 4}),
        ]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_without_parallel_calls_the_first_is_kept(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[ADD_1_2, ADD_3_4]))
        last = self._ask(scripted_llm, form, allow_parallel_tool_calls=False)[-1]
        assert self._calls(scripted_llm, last) == [("call_a", "add", {"a": 1, "b": 2})]
        assert len(last.message.additional_kwargs["tool_calls"]) == 1

    @pytest.mark.parametrize("form", STREAMS_WITH_TOOLS)
    @pytest.mark.parametrize("shape", FRAGMENTS, ids=str)
    def test_fragments_in_every_shape(self, scripted_llm: Any, script: ScriptedServer, form: str, shape: str) -> None:
        script.say(Reply(text=None, deltas=FRAGMENTS[shape], finish_reason="tool_calls"))
        last = self._ask(scripted_llm, form, allow_parallel_tool_calls=True)[-1]
        assert self._calls(scripted_llm, last) == [
            ("call_a", "add", {"a": 1, "b": 2}),
            ("call_b", "add", {"a": 3, "b": 4}),
        ]

    @pytest.mark.parametrize("form", STREAMS_WITH_TOOLS)
    def test_partial_arguments_only_grow(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        arguments = {"text": 'a "quoted" \\ line\nand é', "list": [1, 23, {"deep": "value"}], "flag": True, "n": -1.5}
        text = json.dumps(arguments)
        deltas = [part(0, "", call_id="call_a", name="add")]
        deltas += [part(0, text[at : at + 2]) for at in range(0, len(text), 2)]
        script.say(Reply(text=None, deltas=deltas, finish_reason="tool_calls"))
        seen = [kwargs for chunk in self._ask(scripted_llm, form) for _, _, kwargs in self._calls(scripted_llm, chunk)]
        assert seen[-1] == arguments
        for earlier, later in pairwise(seen):
            assert is_beginning(earlier, later), f"{earlier} is not a beginning of {later}"

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_broken_arguments_are_never_an_empty_call(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("now", '{"zone": "Euro')]))
        last = self._ask(scripted_llm, form)[-1]
        try:
            calls = self._calls(scripted_llm, last)
        except ValueError:
            return
        assert all(kwargs for _, _, kwargs in calls)

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_text_beside_a_tool_call_is_kept(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text="Let me add that.", tool_calls=[ADD_1_2]))
        last = self._ask(scripted_llm, form)[-1]
        assert last.message.content == "Let me add that."
        assert self._calls(scripted_llm, last) == [("call_a", "add", {"a": 1, "b": 2})]

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_a_tool_that_does_not_exist_is_reported_as_called(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("divide", {"a": 1})]))
        last = self._ask(scripted_llm, form)[-1]
        assert self._calls(scripted_llm, last) == [("call_1", "divide", {"a": 1})]

    def test_no_tool_call_is_an_error_where_one_is_needed(self, scripted_llm: Any) -> None:
        response = self._ask(scripted_llm, "chat_with_tools")[-1]
        with pytest.raises(ValueError, match="tool"):
            scripted_llm.get_tool_calls_from_response(response)
        assert scripted_llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []

    # -- the way back

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_predict_and_call_runs_the_tools(
        self, scripted_llm: Any, script: ScriptedServer, *, is_async: bool
    ) -> None:
        script.say(Reply(text=None, tool_calls=[ADD_1_2, ADD_3_4]))
        options = {"user_msg": "Add.", "allow_parallel_tool_calls": True}
        if is_async:
            answer = run(scripted_llm.apredict_and_call([ADD], **options))
        else:
            answer = scripted_llm.predict_and_call([ADD], **options)
        assert answer.response == "3\n\n7"

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    @pytest.mark.parametrize(
        "call",
        [call_to("divide", {"a": 1}), call_to("shout", '{"text": "hel')],
        ids=["unknown tool", "broken arguments"],
    )
    def test_predict_and_call_reports_what_it_cannot_run(
        self, scripted_llm: Any, script: ScriptedServer, call: dict[str, Any], *, is_async: bool
    ) -> None:
        heard: list[str] = []

        def shout(text: str) -> None:
            heard.append(text)

        script.say(Reply(text=None, tool_calls=[call]))
        if is_async:
            answer = run(scripted_llm.apredict_and_call([FunctionTool.from_defaults(shout)], user_msg="Go."))
        else:
            answer = scripted_llm.predict_and_call([FunctionTool.from_defaults(shout)], user_msg="Go.")
        assert [output.is_error for output in answer.sources] == [True]
        assert not heard

    @pytest.mark.parametrize("form", WITH_TOOLS)
    def test_a_conversation_survives_json_between_call_and_result(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text="Adding.", tool_calls=[ADD_1_2]))
        asked = self._ask(scripted_llm, form)[-1].message
        history = [
            user("Add 1 and 2."),
            asked,
            ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "call_a"}),
        ]
        stored = json.loads(json.dumps([message.model_dump(mode="json") for message in history]))
        restored = [ChatMessage.model_validate(message) for message in stored]
        ask(scripted_llm, form, [ADD], chat_history=restored)
        _, call, result = script.last_request["messages"]
        assert call["content"] == "Adding."
        assert [(made["id"], made["function"]["name"]) for made in call["tool_calls"]] == [("call_a", "add")]
        assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"a": 1, "b": 2}
        assert (result["role"], result["tool_call_id"], result["content"]) == ("tool", "call_a", "3")


def is_beginning(earlier: Any, later: Any) -> bool:
    """Whether `later` shows everything that `earlier` showed, and perhaps more."""
    if isinstance(earlier, dict):
        return isinstance(later, dict) and all(
            key in later and is_beginning(value, later[key]) for key, value in earlier.items()
        )
    if isinstance(earlier, list):
        return isinstance(later, list) and len(earlier) <= len(later) and all(map(is_beginning, earlier, later))
    if isinstance(earlier, str):
        return isinstance(later, str) and later.startswith(earlier)
    return bool(earlier == later)
