"""Agents of several makers in their newest releases: each call is paid once, heard once, and in the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from support.payers import opg_balance
from support.venvs import install_wheel, make_venv

OPG = 10**18
CALLS = {
    "supervisor": 4,
    "swarm": 3,
    "deepagents": 2,
    "trustcall": 1,
    "function_agent": 2,
    "react_agent": 2,
    "code_act_agent": 2,
    "agent_workflow": 3,
    "mcp_over_stdio": 2,
}
"""The least number of calls that each needs for a question that a tool has to answer."""


@pytest.mark.soak
def test_what_each_agent_pays_is_heard_and_in_the_ledger(wheel: Path, scripts: Path, tmp_path: Path):
    """By hand: the environment has 130 packages."""
    requirements = scripts.parent / "requirements" / "agents.txt"
    venv = make_venv(requirements)
    install_wheel(venv, wheel, requirements, extras="langchain,llama-index")
    with Devnet() as net:
        account = net.account(opg="1", approved=True)
        task = {
            "agents": list(CALLS),
            "private_key": account.private_key,
            "network": f"{net.gateway_url}/network",
            "ledger": str(tmp_path),
            "mcp_server": str(scripts / "mcp_tools.py"),
        }
        found = venv.run(scripts / "agents.py", task, timeout_s=300)
        net.close_sessions()
        paid = OPG - opg_balance(net, account.address)
    for name, least in CALLS.items():
        agent = found[name]
        assert sorted(agent["heard"]) == sorted(agent["receipts"]), name
        assert len(set(agent["heard"])) == len(agent["heard"]) >= least, name
        assert agent["text"], name
    answers = {name: agent["text"] for name, agent in found.items() if name not in ("trustcall", "supervisor")}
    assert [name for name, text in answers.items() if "42" not in text] == []
    assert sum(int(agent["cost_atomic"]) for agent in found.values()) == paid
