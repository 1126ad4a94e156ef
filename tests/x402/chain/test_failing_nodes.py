"""Each fault of a node, for each thing that asks one: a typed outcome, in time, and the payment is made anyway."""

from __future__ import annotations

import json
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from opengradient_x402.chain.contracts import active_tees
from opengradient_x402.chain.questions import native_balance
from opengradient_x402.chain.readers import ChainReader
from opengradient_x402.cli.doctor import _diagnosed, _Examination
from opengradient_x402.errors import ChainUnavailable, ConfigurationError, OpenGradientError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.wallet import Wallet
from opengradient_x402.settlement.reconciler import Reconciler
from support.node import asked, serving
from support.node_faults import FAULTS, failing_node
from support.payers import PROMPT, client_for, network_of
from support.settling import new_payer

LIMIT_S = 0.4
NOBODY = "0x" + "1e57" * 10  # has nothing, on whatever devnet these tests share
BUSY_S = 2.0
"""How much later than its limit something may end on a busy machine."""


@pytest.fixture(scope="module")
def payer(net):
    return new_payer(net, opg="100")


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_node_does_the_outcome_is_typed_and_in_time(net, payer, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("OG_PRIVATE_KEY", payer.account.private_key)
    with failing_node(fault, net.chain.chain_id) as url, closing(Ledger(tmp_path / "l.sqlite")) as ledger:
        network = replace(payer.network, rpc_url=url)
        chain = ChainReader(url, network.chain_id, timeout_s=LIMIT_S)
        wallet = Wallet(network, payer.signer, chain=chain)
        ledger.authorize(payer.sign(facilitator=payer.account.address).authorization).result()

        def first_payment():
            opened = Payments.open(network=network, private_key=payer.account.private_key, ledger=tmp_path / "p.sqlite")
            with client_for(opened) as client:
                paid = client.chat(PROMPT)
            opened.close()
            return paid.receipt

        asked = {
            "balance": (wallet.balance, LIMIT_S),
            "approve": (lambda: wallet.ensure_opg_approval("1"), LIMIT_S),
            "reconcile": (lambda: Reconciler(network, ledger).reconcile(timeout_s=LIMIT_S), LIMIT_S),
            "registry": (lambda: chain.ask(active_tees(network.registry.address)), LIMIT_S),
            "first payment": (first_payment, 2.0),
            "doctor": (lambda: doctors_problems(net, url, tmp_path), 5.0 - BUSY_S),
        }
        with ThreadPoolExecutor(len(asked)) as threads:
            outcomes = {name: threads.submit(timed, work) for name, (work, _) in asked.items()}
        for name, outcome in outcomes.items():
            found, took_s = outcome.result()
            assert took_s < asked[name][1] + BUSY_S, name
            is_answer = name == "doctor" or (name == "first payment" and fault != "another chain")
            assert isinstance(found, OpenGradientError) is not is_answer, (name, found)
        assert len(outcomes["doctor"].result()[0]) == 1
        assert ledger.authorizations().result()[0].status == "signed"


def timed(work):
    """What the work gives or how it fails, and how long that takes."""
    began = time.monotonic()
    try:
        found = work()
    except OpenGradientError as exc:
        found = exc
    return found, time.monotonic() - began


def doctors_problems(net, url, directory):
    description = {**net.network, "rpc_url": url, "registry": {**net.network["registry"], "rpc_url": url}}
    (directory / "network.json").write_text(json.dumps(description))
    examination = _Examination(str(directory / "network.json"), None, None, None)
    found = [_diagnosed(name, check) for name, check in examination.checks()]
    return [diagnosis.found for diagnosis in found if diagnosis.state == "problem"]


@pytest.mark.parametrize("fault", ["hangs", "drips headers", "drips the body", "drips a chunk's size"])
async def test_coroutines_keep_the_time_too(net, fault):
    with failing_node(fault, net.chain.chain_id) as url:
        began = time.monotonic()
        with pytest.raises(OpenGradientError):
            await asked(url, net.chain.chain_id, native_balance("0x" + "12" * 20), timeout_s=LIMIT_S)
        assert time.monotonic() - began < LIMIT_S + BUSY_S


@pytest.mark.parametrize(
    "fault",
    [
        *("hangs", "closes at once", "429, later", "502 with HTML", "401", "HTML", "cut JSON"),
        *("401 with an error", "not served", "internal error", "not seen yet"),
    ],
)
def test_the_next_of_several_nodes_is_asked(net, fault):
    with failing_node(fault, net.chain.chain_id) as url, serving(net.chain) as node:
        chain = ChainReader(f"{url}, {node.url}", net.chain.chain_id, timeout_s=2)
        assert chain.ask(native_balance(NOBODY)) == 0
        assert chain.ask(native_balance(NOBODY)) == 0
        assert node.count("eth_getBalance") == 2


def test_of_several_nodes_one_of_another_chain_is_passed_over(net):
    def asked(*nodes):
        urls = ",".join(node.url for node in nodes)
        return ChainReader(urls, net.chain.chain_id, timeout_s=2).ask(native_balance(NOBODY))

    with serving(net.chain) as wrong, serving(net.chain) as right, serving(net.chain) as other:
        for node in (wrong, other):
            node.misbehave = lambda method, params, number: (200, {"result": "0x1"}) if "chainId" in method else None
        assert asked(wrong, right) == asked(right, wrong) == 0
        with pytest.raises(ConfigurationError, match="serves chain 1"):
            asked(wrong, other)
        right.misbehave = lambda method, params, number: (401, {})
        with pytest.raises(ChainUnavailable):
            asked(right, wrong)
        assert wrong.count("eth_getBalance") == 0


@pytest.mark.parametrize("scheme", ["http://", "http://me:OTHERSECRET@"])
def test_a_key_that_a_node_repeats_is_in_no_error(net, scheme):
    with failing_node("repeats the key", net.chain.chain_id) as url:
        chain = ChainReader(f"{url}/v2/SECRETKEY?token=OTHERSECRET".replace("http://", scheme), net.chain.chain_id)
        with pytest.raises(OpenGradientError, match="no project at /v2/") as caught:
            chain.ask(native_balance("0x" + "12" * 20))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", ["http://xn--a/", "http://127.0.0.1:1/\udc80", "http://127.0.0.1:99999/", "http://[::1/"]
)
def test_what_is_no_url_after_all_is_a_node_that_does_not_answer(net, url):
    with pytest.raises(OpenGradientError, match="rpc_url"):
        ChainReader(url, net.chain.chain_id, timeout_s=LIMIT_S).ask(native_balance("0x" + "12" * 20))


def test_of_two_urls_one_may_be_the_start_of_the_other_and_neither_key_is_logged(net, caplog):
    caplog.set_level("DEBUG")
    with serving(net.chain) as node:
        for url in (f"{node.url}/v2", f"{node.url}/v2/SECRETKEY", f"{node.url}/v2/SECRETKEY?token=OTHERSECRET"):
            with ChainReader(url, net.chain.chain_id) as chain:
                chain.ask(native_balance("0x" + "12" * 20))
    assert caplog.text.count("HTTP Request") == 6
    assert "SECRET" not in caplog.text


def test_a_key_in_a_nodes_url_is_in_no_log_line_and_no_repr(net, caplog):
    caplog.set_level("DEBUG")
    with serving(net.chain) as node:
        network = replace(network_of(net), rpc_url=f"{node.url}/v2/SECRETKEY?token=OTHERSECRET")
        with ChainReader.at(network) as chain:
            chain.ask(native_balance("0x" + "12" * 20))
    shown = caplog.text + repr(network)
    assert "HTTP Request" in caplog.text
    assert "SECRETKEY" not in shown
    assert "OTHERSECRET" not in shown
