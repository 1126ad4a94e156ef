"""OpenGradient's own contracts, from ABI bytes to values: the registry of enclaves, and the settlement relay.

The registry says which enclaves serve, how to reach them, whom to pay and which keys they hold. The relay says
under which root, or with which hashes, the data of calls were settled. eth-abi reads the bytes; it is imported when
a contract has answered. This module does not decide what to trust (`gateway.enclaves`, `proofs`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opengradient_x402.addresses import checksum_address, keccak256
from opengradient_x402.chain.questions import Log, Question, RpcRequest
from opengradient_x402.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eth_abi.codec import ABIDecoder

LLM_PROXY: Final = 0
"""The type of enclaves that serve language models (docs/wire.md, "Registry")."""
GET_ACTIVE_TEES: Final = "0x4b6014da"  # getActiveTEEs(uint8)
GET_TEE: Final = "0x418b207d"  # getTEE(bytes32)
BATCH_SETTLEMENT: Final = "0xc2aff8d8a10a4543baabf39bd9ff45e7fc3881d19098df350a3b7f339e911127"
"""keccak256("BatchSettlement(bytes32,uint256,bytes)"): `(bytes32 indexed merkleRoot, uint256 batchSize, bytes
walrusBlobId)` (docs/wire.md, "Data settlement")."""
INDIVIDUAL_SETTLEMENT: Final = "0x74e71a1981c03bd0c36f3b1227f3ee2a34dca5d6fef25c4b2787e033ab60b782"
"""keccak256("IndividualSettlement(bytes32,address,bytes32,bytes32,uint256,bytes,bytes)"): `(bytes32 indexed teeId,
address indexed ethAddress, bytes32 inputHash, bytes32 outputHash, uint256 timestamp, bytes walrusBlobId, bytes
signature)`."""

_TEE: Final = "(address,address,bytes,bytes,bytes,bytes32,uint8,bool,uint256,uint256)"
"""The struct `TEEInfo` without its last member (keys for oblivious HTTP, which this package does not use). The
endpoint is text in the contract and bytes here: one name that is not UTF-8 must not hide the other enclaves."""
_WORD: Final = 32
_MOST_ENTRIES: Final = 1024
_LONGEST_VALUE: Final = 16 * 1024
"""Offsets may overlap: without limits, a small answer could ask for a huge amount of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredTee:
    """One enclave as the registry describes it. Keys and certificates are DER, times are Unix seconds.

    `id` is `0x` and the keccak256 of the public key, the `tee_id` of its signatures. `pcr_hash` (0x-hex) stands
    for the image that it was measured to run.
    """

    id: str
    owner: str
    payment_address: str
    endpoint: str
    public_key_der: bytes = field(repr=False)
    certificate_der: bytes = field(repr=False)
    pcr_hash: str
    tee_type: int
    is_enabled: bool
    registered_at: int
    last_heartbeat_at: int


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


class TeeFields(NamedTuple):
    """The registry's struct, member by member."""

    owner: str
    payment_address: str
    endpoint: str
    public_key_der: bytes
    certificate_der: bytes
    pcr_hash: bytes
    tee_type: int
    is_enabled: bool
    registered_at: int
    last_heartbeat_at: int


# -- the registry


def active_tees(registry: str) -> Question[tuple[RegisteredTee, ...]]:
    """The active enclaves for language models. Raises RpcError for an answer that cannot be read."""
    answer = yield from _called(registry, GET_ACTIVE_TEES, LLM_PROXY.to_bytes(_WORD, "big"))
    try:
        return tuple(_registered(fields) for fields in decode_tees(answer))
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc


def registered_tee(registry: str, tee_id: str) -> Question[RegisteredTee | None]:
    """One enclave by its id, active or not; None when the registry does not know it.

    This is the key to check an old proof with: it stays registered after the enclave has stopped.
    """
    try:
        answer = yield from _called(registry, GET_TEE, _hex_bytes(tee_id).rjust(_WORD, b"\0"))
    except RpcError as exc:
        if exc.data is not None or "revert" in str(exc):
            return None
        raise
    try:
        return _registered(decode_tee(answer))
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc


def decode_tee(data: bytes) -> TeeFields:
    """One struct, as `getTEE` returns it. Raises ValueError for bytes that are no such answer."""
    (fields,) = _decoded([_TEE], data)
    return _tee(fields)


def decode_tees(data: bytes) -> list[TeeFields]:
    """An array of structs, as `getActiveTEEs` returns it. Raises ValueError for bytes that are no such answer."""
    start = int.from_bytes(data[:_WORD], "big")
    count = int.from_bytes(data[start : start + _WORD], "big")
    if count > _MOST_ENTRIES:
        raise ValueError(f"it claims {count} entries")
    (entries,) = _decoded([f"{_TEE}[]"], data)
    return [_tee(fields) for fields in entries]


