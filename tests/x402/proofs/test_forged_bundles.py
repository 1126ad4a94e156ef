"""Bundles made to deceive: by the payer, who can sign what they like, or by somebody who holds a payer's bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.authorizations import SignedTerms
from opengradient_x402.networks import PRESETS
from opengradient_x402.proofs.bundle import Bundle, BundleUnreadable, Contents, Record, cases_of, describe
from opengradient_x402.proofs.findings import Finding, Standing
from opengradient_x402.proofs.verification import Verification, export_bundle, verify_bundle
from support.ledger_rows import entry, served
from support.payers import PROMPT, client_for, network_of, payments_for, settled_receipts

PAID = "the settlement is as the receipt says"
SHARES = "the calls' shares add up to the settlement"
ONCE = "no payment and no proof is claimed twice"
NETWORK = "the contracts are those of the network that it names"
SIGNED = "the bundle was made by the payer"


@pytest.fixture(scope="module")
def audited(net, tmp_path_factory):
    """Two settled calls of one session, one settled individual call of another, and one that is open."""
    account = net.account(approved=True)
    with payments_for(net, account, tmp_path_factory.mktemp("forged") / "l.sqlite") as payments:
        with client_for(payments) as client:
            for mode in ("batch", "individual"):
                client.chat(PROMPT, settlement_mode=mode)
            net.flush_batches()
            settled_receipts(net, payments)
            client.chat(PROMPT)
        yield payments


@pytest.fixture(scope="module")
def bundle(audited):
    return export_bundle(audited.ledger, network=audited.network, signer=audited.signer)


@pytest.fixture
def forged(bundle, audited):
    """The bundle with other records, signed by the payer like the true one."""

    def forge(change, **parts) -> bytes:
        copies = [Record(item.kind, json.loads(json.dumps(dict(item.body)))) for item in bundle.records]
        records = [record for item in copies for record in change(item)]
        return replace(bundle, records=tuple(records), **parts).signed(audited.signer).to_bytes()

    return forge


TERMS = frozenset(SignedTerms.__slots__)


def changed(kind: str, where=lambda body: True, **values):
    """A change of some fields, of an authorization or of what was signed for it; None removes one."""

    def change(record: Record) -> list[Record]:
        if record.kind != kind or not where(record.body):
            return [record]
        terms = {name: value for name, value in values.items() if kind == "authorization" and name in TERMS}
        own = {name: value for name, value in values.items() if name not in terms}
        body = {name: value for name, value in {**record.body, **own}.items() if value is not None}
        if terms:
            body["signed"] = [{**signed, **terms} for signed in body["signed"]]
        return [Record(kind, body)]

    return change


def is_open(body) -> bool:
    return body.get("status") in ("signed", "served")


def is_settled(body) -> bool:
    return body.get("status") == "settled"


def about(verification: Verification, statement: str) -> list[Finding]:
    return [finding for finding in verification.findings if finding.statement == statement]


def refutation(content: bytes, net: Devnet, statement: str) -> str:
    """Why a statement is refuted: from the file alone, and with a node as well."""
    for options in ({"is_offline": True}, {"rpc_url": net.network["rpc_url"]}):
        refuted = [item for item in about(verify_bundle(content, **options), statement) if item.standing == "refuted"]
        assert refuted, options
    return " ".join(item.why for item in refuted)


@pytest.mark.parametrize("shift_s", [0, 1])
def test_one_payment_under_two_names_is_found(net, forged, shift_s):
    def twice(record):
        if record.kind not in ("authorization", "receipt") or not is_settled(record.body):
            return [record]
        other = {**record.body, "call_id": record.body["call_id"] + "x"}
        if record.kind == "authorization":
            signed = [{**terms, "signed_at": terms["signed_at"] + shift_s} for terms in other["signed"]]
            other |= {"id": other["id"] + "x", "signed": signed}
        else:
            other |= {"authorization_id": other["authorization_id"] + "x"}
        return [record, Record(record.kind, other)]

    why = refutation(forged(twice), net, ONCE)
    assert "have the same nonce" in why
    assert "have the same proof" in why


def test_one_proof_for_two_calls_is_found(net, forged, audited):
    stolen = next(item.tee_signature for item in audited.ledger.receipts().result())
    content = forged(changed("receipt", is_open, tee_signature=stolen))
    assert "have the same proof" in refutation(content, net, ONCE)


def test_a_receipt_that_calls_itself_settled_without_a_settlement_is_found(net, forged):
    content = forged(changed("receipt", is_open, status="settled", settled_atomic=str(5 * 10**18)))
    assert "is settled; its authorization is signed" in refutation(content, net, PAID)
    assert "5 OPG of 0 OPG" in refutation(content, net, SHARES)


def test_a_payment_that_expired_and_was_taken_all_the_same_is_found(net, forged):
    amount = {"settled_atomic": "7"}
    lapsed = changed("authorization", is_open, status="expired", **amount)
    believed = changed("receipt", is_open, status="expired", authorization_settled_atomic="7", **amount)
    content = forged(lambda record: [item for first in lapsed(record) for item in believed(first)])
    assert "is expired, and has" in refutation(content, net, PAID)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("asset", "0x" + "ab" * 20, "it pays in the token"),
        ("spender", "0x" + "ab" * 20, "no contract of the network"),
        ("network", "eip155:1", "the bundle is about eip155:31402"),
    ],
)
def test_payments_that_are_none_of_the_network_are_found(net, forged, field, value, expected):
    """A token of the payer's own making can be settled in earnest, and is worth nothing."""
    on_paper = changed("authorization", **{field: value})
    told = changed("receipt", **({field: value} if field != "spender" else {}))
    content = forged(lambda record: [item for first in on_paper(record) for item in told(first)])
    assert expected in refutation(content, net, PAID)


