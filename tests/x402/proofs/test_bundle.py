from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import SettleAtCap
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.keys.signer import LocalSigner, recover_address, text_digest
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.proofs.bundle import Bundle, BundleUnreadable, Record
from opengradient_x402.proofs.export import aexport_bundle, export_bundle
from opengradient_x402.proofs.findings import Proven, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.proofs.history import IN_HISTORY
from opengradient_x402.proofs.verification import verify_bundle
from support.node import serving
from support.payers import PROMPT, client_for, network_of, payments_for, settled_receipts

MODES = ("batch", "individual", "private")


@pytest.fixture(scope="module")
def audited(net, tmp_path_factory):
    """A wallet's settled calls in every mode, and what a bundle is made from."""
    account = net.account(approved=True)
    with payments_for(net, account, tmp_path_factory.mktemp("audited") / "l.sqlite") as payments:
        with client_for(payments) as client:
            for mode in MODES:
                client.chat(PROMPT, settlement_mode=mode)
            with client.stream(PROMPT, settlement_mode="batch") as stream:
                list(stream)
            net.flush_batches()
            assert {item.status for item in settled_receipts(net, payments)} == {ReceiptStatus.SETTLED}
            client.chat(PROMPT)  # one that is still open
        yield payments


@pytest.fixture(scope="module")
def bundle(audited):
    return export_bundle(audited.ledger, network=audited.network, signer=audited.signer)


def live(content: bytes, net: Devnet, **options):
    return verify_bundle(content, network=network_of(net), **options)


def offline(content: bytes, net: Devnet):
    return verify_bundle(content, network=network_of(net), is_offline=True)


def about(verification, statement: Statement):
    return [finding for finding in verification.findings if finding.statement is statement]


def classes(verification, statement: Statement) -> list[type]:
    return sorted((type(item) for item in about(verification, statement)), key=lambda kind: kind.kind)


def test_an_honest_bundle_is_told_class_by_class_with_the_readers_network_and_node(net, audited, bundle):
    verification = live(bundle.to_bytes(), net)
    assert verification.of(Refuted) == []
    assert verification.contents.receipts == audited.ledger.receipts().result()
    # Four calls in one settled session, and one call that is open still.
    expected = {
        Statement.MADE: [Proven],
        Statement.NETWORK: [Read],
        Statement.ONCE: [Stated],
        Statement.HISTORY: [Proven],
        Statement.COMPLETE: [Read],
        Statement.SIGNED: [Proven],
        Statement.PAID: [Read, Undecided],
        Statement.CONFIRMED: [Read],
        Statement.PAYEE: [Read] * 2,
        Statement.FACILITATOR: [Read] * 2,
        Statement.SHARES: [Stated],
        Statement.TOLD: [Stated] * 5,
        Statement.DISPUTE: [Stated] * 5,
        Statement.ENCLAVE: [Proven] * 5,
        Statement.REGISTERED: [Read] * 5,
        Statement.DATA: [Read] * 3 + [Undecided],
        Statement.OWN_CALL: [Read] + [Stated] * 4,
        Statement.NO_DATA: [Stated],
        Statement.NAMED_TRANSACTION: [Read],
        Statement.NAMED_BLOB: [Read],
        Statement.BLOB: [Read],
    }
    assert {item.statement for item in verification.findings} == set(expected)
    assert {statement: classes(verification, statement) for statement in expected} == expected
    assert verification.totals == {"proven": 8, "read": 20, "stated": 17, "undecided": 2, "refuted": 0}


def test_everything_read_names_the_node_and_the_block(net, bundle):
    before = net.chain.rpc("eth_getBlockByNumber", ["latest", False])
    found = live(bundle.to_bytes(), net).of(Read)
    (number,) = {finding.source.block_number for finding in found if finding.source.is_chain}
    read = net.chain.rpc("eth_getBlockByNumber", [hex(number), False])
    assert number >= int(before["number"], 16)  # the devnet that tests share may mine a block meanwhile
    for finding in found:
        if finding.source.is_chain:
            assert finding.source.name == f"chain 31402 by {urlsplit(net.network['rpc_url']).netloc}"
            assert finding.source.block_hash == read["hash"]
        else:
            assert finding.source.name == "the reader's description of devnet"


