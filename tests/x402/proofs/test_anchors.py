"""An anchored history: records cannot be dated back, and a history told anew does not fit under its anchor."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import ConfigurationError, InsufficientFunds, LedgerUnavailable
from opengradient_x402.keys.signer import LocalSigner
from opengradient_x402.proofs.anchors import anchor_history
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Read, Refuted, Statement, Undecided
from opengradient_x402.proofs.history import described, leaf_hash
from opengradient_x402.proofs.verification import verify_bundle
from support.node import serving
from support.payers import PROMPT, client_for


def exported(payments):
    return export_bundle(payments.ledger, network=payments.network, signer=payments.signer)


def anchored(payments):
    return anchor_history(payments.ledger, network=payments.network, signer=payments.signer)


def findings(payments, content, **options):
    verification = verify_bundle(content, network=payments.network, **options)
    return [finding for finding in verification.findings if finding.statement is Statement.ANCHORED]


def test_an_anchor_dates_the_records_that_were_there(net, paid):
    first = exported(paid)
    anchor = anchored(paid)
    assert anchor.name == f"{first.history['size']}:{first.history['root']}"
    with client_for(paid) as client:
        client.chat(PROMPT)
    later = exported(paid)
    assert later.history["size"] > anchor.size
    (finding,) = findings(paid, later.to_bytes())
    assert isinstance(finding, Read)
    mined = net.chain.rpc("eth_getTransactionReceipt", [anchor.tx_hash])
    then = int(net.chain.rpc("eth_getBlockByNumber", [mined["blockNumber"], False])["timestamp"], 16)
    assert (
        f"{anchor.size} records were there at {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(then))}"
        in finding.why
    )
    (offline,) = findings(paid, later.to_bytes(), is_offline=True)
    assert isinstance(offline, Undecided)


def test_one_head_is_anchored_once(paid):
    exported(paid)
    assert anchored(paid) == anchored(paid)


def test_an_anchor_that_the_ledger_cannot_note_names_its_transaction(net, paid):
    exported(paid)

    def lose_the_ledger(method, params, number):
        if method == "eth_sendRawTransaction":
            Path(paid.ledger.url.removeprefix("sqlite:///")).unlink()

    with serving(net.chain) as node:
        node.misbehave = lose_the_ledger
        network = replace(paid.network, rpc_url=node.url)
        with pytest.raises(LedgerUnavailable, match=r"anchored by the transaction 0x") as lost:
            anchor_history(paid.ledger, network=network, signer=paid.signer)
    (tx_hash,) = re.findall("0x[0-9a-f]{64}", str(lost.value))
    assert net.chain.rpc("eth_getTransactionReceipt", [tx_hash])["status"] == "0x1"


def test_a_ledger_without_a_history_is_told_so_and_nothing_is_sent(paid):
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        anchored(paid)


def test_a_wallet_without_gas_is_told_so(net, paid):
    exported(paid)
    poor = LocalSigner("0x" + "5a" * 32)
    with pytest.raises(InsufficientFunds):
        anchor_history(paid.ledger, network=paid.network, signer=poor)


def test_a_history_told_anew_does_not_fit_under_its_anchor(paid):
    exported(paid)
    anchored(paid)
    bundle = exported(paid)
    records = [record for record in bundle.records if record.kind in ("authorization", "receipt")]
    changed = [replace(record, body={**record.body, "model": "another/model"}) for record in records]
    leaves = [leaf_hash(record) for record in changed]
    history = described(leaves, range(len(leaves)), [], anchors=bundle.history["anchors"])
    others = [record for record in bundle.records if record.kind not in ("authorization", "receipt")]
    forged = replace(bundle, records=(*changed, *others), history=history).signed(paid.signer)
    (finding,) = findings(paid, forged.to_bytes())
    assert isinstance(finding, Refuted)
    assert "does not begin with" in finding.why


def test_an_anchor_of_strangers_is_as_good_as_ones_own(net, paid):
    exported(paid)
    stranger = LocalSigner(net.account().private_key)
    anchor_history(paid.ledger, network=paid.network, signer=stranger)
    (finding,) = findings(paid, exported(paid).to_bytes())
    assert isinstance(finding, Read)


def test_an_anchor_without_enough_blocks_is_not_decided_yet(paid):
    exported(paid)
    anchored(paid)
    bundle = exported(paid)
    careful = replace(paid.network, confirmations=50)
    found = verify_bundle(bundle.to_bytes(), network=careful).findings
    (finding,) = [item for item in found if item.statement is Statement.ANCHORED]
    assert isinstance(finding, Undecided)
    assert "50 blocks make that final" in finding.why


def test_the_command_anchors_and_says_where(net, account, paid, tmp_path, monkeypatch):
    exported(paid)
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", str(tmp_path / "payments.sqlite"))
    command = ["ledger", "anchor", "--json"]
    done = CliRunner().invoke(build_app(command), command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    mined = net.chain.rpc("eth_getTransactionByHash", [said["transaction"]])
    assert bytes.fromhex(mined["input"][2:]) == f"OpenGradient history {said['head']}".encode()
