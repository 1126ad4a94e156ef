"""`create_agent` with the middlewares that LangChain ships: each call that one makes is paid once, and heard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent, middleware
from langchain.agents.middleware import AgentMiddleware
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_opengradient import ChatOpenGradient, get_settlement_callback

from .conftest import BETA, Payer

pytestmark = pytest.mark.filterwarnings(BETA)
Make = Callable[[ChatOpenGradient, Path], AgentMiddleware[Any, Any]]


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool
def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def of(name: str) -> Any:
    return getattr(middleware, name)


# What each is made with, and how many calls "Multiply 6 and 7." costs with it.
MADE: dict[str, tuple[Make, int]] = {
    "ContextEditingMiddleware": (lambda model, _: of("ContextEditingMiddleware")(token_count_method="model"), 2),
    "FilesystemFileSearchMiddleware": (
        lambda _, path: of("FilesystemFileSearchMiddleware")(root_path=str(path), use_ripgrep=False),
        2,
    ),
    "HumanInTheLoopMiddleware": (lambda *_: of("HumanInTheLoopMiddleware")(interrupt_on={"multiply": True}), 2),
    "LLMToolEmulator": (lambda model, _: of("LLMToolEmulator")(model=model), 3),
    "LLMToolSelectorMiddleware": (
        lambda model, _: of("LLMToolSelectorMiddleware")(model=model, max_tools=1, always_include=["multiply"]),
        4,
    ),
    "ModelCallLimitMiddleware": (lambda *_: of("ModelCallLimitMiddleware")(run_limit=1), 1),
    "ModelFallbackMiddleware": (lambda model, _: of("ModelFallbackMiddleware")(model), 2),
    "ModelRetryMiddleware": (lambda *_: of("ModelRetryMiddleware")(max_retries=1), 2),
    "PIIMiddleware": (lambda *_: of("PIIMiddleware")("email", apply_to_output=True), 2),
    "ShellToolMiddleware": (lambda _, path: of("ShellToolMiddleware")(workspace_root=path), 2),
    "SummarizationMiddleware": (
        lambda model, _: of("SummarizationMiddleware")(model, trigger=("messages", 3), keep=("messages", 1)),
        3,
    ),
    "TodoListMiddleware": (lambda *_: of("TodoListMiddleware")(), 2),
    "ToolCallLimitMiddleware": (lambda *_: of("ToolCallLimitMiddleware")(run_limit=5), 2),
    "ToolRetryMiddleware": (lambda *_: of("ToolRetryMiddleware")(max_retries=1), 2),
    "ModelRefusalMiddleware": (lambda *_: of("ModelRefusalMiddleware")(), 2),
    "ToolErrorMiddleware": (lambda *_: of("ToolErrorMiddleware")(lambda error: str(error)), 2),
    "ProviderToolSearchMiddleware": (lambda *_: of("ProviderToolSearchMiddleware")(), 2),
    "AutoModeMiddleware": (
        lambda model, _: of("AutoModeMiddleware")(tools=[multiply], classifier=decider(model)),
        3,
    ),
    "ModelRouterMiddleware": (
        lambda model, _: of("ModelRouterMiddleware")(
            choices={"it": of("ModelChoice")(model=model, criteria="everything")},
            instructions="Choose.",
            classifier=decider(model),
        ),
        3,
    ),
}


def decider(model: ChatOpenGradient) -> Any:
    """A decision model, as the middlewares that sort and guard want one, which asks the paid model each time."""
    from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse, NoulAnswer

    class Decider(BaseDecisionModel):
        @property
        def _provider(self) -> str:
            return "opengradient"

        def _classify(self, state: Any, questions: Any) -> Any:
            said = model.invoke(f"Decide about {len(str(state))} letters.").text
            answers = {
                name: ChoiceAnswer(type="choice", choice=next(iter(one.criteria)), probabilities={}, confidence=1)
                if isinstance(one, Choice)
                else NoulAnswer(type="noul", noul=0.0 if said else 1.0)
                for name, one in questions.items()
            }
            return ClassifierResponse(answers=answers, model=model.model)

    return Decider(model=model.model)


def shipped() -> set[str]:
    found = {name: getattr(middleware, name) for name in middleware.__all__}
    return {
        name
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, AgentMiddleware) and value is not AgentMiddleware
    }


def test_every_middleware_that_langchain_ships_is_tried():
    assert shipped() <= MADE.keys()


# LangChain's shell leaves the pipes of its process to the garbage collector.
LEAVES_PIPES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LEAVES_PIPES if name == "ShellToolMiddleware" else ()) for name in sorted(shipped())],
)
def test_what_an_agent_with_it_pays_is_heard_once(name: str, payer: Payer, tmp_path: Path):
    make, calls = MADE[name]
    model = payer.model()
    agent = create_agent(model, [multiply, weather], middleware=[make(model, tmp_path)], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with get_settlement_callback() as heard:
        result = agent.invoke({"messages": [("user", "Multiply 6 and 7.")]}, config)
        if "__interrupt__" in result:
            result = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    assert len(heard.receipts) == calls
    assert {receipt.call_id for receipt in heard.receipts} == payer.receipts().keys()
    assert sum(receipt.cost_atomic for receipt in heard.receipts) == payer.settle()
    assert result["messages"][-1].text
