"""OpenZeppelin's standard Merkle tree over the calls of a settlement batch (docs/wire.md, "Data settlement").

A leaf is `keccak(keccak(abi.encode(bytes32 teeId, bytes32 inputHash, bytes32 outputHash, bytes teeSignature,
uint256 timestamp)))`: hashed twice, so that no inner node can pass for a leaf. An inner node hashes its two
children in sorted order. Pure; knows no chain, and not where a tree comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opengradient_x402.addresses import keccak256
from opengradient_x402.proofs.attestation import TeeProof

FORMAT: Final = "standard-v1"  # @openzeppelin/merkle-tree, StandardMerkleTree.dump()
LEAF_TYPES: Final = ("bytes32", "bytes32", "bytes32", "bytes", "uint256")
_WORD: Final = 32
_MAX_LEAVES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class MerkleTree:
    """A complete binary tree: node `i` has the children `2i + 1` and `2i + 2`, node 0 is the root."""

    nodes: tuple[bytes, ...]

    @classmethod
    def from_dump(cls, dump: Mapping[str, Any]) -> MerkleTree:
        """The tree of a dump, rebuilt from its values: no hash in it is taken on trust.

        Raises ValueError for a dump of another form, or one whose nodes are not those of its values.
        """
        try:
            if dump["format"] != FORMAT or tuple(dump["leafEncoding"]) != LEAF_TYPES:
                raise ValueError(f"not a {FORMAT} tree over {LEAF_TYPES}")
            placed = {int(item["treeIndex"]): _leaf_of(item["value"]) for item in dump["values"]}
            stated = tuple(_word(node) for node in dump["tree"])
        except (KeyError, TypeError, AttributeError, OverflowError) as exc:
            raise ValueError(f"not a tree's dump ({type(exc).__name__}: {exc})") from exc
        tree = cls._grown(placed)
        if len(placed) != len(dump["values"]) or tree.nodes != stated:
            raise ValueError("the nodes of the dump are not the hashes of its values")
        return tree

    @classmethod
    def _grown(cls, placed: Mapping[int, bytes]) -> MerkleTree:
        count = len(placed)
        size = 2 * count - 1
        if not 0 < count <= _MAX_LEAVES or set(placed) != set(range(count - 1, size)):
            raise ValueError("the leaves of a tree fill its last places, each once")
        nodes = [placed.get(place, b"") for place in range(size)]
        for place in range(count - 2, -1, -1):
            nodes[place] = _pair(nodes[2 * place + 1], nodes[2 * place + 2])
        return cls(tuple(nodes))

    @property
    def root(self) -> bytes:
        """What the chain records."""
        return self.nodes[0]

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The leaf hashes, in the tree's order."""
        return self.nodes[len(self.nodes) // 2 :]

    def proof(self, leaf: bytes) -> tuple[bytes, ...]:
        """The siblings from a leaf hash up to the root. Raises ValueError when the tree does not hold it."""
        place = self.nodes.index(leaf, len(self.nodes) // 2)
        siblings = []
        while place > 0:
            siblings.append(self.nodes[place + 1 if place % 2 else place - 1])
            place = (place - 1) // 2
        return tuple(siblings)


def leaf_hash(call: TeeProof) -> bytes:
    """The leaf of one call."""
    return _leaf(
        bytes.fromhex(call.tee_id.removeprefix("0x")),
        call.request_hash,
        call.output_hash,
        call.signature,
        call.timestamp_s,
    )


def root_from_proof(leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that a proof leads to from a leaf hash: compare it with the chain's."""
    node = leaf
    for sibling in proof:
        node = _pair(node, sibling)
    return node


def _leaf(tee_id: bytes, input_hash: bytes, output_hash: bytes, signature: bytes, timestamp_s: int) -> bytes:
    head = tee_id.rjust(_WORD, b"\0") + input_hash + output_hash
    head += (5 * _WORD).to_bytes(_WORD, "big") + timestamp_s.to_bytes(_WORD, "big")
    padding = b"\0" * (-len(signature) % _WORD)
    return keccak256(keccak256(head + len(signature).to_bytes(_WORD, "big") + signature + padding))


def _leaf_of(value: Sequence[str]) -> bytes:
    tee_id, input_hash, output_hash, signature, timestamp = value
    try:
        return _leaf(_word(tee_id), _word(input_hash), _word(output_hash), bytes.fromhex(signature[2:]), int(timestamp))
    except OverflowError as exc:
        raise ValueError("a timestamp is not a uint256") from exc


def _pair(one: bytes, other: bytes) -> bytes:
    return keccak256(min(one, other) + max(one, other))


def _word(text: str) -> bytes:
    content = bytes.fromhex(text.removeprefix("0x"))
    if len(content) != _WORD:
        raise ValueError(f"{text[:80]!r} is not 32 bytes")
    return content
