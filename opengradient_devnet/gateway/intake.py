"""Reads the body of a request and checks it, after it was paid for.

Each check raises `Declined` with the answer that the live gateways give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from opengradient_devnet.gateway import answers

MAX_BODY_BYTES = 32 * 2**20

# What the gateway of 2026-04 takes, measured; more of anything is a 400 there, and another role a 500.
_RANGES = {"temperature": 2, "top_p": 1}
_MOST_STOPS = 4
_ROLES = frozenset({"system", "user", "assistant", "tool"})

# The devnet's own: the live gateways read no such header. The network description asks clients for it.
CALL_ID_HEADER = "x-call-id"
_CALL_ID = re.compile(r"call_[0-9a-f]{24,64}", re.ASCII)

HeaderList = list[tuple[str, str]]


class Declined(Exception):
    """A call that gets an error instead of an answer; it costs nothing."""

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: HeaderList | None = None,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers: HeaderList = [("content-type", content_type), *(headers or [])]


class Invalid(Exception):
    """A request that this gateway does not take: a 400, written as the gateway writes them. It costs nothing."""


async def read_body(request: Request) -> bytes | None:
    """The whole body; None when it is too large to be looked at."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            pieces.clear()
        else:
            pieces.append(piece)
    return b"".join(pieces) if size <= MAX_BODY_BYTES else None


def check_bearer(request: Request) -> None:
    """A token must be there; its value is ignored, as on the live gateways."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        body = answers.problem(status=401, title="Unauthorized", detail="No authorization token provided")
        raise Declined(401, body, content_type="application/problem+json")


def told_call_id(request: Request) -> str:
    """The id that the client gives to its call; empty when it gives none, or something else."""
    told = request.headers.get(CALL_ID_HEADER, "")
    return told if _CALL_ID.fullmatch(told) else ""


def parse_json(request: Request, body: bytes | None) -> dict[str, Any]:
    """The JSON object in `body`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        detail = f"Invalid Content-type ({content_type}), expected JSON data"
        problem = answers.problem(status=415, title="Unsupported Media Type", detail=detail)
        raise Declined(415, problem, content_type="application/problem+json")
    if body is None:
        problem = answers.problem(status=413, title="Content Too Large", detail=f"The limit is {MAX_BODY_BYTES} bytes")
        raise Declined(413, problem, content_type="application/problem+json")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Invalid("Request body is not valid JSON") from exc
    if not isinstance(content, dict):
        raise Invalid("Request body must be a JSON object")
    return content


def check_chat(content: Mapping[str, Any]) -> None:
    """Model, messages and parameters are as pricing and hashing rely on, and in the ranges of the live gateways."""
    messages: Sequence[Any] = content.get("messages") or ()
    if not isinstance(content.get("model"), str):
        raise Invalid("'model' is a required property")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise Invalid("'messages' must be a list of messages, at least one")
    for field in ("temperature", "top_p", "max_tokens", "max_completion_tokens"):
        value = content.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Invalid(f"'{field}' must be a number")
    _check_ranges(content)


def _check_ranges(content: Mapping[str, Any]) -> None:
    for field, most in _RANGES.items():
        value = content.get(field)
        if value is not None and not 0 <= value <= most:
            raise Invalid(f"{value} is not in the range of '{field}', which is 0 to {most}")
    seed = content.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise Invalid(f"{seed!r} is no 'seed': it is an integer")
    stop = content.get("stop")
    if isinstance(stop, list) and len(stop) > _MOST_STOPS:
        raise Invalid(f"'stop' has {len(stop)} sequences; there may be {_MOST_STOPS}")


def unread_role(content: Mapping[str, Any]) -> str | None:
    """The first role in the messages that the live gateways cannot read, if there is one."""
    roles = (message.get("role") for message in content["messages"])
    return next((str(role) for role in roles if role not in _ROLES), None)


def chat_from_text(content: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that a text completion's `prompt` amounts to."""
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        raise Invalid("'prompt' is a required property")
    rest = {key: value for key, value in content.items() if key not in ("prompt", "stream")}
    return {**rest, "messages": [{"role": "user", "content": prompt}]}
