"""The history of a ledger: what was exported once cannot be changed, dropped or put elsewhere unseen."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.proofs.bundle import Bundle
from opengradient_x402.proofs.bundle_schema import json_schema
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Finding, Proven, Refuted, Statement, Undecided
from opengradient_x402.proofs.history import Head, HistoryTree, is_continued, is_included
from opengradient_x402.proofs.verification import Verification, verify_bundle
from support.payers import PROMPT, client_for, payments_for, settled_receipts

LEAVES = [sha256(bytes([number])).digest() for number in range(33)]


def root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, as it is written there."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def test_the_root_is_that_of_the_rfc_for_every_size():
    for size in range(len(LEAVES) + 1):
        assert HistoryTree(LEAVES[:size]).head == Head(size=size, root="0x" + root(LEAVES[:size]).hex())


def test_every_leaf_is_shown_at_its_place_and_nowhere_else():
    for size in range(1, len(LEAVES) + 1):
        tree = HistoryTree(LEAVES[:size])
        for index in range(size):
            proof = tree.inclusion(index)
            assert is_included(LEAVES[index], index, proof, tree.head)
            assert not is_included(LEAVES[index], (index + 1) % (size + 1), proof, tree.head)
            assert not is_included(sha256(b"another").digest(), index, proof, tree.head)
            assert not is_included(LEAVES[index], index, [*proof, proof[0] if proof else "0x" + "00" * 32], tree.head)


def test_every_earlier_tree_is_shown_to_be_the_beginning_and_no_other_one():
    for size in range(1, len(LEAVES) + 1):
        tree = HistoryTree(LEAVES[:size])
        for earlier in range(1, size + 1):
            head = HistoryTree(LEAVES[:earlier]).head
            proof = tree.consistency(earlier)
            assert is_continued(head, proof, tree.head)
            rewritten = HistoryTree([sha256(b"rewritten").digest(), *LEAVES[1:earlier]]).head
            assert not is_continued(rewritten, proof, tree.head)
            assert not is_continued(head, proof[:-1] if proof else ["0x" + "00" * 32], tree.head)
            if earlier < size:
                assert not is_continued(tree.head, proof, head)


def test_a_tree_of_nothing_has_one_root_and_begins_every_tree():
    nothing, tree = HistoryTree([]).head, HistoryTree(LEAVES)
    another = replace(nothing, root="0x" + "12" * 32)
    for head in (nothing, tree.head):
        assert is_continued(nothing, [], head)
        assert not is_continued(another, [], head)
        assert not is_continued(nothing, [nothing.root], head)
    assert not is_continued(tree.head, [], nothing)


@pytest.fixture
def paying(net, tmp_path):
    with (
        payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments,
        client_for(payments) as client,
    ):

        def call():
            client.chat(PROMPT)
            settled_receipts(net, payments)

        call()
        paying = type("Paying", (), {"payments": payments, "call": staticmethod(call), "path": tmp_path / "l.sqlite"})
        yield paying


def exported(paying) -> bytes:
    payments = paying.payments
    return export_bundle(payments.ledger, network=payments.network, signer=payments.signer).to_bytes()


def continued(content: bytes, earlier) -> Finding:
    return of(verify_bundle(content, is_offline=True, earlier=earlier), Statement.CONTINUED)


def of(verification: Verification, statement: Statement) -> Finding:
    (finding,) = [item for item in verification.findings if item.statement is statement]
    return finding


def test_bundles_of_one_ledger_continue_each_other(paying):
    bundles = [exported(paying)]
    for _ in range(3):
        paying.call()
        bundles.append(exported(paying))
    for later in range(4):
        for earlier in range(later + 1):
            finding = continued(bundles[later], bundles[earlier])
            assert isinstance(finding, Proven), finding
            history = json.loads(bundles[earlier])["history"]
            assert isinstance(continued(bundles[later], Head(size=history["size"], root=history["root"])), Proven)
    assert isinstance(continued(bundles[0], bundles[3]), Refuted)


def test_an_export_without_news_adds_nothing(paying):
    first, second = (json.loads(exported(paying))["history"] for _ in range(2))
    assert first["size"] == second["size"] == 2
    assert first["root"] == second["root"]


def test_a_ledger_that_was_edited_is_found(paying):
    import sqlite3

    before = exported(paying)
    with sqlite3.connect(paying.path) as ledger:
        ledger.execute("UPDATE calls SET receipt = json_set(receipt, '$.model', 'another/model')")
    finding = continued(exported(paying), before)
    assert isinstance(finding, Refuted)
    assert "had the model openai/gpt-5, and has another/model" in finding.why


def test_a_history_that_was_edited_is_found(paying):
    import sqlite3

    before = exported(paying)
    with sqlite3.connect(paying.path) as ledger:
        ledger.execute("UPDATE history_leaves SET hash = ? WHERE sequence = 2", ("12" * 32,))
    finding = continued(exported(paying), before)
    assert isinstance(finding, Refuted)
    assert "they were rewritten" in finding.why


def test_a_ledger_that_began_anew_is_found(net, paying, tmp_path):
    paying.call()
    before = exported(paying)
    payments = paying.payments
    fresh = Ledger(tmp_path / "fresh.sqlite")
    try:
        for entry in payments.ledger.authorizations().result()[:1]:
            fresh.authorize(replace(entry, status="signed")).result()
        content = export_bundle(fresh, network=payments.network, signer=payments.signer).to_bytes()
    finally:
        fresh.close()
    finding = continued(content, before)
    assert isinstance(finding, Refuted)
    assert "it has 2 records, and there were 4" in finding.why


def test_a_head_alone_shows_how_many_records_are_still_those_of_its_time(paying):
    paying.call()
    before = exported(paying)
    history = Bundle.from_bytes(before).history
    head = Head(size=history["size"], root=history["root"])
    paying.call()
    finding = continued(exported(paying), head)
    assert isinstance(finding, Proven)
    assert "of the file's records are among those" in finding.why
    assert "only the earlier file shows" in finding.why
    assert "only the earlier file shows" not in continued(exported(paying), before).why


def test_a_head_that_no_bundle_showed_is_not_decided(paying):
    paying.call()
    finding = continued(exported(paying), Head(size=3, root="0x" + "12" * 32))
    assert isinstance(finding, Undecided)


def test_an_earlier_bundle_without_a_history_is_a_configuration_error(paying):
    payments = paying.payments
    bundle = export_bundle(payments.ledger, network=payments.network, signer=payments.signer)
    with pytest.raises(ConfigurationError, match="no history"):
        continued(bundle.to_bytes(), replace(bundle, history=None).signed(payments.signer).to_bytes())


def test_a_long_history_is_read_and_proven_fast():
    chance = random.Random(1)
    tree = HistoryTree([chance.randbytes(32) for _ in range(20_000)])
    assert len(tree.inclusion(12_345)) == 15
    assert is_continued(HistoryTree(tree._levels[0][:777]).head, tree.consistency(777), tree.head)


def test_the_schema_in_the_docs_is_that_of_the_code():
    file = Path(__file__).parents[3] / "docs" / "bundle.schema.json"
    assert json.loads(file.read_text()) == json_schema(), "write it again: json.dumps(json_schema(), indent=2)"


def test_the_schema_knows_every_field_of_a_receipt():
    from dataclasses import fields

    from opengradient_x402.ledger.receipts import SettlementReceipt
    from opengradient_x402.proofs.bundle_schema import ReceiptShape

    assert {field.name for field in fields(SettlementReceipt)} == set(ReceiptShape.model_fields)
