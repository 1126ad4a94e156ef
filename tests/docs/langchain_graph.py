"""A graph whose tokens and receipts arrive while it runs."""

import asyncio

from langgraph.graph import START, MessagesState, StateGraph

from langchain_opengradient import ChatOpenGradient, get_settlement_callback

writer = ChatOpenGradient(model="anthropic/claude-sonnet-4-6")
critic = ChatOpenGradient(model="google/gemini-2.5-flash")


async def write(state: MessagesState) -> dict:
    return {"messages": [await writer.ainvoke(state["messages"])]}


async def criticise(state: MessagesState) -> dict:
    return {"messages": [await critic.ainvoke([*state["messages"], ("user", "What is wrong with it?")])]}


builder = StateGraph(MessagesState)
builder.add_node(write)
builder.add_node(criticise)
builder.add_edge(START, "write")
builder.add_edge("write", "criticise")
graph = builder.compile()


async def main() -> None:
    question = {"messages": [("user", "Write a line about rain.")]}
    with get_settlement_callback() as settlements:
        async for token, _node in graph.astream(question, stream_mode="messages"):
            print(token.text, end="\n" if token.chunk_position == "last" else "", flush=True)
    for receipt in settlements.receipts:
        print(receipt.model, receipt.status)
    print(settlements.spent)


asyncio.run(main())
