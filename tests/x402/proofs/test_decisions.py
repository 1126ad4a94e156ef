"""What persons decided is in a bundle as the payer's word: shown, kept in the history, and never more than stated."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import PaymentNotApproved
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Refuted, Stated, Statement
from opengradient_x402.proofs.verification import verify_bundle
from support.forging import forge, setting
from support.payers import PROMPT, client_for, payments_for


@pytest.fixture
def asked(net, account, tmp_path):
    """Payments of a wallet whose owner said yes once, and no once."""
    answers = iter([True, False])
    policy = SpendPolicy(approve_above="0.05", approval=lambda _request: next(answers))
    with payments_for(net, account, tmp_path / "l.sqlite", policy=policy) as payments, client_for(payments) as client:
        client.chat(PROMPT)
        net.close_sessions()
        payments.reconciler.reconcile()
        with pytest.raises(PaymentNotApproved):
            client.chat(PROMPT)
        yield payments


def exported(payments):
    return export_bundle(payments.ledger, network=payments.network, signer=payments.signer)


def test_a_yes_and_a_no_are_stated_and_the_no_has_no_receipt(asked):
    bundle = exported(asked)
    verification = verify_bundle(bundle.to_bytes(), network=asked.network)
    decided = [finding for finding in verification.findings if finding.statement is Statement.DECIDED]
    assert [type(finding) for finding in decided] == [Stated, Stated]
    calls = {body["call_id"] for body in bundle.of_kind("receipt")}
    said = {finding.why.partition(":")[0]: finding.about in calls for finding in decided}
    assert said == {"approved": True, "refused": False}
    assert all("at most 0.1 OPG" in finding.why for finding in decided)
    assert verification.of(Refuted) == []


def test_a_decision_that_was_rewritten_is_seen_by_whoever_has_an_earlier_bundle(asked):
    bundle = exported(asked)
    told = forge(bundle, asked.signer, setting("decision", decision="approved"), keep_history=True)
    verification = verify_bundle(told, network=asked.network, earlier=bundle.to_bytes())
    fallen = {finding.statement for finding in verification.of(Refuted)}
    assert fallen == {Statement.HISTORY, Statement.CONTINUED}


def test_no_decision_can_be_proven_or_read():
    from opengradient_x402.proofs.findings import Proven, Read
    from opengradient_x402.proofs.verification import Source

    with pytest.raises(TypeError):
        Proven(statement=Statement.DECIDED, about="c", why="", key="0x")
    with pytest.raises(TypeError):
        Read(statement=Statement.DECIDED, about="c", why="", source=Source(name="n"))


def test_decisions_are_shown_by_verify_and_in_the_report(net, account, asked, tmp_path, monkeypatch):
    file = tmp_path / "bundle.json"
    file.write_bytes(exported(asked).to_bytes())
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", str(tmp_path / "l.sqlite"))

    def run(*command: str) -> str:
        done = CliRunner().invoke(build_app(list(command)), list(command))
        assert done.exit_code == 0, done.output
        return done.stdout

    said = json.loads(run("receipts", "verify", str(file), "--json"))
    decided = [finding for finding in said["findings"] if finding["statement"] == Statement.DECIDED]
    assert {finding["class"] for finding in decided} == {"stated"}
    assert Statement.DECIDED in run("receipts", "verify", str(file))
    for command in (["report", str(file)], ["report", str(file), "-f", "markdown"], ["report", "-f", "markdown"]):
        page = run("receipts", *command)
        assert "Decisions of persons" in page
        assert "approved: at most 0.1 OPG" in page
