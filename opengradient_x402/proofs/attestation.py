"""What the enclave signed about a call, and whether it is what was asked and answered.

Pure: hashes are recomputed from the request as sent and the answer as served, the signature is checked with
the enclave's public key (docs/wire.md, "TEE proof"). Gateways have hashed messages in two ways over time; a
proof holds if either fits. Whose key is to be trusted is `registry`'s business, and what to do about a bad
proof is the exchange's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from opengradient_x402.addresses import keccak256
from opengradient_x402.completions import Completion, ToolCall

SALT_BYTES: Final = 32
"""RSA-PSS salt length of the enclaves (docs/wire.md, "TEE proof")."""
_UNIX_TIME: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
MAX_AGE_S: Final = 600
"""A proof that was signed longer ago than any call may take is a replay."""


class VerifyTee(StrEnum):
    """What to do about the enclave's proof of a call."""

    OFF = "off"
    """Keep the proof on the receipt, unchecked."""
    WARN = "warn"
    """Check it; log a failure and mark the receipt."""
    REQUIRE = "require"
    """Check it; without a good proof the answer is withheld (a stream ends with the error)."""


VerifyTeeName = Literal["off", "warn", "require"]
"""The values of `VerifyTee`, for type checkers."""


class Verdict(StrEnum):
    """What the check of a proof found. Anything but `verified` means: do not rely on it."""

    VERIFIED = "verified"
    ABSENT = "absent"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    WRONG_KEY = "wrong_key"
    WRONG_SIGNATURE = "wrong_signature"
    OTHER_REQUEST = "other_request"
    OTHER_OUTPUT = "other_output"
    STALE = "stale"

    @property
    def sentence(self) -> str:
        """The verdict in words, for an error."""
        return _SENTENCES[self]


