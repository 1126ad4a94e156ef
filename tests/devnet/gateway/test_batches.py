"""Merkle batches against OpenZeppelin's own, and data settlements on a real chain."""

from __future__ import annotations

import dataclasses
import json
from functools import reduce
from pathlib import Path

import pytest
from eth_utils.crypto import keccak

from opengradient_devnet import Devnet
from opengradient_devnet.contracts import RELAY, contract
from opengradient_devnet.facilitator.facilitator import DataSettlement
from opengradient_devnet.gateway.proofs.batches import LEAF_TYPES, BlobStore, DataSettler, SettlementType
from opengradient_devnet.gateway.proofs.merkle import MerkleTree, leaf_hash, pair_hash
from opengradient_devnet.gateway.proofs.tee import Proof
from support.payer import Payer, chat_body

BATCHES = json.loads((Path(__file__).parents[2] / "vectors" / "merkle_batches.json").read_text())["batches"]


def values_of(batch):
    return [
        [*(bytes.fromhex(part[2:]) for part in entry["value"][:4]), int(entry["value"][4])]
        for entry in batch["dump"]["values"]
    ]


def relay_logs(net: Devnet, event: str) -> list[dict]:
    relay = contract("Relay")
    wanted = {"fromBlock": "0x0", "toBlock": "latest", "address": RELAY, "topics": [relay.topic(event)]}
    return [relay.decode_log(log) for log in net.chain.rpc("eth_getLogs", [wanted])]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{len(batch['proofs'])}_calls")
def test_tree_is_the_one_that_openzeppelin_builds(batch):
    values = values_of(batch)
    tree = MerkleTree(values, types=LEAF_TYPES)

    assert "0x" + tree.root.hex() == batch["root"]
    assert tree.dump() == batch["dump"]
    for value, expected, siblings in zip(values, batch["leaf_hashes"], batch["proofs"], strict=True):
        leaf = leaf_hash(value, types=LEAF_TYPES)
        assert "0x" + leaf.hex() == expected
        assert reduce(pair_hash, (bytes.fromhex(node[2:]) for node in siblings), leaf) == tree.root


def test_tree_over_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        MerkleTree([], types=LEAF_TYPES)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("private", SettlementType.PRIVATE),
        ("individual", SettlementType.INDIVIDUAL),
        (" Batch ", SettlementType.BATCH),
        ("settle-metadata", SettlementType.BATCH),
        ("", SettlementType.BATCH),
        (None, SettlementType.BATCH),
    ],
)
def test_missing_or_unknown_settlement_types_mean_batch(header, expected):
    assert SettlementType.from_header(header) is expected


@dataclasses.dataclass
class RecordingRelay:
    sizes: list[int] = dataclasses.field(default_factory=list)

    def settle_batch(self, *, merkle_root: bytes, batch_size: int, blob_id: bytes) -> DataSettlement:
        self.sizes.append(batch_size)
        return DataSettlement(success=True, transaction="0x01", block_number=1, settlement_type="batch")

    def settle_individual(self, **_record) -> DataSettlement:
        raise AssertionError("nothing is settled individually here")


def proof(number: int) -> Proof:
    word = keccak(number.to_bytes(4, "big"))
    return Proof(
        tee_id=word, request_hash=word, output_hash=word, timestamp_s=1_795_000_000 + number, signature=word * 8
    )


def test_batch_is_flushed_when_it_is_full_when_it_is_old_and_by_hand():
    relay = RecordingRelay()
    settler = DataSettler(relay, blobs=BlobStore(), batch_size=3, batch_interval_s=3600)

    assert [settler.add(proof(number)) for number in range(3)] == [False, False, True]
    settler.flush_due()
    assert relay.sizes == [3]

    settler.add(proof(3))
    settler.flush_due()
    assert relay.sizes == [3]
    settler.flush()
    assert relay.sizes == [3, 1]

    hasty = DataSettler(relay, blobs=BlobStore(), batch_size=3, batch_interval_s=0)
    hasty.add(proof(4))
    hasty.flush_due()
    assert relay.sizes == [3, 1, 1]


def test_batched_calls_are_anchored_on_chain_under_the_root_of_their_blob():
    with (
        Devnet(batch_interval_s=3600) as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        first = payer.chat(headers={"x-settlement-type": "batch"})
        session = first.headers["x-upto-session"]
        second = payer.chat(chat_body("And Permit2?", stream=True), session=session)
        payer.chat(session=session, headers={"x-settlement-type": "private"})
        assert relay_logs(net, "BatchSettlement") == []

        (batch,) = net.flush_batches()
        (log,) = relay_logs(net, "BatchSettlement")
        blob_url = f"{net.network['blob_url']}/{log['walrusBlobId'].decode()}"
        dump = payer.http.get(blob_url).json()

        assert (log["merkleRoot"], log["batchSize"]) == (batch.merkle_root, 2)
        assert dump["tree"][0] == "0x" + batch.merkle_root.hex()
        assert MerkleTree(values_of({"dump": dump}), types=LEAF_TYPES).dump() == dump
        anchored = {value["value"][1][2:] for value in dump["values"]}
        final = json.loads(second.text.split("data: ")[-2])
        assert anchored == {first.json()["tee_request_hash"], final["tee_request_hash"]}


def test_an_individual_call_is_anchored_before_its_answer_is_complete(net, account):
    with Payer(net.gateway_url, private_key=account.private_key) as payer:
        response = payer.chat(headers={"x-settlement-type": "individual"})
        body = response.json()
        receipt = net.chain.rpc("eth_getTransactionReceipt", [response.headers["x-settlement-tx-hash"]])
        log = contract("Relay").decode_log(receipt["logs"][0])
        blob = payer.http.get(f"{net.network['blob_url']}/{response.headers['x-settlement-walrus-blob-id']}").json()

    assert log["event"] == "IndividualSettlement"
    assert "0x" + log["teeId"].hex() == body["tee_id"]
    assert log["inputHash"].hex() == body["tee_request_hash"]
    assert log["outputHash"].hex() == body["tee_output_hash"]
    assert log["timestamp"] == body["tee_timestamp"]
    assert log["ethAddress"].lower() == account.address.lower()
    assert log["walrusBlobId"].decode() == response.headers["x-settlement-walrus-blob-id"]
    assert blob["response"]["content"] == body["choices"][0]["message"]["content"]
    assert blob["tee_signature"] == body["tee_signature"]


def test_what_waits_for_a_batch_is_written_when_the_devnet_closes():
    with (
        Devnet(batch_interval_s=3600) as net,
        Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer,
    ):
        payer.chat()
        assert net.batches == []

    assert [batch.size for batch in net.batches] == [1]
    assert net.batches[0].success
