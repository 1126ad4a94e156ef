"""Agents: loops of calls in which each answer decides what is asked next."""

from __future__ import annotations

from typing import Any, Final

import pytest
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.tools import FunctionTool

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import run
from llamaindex.suite.server import USAGE, Reply, ScriptedServer, call_to


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def population(city: str) -> str:
    """The population of a city."""
    return f"{city} has 31415 inhabitants."


TOOLS: Final = (FunctionTool.from_defaults(multiply), FunctionTool.from_defaults(population))
STREAMING: Final = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])


def function_agent(llm: Any, *, streaming: bool = True) -> FunctionAgent:
    """An agent with two tools, which calls them by the provider's tool calling."""
    return FunctionAgent(llm=llm, tools=list(TOOLS), streaming=streaming, system_prompt="Use the tools.")


def react_agent(llm: Any, *, streaming: bool = True) -> ReActAgent:
    """The same tools, called in words."""
    return ReActAgent(llm=llm, tools=list(TOOLS), streaming=streaming)


def handoff_workflow(llm: Any) -> AgentWorkflow:
    """Two agents, of which the first has to hand arithmetic over to the second."""
    greeter = FunctionAgent(
        name="greeter",
        description="Greets, and hands arithmetic over.",
        system_prompt="You greet people. Hand off arithmetic, like multiplying numbers, to the calculator agent.",
        llm=llm,
        tools=[],
        can_handoff_to=["calculator"],
    )
    calculator = FunctionAgent(
        name="calculator",
        description="Can multiply numbers.",
        system_prompt="You multiply numbers with the multiply tool.",
        llm=llm,
        tools=[TOOLS[0]],
        can_handoff_to=["greeter"],
    )
    return AgentWorkflow(agents=[greeter, calculator], root_agent="greeter")


async def run_agent(agent: Any, question: str) -> tuple[AgentOutput, list[Any]]:
    """An agent's output, and the events that it told of on the way."""
    handler = agent.run(user_msg=question)
    events = [event async for event in handler.stream_events()]
    return await handler, events


def results_of(events: list[Any]) -> list[tuple[str, str]]:
    """Which tools ran, and what they gave."""
    return [(event.tool_name, str(event.tool_output)) for event in events if isinstance(event, ToolCallResult)]


# llama-index-workflows looks at every attribute of an agent when it is made, deprecated ones of pydantic included
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
# llama-index-core's ReActAgent asks its context whether the workflow is running, which workflows deprecates
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
class AgentTests(LLMTestBase):
    """Function calling, ReAct, hand-off; and what happens when the model misbehaves."""

    @STREAMING
    def test_a_function_agent_calls_a_tool_and_answers(self, llm: Any, *, streaming: bool) -> None:
        output, events = run(run_agent(function_agent(llm, streaming=streaming), "Multiply 12 by 34."))
        assert ("multiply", "408") in results_of(events)
        assert "408" in str(output)

    @STREAMING
    def test_a_react_agent_calls_a_tool_and_answers(self, llm: Any, *, streaming: bool) -> None:
        output, events = run(run_agent(react_agent(llm, streaming=streaming), "Multiply 12 by 34."))
        assert ("multiply", "408") in results_of(events)
        assert "408" in str(output)

    def test_a_workflow_hands_over(self, llm: Any) -> None:
        output, events = run(run_agent(handoff_workflow(llm), "Please multiply the numbers 12 and 34."))
        assert [name for name, _ in results_of(events)] == ["handoff", "multiply"]
        assert output.current_agent_name == "calculator"
        assert "408" in str(output)

    @STREAMING
    def test_an_agent_keeps_message_and_usage(
        self, scripted_llm: Any, script: ScriptedServer, *, streaming: bool
    ) -> None:
        script.say(
            Reply(text=None, tool_calls=[call_to("multiply", {"a": 3, "b": 4})]),
            Reply(text="It is 12."),
        )
        output, _ = run(run_agent(function_agent(scripted_llm, streaming=streaming), "3 by 4?"))
        assert output.response.content == "It is 12."
        raw: Any = output.raw
        assert {name: raw["usage"][name] for name in USAGE} == USAGE
        assert [call.tool_name for call in output.tool_calls] == ["multiply"]

    def test_an_agent_streams_text_and_growing_calls(self, scripted_llm: Any, script: ScriptedServer) -> None:
        script.say(
            Reply(text="Let me see.", tool_calls=[call_to("multiply", {"a": 3, "b": 4})]),
            Reply(text="It is 12."),
        )
        _, events = run(run_agent(function_agent(scripted_llm), "3 by 4?"))
        streams = [event for event in events if isinstance(event, AgentStream)]
        assert "".join(event.delta for event in streams) == "Let me see.It is 12."
        assert any(event.tool_calls for event in streams)

    @STREAMING
    def test_an_agent_sends_calls_and_results_back(
        self, scripted_llm: Any, script: ScriptedServer, *, streaming: bool
    ) -> None:
        script.say(
            Reply(
                text=None,
                tool_calls=[
                    call_to("multiply", {"a": 3, "b": 4}, call_id="call_a"),
                    call_to("population", {"city": "Lund"}, call_id="call_b"),
                ],
            ),
            Reply(text="Done."),
        )
        run(run_agent(function_agent(scripted_llm, streaming=streaming), "Both."))
        sent = script.last_request["messages"]
        assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool", "tool"]
        assert [call["id"] for call in sent[2]["tool_calls"]] == ["call_a", "call_b"]
        answered = {message["tool_call_id"]: message["content"] for message in sent[3:]}
        assert answered == {"call_a": "12", "call_b": "Lund has 31415 inhabitants."}

    @STREAMING
    def test_an_agent_survives_a_tool_that_does_not_exist(
        self, scripted_llm: Any, script: ScriptedServer, *, streaming: bool
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("divide", {"a": 1})]), Reply(text="Sorry."))
        output, _ = run(run_agent(function_agent(scripted_llm, streaming=streaming), "1 by 0?"))
        assert str(output) == "Sorry."
        assert "divide" in script.last_request["messages"][-1]["content"]

    @STREAMING
    def test_an_agent_survives_broken_arguments(
        self, scripted_llm: Any, script: ScriptedServer, *, streaming: bool
    ) -> None:
        script.say(Reply(text=None, tool_calls=[call_to("multiply", '{"a": 3, "b"')]), Reply(text="Sorry."))
        output, events = run(run_agent(function_agent(scripted_llm, streaming=streaming), "3 by 4?"))
        assert str(output) == "Sorry."
        assert all(result != "0" for _, result in results_of(events))

    @STREAMING
    def test_a_react_agent_asks_again_after_an_answer_out_of_form(
        self, scripted_llm: Any, script: ScriptedServer, *, streaming: bool
    ) -> None:
        script.say(
            Reply(text="Thought: I need a tool.\nAction: multiply\nAction Input: nonsense"),
            Reply(text="Thought: I can answer without using any more tools.\nAnswer: It is 12."),
        )
        output, _ = run(run_agent(react_agent(scripted_llm, streaming=streaming), "3 by 4?"))
        assert str(output) == "It is 12."
        assert len(script.requests) == 2
