"""An agent that pays for each of its steps, and what they cost."""

from langchain.agents import create_agent

from langchain_opengradient import ChatOpenGradient, SpendGuard, get_settlement_callback


def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


agent = create_agent(ChatOpenGradient(model="openai/gpt-5"), [multiply])

with get_settlement_callback() as settlements:
    answer = agent.invoke(
        {"messages": [("user", "Multiply 6 and 7.")]},
        {"callbacks": [SpendGuard("0.5")]},  # the agent is stopped before it has spent half an OPG
    )

print(answer["messages"][-1].text)
print(f"{settlements.calls} calls, {settlements.authorizations} payment, {settlements.spent_opg} OPG")
