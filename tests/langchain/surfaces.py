"""The ways in which LangChain users call a model: each makes a runnable, and an input for it."""

from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel

from langchain_opengradient import ChatOpenGradient

Surface = Callable[[ChatOpenGradient], tuple[Runnable[Any, Any], Any]]


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool
def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def bare(model):
    return model, "Hello"


def with_tools(model):
    return model.bind_tools([multiply], tool_choice="any"), "Multiply 3 and 4"


def json_schema(model):
    return model.with_structured_output(Joke), "Tell me a joke about 'cats'"


def function_calling(model):
    return model.with_structured_output(Joke, method="function_calling"), "Tell me a joke about 'cats'"


def include_raw(model):
    return model.with_structured_output(Joke, include_raw=True), "Tell me a joke about 'cats'"


def chain(model):
    return ChatPromptTemplate.from_template("Speak of {topic}") | model | StrOutputParser(), {"topic": "cats"}


def parallel(model):
    joke, poem = (ChatPromptTemplate.from_template(f"A {kind} of {{topic}}") | model for kind in ("joke", "poem"))
    return RunnableParallel(joke=joke, poem=poem, plain=itself("topic") | model), {"topic": "cats"}


def itself(key: str) -> Runnable[Any, Any]:
    return RunnableLambda(lambda given: given[key])


def nested(model):
    def improve(message, config):
        return model.invoke(f"Improve: {message.text}", config)

    async def aimprove(message, config):
        return await model.ainvoke(f"Improve: {message.text}", config)

    return model | RunnableLambda(improve, aimprove), "Hello"


def batched(model):
    def ask(topics, config):
        return model.batch([f"Speak of {topic}" for topic in topics], config)

    async def aask(topics, config):
        return await model.abatch([f"Speak of {topic}" for topic in topics], config)

    return RunnableLambda(ask, aask), ["cats", "dogs", "birds"]


def retried(model):
    return model.with_retry(stop_after_attempt=2), "Hello"


def fallback(model):
    broken = ChatOpenGradient(
        model="openai/gpt-5", payments=model.payments, base_url="http://127.0.0.1:9", max_retries=0
    )
    return broken.with_fallbacks([model]), "Hello"


def configurable(model):
    field = ConfigurableField(id="temperature")
    return model.configurable_fields(temperature=field).with_config(configurable={"temperature": 0.5}), "Hello"


def agent(model):
    return create_agent(model, [multiply, weather]), ask("Multiply 6 and 7.")


def tool_that_calls_the_model(model):
    @tool
    def consult(question: str) -> str:
        """Consult an expert about a question."""
        return model.invoke(question).text

    return create_agent(model, [consult]), ask("Consult the expert about 'tea'.")


def ask(text: str) -> dict[str, Any]:
    return {"messages": [("user", text)]}


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


def graph(model):
    async def aspeak(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    def speak(state):
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(State)
    for name in ("left", "right"):
        builder.add_node(name, RunnableLambda(speak, aspeak))
        builder.add_edge(START, name)
        builder.add_edge(name, END)
    return builder.compile(), ask("Hello")


def agent_in_agent(model):
    inner = create_agent(model, [multiply])

    @tool
    def mathematician(task: str) -> str:
        """Let a mathematician multiply numbers in a task."""
        return inner.invoke(ask(f"Multiply 3 and 4: {task}"))["messages"][-1].text

    return create_agent(model, [mathematician]), ask("Let the mathematician do the task 'numbers'.")


SURFACES: dict[Surface, int] = {
    bare: 1,
    with_tools: 1,
    json_schema: 1,
    function_calling: 1,
    include_raw: 1,
    chain: 1,
    parallel: 3,
    nested: 2,
    batched: 3,
    retried: 1,
    fallback: 1,
    configurable: 1,
    agent: 2,
    tool_that_calls_the_model: 3,
    graph: 2,
    agent_in_agent: 4,
}
"""Each surface, and how many calls one run of it pays for."""
