"""What the settlement relay writes on chain, decoded from logs (docs/wire.md, "Data settlement").

`BatchSettlement(bytes32 indexed merkleRoot, uint256 batchSize, bytes walrusBlobId)` and
`IndividualSettlement(bytes32 indexed teeId, address indexed ethAddress, bytes32 inputHash, bytes32 outputHash,
uint256 timestamp, bytes walrusBlobId, bytes signature)`. Does not know whether what they say is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opengradient_x402.addresses import checksum_address
from opengradient_x402.chain.questions import Log

BATCH_SETTLEMENT: Final = "0xc2aff8d8a10a4543baabf39bd9ff45e7fc3881d19098df350a3b7f339e911127"
"""keccak256("BatchSettlement(bytes32,uint256,bytes)")."""
INDIVIDUAL_SETTLEMENT: Final = "0x74e71a1981c03bd0c36f3b1227f3ee2a34dca5d6fef25c4b2787e033ab60b782"
"""keccak256("IndividualSettlement(bytes32,address,bytes32,bytes32,uint256,bytes,bytes)")."""
_WORD: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettlement:
    """One Merkle root over many calls; the tree is in the blob."""

    merkle_root: bytes
    batch_size: int
    blob_id: str
    log: Log


@dataclass(frozen=True, slots=True, kw_only=True)
class IndividualSettlement:
    """One call's hashes; its record is in the blob."""

    tee_id: str
    payer: str
    input_hash: bytes
    output_hash: bytes
    timestamp_s: int
    blob_id: str
    signature: bytes
    log: Log


def batch_settlement(log: Log) -> BatchSettlement | None:
    """The batch that a log announces; None for any other log, and for one that is malformed."""
    if len(log.topics) != 2 or log.topics[0] != BATCH_SETTLEMENT:
        return None
    try:
        return BatchSettlement(
            merkle_root=bytes.fromhex(log.topics[1][2:]),
            batch_size=int.from_bytes(_word(log.data, 0), "big"),
            blob_id=_content(log.data, 1).decode("utf-8"),
            log=log,
        )
    except ValueError:  # UnicodeDecodeError is one
        return None


def individual_settlement(log: Log) -> IndividualSettlement | None:
    """The call that a log announces; None for any other log, and for one that is malformed."""
    if len(log.topics) != 3 or log.topics[0] != INDIVIDUAL_SETTLEMENT:
        return None
    try:
        return IndividualSettlement(
            tee_id=log.topics[1],
            payer=checksum_address("0x" + log.topics[2][-40:]),
            input_hash=_word(log.data, 0),
            output_hash=_word(log.data, 1),
            timestamp_s=int.from_bytes(_word(log.data, 2), "big"),
            blob_id=_content(log.data, 3).decode("utf-8"),
            signature=_content(log.data, 4),
            log=log,
        )
    except ValueError:
        return None


def _word(data: bytes, index: int) -> bytes:
    word = data[index * _WORD : (index + 1) * _WORD]
    if len(word) != _WORD:
        raise ValueError("the event's data end early")
    return word


def _content(data: bytes, index: int) -> bytes:
    """The dynamic `bytes` whose offset stands at a word."""
    start = int.from_bytes(_word(data, index), "big")
    length = int.from_bytes(data[start : start + _WORD], "big")
    content = data[start + _WORD : start + _WORD + length]
    if start + _WORD > len(data) or len(content) != length:
        raise ValueError("the event's data end early")
    return content
