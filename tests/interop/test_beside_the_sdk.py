"""Somebody who has the OpenGradient SDK installs this project beside it, and both pay from one process."""

from __future__ import annotations

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.gateway.pricing import load_prices
from support.payers import opg_balance

OPG = 10**18
BODY = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "What is x402?"}], "max_tokens": 200}


@pytest.fixture(scope="module")
def net():
    with Devnet(chain_id=8453, unsafe_live_chain_id=True) as network:
        yield network


def test_both_pay_from_one_process_and_share_no_file(beside, scripts, net, tmp_path):
    ours, theirs = net.account(opg="1", approved=True), net.account(opg="1", approved=True)
    task = {
        "network": f"{net.gateway_url}/network",
        "ledger": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "rpc_url": net.rpc_url,
        "registry_address": net.network["registry"]["address"],
        "ours": {"private_key": ours.private_key},
        "theirs": {"private_key": theirs.private_key},
        "body": BODY,
    }
    answer = beside.run(scripts / "beside_sdk.py", task, env={"BASE_MAINNET_RPC": net.rpc_url})
    assert answer["files"] > 50
    assert answer["shared_files"] == []
    # The module name that the official SDK and the fork fight over stays the fork's.
    assert answer["x402_belongs_to"] == ["og-x402"]
    assert "What is x402?" in answer["ours"]["content"]
    assert answer["ours"]["streamed"] == answer["ours"]["content"] == answer["theirs"]["content"]
    net.close_sessions()
    usage, prices = answer["theirs"]["usage"], load_prices()
    cost = prices.cost(
        prices.find("gpt-5"), prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]
    )
    assert opg_balance(net, theirs.address) == OPG - cost.atomic
    assert answer["ours"]["costs_atomic"] == [cost.atomic] * 2
    assert opg_balance(net, ours.address) == OPG - 2 * cost.atomic
