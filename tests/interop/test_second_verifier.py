"""A verifier in JavaScript, written from docs/bundle-format.md, says the same of every bundle as ours."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opengradient_devnet import Scheme
from opengradient_devnet.contracts import MULTICALL3, OPG, contract
from opengradient_x402.errors import BundleUnreadable
from opengradient_x402.proofs.checks.network import describe
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Statement
from opengradient_x402.proofs.verification import verify_bundle
from support.forgeries import FORGERIES
from support.forging import World, forge, setting, settled, world
from support.made_up import made_up
from support.node_js import run_lines
from support.odd_forgeries import EARLIER
from support.payers import PROMPT, client_for, network_of, settled_receipts
from support.settling import mined, new_payer, settle_call
from support.venvs import PROJECT

pytestmark = pytest.mark.devnet(schemes=[Scheme.UPTO, Scheme.BATCH_SETTLEMENT])
VERIFIER = Path(__file__).parent / "verifier" / "verifier.mjs"
SCHEMA = PROJECT / "docs" / "bundle.schema.json"


@pytest.fixture(scope="module")
def forged_world(net, tmp_path_factory) -> Iterator[World]:
    with world(net, tmp_path_factory.mktemp("forged")) as made:
        yield made


@pytest.fixture(scope="module")
def bundles(forged_world) -> dict[str, bytes]:
    honest = {"honest": forged_world.bundle.to_bytes(), "earlier": forged_world.earlier.to_bytes()}
    return honest | {forgery.name: forgery.make(forged_world) for forgery in FORGERIES}


def ours(content: bytes, **options: Any) -> Any:
    try:
        findings = verify_bundle(content, **options).findings
    except BundleUnreadable:
        return "unreadable"
    return sorted([finding.kind, finding.statement.value, finding.about] for finding in findings)


def theirs(tasks: list[dict[str, Any]]) -> list[Any]:
    answers = run_lines(VERIFIER, tasks, str(SCHEMA), timeout_s=250)  # two cores serve all tests
    return [answer if isinstance(answer, str) else sorted(answer) for answer in answers]


def task(content: bytes, **more: Any) -> dict[str, Any]:
    encoded = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in more.items()
    }
    return {"file": base64.b64encode(content).decode(), "network": None, "rpc": None, "earlier": None} | encoded


@pytest.fixture(scope="module")
def reader(forged_world) -> dict[str, Any]:
    """The reader's own description of the network, for both."""
    network = network_of(forged_world.net)
    lists = {"payees": sorted(network.payees), "facilitators": sorted(network.facilitators)}
    return {
        **describe(network),
        **lists,
        "confirmations": network.confirmations,
        "attestation_root_sha256": network.attestation_root_sha256,
        "blob_url": network.blob_url,
    }


@pytest.fixture(scope="module")
def image(forged_world) -> str:
    """The enclave's image, as a reader knows it who built it."""
    attested = verify_bundle(forged_world.bundle.to_bytes(), network=network_of(forged_world.net), is_offline=True)
    shown = next(item for item in attested.findings if item.statement is Statement.ATTESTED)
    return shown.why.split(" the image ")[1].split()[0]


@pytest.mark.parametrize("who", ["a reader with a node", "a reader without a node", "a reader who knows no network"])
def test_both_verifiers_say_the_same_of_every_bundle(forged_world, bundles, reader, image, who):
    network, rpc = network_of(forged_world.net), None
    options: dict[str, Any] = {"network": network, "is_offline": True, "pcr_hashes": [image]}
    reader = reader if who == "a reader with a node" else {**reader, "pcr_hashes": [image]}
    if who == "a reader with a node":
        options, rpc = {"network": network}, network.rpc_url
    known = None if who == "a reader who knows no network" else reader
    if known is None:
        options = {"is_offline": True}
    # Every lie is told once; those that a node, or no network, makes a difference to are of the same few kinds.
    every = {"a reader without a node": 1, "a reader with a node": 6, "a reader who knows no network": 8}[who]
    wanted = dict(list(bundles.items())[::every])
    answers = theirs([task(content, network=known, rpc=rpc) for content in wanted.values()])
    for (name, content), answer in zip(wanted.items(), answers, strict=True):
        assert answer == ours(content, **options), name


def test_both_verifiers_say_the_same_of_a_history_that_goes_on_and_of_one_that_does_not(forged_world, reader):
    w = forged_world
    before, network = w.earlier.to_bytes(), network_of(w.net)
    told = forge(w.bundle, w.payments.signer, setting("receipt", settled, model="another/model"))
    files = [w.bundle.to_bytes(), w.earlier.to_bytes(), told, forge(w.bundle, None, history=None)]
    files += [make(w) for name, make in EARLIER.items() if "shorter" not in name]
    answers = theirs([task(content, network=reader, earlier=before) for content in files])
    expected = [ours(content, network=network, is_offline=True, earlier=before) for content in files]
    assert answers == expected
    kinds = [next(kind for kind, statement, _ in answer if statement.startswith("the history")) for answer in answers]
    assert kinds == ["proven", "proven"] + ["refuted"] * (len(files) - 2)


def test_both_verifiers_say_the_same_of_made_up_evidence(forged_world, reader):
    network = network_of(forged_world.net)
    files = [made_up(forged_world.bundle, seed) for seed in range(200)]
    answers = theirs([task(content, network=reader) for content in files])
    for seed, (content, answer) in enumerate(zip(files, answers, strict=True)):
        assert answer == ours(content, network=network, is_offline=True), seed


def test_no_verifier_counts_a_transfer_of_nothing_that_a_stranger_made_in_the_payers_name(net, payments, reader):
    with client_for(payments) as client:
        client.chat(PROMPT)
    settled_receipts(net, payments)
    stranger, facilitator = new_payer(net), net.account(opg="0")
    signed = stranger.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=5)
    nothing = contract("OPG").encode("transferFrom", payments.payer, OPG, 0)
    data = contract("Multicall3").encode("tryAggregate", True, [(OPG, nothing), settle_call(signed)])
    mined(net.chain.send(facilitator, to=MULTICALL3, data=data))
    content = export_bundle(payments.ledger, network=payments.network, signer=payments.signer).to_bytes()
    [answer] = theirs([task(content, network=reader, rpc=payments.network.rpc_url)])
    assert answer == ours(content, network=payments.network)
    assert ["read", Statement.COMPLETE.value, payments.payer] in answer


def test_both_verifiers_refuse_two_hundred_single_byte_changes(forged_world):
    import random

    content, chance = forged_world.bundle.to_bytes(), random.Random(402)
    changed = []
    for _ in range(200):
        place = chance.randrange(len(content))
        byte = chance.choice([value for value in range(256) if value != content[place]])
        changed.append(content[:place] + bytes([byte]) + content[place + 1 :])
    for answer, one in zip(theirs([task(one) for one in changed]), changed, strict=True):
        assert answer == ours(one, is_offline=True)
        assert answer == "unreadable" or any(kind == "refuted" for kind, _, _ in answer)
