"""A server that keeps a model for each of its users: one ledger, and no thread or descriptor for a wallet."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from langchain_opengradient import ChatOpenGradient
from opengradient_devnet import Devnet
from opengradient_x402 import Ledger, Payments, Reconciler, export_bundle
from opengradient_x402.networks import load_network

pytestmark = pytest.mark.devnet(idle_timeout_s=600)

SERVER = """
import json, os, sys, threading

from langchain_opengradient import ChatOpenGradient
from llama_index_opengradient import OpenGradient

network, ledger, *keys = json.load(sys.stdin)
options = {"model": "openai/gpt-5-mini", "network": network, "ledger": ledger, "max_tokens": 20}

def used():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return threading.active_count(), len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 1024

kept = []
for number, key in enumerate(keys, start=1):
    if number % 2:
        kept.append(ChatOpenGradient(private_key=key, **options))
        kept[-1].invoke("hi")
    else:
        kept.append(OpenGradient(private_key=key, **options))
        kept[-1].complete("hi")
    if number == 20:
        before = used()
after = used()
kb = (after[2] - before[2]) / (len(keys) - 20)
print(json.dumps({"threads": after[0], "more_fds": after[1] - before[1], "kb": kb}))
"""


@pytest.mark.parametrize("wallets", [80, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_model_for_each_user_needs_no_thread_no_descriptor_and_little_memory(
    net: Devnet, tmp_path: Path, wallets: int
):
    ledger = tmp_path / "ledger.sqlite"
    keys = [net.account(opg="1", approved=True).private_key for _ in range(wallets)]
    told = json.dumps([f"{net.gateway_url}/network", str(ledger), *keys])
    server = subprocess.run([sys.executable, "-c", SERVER], input=told, capture_output=True, text=True, check=False)
    assert server.returncode == 0, server.stderr
    used = json.loads(server.stdout)
    print(wallets, "wallets:", used)
    assert used["threads"] <= 6
    assert used["more_fds"] <= 8
    assert used["kb"] < 80
    kept = Ledger(ledger)
    assert len({receipt.payer for receipt in kept.receipts().result()}) == wallets
    kept.close()


def test_whatever_names_a_payer_shows_nothing_of_the_others(net: Devnet, tmp_path: Path):
    """Two tenants of one server, one ledger: each method that takes a payer is asked for each of them."""
    network = load_network(f"{net.gateway_url}/network")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    tenants = [
        Payments.open(network=network, private_key=net.account(opg="5", approved=True).private_key, ledger=ledger)
        for _ in range(2)
    ]
    for payments in tenants:
        with ChatOpenGradient(model="openai/gpt-5", payments=payments) as model:
            model.invoke("Mine.")
    net.close_sessions()
    mine, theirs = (payments.payer for payments in tenants)
    everything = ledger.receipts().result()
    asset = network.asset.address
    asked = {
        "receipts": lambda: ledger.receipts(payer=mine, call_ids=[receipt.call_id for receipt in everything]).result(),
        "newest_receipts": lambda: ledger.newest_receipts(10, payer=mine).result(),
        "pages_of_receipts": lambda: [one for page in ledger.pages_of_receipts(payer=mine) for one in page],
        "unfinished": lambda: ledger.unfinished(payer=mine, network=network.caip2).result(),
        "authorizations": lambda: ledger.authorizations(payer=mine).result(),
        "objections": lambda: [ledger.objections(network=network.caip2, payer=mine, origin=net.gateway_url).result()],
        "spent": lambda: [ledger.spent(payer=mine, asset=asset, network=network.caip2).result()],
    }
    takes_payer = {
        name
        for name, method in inspect.getmembers(Ledger, inspect.isfunction)
        if "payer" in inspect.signature(method).parameters
    }
    assert asked.keys() == takes_payer, "a method that names a payer is not asked here"
    for name, ask in asked.items():
        shown = ask()
        assert len(shown) == 1, name
        assert theirs not in str(shown), name
    report = Reconciler(network, ledger).reconcile(payer=mine)
    assert [receipt.payer for receipt in report.changed] == [mine]
    bundle = export_bundle(ledger, network=network, payer=mine)
    assert theirs not in str(bundle)
    ledger.close()
