from __future__ import annotations

import json
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from opengradient_devnet.faults import ForgeProof, WrongTransaction
from opengradient_x402.chain import sources
from opengradient_x402.chain.node import alook_up, look_up
from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.proofs.blobs import root_from_proof
from opengradient_x402.proofs.data_settlement import DataSettlements
from opengradient_x402.proofs.findings import Read, Refuted, Stated, Undecided
from opengradient_x402.settlement_mode import SettlementMode
from support.loopback_server import serving
from support.node import serving as node_of
from support.payers import PROMPT, client_for, network_of, payments_for


@pytest.fixture
def paid(net, tmp_path):
    with (
        payments_for(net, net.account(approved=True), tmp_path / "l.sqlite") as payments,
        client_for(payments) as client,
    ):

        def call(mode: SettlementMode, *, stream: bool = False, text: str = "What is x402?"):
            body = PROMPT | {"messages": [{"role": "user", "content": text}]}
            if not stream:
                return client.chat(body, settlement_mode=mode).receipt
            with client.stream(body, settlement_mode=mode) as answer:
                for _ in answer:
                    pass
            return answer.receipt

        call.payments = payments
        yield call


def classes(settlement) -> set[type]:
    return {type(finding) for finding in settlement.findings}


def why(settlement) -> str:
    return " ".join(finding.why for finding in settlement.findings)


def test_calls_of_a_batch_are_proven_by_their_leaf_under_the_root_on_chain(net, paid):
    receipts = [paid(SettlementMode.BATCH, text=f"Question {n}", stream=n == 2) for n in range(5)]
    batches = net.flush_batches()
    found = DataSettlements(network_of(net)).prove(receipts)
    assert all(classes(item) == {Read} for item in found)
    for item in found:
        batch = next(batch for batch in batches if batch.transaction == item.log.tx_hash)
        assert (item.merkle_root, item.blob_id) == ("0x" + batch.merkle_root.hex(), batch.blob_id)
        root = root_from_proof(bytes.fromhex(item.leaf[2:]), [bytes.fromhex(node[2:]) for node in item.proof])
        assert root == batch.merkle_root
    assert len({item.leaf for item in found}) == 5


async def test_coroutines_prove_the_same(net, paid):
    receipts = [paid(SettlementMode.BATCH), paid(SettlementMode.INDIVIDUAL)]
    net.flush_batches()
    prover = DataSettlements(network_of(net))
    assert await prover.aprove(receipts) == prover.prove(receipts)


def test_a_batch_that_is_not_written_yet_is_not_proven_and_says_so(net, paid):
    (found,) = DataSettlements(network_of(net)).prove([paid(SettlementMode.BATCH)])
    assert classes(found) == {Undecided}
    assert "may not be written yet" in why(found)


@pytest.mark.parametrize("stream", [False, True])
def test_an_individual_settlement_matches_hashes_signature_payer_and_blob(net, paid, stream):
    receipt = paid(SettlementMode.INDIVIDUAL, stream=stream)
    (found,) = DataSettlements(network_of(net)).prove([receipt])
    assert classes(found) == {Read}
    assert len(found.findings) == 4
    assert (found.log.tx_hash, found.blob_id) == (receipt.data_tx_hash.lower(), receipt.data_blob_id)
    assert json.loads(found.blob)["tee_signature"] == receipt.tee_signature


def test_private_mode_says_that_nothing_is_on_chain(net, paid):
    (found,) = DataSettlements(network_of(net)).prove([paid(SettlementMode.PRIVATE)])
    assert classes(found) == {Stated}
    assert "only the payment is on chain" in why(found)
    assert found.log is None


def test_a_wrong_data_transaction_is_refuted_by_the_real_one_and_makes_the_receipt_disputed(net, paid):
    net.faults.inject(WrongTransaction())
    receipt = paid(SettlementMode.INDIVIDUAL)
    (found,) = DataSettlements(network_of(net), paid.payments.ledger).prove([receipt])
    assert Refuted in classes(found)
    assert receipt.data_tx_hash in why(found)
    assert found.log.tx_hash in why(found)
    disputed = receipt.refresh()
    assert disputed.status is ReceiptStatus.DISPUTED
    assert receipt.data_tx_hash in disputed.dispute
    assert not disputed.is_final
    net.close_sessions()
    settled = receipt.wait_settled(timeout_s=60)
    assert (settled.status, settled.is_final) == (ReceiptStatus.DISPUTED, True)
    assert settled.settled_atomic == settled.cost_atomic


