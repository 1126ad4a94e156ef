"""A web application for ASGI servers."""

import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from langchain_opengradient import ChatOpenGradient

model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)


async def ask(request: Request) -> JSONResponse:
    answer = await model.ainvoke(request.query_params["question"])
    return JSONResponse({"call_id": answer.response_metadata["opengradient"]["call_id"], "worker": os.getpid()})


async def tell(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        async for chunk in model.astream(request.query_params["question"]):
            yield chunk.text
            if (receipt := chunk.response_metadata.get("opengradient")) is not None:
                yield "\n" + receipt["call_id"]

    return StreamingResponse(pieces())


app = Starlette(routes=[Route("/ask", ask), Route("/tell", tell)])
