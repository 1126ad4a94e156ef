"""The same model without a price: a plain OpenAI-compatible server, as a baseline for frameworks.

It accepts any bearer token, or none. Answers have no proof.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opengradient_devnet.bounded_json import parse_json
from opengradient_devnet.gateway.answers import DONE, event, models_page
from opengradient_devnet.gateway.event_stream import EventKind, EventStream, StreamEvent
from opengradient_devnet.gateway.menu import Menu
from opengradient_devnet.model.protocol import Chunk, ModelError


def unpaid_app(menu: Menu) -> Starlette:
    """An app with POST /v1/chat/completions and GET /v1/models."""

    model = menu.model

    async def chat(request: Request) -> Response:
        try:
            content = parse_json(await request.body())
            head = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": content["model"]}
            if not content.get("stream"):
                answer = await model.complete(content)
                whole = {
                    **answer.members,
                    **head,
                    "object": "chat.completion",
                    "choices": [answer.choice()],
                    "usage": answer.usage,
                }
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
        return EventStream(events, headers=[], on_end=chunks.aclose)

    async def models(_request: Request) -> Response:
        return JSONResponse(models_page(await menu.models(), opg_usd=menu.prices.opg_usd))

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
) -> AsyncGenerator[StreamEvent, None]:
    usage = None
    while chunk is not None:
        usage = chunk.usage or usage
        yield _event(EventKind.DELTA, {**chunk.members, **head, "choices": [chunk.choice()]})
        chunk = await anext(chunks, None)
    if wants_usage:
        yield _event(EventKind.FINAL, {**head, "choices": [], "usage": usage})
    yield StreamEvent(kind=EventKind.DONE, data=DONE)


def _event(kind: EventKind, content: dict[str, Any]) -> StreamEvent:
    return StreamEvent(kind=kind, data=event(content))
