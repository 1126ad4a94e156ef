"""Reads the body of a request and checks it, after it was paid for.

Each check raises `Declined` with the answer that the live gateways give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from opengradient_devnet.gateway import answers

MAX_BODY_BYTES = 32 * 2**20

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
        raise Declined(400, answers.error("Request body is not valid JSON")) from exc
    if not isinstance(content, dict):
        raise Declined(400, answers.error("Request body must be a JSON object"))
    return content


def check_chat(content: Mapping[str, Any]) -> None:
    """Model, messages and numbers have the types that pricing and hashing rely on."""
    messages: Sequence[Any] = content.get("messages") or ()
    if not isinstance(content.get("model"), str):
        raise Declined(400, answers.error("'model' is a required property"))
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise Declined(400, answers.error("'messages' must be a list of messages, at least one"))
    for field in ("temperature", "max_tokens", "max_completion_tokens"):
        value = content.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Declined(400, answers.error(f"'{field}' must be a number"))


def chat_from_text(content: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that a text completion's `prompt` amounts to."""
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        raise Declined(400, answers.error("'prompt' is a required property"))
    rest = {key: value for key, value in content.items() if key not in ("prompt", "stream")}
    return {**rest, "messages": [{"role": "user", "content": prompt}]}