def test_offline_only_signatures_are_proven_and_nothing_is_read_from_a_chain(net, bundle):
    verification = offline(bundle.to_bytes(), net)
    assert verification.of(Refuted) == []
    assert {item.statement for item in verification.of(Proven)} == {Statement.MADE, Statement.HISTORY, Statement.SIGNED}
    assert not any(item.source.is_chain for item in verification.of(Read))
    assert classes(verification, Statement.ENCLAVE) == [Undecided] * 5  # whose key it is, only a registry says
    assert "the chain was not asked" in about(verification, Statement.PAID)[0].why
    assert classes(verification, Statement.COMPLETE) == [Stated]


def test_without_a_network_of_the_readers_own_the_contracts_are_the_writers_word(net, bundle):
    verification = verify_bundle(bundle.to_bytes(), rpc_url=net.network["rpc_url"])
    assert verification.of(Refuted) == []
    assert verification.of(Read) == []
    assert classes(verification, Statement.NETWORK) == [Stated]
    assert {item.statement for item in verification.of(Proven)} == {Statement.MADE, Statement.HISTORY, Statement.SIGNED}
    token = net.network["asset"]["address"]
    assert f"units of {token[:6]}…{token[-4:]}" in about(verification, Statement.PAID)[0].why


def test_another_machine_needs_neither_ledger_nor_key(net, bundle, tmp_path):
    path = tmp_path / "bundle.json"
    path.write_bytes(bundle.to_bytes())
    script = (
        "import sys, pathlib; from opengradient_x402.networks import load_network;"
        "from opengradient_x402.proofs.verification import verify_bundle;"
        "content, network = pathlib.Path(sys.argv[1]).read_bytes(), load_network(sys.argv[2]);"
        "totals = verify_bundle(content, network=network).totals; print(totals['read'], totals['refuted'])"
    )
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script, str(path), f"{net.gateway_url}/network"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["20", "0"]


def is_caught(content: bytes) -> bool:
    try:
        return bool(verify_bundle(content, is_offline=True).of(Refuted))
    except BundleUnreadable:
        return True


def test_each_of_two_hundred_single_byte_changes_is_found(bundle):
    content = bundle.to_bytes()
    assert not is_caught(content)
    chance = random.Random(402)  # the same changes every time
    for _ in range(200):
        place = chance.randrange(len(content))
        byte = chance.choice([value for value in range(256) if value != content[place]])
        assert is_caught(content[:place] + bytes([byte]) + content[place + 1 :]), (place, byte)


def test_every_byte_of_signature_head_and_format_counts(bundle):
    content = bundle.to_bytes()
    for text in (b'"signature":', b'"digest":', b'"format":', b'"history":', b'"period":'):
        start = content.rindex(text)
        for place in range(start, min(start + 80, len(content))):
            assert is_caught(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]), place


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip(b"\n"),
        lambda text: text + b"\n",
        lambda text: b" " + text,
        lambda text: text.replace(b'":', b'": ', 1),
        lambda text: text.replace(b"0x", b"0X", 1),
        lambda text: json.dumps(json.loads(text), indent=1).encode(),
        lambda text: text.replace(b'"chain_id":31402', b'"chain_id":31402.0', 1),
        lambda text: text.replace(b'"chain_id":31402', b'"chain_id":3.1402e4', 1),
        lambda text: text.replace(b'"asset"', b'"\\u0061sset"', 1),
        lambda text: text[:-2] + b',"more":1}\n',
        lambda text: b'{"format":"x",' + text[1:],
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"[" * 100_000,
    ],
)
def test_another_spelling_of_the_same_content_is_found(bundle, change):
    with pytest.raises(BundleUnreadable, match=r"Nothing in it can be relied on|Nothing was proven"):
        verify_bundle(change(bundle.to_bytes()), is_offline=True)


def with_lower_settlement(bundle: Bundle) -> Bundle:
    """Says that less was settled, consistently, with the chain of hashes made anew."""
    records = []
    for record in bundle.records:
        body = dict(record.body)
        if record.kind == "receipt" and "settled_atomic" in body:
            body["settled_atomic"] = str(int(body["settled_atomic"]) - 1)
            body["authorization_settled_atomic"] = str(int(body["authorization_settled_atomic"]) - 4)
        if record.kind == "authorization" and "settled_atomic" in body:
            body["settled_atomic"] = str(int(body["settled_atomic"]) - 4)
        records.append(Record(record.kind, body))
    return replace(bundle, records=tuple(records))