_SENTENCES: Final[Mapping[Verdict, str]] = {
    Verdict.VERIFIED: "the enclave signed exactly this request and this answer",
    Verdict.ABSENT: "the answer carries no enclave signature",
    Verdict.MALFORMED: "the enclave's proof cannot be read",
    Verdict.UNKNOWN_KEY: "the enclave's public key is not known, so its signature cannot be checked",
    Verdict.WRONG_KEY: "the proof names another enclave than the key that is trusted",
    Verdict.WRONG_SIGNATURE: "the enclave's signature does not fit",
    Verdict.OTHER_REQUEST: "the enclave signed another request than the one that was sent",
    Verdict.OTHER_OUTPUT: "the enclave signed another answer than the one that was served",
    Verdict.STALE: "the enclave's signature was made at another time than this call",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeProof:
    """The `tee_*` fields of an answer. Hashes are 32 bytes; the time is Unix seconds."""

    tee_id: str
    signature: bytes
    request_hash: bytes
    output_hash: bytes
    timestamp_s: int

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> TeeProof | None:
        """From a body or terminal event (`tee_id`, `tee_signature`, …). None when there is no signature.

        Raises ValueError when there is one and the rest does not make sense.
        """
        if not fields.get("tee_signature"):
            return None
        try:
            return cls(
                tee_id="0x" + _hash_bytes(str(fields["tee_id"]).lower()).hex(),
                signature=base64.b64decode(str(fields["tee_signature"]), validate=True),
                request_hash=_hash_bytes(fields["tee_request_hash"]),
                output_hash=_hash_bytes(fields["tee_output_hash"]),
                timestamp_s=_unix_time(fields["tee_timestamp"]),
            )
        except (KeyError, TypeError, binascii.Error) as exc:
            raise ValueError(f"the enclave's proof is incomplete: {exc}") from exc

    def digest(self) -> bytes:
        """The 32 bytes under the signature."""
        return keccak256(self.request_hash + self.output_hash + self.timestamp_s.to_bytes(32, "big"))


def check_proof(
    proof: TeeProof,
    *,
    public_key_der: bytes,
    request: Mapping[str, Any],
    text: str,
    tool_calls: Sequence[ToolCall],
    finish_reason: str,
    now_s: int | None = None,
) -> Verdict:
    """Whether `proof` is the enclave's signature over this request and this answer.

    `request` is the body as sent, with the wire name of the model; `text` the answer as served, before `stop`
    was applied on our side; `public_key_der` a SubjectPublicKeyInfo. `now_s` (None: any time will do) is when
    the answer arrived.
    """
    if proof.tee_id != tee_id(public_key_der):
        return Verdict.WRONG_KEY
    if not _is_signed(proof, public_key_der):
        return Verdict.WRONG_SIGNATURE
    if not any(_same(proof.request_hash, digest) for digest in request_hashes(request)):
        return Verdict.OTHER_REQUEST
    if not _same(proof.output_hash, output_hash(text=text, tool_calls=tool_calls, finish_reason=finish_reason)):
        return Verdict.OTHER_OUTPUT
    if now_s is not None and abs(now_s - proof.timestamp_s) > MAX_AGE_S:
        return Verdict.STALE
    return Verdict.VERIFIED


def check_completion(
    completion: Completion, *, request: Mapping[str, Any], public_key_der: bytes | None, now_s: int | None = None
) -> Verdict:
    """The verdict over a whole answer, from the proof that it carries."""
    try:
        proof = TeeProof.from_fields(completion.raw)
    except ValueError:
        return Verdict.MALFORMED
    if proof is None:
        return Verdict.ABSENT
    if public_key_der is None:
        return Verdict.UNKNOWN_KEY
    return check_proof(
        proof,
        public_key_der=public_key_der,
        request=request,
        text=completion.served_text,
        tool_calls=completion.tool_calls,
        finish_reason=_served_finish_reason(completion),
        now_s=now_s,
    )


def is_signed_by(proof: TeeProof, public_key_der: bytes) -> bool:
    """Whether the key signed the proof's hashes and time, whatever they stand for (for audits without content)."""
    return proof.tee_id == tee_id(public_key_der) and _is_signed(proof, public_key_der)


def tee_id(public_key_der: bytes) -> str:
    """`0x` and keccak256 of the DER SubjectPublicKeyInfo: how an enclave is named on chain."""
    return "0x" + keccak256(public_key_der).hex()


def request_hashes(request: Mapping[str, Any]) -> list[bytes]:
    """The hashes that gateways make of this request: of older ones first, then of newer ones.

    Some leave out `max_tokens` when it is 0, and some leave out `web_search`, which they do not do.
    """
    canonical = [_canonical_request(request, content_of) for content_of in (_stringified, _without_attachments)]
    if request.get("max_tokens") == 0:
        canonical += [{**one, "max_tokens": 0} for one in canonical]
    if request.get("web_search"):
        canonical += [{name: value for name, value in one.items() if name != "web_search"} for one in canonical]
    return [keccak256(_canonical_json(one).encode()) for one in canonical]


def output_hash(*, text: str, tool_calls: Sequence[ToolCall], finish_reason: str) -> bytes:
    """The hash of an answer: of its text, or of its tool calls when it ended with them."""
    if finish_reason != "tool_calls":
        return keccak256(text.encode())
    calls = [
        {
            "id": call.id if call.served_id is None else call.served_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in tool_calls
    ]
    return keccak256(_canonical_json(calls).encode())


def _served_finish_reason(completion: Completion) -> str:
    """The gateway's own finish reason: ours may say `length` where it said `stop`."""
    choices = completion.raw.get("choices") or [{}]
    return str(choices[0].get("finish_reason") or completion.finish_reason)


def _is_signed(proof: TeeProof, public_key_der: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    try:
        key = serialization.load_der_public_key(public_key_der)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=SALT_BYTES)
    try:
        key.verify(proof.signature, proof.digest(), pss, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _same(left: bytes, right: bytes) -> bool:
    return hmac.compare_digest(left, right)


def _hash_bytes(text: Any) -> bytes:
    digest = bytes.fromhex(str(text).removeprefix("0x"))
    if len(digest) != 32:
        raise ValueError("a hash is not 32 bytes long")
    return digest


def _unix_time(value: Any) -> int:
    if _UNIX_TIME.fullmatch(str(value)) is None:
        raise ValueError("a time is not Unix seconds")
    return int(value)


def _canonical_json(value: Any) -> str:
    # Python's defaults on purpose: ", " and ": " as separators, ASCII escapes. The enclave does the same.
    return json.dumps(value, sort_keys=True)


def _canonical_request(request: Mapping[str, Any], content_of: Any) -> dict[str, Any]:
    temperature = request.get("temperature")
    canonical: dict[str, Any] = {
        "model": request.get("model"),
        "messages": [_canonical_message(message, content_of) for message in request.get("messages") or ()],
        "temperature": 0.0 if temperature is None else float(temperature),
    }
    for name in ("max_tokens", "stop", "tools", "response_format"):
        if request.get(name):
            canonical[name] = request[name]
    if request.get("web_search"):
        canonical["web_search"] = True
    return canonical


def _canonical_message(message: Mapping[str, Any], content_of: Any) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    match role:
        case "system" | "developer":
            return {"role": "system", "content": content}
        case "assistant":
            canonical: dict[str, Any] = {"role": "assistant", "content": content or ""}
            if calls := message.get("tool_calls"):
                canonical["tool_calls"] = [_canonical_call(call) for call in calls]
            return canonical
        case "tool":
            return {"role": "tool", "content": content, "tool_call_id": message.get("tool_call_id")}
        case _:
            return {"role": role, "content": content_of(content)}


def _canonical_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "id": call.get("id"),
        "type": call.get("type", "function"),
        "function": {"name": function.get("name"), "arguments": function.get("arguments")},
    }


def _stringified(content: Any) -> Any:
    return str(content) if isinstance(content, list) else content


def _without_attachments(content: Any) -> Any:
    if isinstance(content, list):
        return [_stripped(part) for part in content]
    return content if isinstance(content, str) else str(content)


def _stripped(part: Any) -> dict[str, Any]:
    """A part as newer gateways hash it: texts without anything else, attachments by type and file name."""
    if not isinstance(part, Mapping):
        return {"type": "text", "text": str(part)}
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text") or ""}
    inner = part.get("file")
    filename = (inner.get("filename") if isinstance(inner, Mapping) else None) or part.get("filename")
    return {"type": part.get("type"), **({"filename": filename} if filename else {})}
