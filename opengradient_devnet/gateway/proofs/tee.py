"""The enclave of the devnet: hashes of a request and its answer, and a signature over both.

One RSA-2048 key per run. `tee_signature` is RSA-PSS (SHA-256, MGF1 SHA-256, salt 32) over
`keccak256(request_hash ‖ output_hash ‖ uint256(timestamp))`, `tee_id` the keccak256 of the DER public key.
The hashes are those of the live gateways, see `canonical_request`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from eth_utils.crypto import keccak

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


class CanonicalStyle(StrEnum):
    """How user messages with several parts enter the request hash; it changed between gateway versions."""

    STRINGIFIED = "stringified"
    """`str(content)`: Python's own notation of the list (gateways until spring 2026)."""
    ATTACHMENTS_STRIPPED = "attachments_stripped"
    """text parts as type and text alone, every other part reduced to `{type, filename?}` (newer gateways)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What an enclave says about one call; hashes are 32 bytes, `timestamp_s` unix seconds."""

    tee_id: bytes
    request_hash: bytes
    output_hash: bytes
    timestamp_s: int
    signature: bytes

    def fields(self) -> dict[str, Any]:
        """The `tee_*` members of a response body or a final stream event, in wire order."""
        return {
            "tee_signature": base64.b64encode(self.signature).decode(),
            "tee_timestamp": self.timestamp_s,
            "tee_request_hash": self.request_hash.hex(),
            "tee_output_hash": self.output_hash.hex(),
            "tee_id": "0x" + self.tee_id.hex(),
        }

    def headers(self) -> dict[str, str]:
        """The `X-TEE-*` headers of an individually settled response; here the hashes carry 0x."""
        return {
            "X-TEE-Signature": base64.b64encode(self.signature).decode(),
            "X-TEE-ID": "0x" + self.tee_id.hex(),
            "X-TEE-Timestamp": str(self.timestamp_s),
            "X-TEE-Request-Hash": "0x" + self.request_hash.hex(),
            "X-TEE-Output-Hash": "0x" + self.output_hash.hex(),
        }


def canonical_request(
    request: Mapping[str, Any], *, style: CanonicalStyle = CanonicalStyle.STRINGIFIED
) -> dict[str, Any]:
    """The part of a chat-completions request that is hashed."""
    temperature = request.get("temperature")
    canonical: dict[str, Any] = {
        "model": request["model"],
        "messages": [_canonical_message(message, style=style) for message in request["messages"]],
        "temperature": 0.0 if temperature is None else float(temperature),
    }
    if request.get("max_tokens") is not None:
        canonical["max_tokens"] = request["max_tokens"]
    for field in ("stop", "tools", "response_format"):
        if request.get(field):
            canonical[field] = request[field]
    if request.get("web_search"):
        canonical["web_search"] = True
    return canonical


def _canonical_message(message: Mapping[str, Any], *, style: CanonicalStyle) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    match role:
        case "system" | "developer":
            return {"role": "system", "content": content}
        case "assistant":
            canonical: dict[str, Any] = {"role": "assistant", "content": content or ""}
            if message.get("tool_calls"):
                canonical["tool_calls"] = [_canonical_tool_call(call) for call in message["tool_calls"]]
            return canonical
        case "tool":
            return {"role": "tool", "content": content, "tool_call_id": message.get("tool_call_id")}
        case _:
            return {"role": role, "content": _canonical_content(content, style=style)}


def _canonical_content(content: Any, *, style: CanonicalStyle) -> Any:
    if style is CanonicalStyle.STRINGIFIED:
        return str(content) if isinstance(content, list) else content
    if isinstance(content, list):
        return [_without_attachment(part) for part in content]
    return content if isinstance(content, str) else str(content)


def _without_attachment(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return {"type": "text", "text": str(part)}
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text") or ""}
    stripped = {"type": part.get("type")}
    file = part.get("file")
    filename = (file.get("filename") if isinstance(file, Mapping) else None) or part.get("filename")
    if filename:
        stripped["filename"] = filename
    return stripped


def _canonical_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "id": call.get("id"),
        "type": call.get("type", "function"),
        "function": {"name": function.get("name"), "arguments": function.get("arguments")},
    }


def request_hash(request: Mapping[str, Any], *, style: CanonicalStyle = CanonicalStyle.STRINGIFIED) -> bytes:
    """keccak256 over the canonical request as sorted JSON with Python's default separators."""
    return keccak(text=json.dumps(canonical_request(request, style=style), sort_keys=True))


def output_hash(*, text: str, tool_calls: Sequence[Mapping[str, Any]], finish_reason: str) -> bytes:
    """keccak256 over the answer: its text, or its tool calls when it ended with `tool_calls`."""
    if finish_reason == "tool_calls":
        return keccak(text=json.dumps([_canonical_tool_call(call) for call in tool_calls], sort_keys=True))
    # Models may cut an emoji in two; the halves are one character once the text is whole.
    return keccak(text=text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def signed_digest(*, request_hash: bytes, output_hash: bytes, timestamp_s: int) -> bytes:
    """The message under a `tee_signature`."""
    return keccak(request_hash + output_hash + timestamp_s.to_bytes(32, "big"))


class Enclave:
    """The holder of one signing key, made new for every run."""

    def __init__(self, *, style: CanonicalStyle = CanonicalStyle.STRINGIFIED) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.style = style
        self.public_key_der = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public_key_pem = (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )
        self.tee_id = keccak(self.public_key_der)

    def prove(
        self,
        request: Mapping[str, Any],
        *,
        text: str,
        tool_calls: Sequence[Mapping[str, Any]],
        finish_reason: str,
        timestamp_s: int,
    ) -> Proof:
        """Hash and sign one call."""
        asked = request_hash(request, style=self.style)
        answered = output_hash(text=text, tool_calls=tool_calls, finish_reason=finish_reason)
        return self.sign(request_hash=asked, output_hash=answered, timestamp_s=timestamp_s)

    def sign(self, *, request_hash: bytes, output_hash: bytes, timestamp_s: int) -> Proof:
        """Sign two hashes and a time."""
        digest = signed_digest(request_hash=request_hash, output_hash=output_hash, timestamp_s=timestamp_s)
        return Proof(
            tee_id=self.tee_id,
            request_hash=request_hash,
            output_hash=output_hash,
            timestamp_s=timestamp_s,
            signature=self._key.sign(digest, _PSS, hashes.SHA256()),
        )
