"""OpenZeppelin's standard Merkle tree (@openzeppelin/merkle-tree, format `standard-v1`) over ABI tuples.

Leaves are `keccak(keccak(abi.encode(value)))`, sorted by hash and put into a complete binary tree from the
end; an inner node hashes its two children in sorted order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_abi.abi import encode
from eth_utils.crypto import keccak


def leaf_hash(value: Sequence[Any], *, types: Sequence[str]) -> bytes:
    """The hash of one value as a leaf; hashed twice, so that no inner node can pass for a leaf."""
    return keccak(keccak(encode(list(types), list(value))))


def pair_hash(one: bytes, other: bytes) -> bytes:
    """The hash of two nodes, in either order."""
    return keccak(min(one, other) + max(one, other))


class MerkleTree:
    """A tree over `values`, each a tuple that fits the ABI `types`. It needs at least one value."""

    def __init__(self, values: Sequence[Sequence[Any]], *, types: Sequence[str]) -> None:
        if not values:
            raise ValueError("A Merkle tree needs at least one value.")
        self._types = list(types)
        self._values = [list(value) for value in values]
        leaves = [leaf_hash(value, types=types) for value in values]
        order = sorted(range(len(leaves)), key=lambda index: leaves[index])
        size = 2 * len(leaves) - 1
        self._nodes = [b""] * size
        self._tree_index = [0] * len(leaves)
        for place, index in enumerate(order):
            self._nodes[size - 1 - place] = leaves[index]
            self._tree_index[index] = size - 1 - place
        for place in range(size - 1 - len(leaves), -1, -1):
            self._nodes[place] = pair_hash(self._nodes[2 * place + 1], self._nodes[2 * place + 2])

    @property
    def root(self) -> bytes:
        return self._nodes[0]

    def dump(self) -> dict[str, Any]:
        """The tree as OpenZeppelin's `StandardMerkleTree.dump()` writes it, ready for JSON."""
        return {
            "format": "standard-v1",
            "leafEncoding": list(self._types),
            "tree": ["0x" + node.hex() for node in self._nodes],
            "values": [
                {"value": [_json_value(part) for part in value], "treeIndex": place}
                for value, place in zip(self._values, self._tree_index, strict=True)
            ],
        }


def _json_value(part: Any) -> str:
    return "0x" + part.hex() if isinstance(part, bytes) else str(part)
