"""The same model without a price: a plain OpenAI-compatible server, as a baseline for frameworks.

It does not know payments, proofs or sessions; any bearer token, or none, will do.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from opengradient_devnet.answers import models_page
from opengradient_devnet.models import Chunk, Model, ModelError
from opengradient_devnet.pricing import PriceList


def unpaid_app(model: Model, *, prices: PriceList) -> Starlette:
    """An app with POST /v1/chat/completions and GET /v1/models."""

    async def chat(request: Request) -> Response:
        try:
            content = await request.json()
            head = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": content["model"]}
            if not content.get("stream"):
                answer = await model.complete(content)
                whole = {**head, "object": "chat.completion", "choices": [answer.choice()], "usage": answer.usage}
                return JSONResponse(whole)
            chunks = model.stream(content)
            first = await anext(chunks, None)
        except ModelError as exc:
            return JSONResponse({"error": {"message": exc.message, "type": "server_error"}}, exc.status)
        except (ValueError, KeyError, TypeError) as exc:
            problem = {"message": f"The request is not a chat completion: {exc!r}", "type": "invalid_request_error"}
            return JSONResponse({"error": problem}, 400)
        head["object"] = "chat.completion.chunk"
        wants_usage = bool((content.get("stream_options") or {}).get("include_usage"))
        events = _events(first, chunks, head=head, wants_usage=wants_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    async def models(_request: Request) -> Response:
        return JSONResponse(models_page(prices))

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
        ]
    )


async def _events(
    chunk: Chunk | None,
    chunks: AsyncGenerator[Chunk, None],
    *,
    head: dict[str, Any],
    wants_usage: bool,
) -> AsyncGenerator[str, None]:
    try:
        usage = None
        while chunk is not None:
            usage = chunk.usage or usage
            yield _event({**head, "choices": [chunk.choice()]})
            chunk = await anext(chunks, None)
        if wants_usage:
            yield _event({**head, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"
    finally:
        await chunks.aclose()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
