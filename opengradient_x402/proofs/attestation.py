"""What the enclave signed about a call, whether it is what was asked and answered, and what it leaves out.

Pure: hashes are recomputed from the request as sent and the answer as served, the signature is checked with
the enclave's public key (docs/wire.md, "TEE proof"). Gateways have hashed messages in two ways over time; a
proof holds if either fits. Which key is trusted is decided in `gateway.enclave_keys`, and what follows from a bad
proof in `gateway.exchange`.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from opengradient_x402.addresses import keccak256
from opengradient_x402.completions import Completion, ToolCall

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

SALT_BYTES: Final = 32
"""RSA-PSS salt length of the enclaves (docs/wire.md, "TEE proof")."""
MIN_KEY_BITS: Final = 2048
MAX_KEY_BITS: Final = 8192
_HASH: Final = re.compile(r"(0x)?[0-9a-fA-F]{64}", re.ASCII)
_BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", re.ASCII)
_UNIX_TIME: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
MAX_AGE_S: Final = 600
"""A proof that was signed longer ago than any call may take is a replay."""


_OPTIONAL: Final = ("max_tokens", "stop", "tools", "response_format")
_HASHED: Final = frozenset({"model", "messages", "temperature", "web_search", *_OPTIONAL})
_OF_TRANSPORT: Final = frozenset({"stream", "stream_options"})
"""How an answer is sent, and not what it says."""


class VerifyTee(StrEnum):
    """What to do about the enclave's proof of a call."""

    OFF = "off"
    """Keep the proof on the receipt, unchecked."""
    WARN = "warn"
    """Check it; log a failure and mark the receipt."""
    REQUIRE = "require"
    """Check it; without a good proof the answer is withheld. A stream is shown as it comes, unproven until its end: it
    ends with the error then."""
    REQUIRE_BEFORE = "require-before"
    """As `require`, and nothing is shown before, or without, proof: a stream is held back until its end, and parts that
    the signature does not cover are left out."""

    @property
    def is_required(self) -> bool:
        """Whether an answer without a good proof is withheld."""
        return self in (VerifyTee.REQUIRE, VerifyTee.REQUIRE_BEFORE)


VerifyTeeName = Literal["off", "warn", "require", "require-before"]
"""The values of `VerifyTee`, for type checkers."""


class Verdict(StrEnum):
    """What the check of a proof found. Anything but `verified` means: do not rely on it."""

    VERIFIED = "verified"
    ABSENT = "absent"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    UNUSABLE_KEY = "unusable_key"
    WRONG_KEY = "wrong_key"
    WRONG_SIGNATURE = "wrong_signature"
    OTHER_REQUEST = "other_request"
    OTHER_OUTPUT = "other_output"
    UNCOVERED_CALLS = "uncovered_calls"
    STALE = "stale"
    REPLAYED = "replayed"

    @property
    def sentence(self) -> str:
        """The verdict in words, for an error."""
        return _SENTENCES[self]


_SENTENCES: Final[Mapping[Verdict, str]] = {
    Verdict.VERIFIED: "the enclave signed the covered parts of this request and this answer",
    Verdict.ABSENT: "the answer has no enclave signature",
    Verdict.MALFORMED: "the enclave's proof cannot be read",
    Verdict.UNKNOWN_KEY: "the enclave's public key is not known, so its signature cannot be checked",
    Verdict.UNUSABLE_KEY: f"the enclave's public key is no RSA key of {MIN_KEY_BITS} to {MAX_KEY_BITS} bits",
    Verdict.WRONG_KEY: "the proof names another enclave than the key that is trusted",
    Verdict.WRONG_SIGNATURE: "the enclave's signature does not fit",
    Verdict.OTHER_REQUEST: "the enclave signed another request than the one that was sent",
    Verdict.OTHER_OUTPUT: "the enclave signed another answer than the one that was served",
    Verdict.UNCOVERED_CALLS: "the enclave signed a text, and the answer has tool calls beside it",
    Verdict.REPLAYED: "the same proof came with another call before",
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
                tee_id="0x" + _hash_bytes(fields["tee_id"]).hex(),
                signature=base64_bytes(str(fields["tee_signature"])),
                request_hash=_hash_bytes(fields["tee_request_hash"]),
                output_hash=_hash_bytes(fields["tee_output_hash"]),
                timestamp_s=_unix_time(fields["tee_timestamp"]),
            )
        except (KeyError, TypeError) as exc:
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
    if (key := _rsa_key(public_key_der)) is None:
        return Verdict.UNUSABLE_KEY
    if not _is_signed(proof, key):
        return Verdict.WRONG_SIGNATURE
    if not any(_same(proof.request_hash, digest) for digest in request_hashes(request)):
        return Verdict.OTHER_REQUEST
    if not _same(proof.output_hash, output_hash(text=text, tool_calls=tool_calls, finish_reason=finish_reason)):
        return Verdict.OTHER_OUTPUT
    if tool_calls and finish_reason != "tool_calls":
        return Verdict.UNCOVERED_CALLS
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
    """Whether the key signed the proof's hashes and time. The content is not compared (for audits without it)."""
    key = _rsa_key(public_key_der)
    return key is not None and proof.tee_id == tee_id(public_key_der) and _is_signed(proof, key)


