"""`POST /settle_data`: one inference's hashes and signature, from HTTP headers to the settlement relay.

The request has the form of OpenGradient's facilitator: `X-Settlement-Type` and `X-Settlement-Data`, the latter base64
JSON. A batch entry is anchored as a batch of one.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import encode
from eth_utils.address import is_hex_address
from eth_utils.crypto import keccak

from opengradient_devnet.bounded_json import JsonRefused, parse_json
from opengradient_devnet.facilitator.facilitator import DataSettlement, Facilitator

PRIVATE = "private"
BATCH = "batch"
INDIVIDUAL = "individual"
ZERO_ADDRESS = "0x" + "00" * 20
_MAX_TIMESTAMP = 2**64 - 1
_MAX_SIGNATURE_BYTES = 1024  # Relay.vy


class DataMalformed(ValueError):
    """The headers are not a data settlement; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRecord:
    """What an enclave vouches for. In a batch `tee_id` and `timestamp` may be zero (older gateways)."""

    settlement_type: str
    tee_id: bytes
    input_hash: bytes
    output_hash: bytes
    signature: bytes
    timestamp: int
    payer: str
    content_hash: bytes


def parse_record(settlement_type: str | None, settlement_data: str | None) -> InferenceRecord | None:
    """The record in the two headers; None for a private call, which leaves nothing. Raises `DataMalformed`."""
    kind = (settlement_type or "").strip().lower()
    if kind == PRIVATE:
        return None
    if kind not in (BATCH, INDIVIDUAL):
        shown = repr(settlement_type) if settlement_type else "missing"
        raise DataMalformed(f"x-settlement-type is {shown}; it must be {PRIVATE}, {BATCH} or {INDIVIDUAL}")
    fields = _decode(settlement_data)
    required = kind == INDIVIDUAL
    if required and not ("input" in fields and "output" in fields):
        raise DataMalformed("x-settlement-data needs input and output")
    return InferenceRecord(
        settlement_type=kind,
        tee_id=_bytes32(fields, ("teeId", "tee_id"), required=required),
        input_hash=_bytes32(fields, ("inputHash", "input_hash"), required=True),
        output_hash=_bytes32(fields, ("outputHash", "output_hash"), required=True),
        signature=_signature(fields),
        timestamp=_timestamp(fields, required=required),
        payer=_payer(fields, required=required),
        content_hash=keccak(text=json.dumps([fields.get("input"), fields.get("output")], sort_keys=True)),
    )


def _decode(header: str | None) -> dict[str, Any]:
    if not header:
        raise DataMalformed("x-settlement-data is missing")
    try:
        decoded = parse_json(base64.b64decode(header, validate=True))
    except (binascii.Error, JsonRefused) as exc:
        raise DataMalformed("x-settlement-data must be base64 of JSON") from exc
    if not isinstance(decoded, dict):
        raise DataMalformed("x-settlement-data must hold a JSON object")
    return decoded


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _bytes32(fields: dict[str, Any], names: tuple[str, ...], *, required: bool) -> bytes:
    value = _first(fields, names)
    if value is None and not required:
        return bytes(32)
    text = value.removeprefix("0x") if isinstance(value, str) else ""
    try:
        decoded = bytes.fromhex(text)
    except ValueError:
        decoded = b""
    if len(decoded) != 32:
        raise DataMalformed(f"{names[0]} must be 32 bytes in hex")
    return decoded


def _signature(fields: dict[str, Any]) -> bytes:
    """Hex when it says 0x, base64 when it is (that is how enclaves write it), else the text itself."""
    value = _first(fields, ("teeSignature", "tee_signature"))
    if not isinstance(value, str):
        raise DataMalformed("teeSignature is missing")
    try:
        decoded = bytes.fromhex(value[2:]) if value.startswith("0x") else base64.b64decode(value, validate=True)
    except ValueError:
        decoded = value.encode()
    if len(decoded) > _MAX_SIGNATURE_BYTES:
        raise DataMalformed(f"teeSignature has more than {_MAX_SIGNATURE_BYTES} bytes")
    return decoded


def _timestamp(fields: dict[str, Any], *, required: bool) -> int:
    value = _first(fields, ("timestamp", "timeStamp", "time_stamp"))
    if value is None and not required:
        return 0
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_TIMESTAMP):
        raise DataMalformed("timestamp must be a whole number of seconds")
    return int(text)


def _payer(fields: dict[str, Any], *, required: bool) -> str:
    value = _first(fields, ("ethAddress", "eth_address", "address"))
    if value is None and not required:
        return ZERO_ADDRESS
    if not isinstance(value, str) or not is_hex_address(value):
        raise DataMalformed("ethAddress must be an address")
    return value


def leaf(record: InferenceRecord) -> bytes:
    """A record's leaf in the settlement tree: OpenZeppelin's standard form, hashed twice."""
    types = ["bytes32", "bytes32", "bytes32", "bytes", "uint256"]
    values = [record.tee_id, record.input_hash, record.output_hash, record.signature, record.timestamp]
    return keccak(keccak(encode(types, values)))


def anchor(facilitator: Facilitator, record: InferenceRecord) -> DataSettlement:
    """Put a record on chain now. The root of a tree with one leaf is that leaf."""
    blob_id = record.content_hash.hex().encode()
    if record.settlement_type == BATCH:
        return facilitator.settle_batch(merkle_root=leaf(record), batch_size=1, blob_id=blob_id)
    return facilitator.settle_individual(
        tee_id=record.tee_id,
        input_hash=record.input_hash,
        output_hash=record.output_hash,
        timestamp=record.timestamp,
        payer=record.payer,
        blob_id=blob_id,
        signature=record.signature,
    )
