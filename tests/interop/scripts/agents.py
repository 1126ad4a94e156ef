"""Agents of several makers, each of which multiplies two numbers with a tool, paid by one wallet.

Task: {agents: [name], private_key, network, ledger, mcp_server}.
Answer: {name: {text, heard: [call id], receipts: [call id], cost_atomic}}; `receipts` are those of the ledger.
"""

import asyncio
import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
QUESTION = "Multiply 6 and 7."


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def asked(graph, question=QUESTION):
    return graph.invoke({"messages": [("user", question)]}, {"configurable": {"thread_id": "1"}})["messages"][-1].text


def supervisor(model):
    from langchain.agents import create_agent
    from langgraph_supervisor import create_supervisor

    calculator = create_agent(model, [multiply], name="calculator", system_prompt="You multiply numbers.")
    prompt = "Transfer arithmetic, like multiplying numbers, to the calculator."
    graph = create_supervisor([calculator], model=model, prompt=prompt).compile()
    return asked(graph, f"Transfer this to the calculator: {QUESTION}")


def swarm(model):
    from langchain.agents import create_agent
    from langgraph_swarm import create_handoff_tool, create_swarm

    to_calculator = create_handoff_tool(agent_name="calculator", description="Hand over: multiply numbers.")
    greeter = create_agent(model, [to_calculator], name="greeter")
    calculator = create_agent(model, [multiply], name="calculator")
    return asked(
        create_swarm([greeter, calculator], default_active_agent="greeter").compile(),
        f"Hand over to the calculator: {QUESTION}",
    )


def deepagents(model):
    from deepagents import create_deep_agent

    return asked(create_deep_agent(model=model, tools=[multiply]))


def trustcall(model):
    from pydantic import BaseModel
    from trustcall import create_extractor

    class City(BaseModel):
        """A city and its country."""

        name: str
        country: str

    found = create_extractor(model, tools=[City], tool_choice="City").invoke("name: 'Paris', country: 'France'")
    return found["responses"][0].model_dump_json()


def llama_tools():
    from llama_index.core.tools import FunctionTool

    return [FunctionTool.from_defaults(multiply)]


async def function_agent(llm, _task):
    from llama_index.core.agent.workflow import FunctionAgent

    return await FunctionAgent(llm=llm, tools=llama_tools()).run(QUESTION)


async def react_agent(llm, _task):
    from llama_index.core.agent.workflow import ReActAgent

    return await ReActAgent(llm=llm, tools=llama_tools()).run(QUESTION)


async def code_act_agent(llm, _task):
    from llama_index.core.agent.workflow import CodeActAgent

    def execute(code):
        return f"It is {eval(code, {'multiply': multiply})}."

    # The devnet's model repeats what it was asked, and the agent runs what stands between the marks.
    question = "Say <execute>multiply(6, 7)</execute>"
    return await CodeActAgent(llm=llm, tools=llama_tools(), code_execute_fn=execute).run(question)


async def agent_workflow(llm, _task):
    from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent

    greeter = FunctionAgent(
        name="greeter",
        description="Greets, and hands arithmetic over.",
        system_prompt="You greet people. Hand off arithmetic, like multiplying numbers, to the calculator agent.",
        llm=llm,
        can_handoff_to=["calculator"],
    )
    calculator = FunctionAgent(name="calculator", description="Can multiply numbers.", llm=llm, tools=llama_tools())
    return await AgentWorkflow(agents=[greeter, calculator], root_agent="greeter").run(
        f"Hand off to the calculator: {QUESTION}"
    )


async def mcp_over_stdio(llm, task):
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    client = BasicMCPClient(sys.executable, args=[task["mcp_server"]])
    tools = await McpToolSpec(client=client).to_tool_list_async()
    return await FunctionAgent(llm=llm, tools=tools).run(QUESTION)


LANGCHAIN = {one.__name__: one for one in (supervisor, swarm, deepagents, trustcall)}
LLAMA_INDEX = {
    one.__name__: one for one in (function_agent, react_agent, code_act_agent, agent_workflow, mcp_over_stdio)
}


def by_langchain(name, payments):
    from langchain_opengradient import ChatOpenGradient, get_settlement_callback

    with ChatOpenGradient(model="openai/gpt-5", payments=payments) as model, get_settlement_callback() as heard:
        text = LANGCHAIN[name](model)
    return text, [receipt.call_id for receipt in heard.receipts]


def by_llama_index(name, payments, task):
    from llama_index_opengradient import OpenGradient, SettlementLedgerHandler

    async def run():
        llm = OpenGradient(model="openai/gpt-5", payments=payments)
        with SettlementLedgerHandler().listening() as heard:
            text = str(await LLAMA_INDEX[name](llm, task))
        await llm.aclose()
        return text, [receipt.call_id for receipt in heard.receipts]

    return asyncio.run(run())


def main(task):
    from opengradient_x402 import Payments

    answer = {}
    for name in task["agents"]:
        ledger = f"sqlite:///{Path(task['ledger']) / name}.sqlite"
        payments = Payments.open(network=task["network"], private_key=task["private_key"], ledger=ledger)
        text, heard = by_langchain(name, payments) if name in LANGCHAIN else by_llama_index(name, payments, task)
        receipts = payments.ledger.receipts().result()
        answer[name] = {
            "text": text,
            "heard": heard,
            "receipts": [receipt.call_id for receipt in receipts],
            "cost_atomic": str(sum(receipt.cost_atomic for receipt in receipts)),
        }
        payments.close()
    return answer


print(json.dumps(main(json.loads(sys.stdin.readline()))))
