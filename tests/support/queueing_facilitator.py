"""A facilitator that answers 202 and settles later, as OpenGradient's own does; another one does the work for it.

Payments and data go into one queue, and one worker takes them out of it, in order and a while later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.loopback_server import serving

DELAY_S = 0.5


@dataclass
class Queueing:
    """Its URL, the jobs that it promised, each with its settlement type, and what came of those that are done."""

    url: str = ""
    promised: dict[str, str] = field(default_factory=dict)
    done: dict[str, httpx.Response] = field(default_factory=dict)


@contextmanager
def queueing_in_front_of(facilitator_url: str) -> Iterator[Queueing]:
    """A queue in front of a facilitator. When the block ends, nothing waits in it any more."""
    state, waiting = Queueing(), []

    async def passed_on(request: Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.request(
                request.method, facilitator_url + request.url.path, content=await request.body(), headers=headers
            )

    async def at_once(request: Request) -> Response:
        answer = await passed_on(request)
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def queued(request: Request, kind: str, member: str) -> Response:
        await request.body()
        job, before = f"{kind}-{uuid4()}", waiting[-1:]

        async def work() -> None:
            await asyncio.gather(*before)
            await asyncio.sleep(DELAY_S)
            state.done[job] = await passed_on(request)

        waiting.append(asyncio.create_task(work()))
        state.promised[job] = request.headers.get("x-settlement-type", "")
        queue = f"x402-settle-{kind}-queue"
        return JSONResponse({member: {"jobId": job, "queue": queue, "status": "queued"}}, status_code=202)

    async def settle(request: Request) -> Response:
        return await queued(request, "payment", "paymentJob")

    async def settle_data(request: Request) -> Response:
        return await queued(request, "data", "settlementJob")

    async def finish(_request: Request) -> Response:
        await asyncio.gather(*waiting)
        return JSONResponse({})

    app = Starlette(
        routes=[
            Route("/supported", at_once),
            Route("/verify", at_once, methods=["POST"]),
            Route("/settle", settle, methods=["POST"]),
            Route("/settle_data", settle_data, methods=["POST"]),
            Route("/finish", finish, methods=["POST"]),
        ]
    )
    with serving(app) as state.url:
        yield state
        httpx.post(f"{state.url}/finish", timeout=60).raise_for_status()
