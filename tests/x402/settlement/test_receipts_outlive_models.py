"""A receipt stays useful when the model that paid for it is gone, and what it holds on to goes with it."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from langchain_opengradient import ChatOpenGradient, get_settlement_callback
from llama_index_opengradient import OpenGradient, SettlementLedgerHandler
from opengradient_devnet import Devnet
from opengradient_x402 import SettlementReceipt
from opengradient_x402.ledger.ledger import Ledger

pytestmark = pytest.mark.devnet(idle_timeout_s=0.3)


def writers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "opengradient-ledger"}


def settings_for(net: Devnet, tmp_path) -> dict:
    return {
        "model": "openai/gpt-5",
        "network": f"{net.gateway_url}/network",
        "private_key": net.account(approved=True).private_key,
        "ledger": tmp_path / "ledger.sqlite",
    }


def by_langchain(settings) -> SettlementReceipt:
    with get_settlement_callback() as settlements:
        ChatOpenGradient(**settings).invoke("Hello")
    return settlements.receipts[0]


def by_llama_index(settings) -> SettlementReceipt:
    with SettlementLedgerHandler().listening() as heard:
        OpenGradient(**settings).complete("Hello")
    return heard.receipts[0]


@pytest.mark.parametrize("call", [by_langchain, by_llama_index])
def test_a_receipt_can_be_brought_forward_after_its_model_was_collected(net, tmp_path, call):
    before = writers()
    receipt = call(settings_for(net, tmp_path))
    gc.collect()
    settled = receipt.wait_settled(timeout_s=60)
    assert settled.status == "settled"
    assert settled.payment_hash in {record.transaction for record in net.settlements}
    del receipt, settled
    gc.collect()
    deadline = time.monotonic() + 60
    while writers() - before:
        assert time.monotonic() < deadline, "the ledger's thread outlives the last receipt"
        time.sleep(0.02)


def test_what_was_written_just_before_a_ledger_was_forgotten_is_on_disk(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.pin("facilitator", "0x1").result() == "0x1"
    waiting = ledger.pin("another", "0x2")
    del ledger
    gc.collect()
    assert waiting.result(60) == "0x2"
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.pin("another", "0x3").result() == "0x2"
    again.close()