def _tee(fields: tuple[Any, ...]) -> TeeFields:
    tee = TeeFields(*fields)
    endpoint: Any = tee.endpoint
    # A broken name ends as an endpoint that nobody can reach.
    return tee._replace(endpoint=endpoint.decode("utf-8", "replace"))


def _called(registry: str, selector: str, argument: bytes) -> Question[bytes]:
    call = {"to": registry, "data": selector + argument.hex()}
    answer = yield RpcRequest("eth_call", (call, "latest"))
    try:
        content = _hex_bytes(answer)
    except ValueError as exc:
        raise _unreadable(registry, exc) from exc
    if not content:
        # What the EVM answers for an address without code.
        raise RpcError(
            f"There is no contract at {registry}, the network's TEE registry. Nothing was paid. "
            "Check the network's `registry` and its `rpc_url`."
        )
    return content


def _registered(fields: TeeFields) -> RegisteredTee:
    return RegisteredTee(
        id="0x" + keccak256(fields.public_key_der).hex(),
        owner=checksum_address(fields.owner),
        payment_address=checksum_address(fields.payment_address),
        endpoint=fields.endpoint,
        public_key_der=fields.public_key_der,
        certificate_der=fields.certificate_der,
        pcr_hash="0x" + fields.pcr_hash.hex(),
        tee_type=fields.tee_type,
        is_enabled=fields.is_enabled,
        registered_at=fields.registered_at,
        last_heartbeat_at=fields.last_heartbeat_at,
    )


def _unreadable(registry: str, exc: ValueError) -> RpcError:
    return RpcError(
        f"The answer of the TEE registry {registry} cannot be read ({exc}). Nothing was paid. "
        "Check the network's `registry`, or ask another node."
    )


# -- the settlement relay


def batch_settlement(log: Log) -> BatchSettlement | None:
    """The batch that a log announces; None for any other log, and for one that is malformed."""
    if len(log.topics) != 2 or log.topics[0] != BATCH_SETTLEMENT:
        return None
    try:
        size, blob_id = _decoded(["uint256", "bytes"], log.data)
        return BatchSettlement(
            merkle_root=bytes.fromhex(log.topics[1][2:]), batch_size=size, blob_id=blob_id.decode("utf-8"), log=log
        )
    except ValueError:  # UnicodeDecodeError is one
        return None


def individual_settlement(log: Log) -> IndividualSettlement | None:
    """The call that a log announces; None for any other log, and for one that is malformed."""
    if len(log.topics) != 3 or log.topics[0] != INDIVIDUAL_SETTLEMENT:
        return None
    try:
        input_hash, output_hash, timestamp_s, blob_id, signature = _decoded(
            ["bytes32", "bytes32", "uint256", "bytes", "bytes"], log.data
        )
        return IndividualSettlement(
            tee_id=log.topics[1],
            payer=checksum_address("0x" + log.topics[2][-40:]),
            input_hash=input_hash,
            output_hash=output_hash,
            timestamp_s=timestamp_s,
            blob_id=blob_id.decode("utf-8"),
            signature=signature,
            log=log,
        )
    except ValueError:
        return None


# -- the ABI


def _decoded(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """The values that the bytes hold. Raises ValueError for bytes that hold no such values."""
    from eth_abi.exceptions import DecodingError

    try:
        return _decoder().decode(types, data)
    except (DecodingError, OverflowError) as exc:
        raise ValueError(f"the answer of {len(data)} bytes is not {', '.join(types)[:60]}: {exc}") from exc


@cache
def _decoder() -> ABIDecoder:
    """eth-abi's decoder, with a limit on the length of a value."""
    from eth_abi.codec import ABIDecoder
    from eth_abi.decoding import ByteStringDecoder, ContextFramesBytesIO, decode_uint_256
    from eth_abi.exceptions import InsufficientDataBytes
    from eth_abi.registry import BaseEquals, registry

    class BoundedBytes(ByteStringDecoder):
        def read_data_from_stream(self, stream: ContextFramesBytesIO) -> bytes:
            length = decode_uint_256(stream)
            if length > _LONGEST_VALUE:
                return b""  # this entry becomes unusable, and the others are not lost
            content = stream.read(length)
            if len(content) < length:
                raise InsufficientDataBytes(f"it ends after {len(content)} of {length} bytes of a value")
            return content

    bounded = registry.copy()  # type: ignore[no-untyped-call]  # eth-abi has no types there
    bounded.unregister_decoder("bytes")
    is_bytes = BaseEquals("bytes", with_sub=False)  # type: ignore[no-untyped-call]  # as above
    bounded.register_decoder(is_bytes, BoundedBytes, label="bytes")
    return ABIDecoder(bounded)


def _hex_bytes(value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("not 0x-hex text")
    return bytes.fromhex(value[2:])