def test_another_calls_transaction_is_no_proof(net, paid):
    other = paid(SettlementMode.INDIVIDUAL, text="Something else")
    mine = replace(paid(SettlementMode.BATCH), settlement_mode="individual", data_tx_hash=other.data_tx_hash)
    (found,) = DataSettlements(network_of(net)).prove([mine])
    assert Refuted in classes(found)
    assert "another request hash" in why(found)


def test_a_transaction_that_nobody_knows_is_given_time_and_then_refuted(net, paid):
    receipt = replace(paid(SettlementMode.BATCH), settlement_mode="individual", data_tx_hash="0x" + "12" * 32)
    (fresh,) = DataSettlements(network_of(net)).prove([receipt])
    assert classes(fresh) == {Undecided}
    (old,) = DataSettlements(network_of(net)).prove([replace(receipt, created_at=receipt.created_at - 3600)])
    assert Refuted in classes(old)
    assert "is not on the chain" in why(old)


def test_a_call_without_an_enclave_proof_has_nothing_to_look_for(net, paid):
    net.faults.inject(ForgeProof(part="absent"))
    (found,) = DataSettlements(network_of(net)).prove([paid(SettlementMode.BATCH)])
    assert classes(found) == {Undecided}
    assert "no enclave proof" in why(found)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda blob: None, "HTTP 404"),
        (lambda blob: b"not json", "not readable"),
        (lambda blob: blob.replace(b"standard-v1", b"standard-v2"), "not a standard-v1 tree"),
        (lambda blob: _other_tree(blob), "another root"),
    ],
    ids=["missing", "garbled", "another format", "another tree"],
)
def test_a_blob_store_cannot_make_a_batch_say_something_else(net, paid, spoil, expected):
    receipt = paid(SettlementMode.BATCH)
    batch = net.flush_batches()[-1]
    import httpx

    blob = httpx.get(f"{net.network['blob_url']}/{batch.blob_id}").content

    async def serve(request):
        content = spoil(blob)
        return Response(status_code=404) if content is None else Response(content)

    with serving(Starlette(routes=[Route("/{blob_id}", serve)])) as url:
        (found,) = DataSettlements(replace(network_of(net), blob_url=url)).prove([receipt])
    assert classes(found) == {Undecided}
    assert expected in why(found)


def _other_tree(blob: bytes) -> bytes:
    from opengradient_devnet.gateway.proofs.merkle import MerkleTree
    from opengradient_x402.proofs.blobs import LEAF_TYPES

    return json.dumps(MerkleTree([(b"\1" * 32,) * 3 + (b"", 5)], types=LEAF_TYPES).dump()).encode()


@pytest.mark.parametrize("mode", [SettlementMode.BATCH, SettlementMode.INDIVIDUAL])
def test_a_proof_from_another_age_does_not_have_the_whole_chain_read(net, paid, mode):
    receipt = replace(paid(mode), tee_timestamp=1, data_tx_hash=None)
    head = int(net.chain.rpc("eth_blockNumber", []), 16)
    with node_of(net.chain) as node:
        network = network_of(net)
        # As on a live chain: blocks every two seconds, for years.
        node.misbehave = lambda method, params, number: aged(method, params, net, head=10**7 + head)
        network = replace(network, relay=replace(network.relay, rpc_url=node.url))
        DataSettlements(network).prove([receipt])
        assert node.count("eth_getLogs") < 5


def aged(method, params, net, *, head: int):
    if method == "eth_getLogs":
        return 200, {"result": []}
    if method != "eth_getBlockByNumber":
        return None
    number = head if params[0] == "latest" else int(params[0], 16)
    timestamp = hex(net.chain.now_s() - 2 * (head - number))
    return 200, {"result": {"number": hex(number), "hash": "0x" + "00" * 32, "timestamp": timestamp}}


@pytest.mark.parametrize("limit", ["MAX_DOCUMENT_BYTES", "_LONGEST_S"])
async def test_a_blob_without_an_end_is_left(monkeypatch, limit):
    monkeypatch.setattr(sources, limit, 0)
    with serving(Starlette(routes=[Route("/blob", lambda _: Response(b"x" * 5000))])) as url:
        for document in (
            look_up(sources.Sources().document(f"{url}/blob")),
            await alook_up(sources.Sources().document(f"{url}/blob")),
        ):
            assert "more than" in document.problem
            assert document.content == b""


def test_a_network_without_a_relay_proves_nothing(net, paid):
    (found,) = DataSettlements(replace(network_of(net), relay=None)).prove([paid(SettlementMode.BATCH)])
    assert "names no settlement relay" in why(found)
