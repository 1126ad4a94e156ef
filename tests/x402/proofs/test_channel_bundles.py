"""Bundles of calls on payment channels: totals, completeness, refunds, overcharges, and ledgers that were lost."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from opengradient_devnet import Scheme
from opengradient_devnet.contracts import BATCH_SETTLEMENT, OPG, contract
from opengradient_devnet.faults import HangUp, SettleAtCap
from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import PaymentOutcomeUnknown
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Finding, Proven, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.proofs.verification import Verification, verify_bundle
from support.node import serving
from support.payers import PROMPT, client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT])
DEPOSIT = 10**18


def exported(payments):
    return export_bundle(payments.ledger, network=payments.network, signer=payments.signer)


def verified(payments, **options) -> Verification:
    return verify_bundle(exported(payments).to_bytes(), network=payments.network, **options)


def claimed(net, payments):
    net.claim_channels()
    payments.reconciler.reconcile()


PERIOD, RECONCILING, EVENTS, AUDIT = 1, 2, 3, 4
"""The looks at the chain while a bundle is written, in their order."""


def claimed_during_export(net, payments, look) -> Verification:
    """A bundle that is checked. While it was written, before this look at the chain, the gateway claimed."""
    looks: list[int] = []

    def claiming(method, params, asked):
        if method == "eth_chainId":
            looks.append(asked)
            if len(looks) == look:
                net.claim_channels()

    with serving(net.chain) as node:
        node.misbehave = claiming
        network = replace(payments.network, rpc_url=node.url)
        content = export_bundle(payments.ledger, network=network, signer=payments.signer).to_bytes()
    assert len(looks) == AUDIT
    return verify_bundle(content, network=payments.network)


def one(verification: Verification, statement: Statement) -> Finding:
    (finding,) = [item for item in verification.findings if item.statement is statement]
    return finding


def test_calls_on_a_channel_are_proven_read_and_complete(net, payments, client):
    costs = [client.chat(PROMPT).receipt.cost_atomic for _ in range(3)]
    claimed(net, payments)
    verification = verified(payments)
    show = payments.network.asset.format
    assert verification.of(Refuted) == []
    assert isinstance(one(verification, Statement.SIGNED), Proven)
    for statement in (Statement.CHANNEL, Statement.PAID, Statement.CONFIRMED):
        assert isinstance(one(verification, statement), Read), statement
    assert f"{show(sum(costs))} was claimed" in one(verification, Statement.PAID).why
    complete = one(verification, Statement.COMPLETE)
    assert isinstance(complete, Read)
    assert "all 0 settlements, 1 deposits into payment channels and 1 claims from them" in complete.why


def test_without_a_node_nothing_of_a_channel_is_read_and_the_voucher_is_proven(net, payments, client):
    client.chat(PROMPT)
    claimed(net, payments)
    verification = verified(payments, is_offline=True)
    assert isinstance(one(verification, Statement.SIGNED), Proven)
    for statement in (Statement.CHANNEL, Statement.PAID, Statement.CONFIRMED):
        assert isinstance(one(verification, statement), Undecided), statement
    assert isinstance(one(verification, Statement.COMPLETE), Stated)


def test_what_is_charged_and_not_claimed_yet_is_not_decided(payments, client):
    client.chat(PROMPT)
    bundle = exported(payments)
    (entry,) = bundle.of_kind("authorization")
    assert (entry["status"], "settled_atomic" in entry) == ("signed", False)
    assert int(entry["voucher"]["charged_atomic"]) > 0
    verification = verified(payments)
    assert verification.of(Refuted) == []
    paid = [item for item in verification.findings if item.statement is Statement.PAID]
    assert {type(item) for item in paid} == {Undecided}
    assert isinstance(one(verification, Statement.COMPLETE), Read)


def test_a_strangers_deposit_refutes_no_file_by_a_transfer_of_nothing_in_the_payers_name(
    net, payments, client, tmp_path
):
    client.chat(PROMPT)
    with (
        payments_for(net, net.account(opg="10", approved=True), tmp_path / "s.sqlite") as other,
        client_for(other) as theirs,
    ):
        theirs.chat(PROMPT)
        stranger = other.payer
    transfer, collector = contract("OPG").topic("Transfer"), "0x" + BATCH_SETTLEMENT[2:].lower().rjust(64, "0")
    names = {who: "0x" + who[2:].lower().rjust(64, "0") for who in (stranger, payments.payer)}
    query = {"address": OPG, "topics": [transfer, names[stranger], collector], "fromBlock": "0x0"}
    (deposit,) = net.chain.rpc("eth_getLogs", [query])
    nothing = {**deposit, "topics": [transfer, names[payments.payer], collector], "data": "0x" + "00" * 32}

    def with_nothing(method, params, number):
        if method == "eth_getTransactionReceipt" and params == [deposit["transactionHash"]]:
            done = net.chain.rpc(method, params)
            return 200, {"result": {**done, "logs": [{**nothing, "logIndex": "0x0"}, *_later(done["logs"])]}}
        if method == "eth_getLogs" and params[0]["topics"][:2] == [transfer, names[payments.payer]]:
            return 200, {"result": [*net.chain.rpc(method, params), nothing]}
        return None

    content = exported(payments).to_bytes()
    with serving(net.chain) as node:
        node.misbehave = with_nothing
        verification = verify_bundle(content, network=payments.network, rpc_url=node.url)
        assert node.count("eth_getTransactionReceipt") > 1
    complete = one(verification, Statement.COMPLETE)
    assert isinstance(complete, Read)
    assert "all 0 settlements, 1 deposits" in complete.why


def _later(logs):
    """The same events, one place further back."""
    return [{**log, "logIndex": hex(int(log["logIndex"], 16) + 1)} for log in logs]


def test_a_claim_that_nobody_has_reconciled_is_in_the_file(net, payments, client):
    client.chat(PROMPT)
    net.claim_channels()
    verification = verified(payments)
    assert verification.of(Refuted) == []
    assert isinstance(one(verification, Statement.PAID), Read)


@pytest.mark.parametrize("look", [PERIOD, RECONCILING, EVENTS, AUDIT])
def test_a_claim_while_the_bundle_is_written_is_explained_by_the_charges(net, payments, client, look):
    client.chat(PROMPT)
    assert claimed_during_export(net, payments, look).of(Refuted) == []


def test_an_overcharge_is_in_the_file_as_the_payers_word_beside_what_was_claimed(net, payments, client):
    for _ in range(2):
        client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    claimed(net, payments)
    verification = verified(payments)
    assert verification.of(Refuted) == []
    disputed = [
        item for item in verification.findings if item.statement is Statement.DISPUTE and "too much" in item.why
    ]
    assert [type(item) for item in disputed] == [Stated]
    assert isinstance(one(verification, Statement.PAID), Read)


@pytest.mark.parametrize("look", [PERIOD, RECONCILING])
def test_an_overcharge_that_nobody_has_reconciled_is_disputed_in_the_file(net, payments, client, look):
    client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    verification = claimed_during_export(net, payments, look)
    assert verification.of(Refuted) == []
    assert "too much" in one(verification, Statement.DISPUTE).why


def test_an_overcharge_that_the_ledger_has_not_seen_is_refuted_by_the_claim(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    verification = claimed_during_export(net, payments, EVENTS)
    paid = [item for item in verification.findings if item.statement is Statement.PAID]
    assert [item for item in paid if isinstance(item, Refuted) and "were charged" in item.why]


def test_a_deposit_by_the_tokens_own_authorization_is_a_deposit_and_no_settlement(devnets, tmp_path):
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT_EIP3009])
    with (
        payments_for(net, net.account(opg="3"), tmp_path / "l.sqlite") as payments,
        client_for(payments) as client,
    ):
        client.chat(PROMPT)
        claimed(net, payments)
        verification = verified(payments)
    assert verification.of(Refuted) == []
    assert isinstance(one(verification, Statement.SIGNED), Proven)
    assert "all 0 settlements, 1 deposits" in one(verification, Statement.COMPLETE).why


def test_what_came_back_is_read_too(net, account, tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.sqlite"
    with payments_for(net, account, ledger) as payments, client_for(payments) as client:
        cost = client.chat(PROMPT).receipt.cost_atomic
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", str(ledger))
    command = ["channels", "refund"]
    assert CliRunner().invoke(build_app(command), command).exit_code == 0
    with payments_for(net, account, ledger) as payments:
        payments.reconciler.reconcile()
        (channel,) = exported(payments).of_kind("channel")
        verification = verified(payments)
    assert (channel["claimed_atomic"], channel["returned_atomic"]) == (str(cost), str(DEPOSIT - cost))
    assert verification.of(Refuted) == []
    assert isinstance(one(verification, Statement.CHANNEL), Read)
    assert isinstance(one(verification, Statement.SIGNED), Proven)  # a refund's voucher is for what was charged


def test_a_new_ledger_says_that_calls_of_the_lost_one_are_missing(net, account, tmp_path):
    with payments_for(net, account, tmp_path / "lost.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.claim_channels()
    with payments_for(net, account, tmp_path / "new.sqlite") as payments, client_for(payments) as client:
        client.chat(PROMPT)
        claimed(net, payments)
        verification = verified(payments)
    assert isinstance(one(verification, Statement.PAID), Read)
    complete = one(verification, Statement.COMPLETE)
    assert isinstance(complete, Refuted)
    assert "of no call in this file" in complete.why


def test_two_lost_answers_whose_vouchers_begin_alike_are_not_both_settled_by_one_claim(net, payments, client):
    client.chat(PROMPT)
    net.faults.inject(HangUp(charge=False), times=2)
    for _ in range(2):
        with pytest.raises(PaymentOutcomeUnknown):
            client.chat(PROMPT)
    net.faults.inject(SettleAtCap())
    claimed(net, payments)
    (channel,) = exported(payments).of_kind("channel")
    receipts = payments.ledger.receipts().result()
    assert sum(receipt.settled_atomic or 0 for receipt in receipts) == int(channel["claimed_atomic"])
    assert verified(payments).of(Refuted) == []


def test_a_report_of_the_ledger_has_a_channel_as_one_payment(net, account, tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.sqlite"
    with payments_for(net, account, ledger) as payments, client_for(payments) as client:
        for _ in range(2):
            client.chat(PROMPT)
        claimed(net, payments)
        for _ in range(2):  # charged, and not claimed
            client.chat(PROMPT)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", str(ledger))
    command = ["receipts", "report", "-f", "csv"]
    done = CliRunner().invoke(build_app(command), command)
    assert done.exit_code == 0, done.output
    rows = [row.split(",") for row in done.stdout.splitlines()]
    heads = {name: place for place, name in enumerate(rows[0])}
    (payment,) = [row for row in rows if row[0] == "payment"]
    assert payment[heads["calls"]] == "4"
    assert float(payment[heads["read"]]) > 0
    assert float(payment[heads["undecided"]]) > 0
    assert float(payment[heads["refuted"]]) == 0


def test_the_command_counts_a_ledger_with_channels(net, payments, client, tmp_path, monkeypatch):
    client.chat(PROMPT)
    claimed(net, payments)
    file = tmp_path / "bundle.json"
    file.write_bytes(exported(payments).to_bytes())
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    command = ["receipts", "verify", str(file), "--json"]
    done = CliRunner().invoke(build_app(command), command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["totals"]["refuted"] == 0
    names = {finding["statement"] for finding in said["findings"] if finding["class"] == "read"}
    assert Statement.CHANNEL in names