def uncovered_parts(completion: Completion, request: Mapping[str, Any]) -> tuple[str, ...]:
    """What of a verified call the signature says nothing about, such as `answer.reasoning` or `request.tool_choice`.

    Of an answer the text is signed, or, where it ends with tool calls, those alone; of a request what
    `request_hashes` are made of.
    """
    return (*(f"answer.{name}" for name in _unsigned_answer(completion)), *_unsigned_request(completion, request))


def covered_only(completion: Completion) -> Completion:
    """The answer without the parts that the signature does not cover."""
    return replace(
        completion,
        content="" if _served_finish_reason(completion) == "tool_calls" else completion.content,
        reasoning="",
        refusal="",
        images=(),
        logprobs=None,
        message_extras={},
        choice_extras={},
        response_extras={},
    )


def _unsigned_answer(completion: Completion) -> list[str]:
    parts: dict[str, object] = {
        "text": completion.content if _served_finish_reason(completion) == "tool_calls" else "",
        "reasoning": completion.reasoning,
        "refusal": completion.refusal,
        "images": completion.images,
        "logprobs": completion.logprobs,
    }
    extras = sorted({*completion.message_extras, *completion.choice_extras, *completion.response_extras})
    return [name for name, part in parts.items() if part] + [name.replace(",", "_")[:64] for name in extras]


def _unsigned_request(completion: Completion, request: Mapping[str, Any]) -> list[str]:
    names = [name for name, value in request.items() if value is not None and name not in _HASHED | _OF_TRANSPORT]
    messages = request.get("messages") or ()
    if any(message.get("name") for message in messages):
        names.append("messages.name")
    if _has_attachments(messages) or request.get("max_tokens") == 0 or request.get("web_search"):
        signed = str(completion.raw.get("tee_request_hash")).lower().removeprefix("0x")
        names += next((form.unsigned for form in _forms(request) if form.digest.hex() == signed), ())
    return [f"request.{name}" for name in names]


def _has_attachments(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        not isinstance(part, Mapping) or part.get("type") != "text"
        for message in messages
        if message.get("role") == "user" and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def tee_id(public_key_der: bytes) -> str:
    """`0x` and keccak256 of the DER SubjectPublicKeyInfo: how an enclave is named on chain."""
    return "0x" + keccak256(public_key_der).hex()


def request_hashes(request: Mapping[str, Any]) -> list[bytes]:
    """The hashes that gateways make of this request: of older ones first, then of newer ones.

    Some leave out `max_tokens` when it is 0, and some leave out `web_search`, which they do not do.
    """
    return [form.digest for form in _forms(request)]


class _Form(NamedTuple):
    """One way to hash a request: the hash, and which of its parts are not in it."""

    digest: bytes
    unsigned: tuple[str, ...]


def _forms(request: Mapping[str, Any]) -> list[_Form]:
    attachments = ("attachments",) if _has_attachments(request.get("messages") or ()) else ()
    found: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        (_canonical_request(request, _stringified), ()),
        (_canonical_request(request, _without_attachments), attachments),
    ]
    if request.get("max_tokens") == 0:
        with_limit = [({**one, "max_tokens": 0}, unsigned) for one, unsigned in found]
        found = [*((one, (*unsigned, "max_tokens")) for one, unsigned in found), *with_limit]
    if request.get("web_search"):
        found += [
            ({name: value for name, value in one.items() if name != "web_search"}, (*unsigned, "web_search"))
            for one, unsigned in found
        ]
    return [_Form(keccak256(_canonical_json(one).encode()), unsigned) for one, unsigned in found]


def output_hash(*, text: str, tool_calls: Sequence[ToolCall], finish_reason: str) -> bytes:
    """The hash of an answer: of its text, or of its tool calls when it ended with them."""
    if finish_reason != "tool_calls":
        return keccak256(text.encode())
    return calls_hash(
        [
            {
                "id": call.id if call.served_id is None else call.served_id,
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in tool_calls
        ]
    )


def calls_hash(calls: Sequence[Mapping[str, Any]]) -> bytes:
    """The hash of an answer that ended with tool calls, given as on the wire."""
    return keccak256(_canonical_json([_canonical_call(call) for call in calls]).encode())


def _served_finish_reason(completion: Completion) -> str:
    """The gateway's own finish reason: ours may say `length` where it said `stop`."""
    choices = completion.raw.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    return str(first.get("finish_reason") or completion.finish_reason)


def _rsa_key(public_key_der: bytes) -> RSAPublicKey | None:
    """The key, if the enclaves' signatures can be checked with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = serialization.load_der_public_key(public_key_der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, rsa.RSAPublicKey) and MIN_KEY_BITS <= key.key_size <= MAX_KEY_BITS else None


def _is_signed(proof: TeeProof, key: RSAPublicKey) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=SALT_BYTES)
    try:
        key.verify(proof.signature, proof.digest(), pss, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _same(left: bytes, right: bytes) -> bool:
    return hmac.compare_digest(left, right)


def _hash_bytes(text: Any) -> bytes:
    if _HASH.fullmatch(str(text)) is None:
        raise ValueError("a hash is not 32 bytes of hex")
    return bytes.fromhex(str(text).removeprefix("0x"))


def base64_bytes(text: str) -> bytes:
    """The bytes of a text in base64, with exactly the padding that it needs. Raises ValueError."""
    if _BASE64.fullmatch(text) is None:
        raise ValueError("not base64 with its padding")
    return base64.b64decode(text)


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
    for name in _OPTIONAL:
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