@pytest.mark.parametrize("field", ["scheme", "facilitator", "deadline", "block_number"])
def test_a_receipt_with_other_terms_than_its_authorization_is_found(net, forged, field):
    values = {"scheme": "exact", "facilitator": "0x" + "11" * 20, "deadline": 5, "block_number": 5}
    content = forged(changed("receipt", is_settled, **{field: values[field]}))
    assert f"has the {field.replace('_', ' ')} {values[field]}" in refutation(content, net, PAID)


def test_ones_own_receipt_vouches_for_nobody_elses(net, audited, bundle, tmp_path):
    """Two bundles spliced, and signed by one of the two payers."""
    net.close_sessions()
    with payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments:
        with client_for(payments) as client:
            client.chat(PROMPT)
            settled_receipts(net, payments)
        own = export_bundle(payments.ledger, network=payments.network)
        known = {json.dumps(dict(item.body), sort_keys=True) for item in bundle.records}
        asked = {
            json.dumps([item.body["method"], item.body["params"]]) for item in bundle.records if item.kind == "rpc"
        }
        added = [
            item
            for item in own.records
            if json.dumps(dict(item.body), sort_keys=True) not in known
            and not (item.kind == "rpc" and json.dumps([item.body["method"], item.body["params"]]) in asked)
        ]
        spliced = replace(bundle, records=(*bundle.records, *added)).signed(payments.signer).to_bytes()
        signer = payments.payer
    (made_by,) = about(verify_bundle(spliced, is_offline=True), SIGNED)
    assert made_by.standing is Standing.NOT_PROVEN
    assert f"{audited.payer} paid as well" in made_by.why
    (demanded,) = about(verify_bundle(spliced, is_offline=True, expected_signer=signer), SIGNED)
    assert demanded.standing is Standing.PROVEN


def test_offline_nothing_that_rests_on_a_chain_is_called_proven(bundle):
    proven = {item.statement for item in verify_bundle(bundle.to_bytes(), is_offline=True).of(Standing.PROVEN)}
    assert proven == {
        "the file is whole: its records hash to its head",
        SIGNED,
        ONCE,
        SHARES,
        "the payer signed for this payment",
        "the enclave's key signed the call's hashes",
        "claims and facts agree, or the receipt says that they do not",
    }


def test_answers_of_another_chain_are_no_evidence(forged):
    content = forged(changed("rpc", chain_id=1))
    paid = about(verify_bundle(content, is_offline=True), PAID)
    assert {item.standing for item in paid} == {Standing.NOT_PROVEN}


def test_a_blob_store_in_the_readers_own_network_is_not_called(net, bundle, audited):
    for url in ("http://169.254.169.254/latest", "https://10.0.0.1", "https://192.168.0.1:8443/x"):
        content = replace(bundle, network={**bundle.network, "blob_url": url}).signed(audited.signer).to_bytes()
        verification = verify_bundle(content, rpc_url=net.network["rpc_url"])
        data = about(verification, "the call's data were settled on chain")
        assert any("names no blob store" in item.why for item in data)


def test_a_bundle_cannot_make_a_live_chain_final_sooner():
    from opengradient_x402.proofs.verification import _with_care

    network = replace(PRESETS["base"], confirmations=1)
    assert _with_care(network).confirmations == PRESETS["base"].confirmations > 1


@pytest.mark.parametrize("absent", ["registry", "relay"])
def test_a_bundle_of_a_gateway_without_a_registry_is_not_proven_and_not_refuted(audited, absent):
    known = replace(PRESETS["base"], relay=audited.network.relay)
    own = Bundle(created_at=1, network=describe(known) | {absent: None}, records=())
    expected = Standing.NOT_PROVEN if absent == "registry" else Standing.PROVEN  # no relay is published
    (finding,) = about(verify_bundle(own.signed(audited.signer).to_bytes(), is_offline=True), NETWORK)
    assert finding.standing is expected
    assert (absent == "relay") or "it names no registry" in finding.why