def test_a_recomputed_chain_is_found_by_the_signature(bundle):
    forged = with_lower_settlement(bundle)
    verification = verify_bundle(forged.to_bytes(), is_offline=True)
    (signed,) = about(verification, Statement.MADE)
    assert isinstance(signed, Refuted)


def test_a_bundle_signed_anew_by_somebody_else_is_found(net, bundle):
    stranger = LocalSigner(net.account(opg="0").private_key)
    verification = verify_bundle(with_lower_settlement(bundle).signed(stranger).to_bytes(), is_offline=True)
    (signed,) = about(verification, Statement.MADE)
    assert isinstance(signed, Refuted)
    assert stranger.address in signed.why


def test_a_payer_who_lies_is_found_by_the_evidence_and_by_the_chain(net, audited, bundle):
    forged = with_lower_settlement(bundle).signed(audited.signer).to_bytes()
    for verification in (offline(forged, net), live(forged, net)):
        (paid, _) = about(verification, Statement.PAID)
        assert isinstance(paid, Refuted)
        assert "OPG and not" in paid.why


def test_without_a_signature_the_maker_is_not_proven_and_can_be_demanded(net, audited):
    content = export_bundle(audited.ledger, network=audited.network).to_bytes()
    (signed,) = about(live(content, net), Statement.MADE)
    assert isinstance(signed, Undecided)
    (demanded,) = about(live(content, net, expected_signer=audited.payer), Statement.MADE)
    assert isinstance(demanded, Refuted)


def test_evidence_that_is_left_out_is_not_proven_and_live_it_does_not_matter(net, audited, bundle):
    bare = replace(bundle, records=tuple(item for item in bundle.records if item.kind not in ("rpc", "blob", "source")))
    content = bare.signed(audited.signer).to_bytes()
    alone = offline(content, net)
    assert alone.of(Refuted) == []
    assert classes(alone, Statement.PAID) == [Undecided] * 2
    assert classes(live(content, net), Statement.PAID) == [Read, Undecided]


def test_made_up_evidence_convinces_nobody_with_a_node(net, audited, bundle):
    """Receipts and evidence that agree with each other, about a chain that never was."""

    def renamed(value):
        return json.loads(json.dumps(value).replace(old, new))

    old = next(item.payment_tx_hash for item in audited.ledger.receipts().result() if item.payment_tx_hash)
    new = "0x" + "77" * 32
    records = tuple(Record(item.kind, renamed(dict(item.body))) for item in bundle.records)
    content = replace(bundle, records=records).signed(audited.signer).to_bytes()
    assert classes(offline(content, net), Statement.PAID) == [Undecided] * 2
    paid = about(live(content, net), Statement.PAID)[0]
    assert isinstance(paid, Refuted)
    assert "is not on the chain" in paid.why


def test_a_disputed_receipt_stays_disputed_and_hiding_it_is_found(net, tmp_path):
    net.close_sessions()  # those of other tests
    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments:
        with client_for(payments) as client:
            client.chat(PROMPT)
            net.faults.inject(SettleAtCap())
            (receipt,) = settled_receipts(net, payments)
        assert receipt.status is ReceiptStatus.DISPUTED
        bundle = export_bundle(payments.ledger, network=payments.network, signer=payments.signer)
        (honest,) = about(live(bundle.to_bytes(), net), Statement.DISPUTE)
        assert isinstance(honest, Stated)
        assert "it is disputed" in honest.why
        hidden = [
            Record(
                item.kind,
                {name: value for name, value in item.body.items() if name != "dispute"} | {"status": "settled"},
            )
            if item.kind == "receipt"
            else item
            for item in bundle.records
        ]
        content = replace(bundle, records=tuple(hidden)).signed(payments.signer).to_bytes()
        (found,) = about(live(content, net), Statement.DISPUTE)
        assert isinstance(found, Refuted)
        assert "too much" in found.why


