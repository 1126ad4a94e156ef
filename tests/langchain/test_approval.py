"""An agent pauses before a large payment and goes on after the answer, also in another process; it pays once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from support.payers import opg_balance

AGENT = """
import json, sys

from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from langchain_opengradient import ChatOpenGradient, interrupt_for_approval
from opengradient_x402 import SpendPolicy

task = json.loads(sys.stdin.read())
policy = SpendPolicy(approve_above="0.05", approval=interrupt_for_approval)
model = ChatOpenGradient(model="openai/gpt-5", spend_policy=policy, **task["options"])


def multiply(a: int, b: int) -> int:
    \"\"\"Multiply two integers.\"\"\"
    return a * b


with SqliteSaver.from_conn_string(task["checkpoints"]) as saver:
    agent = create_agent(model, [multiply], checkpointer=saver)
    config = {"configurable": {"thread_id": "1"}}
    question = {"messages": [("user", "Use multiply on 6 and 7.")]}
    given = question if task["answer"] is None else Command(resume=task["answer"])
    try:
        state = agent.invoke(given, config)
        asked = [one.value for one in state.get("__interrupt__", ())]
        print(json.dumps({"asked": asked, "text": state["messages"][-1].text}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__}))
model.close()
"""


@pytest.fixture
def run(net: Devnet, tmp_path: Path):
    account = net.account(approved=True)
    options = {
        "network": net.network_url,
        "private_key": account.private_key,
        "ledger": str(tmp_path / "ledger.sqlite"),
    }

    def in_a_new_process(answer: bool | None) -> dict:
        task = {"options": options, "checkpoints": str(tmp_path / "checkpoints.sqlite"), "answer": answer}
        done = subprocess.run(
            [sys.executable, "-c", AGENT],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    in_a_new_process.account = account
    return in_a_new_process


def test_an_agent_pauses_before_it_pays_and_pays_once_after_a_restart(net: Devnet, run) -> None:
    paused = run(None)
    [asked] = paused["asked"]
    assert asked["question"].startswith("Pay up to 0.1 OPG to ")
    net.close_sessions()
    assert opg_balance(net, run.account.address) == 10 * 10**18

    settled_before = len(net.settlements)
    finished = run(True)
    while finished["asked"]:  # a session that ended meanwhile is asked for anew
        finished = run(True)
    assert "42" in finished["text"]
    net.close_sessions()
    assert len([one for one in net.settlements[settled_before:] if one.success]) == 1
    assert opg_balance(net, run.account.address) < 10 * 10**18


def test_an_agent_whose_payment_is_refused_ends_with_a_typed_error_and_pays_nothing(net: Devnet, run) -> None:
    run(None)
    assert run(False)["error"] == "PaymentNotApproved"
    net.close_sessions()
    assert opg_balance(net, run.account.address) == 10 * 10**18
