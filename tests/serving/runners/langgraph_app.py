"""A graph with one paid node."""

from langgraph.graph import START, MessagesState, StateGraph

from langchain_opengradient import ChatOpenGradient

model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)


async def ask(state: MessagesState) -> dict:
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