def test_a_bundle_since_a_time_keeps_sessions_whole(audited):
    everything = audited.ledger.receipts().result()
    later = export_bundle(audited.ledger, network=audited.network, since=everything[-1].created_at + 10_000)
    assert later.of_kind("receipt") == []
    again = export_bundle(audited.ledger, network=audited.network, since=everything[3].created_at)
    assert len(again.of_kind("receipt")) == 5


def test_a_bundle_right_after_a_settlement_is_not_refuted(net, tmp_path):
    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments:
        with client_for(payments) as client:
            client.chat(PROMPT)
        net.close_sessions()  # nobody has reconciled since
        bundle = export_bundle(payments.ledger, network=payments.network, signer=payments.signer)
        checked = live(bundle.to_bytes(), net)
        assert checked.of(Refuted) == []
        assert [receipt.status for receipt in checked.contents.receipts] == [ReceiptStatus.SETTLED]
        (receipt,) = payments.ledger.receipts().result()
        assert receipt.status is ReceiptStatus.SETTLED


@pytest.mark.parametrize("number", range(1, 9))
def test_a_settlement_while_the_bundle_is_written_does_not_refute_it(net, tmp_path, number):
    settled: list[int] = []

    def settling(method, params, asked):
        if asked >= number and not settled:
            settled.append(asked)
            net.close_sessions()

    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments:
        with client_for(payments) as client:
            client.chat(PROMPT)
        with serving(net.chain) as node:
            node.misbehave = settling
            network = replace(payments.network, rpc_url=node.url)
            bundle = export_bundle(payments.ledger, network=network, signer=payments.signer)
        assert settled
        assert live(bundle.to_bytes(), net).of(Refuted) == []


async def test_coroutines_export_the_same(audited):
    bundle = export_bundle(audited.ledger, network=audited.network, signer=audited.signer)
    other = await aexport_bundle(audited.ledger, network=audited.network, signer=audited.signer)
    assert [item for item in other.records if item.kind in IN_HISTORY] == [
        item for item in bundle.records if item.kind in IN_HISTORY
    ]


def test_look_alike_contracts_under_a_known_chain_id_are_refuted(audited, bundle):
    posing = replace(bundle, network={**bundle.network, "chain_id": 8453}).signed(audited.signer)
    verification = verify_bundle(posing.to_bytes(), is_offline=True)
    (finding,) = about(verification, Statement.NETWORK)
    assert isinstance(finding, Refuted)
    assert "registry" in finding.why


def test_an_unknown_chain_needs_a_node_or_offline(bundle):
    with pytest.raises(ConfigurationError, match=r"--rpc-url.*--offline"):
        verify_bundle(bundle.to_bytes())


def test_a_node_that_is_away_leaves_everything_unproven_and_refutes_nothing(net, bundle):
    with serving(net.chain) as node:
        node.misbehave = lambda method, params, number: (400, b"gone") if method != "eth_chainId" else None
        verification = live(bundle.to_bytes(), net, rpc_url=node.url)
    assert verification.of(Refuted) == []
    assert classes(verification, Statement.PAID) == [Undecided] * 2


def test_no_key_session_or_node_url_is_in_a_bundle(net, audited, bundle):
    content = bundle.to_bytes().decode()
    for secret in (net.network["rpc_url"], "X-Upto-Session", "private_key"):
        assert secret not in content
    assert network_of(net).rpc_url not in content


@pytest.mark.parametrize("fast", [True, False], ids=["libsecp256k1", "pure Python"])
def test_a_text_signature_is_recovered_and_a_twin_refused(fast, monkeypatch):
    if not fast:
        monkeypatch.setitem(sys.modules, "coincurve", None)
    from eth_account import Account
    from eth_account.messages import encode_defunct

    account = Account.from_key("0x" + "12" * 32)
    signature = bytes(Account.sign_message(encode_defunct(text="hello"), account.key).signature)
    digest = text_digest("hello")
    assert recover_address(digest, signature) == account.address
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    twin_s = order - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + twin_s.to_bytes(32, "big") + bytes([55 - signature[64]])
    assert recover_address(digest, twin) is None
    for broken in (b"", signature[:64], bytes(65), b"\xff" * 64 + b"\x1b", signature[:64] + b"\x00"):
        assert recover_address(digest, broken) is None
