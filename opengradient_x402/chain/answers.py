"""What one HTTP answer of a node means: the result, a refusal of the question, or a failure of the node.

JSON-RPC 2.0 is read strictly: version, id, and exactly one of result and error. Nodes say "too often" and "too much"
with the same codes, so their words decide: the first passes by waiting, the second by asking for less. Who is asked
again, and when, is decided in `node`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from opengradient_x402 import strict_json
from opengradient_x402.errors import ChainUnavailable, RpcError
from opengradient_x402.urls import hiding

MAX_ATTEMPTS: Final = 5
_QUANTITY: Final = re.compile("0x[0-9a-fA-F]{1,64}")
_TOO_OFTEN_STATUS: Final = 429
_PASSING_STATUSES: Final = frozenset({408, 425, 429, 502, 503, 504, *range(520, 530)})
"""HTTP: the server in front of the node is busy, or does not reach it (RFC 9110; 520 to 529 are Cloudflare's)."""
_RATE_LIMIT_CODES: Final = frozenset({-32005, -32016, -32029, 429})  # EIP-1474; Base and Alchemy use the others
_RATE_LIMIT_WORDS: Final = (
    "rate limit",
    "rate exceeded",
    "request rate",
    "request count",
    "too many request",
    "request limit",
    "requests per",
    "/second",
    "compute units",
    "quota",
    "throttl",
    "over capacity",
    "capacity exceeded",
    "capacity limit",
    "no backend",  # proxyd, in front of Base's public nodes
)
_TOO_MUCH_WORDS: Final = (
    "more than",
    "at most",
    "exceeds",
    "results",
    "number of logs",
    "too many logs",
    "too many blocks",
    "too large",
    "block range",
    "range is too",
    "range too",
    "ranges over",
    "response size",
    "query timeout",
)
_ABOUT_THE_QUESTION: Final = frozenset({3, -32000, -32003, -32005, -32015, -32602})
"""Codes with which a node speaks of the question or the chain. With others it speaks of itself: a method that it does
not serve, a plan that does not include it, a fault inside. Another node may answer then."""
_OWN_TROUBLE_WORDS: Final = ("timed out", "header not found", "missing trie node", "pruned", "not available")
"""With the code -32000: this node does not have the block or the state, or was too slow."""
_MOST_SHOWN: Final = 300


class Reply(NamedTuple):
    """An HTTP response, read to its end."""

    status_code: int
    content: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no result. `is_refusal`: the node answered and refused the question itself, as other nodes would."""

    error: ChainUnavailable
    is_refusal: bool = False
    attempts: int = 1
    """After this many attempts, asking the same node again does not help."""
    pause_s: float | None = None
    """How long the node asks to be left alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was asked for."""

    value: Any


def read_answer(
    reply: Reply, *, request_id: int, method: str, node: str, secrets: Sequence[str] = ()
) -> Result | Failure:
    """The result in a reply, or why there is none. `node` is the node's name in messages.

    `secrets` are in none of them: some nodes repeat the key with which they were asked.
    """
    document = _document(reply)
    error = document.get("error")
    if isinstance(error, dict):
        return _refused(error, reply, method=method, node=node, secrets=secrets)
    if reply.status_code in _PASSING_STATUSES or reply.status_code >= 500:
        return Failure(
            error=ChainUnavailable(
                f"The node {node} is {_trouble(reply.status_code)} (HTTP {reply.status_code} to {method}). The chain "
                "was not changed by asking. Try again later, or use another `rpc_url`."
            ),
            attempts=MAX_ATTEMPTS,
            pause_s=_retry_after_s(reply),
        )
    if not 200 <= reply.status_code < 300:
        return Failure(
            error=RpcError(
                f"The node {node} refused {method}: HTTP {reply.status_code}. The chain was not changed by asking. "
                "Check `rpc_url`, and the key in it.",
                code=reply.status_code,
            )
        )
    is_ours = document.get("jsonrpc") == "2.0" and _is_same(document.get("id"), request_id)
    if not is_ours or "error" in document or "result" not in document:
        return Failure(
            error=RpcError(
                f"The node {node} answered {method} with something that is not JSON-RPC 2.0 (HTTP "
                f"{reply.status_code}). The chain was not changed by asking. Check `rpc_url`, or ask another node."
            )
        )
    return Result(document["result"])


def _refused(error: dict[Any, Any], reply: Reply, *, method: str, node: str, secrets: Sequence[str]) -> Failure:
    message = hiding(str(error.get("message", f"HTTP {reply.status_code}")), secrets)[:_MOST_SHOWN]
    code, data = error.get("code"), error.get("data")
    if _may_pass(message.lower(), code, reply.status_code):
        return Failure(
            error=ChainUnavailable(
                f"The node {node} did not answer {method}: {message}. The chain was not changed by asking. Try again "
                "later, or use another `rpc_url`."
            ),
            attempts=MAX_ATTEMPTS,
            pause_s=_retry_after_s(reply),
        )
    is_code = isinstance(code, int) and not isinstance(code, bool)
    refusal = RpcError(
        f"The node {node} refused {method}: {message}.",
        code=code if is_code else reply.status_code,
        data=data if isinstance(data, str) else None,
    )
    return Failure(error=refusal, is_refusal=_is_about_the_question(message.lower(), code, reply.status_code))


def _may_pass(message: str, code: Any, status_code: int) -> bool:
    # Rates first: "more than 10 requests per second" passes, "more than 10000 results" does not, also with HTTP 429.
    if any(words in message for words in _RATE_LIMIT_WORDS):
        return True
    if any(words in message for words in _TOO_MUCH_WORDS):
        return False
    return status_code in _PASSING_STATUSES or (isinstance(code, int) and code in _RATE_LIMIT_CODES)


def _is_about_the_question(message: str, code: Any, status_code: int) -> bool:
    if any(words in message for words in _TOO_MUCH_WORDS):
        return True
    if status_code >= 400 and status_code not in (400, 429):
        return False
    is_known = isinstance(code, int) and code in _ABOUT_THE_QUESTION
    return is_known and not any(words in message for words in _OWN_TROUBLE_WORDS)


def _document(reply: Reply) -> dict[str, Any]:
    try:
        document = strict_json.loads(reply.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_same(found: Any, request_id: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found == request_id


def _trouble(status_code: int) -> str:
    return "limiting requests" if status_code == _TOO_OFTEN_STATUS else "not working"


def _retry_after_s(reply: Reply) -> float | None:
    text = reply.retry_after
    # At most six digits: a wait of days ends the request anyway.
    return float(text[:6]) if text is not None and text.isascii() and text.isdigit() else None


def number_in(value: Any) -> int:
    """A number of JSON-RPC: 0x-hex text of at most 256 bits. Raises TypeError or ValueError for anything else."""
    if not _QUANTITY.fullmatch(value):
        raise ValueError(value[:80])
    return int(value, 16)
