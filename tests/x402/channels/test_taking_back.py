"""What is in a channel comes back: from the gateway by refund, and without its help by withdrawal."""

from __future__ import annotations

import json
import re
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.faults import HangUp, NeverSettle, RefusePayment
from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import PaymentOutcomeUnknown
from opengradient_x402.payment.channels import taking_back
from opengradient_x402.payment.payments import Payments
from support.node import behind, serving
from support.payers import PROMPT, client_for, network_of, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
WALLET, DEPOSIT = 10 * 10**18, 10**18


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Runs a command as a wallet of a devnet, with a ledger that its payments share."""

    def command(net, account, *arguments):
        monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
        monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
        monkeypatch.setenv("OG_LEDGER_URL", str(tmp_path / "ledger.sqlite"))
        done = CliRunner().invoke(build_app(list(arguments)), list(arguments))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return command


@pytest.fixture
def used(tmp_path):
    """Makes calls of a wallet on the shared ledger; the sum of their costs."""

    def calls(net, account, *, number=1):
        with payments_for(net, account, tmp_path / "ledger.sqlite") as payments, client_for(payments) as client:
            return sum(client.chat(PROMPT).receipt.cost_atomic for _ in range(number))

    return calls


def test_a_refund_sends_back_what_is_left_and_the_gateway_gets_what_it_charged(net, account, shell, used, tmp_path):
    cost = used(net, account, number=2)
    listed = json.loads(shell(net, account, "channels", "list", "--json").stdout)
    assert [entry["free_atomic"] for entry in listed] == [str(DEPOSIT - cost)]
    assert "channels" in shell(net, account, "balance").stdout
    done = shell(net, account, "channels", "refund")
    assert done.exit_code == 0, done.output
    assert "came back" in done.stdout
    assert net.chain.token_balance(account.address) == WALLET - cost
    assert json.loads(shell(net, account, "channels", "list", "--json").stdout)[0]["status"] == "closed"
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:
        payments.reconciler.reconcile()
        receipts = payments.ledger.receipts().result()
    assert {receipt.status for receipt in receipts} == {"settled"}
    assert sum(receipt.settled_atomic for receipt in receipts) == cost
    assert used(net, account) > 0  # a new channel is opened


def test_a_refund_follows_the_gateways_sum_after_a_lost_answer(net, account, shell, used, tmp_path):
    cost = used(net, account)
    net.faults.inject(HangUp())
    with pytest.raises(PaymentOutcomeUnknown):
        used(net, account)
    done = shell(net, account, "channels", "refund")
    assert done.exit_code == 0, done.output
    assert net.chain.token_balance(account.address) == WALLET - 2 * cost


def test_a_refund_that_the_gateway_denies_says_so_and_leaves_the_channel_in_use(net, account, shell, used):
    used(net, account)
    net.faults.inject(RefusePayment(error="not today"))
    done = shell(net, account, "channels", "refund")
    assert done.exit_code == 1
    assert "not today" in done.stdout
    assert "a withdrawal works without the gateway" in done.stdout
    assert used(net, account) > 0


def test_a_gateway_that_vanishes_with_a_deposit_keeps_nothing(shell, used, tmp_path):
    with Devnet(schemes=[Scheme.BATCH_SETTLEMENT]) as net:
        account = net.account(opg="10", approved=True)
        net.faults.inject(NeverSettle(), times=None)
        net.faults.inject(HangUp(charge=False), times=None)
        with pytest.raises(PaymentOutcomeUnknown):
            used(net, account)
        assert net.chain.token_balance(account.address) == WALLET - DEPOSIT
        begun = shell(net, account, "channels", "withdraw")
        assert begun.exit_code == 0, begun.output
        assert "900 s" in begun.stdout
        waiting = shell(net, account, "channels", "withdraw")
        assert waiting.exit_code == 1
        (seconds,) = re.findall(r"withdraw once more in (\d+) s", waiting.stdout)
        assert 840 <= int(seconds) <= 900
        net.chain.advance(901)
        done = shell(net, account, "channels", "withdraw")
        assert done.exit_code == 0, done.output
        assert net.chain.token_balance(account.address) == WALLET
        with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:
            payments.reconciler.reconcile()
            (receipt,) = payments.ledger.receipts().result()
            asset = payments.network.asset.address
            spent = payments.ledger.spent(payer=payments.payer, asset=asset, network=payments.network.caip2).result()
        assert (receipt.status, receipt.settled_atomic, spent) == ("settled", 0, 0)


@contextmanager
def seen_through(net, account, path, node):
    """Payments whose node can be told to misbehave, after one call on a channel."""
    network = replace(network_of(net), rpc_url=node.url)
    opened = Payments.open(network=network, private_key=account.private_key, ledger=path)
    with closing(opened) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        yield payments


def after_sending(node, misbehave):
    """This answer to everything but the questions about a sent transaction, once one was sent."""

    def answer(method, params, number):
        has_sent = node.count("eth_sendRawTransaction") > 0
        is_about_it = method in ("eth_sendRawTransaction", "eth_getTransactionReceipt")
        return misbehave(method, params, number) if has_sent and not is_about_it else None

    return answer


def dies(method, params, number):
    return 401, {}


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_withdrawal_that_is_mined_is_named_when_the_node_shows_no_more(tmp_path, monkeypatch, is_behind):
    monkeypatch.setattr(taking_back, "_LAG_S", 0.5)
    with Devnet(schemes=[Scheme.BATCH_SETTLEMENT]) as net, serving(net.chain) as node:
        account = net.account(opg="10", approved=True)
        with seen_through(net, account, tmp_path / "own.sqlite", node) as payments:
            net.claim_channels()
            for what in (" has begun; withdraw once more", "withdrawal is mined, and the node does not show yet"):
                node.requests.clear()
                head = int(net.chain.rpc("eth_blockNumber", []), 16)
                node.misbehave = after_sending(node, behind(net.chain, head) if is_behind else dies)
                (taken,) = payments.channels.withdraw()
                assert what in taken.what
                assert net.chain.rpc("eth_getTransactionReceipt", [taken.tx_hash])["status"] == "0x1"
                node.misbehave = lambda *_: None
                net.chain.advance(901)
        assert net.chain.token_balance(account.address) > WALLET - DEPOSIT // 2


def test_a_refund_is_seen_by_a_node_that_is_behind_at_first(net, account, tmp_path):
    with serving(net.chain) as node, seen_through(net, account, tmp_path / "own.sqlite", node) as payments:
        lagging = behind(net.chain, int(net.chain.rpc("eth_blockNumber", []), 16))
        asked: list[int] = []

        def misbehave(method, params, number):
            asked.append(number)
            return lagging(method, params, number) if len(asked) < 12 else None

        node.misbehave = misbehave
        (taken,) = payments.channels.refund()
        assert (taken.is_done, taken.channel.status) == (True, "closed")
        assert taken.amount_atomic > DEPOSIT // 2
        assert net.chain.token_balance(account.address) == WALLET - DEPOSIT + taken.amount_atomic


def test_doctor_names_what_is_in_channels(net, account, shell, used):
    used(net, account)
    rows = json.loads(shell(net, account, "doctor", "--json").stdout)
    (row,) = [row for row in rows if row["name"] == "channels"]
    assert row["state"] == "ok"
    assert "1 payment channel" in row["found"]
