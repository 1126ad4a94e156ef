from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengradient_devnet.gateway.proofs import merkle as independent
from opengradient_x402.proofs.attestation import TeeProof
from opengradient_x402.proofs.blobs import LEAF_TYPES, MerkleTree, leaf_hash, root_from_proof

BATCHES = json.loads((Path(__file__).parents[2] / "vectors" / "merkle_batches.json").read_text())["batches"]


def proof_of(value: list[str]) -> TeeProof:
    tee_id, input_hash, output_hash, signature, timestamp = value
    return TeeProof(
        tee_id=tee_id,
        request_hash=bytes.fromhex(input_hash[2:]),
        output_hash=bytes.fromhex(output_hash[2:]),
        signature=bytes.fromhex(signature[2:]),
        timestamp_s=int(timestamp),
    )


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{len(batch['leaf_hashes'])} leaves")
def test_trees_of_openzeppelin_are_rebuilt_with_every_leaf_and_proof(batch):
    tree = MerkleTree.from_dump(batch["dump"])
    assert "0x" + tree.root.hex() == batch["root"]
    for item, expected_leaf, expected_proof in zip(
        batch["dump"]["values"], batch["leaf_hashes"], batch["proofs"], strict=True
    ):
        leaf = leaf_hash(proof_of(item["value"]))
        assert "0x" + leaf.hex() == expected_leaf
        proof = tree.proof(leaf)
        assert ["0x" + sibling.hex() for sibling in proof] == expected_proof
        assert root_from_proof(leaf, proof) == tree.root


def test_a_leaf_that_is_not_in_the_tree_has_no_proof_and_inner_nodes_are_no_leaves():
    tree = MerkleTree.from_dump(BATCHES[2]["dump"])
    for node in (b"\1" * 32, tree.root, tree.nodes[1]):
        with pytest.raises(ValueError, match="not in"):
            tree.proof(node)


def changed(batch, change):
    dump = copy.deepcopy(batch["dump"])
    change(dump)
    return dump


@pytest.mark.parametrize(
    "change",
    [
        lambda dump: dump["values"][0]["value"].__setitem__(4, "1795000009"),
        lambda dump: dump["values"][0]["value"].__setitem__(3, "0x00"),
        lambda dump: dump["values"][0]["value"].__setitem__(1, "0x12"),
        lambda dump: dump["tree"].__setitem__(0, "0x" + "00" * 32),
        lambda dump: dump["values"][0].__setitem__("treeIndex", 0),
        lambda dump: dump["values"][0].__setitem__("treeIndex", float("inf")),
        lambda dump: dump["values"].pop(),
        lambda dump: dump["values"].append(dump["values"][0]),
        lambda dump: dump.__setitem__("format", "simple-v1"),
        lambda dump: dump.__setitem__("leafEncoding", list(LEAF_TYPES[:4])),
        lambda dump: dump.pop("tree"),
        lambda dump: dump.__setitem__("values", []),
        lambda dump: dump["values"][0]["value"].__setitem__(4, str(2**256)),
    ],
)
def test_a_dump_that_was_changed_anywhere_is_refused(change):
    with pytest.raises(ValueError, match=r".+"):
        MerkleTree.from_dump(changed(BATCHES[2], change))


@pytest.mark.parametrize("dump", [[], "text", 5, None, {}])
def test_what_is_no_dump_at_all_is_a_value_error(dump):
    with pytest.raises(ValueError, match="not a tree's dump"):
        MerkleTree.from_dump(dump)


calls = st.tuples(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 2**64))


@given(st.lists(calls, min_size=1, max_size=20))
def test_trees_of_any_size_agree_with_an_independent_implementation(items):
    values = [(b"\7" * 32, digest, digest, signature, timestamp) for digest, signature, timestamp in items]
    theirs = independent.MerkleTree(values, types=LEAF_TYPES)
    ours = MerkleTree.from_dump(theirs.dump())
    assert ours.root == theirs.root
    for value in values:
        leaf = independent.leaf_hash(value, types=LEAF_TYPES)
        assert root_from_proof(leaf, ours.proof(leaf)) == theirs.root
