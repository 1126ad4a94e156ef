"""Reads the record of one call that an individual settlement published, and compares it with the event on chain.

Such records have had three forms, and OpenGradient's public verifier accepts all of them: names in camelCase; names
with underscores, with the proof inside `output`; and older ones without hashes. Whoever wrote the blob may have
written anything: each member that is there must agree with the event, and texts are hashed again. Pure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opengradient_x402 import strict_json
from opengradient_x402.addresses import keccak256
from opengradient_x402.chain.contracts import IndividualSettlement
from opengradient_x402.completions import join_text
from opengradient_x402.proofs.attestation import calls_hash, request_hashes

_HEX: Final = re.compile(r"(0x)?(?:[0-9a-fA-F]{2})+", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,20}", re.ASCII)


def differences(content: bytes, event: IndividualSettlement) -> list[str]:
    """What the record says otherwise than the event: nothing, for the record of this call.

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
