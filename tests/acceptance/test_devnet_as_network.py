"""A devnet in Python is given to a model as it is."""

from __future__ import annotations

from pathlib import Path

from langchain_opengradient import ChatOpenGradient, get_settlement_callback
from llama_index_opengradient import OpenGradient, SettlementLedgerHandler
from opengradient_devnet import Devnet
from opengradient_x402.networks import load_network


def test_a_running_devnet_is_a_network_for_both_faces(net: Devnet, tmp_path: Path) -> None:
    account = net.account(approved=True)
    options = {"network": net, "private_key": account.private_key, "ledger": tmp_path / "ledger.sqlite"}
    with get_settlement_callback() as settlements:
        assert ChatOpenGradient(model="openai/gpt-5", **options).invoke("hi").text
    with SettlementLedgerHandler().listening() as handler:
        assert OpenGradient(model="openai/gpt-5", **options).complete("hi").text
    assert settlements.receipts[0].network == handler.receipts[0].network == f"eip155:{net.network['chain_id']}"
    assert load_network(net) == load_network(net.network_url)