@pytest.mark.parametrize("name", ["registry", "asset", "permit2"])
def test_a_bundle_with_other_contracts_than_those_of_its_network_is_refuted(audited, name):
    network = describe(PRESETS["base"])
    other = "0x" + "12" * 20
    network[name] = other if name == "permit2" else {**network[name], "address": other}
    bundle = Bundle(created_at=1, network=network, records=())
    (finding,) = about(verify_bundle(bundle.signed(audited.signer).to_bytes(), is_offline=True), NETWORK)
    assert finding.standing is Standing.REFUTED


def drop(kind: str):
    return lambda record: [] if record.kind == kind and is_settled(record.body) else [record]


def again(kind: str, **values):
    return lambda record: [record, Record(kind, {**record.body, **values})] if record.kind == kind else [record]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (drop("receipt"), "authorizations without a receipt"),
        (drop("authorization"), "receipts without their authorization"),
        (again("receipt"), "is there twice"),
        (again("receipt", settled_atomic="1"), "is there twice"),
        (again("authorization"), "is there twice"),
        (again("data_settlement"), "is there twice"),
        (again("rpc", result=None), "is there twice"),
        (changed("data_settlement", call_id="call_of_nobody"), "is there twice|without a receipt"),
    ],
)
def test_records_that_do_not_belong_together_are_no_bundle(forged, change, why):
    with pytest.raises(BundleUnreadable, match=why):
        verify_bundle(forged(change), is_offline=True)


PRIVATE = "private mode writes nothing about the data on chain, only the payment"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("authorization", {"nonce": "1_000"}),
        ("authorization", {"nonce": "٣"}),
        ("authorization", {"nonce": "-1"}),
        ("authorization", {"nonce": str(2**256)}),
        ("authorization", {"nonce": "9" * 5000}),
        ("authorization", {"amount_atomic": 10**18}),
        ("authorization", {"payer": 5}),
        ("authorization", {"payer": ["0x"]}),
        ("authorization", {"payee": "0x" + "аb" * 20}),  # noqa: RUF001  (one letter is Cyrillic)
        ("authorization", {"deadline": -1}),
        ("authorization", {"deadline": True}),
        ("authorization", {"deadline": 1.5}),
        ("authorization", {"status": "paid"}),
        ("authorization", {"tx_hash": f"0x11 {PRIVATE}"}),
        ("authorization", {"id": "a\n\x1b[2J0 refuted"}),
        ("receipt", {"settled_atomic": "+5"}),
        ("receipt", {"settled_atomic": "-5"}),
        ("receipt", {"status": "SETTLED"}),
        ("receipt", {"created_at": "yesterday"}),
        ("receipt", {"call_id": ""}),
        ("receipt", {"tee_timestamp": 10**90}),
        ("receipt", {"tee_id": 5}),
        ("data_settlement", {"tx_hash": []}),
        ("data_settlement", {"log_index": "0"}),
        ("rpc", {"params": None}),
        ("rpc", {"method": ["eth_call"]}),
        ("rpc", {"chain_id": "31402"}),
        ("document", {"content_base64": "***"}),
        ("document", {"url": 5}),
    ],
)
def test_fields_that_are_not_what_they_are_called_are_said_so(forged, kind, values):
    with pytest.raises(BundleUnreadable, match="Nothing was proven"):
        verify_bundle(forged(changed(kind, **values)), is_offline=True)


@pytest.mark.parametrize(
    "values", [{"blob_url": "file:///etc/passwd"}, {"confirmations": 0}, {"relay": 5}, {"chain_id": "31402"}]
)
def test_a_network_that_is_none_is_said_so(forged, bundle, values):
    with pytest.raises(BundleUnreadable, match="Nothing was proven"):
        verify_bundle(forged(lambda record: [record], network={**bundle.network, **values}), is_offline=True)


def test_a_record_of_another_kind_is_not_passed_over(forged):
    with pytest.raises(BundleUnreadable, match="'refund'"):
        verify_bundle(forged(lambda record: [record, Record("refund", {})]), is_offline=True)


def test_payments_that_name_no_facilitator_can_be_read_back(net):
    exact = entry(1, scheme="exact", facilitator=None)
    cases = tuple(cases_of([exact], [served(exact, "call_1")]))
    written = Contents(cases=cases, data_places=())
    again = Bundle(created_at=1, network=describe(network_of(net)), records=tuple(written.records()))
    assert Contents.of(Bundle.from_bytes(again.to_bytes())) == written


def test_a_signer_that_is_no_address_is_a_configuration_error(bundle):
    with pytest.raises(ConfigurationError, match="is not an address"):
        verify_bundle(bundle.to_bytes(), is_offline=True, expected_signer="zzz")


def test_the_honest_bundle_passes_what_catches_the_forged_ones(net, bundle):
    assert verify_bundle(bundle.to_bytes(), rpc_url=net.network["rpc_url"]).of(Standing.REFUTED) == []
    assert verify_bundle(bundle.to_bytes(), is_offline=True).of(Standing.REFUTED) == []
