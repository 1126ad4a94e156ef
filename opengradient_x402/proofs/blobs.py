"""What blobs hold: the tree of a settlement batch, or the record of one call (docs/wire.md, "Data settlement").

A batch is OpenZeppelin's standard Merkle tree. A leaf is `keccak(keccak(abi.encode(bytes32 teeId, bytes32 inputHash,
bytes32 outputHash, bytes teeSignature, uint256 timestamp)))`: hashed twice, so that no inner node can pass for a leaf.
An inner node hashes its two children in sorted order.

Records of single calls have had three forms, and OpenGradient's public verifier accepts all of them: names in
camelCase; names with underscores, with the proof inside `output`; and older ones without hashes. Whoever wrote the
blob may have written anything: each member that is there must agree with the event, and texts are hashed again. Pure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.addresses import keccak256
from opengradient_x402.chain.contracts import IndividualSettlement
from opengradient_x402.completions import join_text
from opengradient_x402.proofs.attestation import TeeProof, calls_hash, request_hashes

FORMAT: Final = "standard-v1"  # @openzeppelin/merkle-tree, StandardMerkleTree.dump()
LEAF_TYPES: Final = ("bytes32", "bytes32", "bytes32", "bytes", "uint256")
_WORD: Final = 32
_MAX_LEAVES: Final = 1_000_000
_HEX: Final = re.compile(r"(0x)?(?:[0-9a-fA-F]{2})+", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MerkleTree:
    """A complete binary tree: node `i` has the children `2i + 1` and `2i + 2`, node 0 is the root."""

    nodes: tuple[bytes, ...]

    @classmethod
    def from_dump(cls, dump: Mapping[str, Any]) -> MerkleTree:
        """The tree of a dump, rebuilt from its values: all hashes in it are computed again.

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


# -- records of single calls


def differences(content: bytes, event: IndividualSettlement) -> list[str]:
    """Where the record differs from the event; empty for the record of this call.

    Raises ValueError for content that is no record of any call.
    """
    record = strict_json.loads(content)
    if not isinstance(record, dict):
        raise TypeError("it is not a JSON object")
    signature = _bytes(_member(record, "teeSignature", "tee_signature"))
    request_hash = _bytes(_member(record, "inputHash", "input_hash", "teeRequestHash", "tee_request_hash"))
    output_hash = _bytes(_member(record, "outputHash", "output_hash", "teeOutputHash", "tee_output_hash"))
    if signature is None and (request_hash is None or output_hash is None):
        raise ValueError("it holds neither the enclave's signature nor the hashes of a call")
    timestamp = _member(record, "timestamp", "tee_timestamp")
    compared = (
        ("signature", signature, event.signature),
        ("request hash", request_hash, event.input_hash),
        ("output hash", output_hash, event.output_hash),
        ("enclave", _bytes(_member(record, "teeId", "tee_id")), bytes.fromhex(event.tee_id[2:])),
        ("payer", _bytes(_member(record, "ethAddress", "eth_address")), bytes.fromhex(event.payer[2:])),
        ("time", None if timestamp is None else _number(timestamp), event.timestamp_s),
    )
    found = [name for name, said, on_chain in compared if said is not None and said != on_chain]
    try:
        if not _fits(_request_hashes(record), event.input_hash):
            found.append("request")
        if not _fits(_answer_hashes(record), event.output_hash):
            found.append("answer")
    except (AttributeError, KeyError, RecursionError) as exc:
        raise ValueError("its request or answer has a form that nobody hashes") from exc
    return found


def _fits(hashes: Sequence[bytes], on_chain: bytes) -> bool:
    """Whether one of them is the hash on chain, or there is nothing to hash."""
    return not hashes or on_chain in hashes


def _request_hashes(record: Mapping[str, Any]) -> list[bytes]:
    said = record.get("input", record.get("request"))
    if isinstance(said, str) and said:
        return [keccak256(said.encode())]
    return request_hashes(said) if isinstance(said, Mapping) and said.get("messages") else []


def _answer_hashes(record: Mapping[str, Any]) -> list[bytes]:
    said = record.get("output", record.get("response"))
    if isinstance(said, str):
        return [keccak256(said.encode())]
    if not isinstance(said, Mapping):
        return []
    reason = said.get("finish_reason") or record.get("finish_reason")
    for choice in said.get("choices") or ():
        return list(_hashes_of(choice.get("message") or {}, choice.get("finish_reason") or reason))
    message = said.get("message")
    return list(_hashes_of(message if isinstance(message, Mapping) else said, reason))


def _hashes_of(message: Mapping[str, Any], finish_reason: object) -> Iterator[bytes]:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and finish_reason != "stop":
        yield calls_hash(calls)
    if content is not None and finish_reason != "tool_calls":
        yield keccak256((content if isinstance(content, str) else join_text(content)).encode())


def _member(record: Mapping[str, Any], *names: str) -> Any:
    """The first of these members, in the record or in its output."""
    output = record.get("output")
    for place in (record, output if isinstance(output, Mapping) else {}):
        for name in names:
            if place.get(name) is not None:
                return place[name]
    return None


def _bytes(said: object) -> bytes | None:
    """Bytes written as hex or as base64. Raises ValueError for anything else."""
    if said is None:
        return None
    if not isinstance(said, str):
        raise TypeError("a hash, a signature or an address is not text")
    if _HEX.fullmatch(said):
        return bytes.fromhex(said.removeprefix("0x"))
    return base64.b64decode(said, validate=True)


def _number(said: object) -> int:
    if isinstance(said, bool) or not isinstance(said, int | str) or _DIGITS.fullmatch(str(said)) is None:
        raise ValueError("its time is no number of seconds")
    return int(said)
