"""A web application for WSGI servers. It makes a paid call while it is loaded: before the server forks."""

import json
import os
from collections.abc import Iterable
from urllib.parse import parse_qs

from langchain_opengradient import ChatOpenGradient

model = ChatOpenGradient(model="openai/gpt-5-mini", max_tokens=30)
first = model.invoke("Say that you are up.").response_metadata["opengradient"]["call_id"]


def app(environ: dict, start_response) -> Iterable[bytes]:
    question = parse_qs(environ["QUERY_STRING"]).get("question", [""])[0]
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/first":
        return [json.dumps({"call_id": first}).encode()]
    if environ["PATH_INFO"] == "/tell":
        return pieces(question)
    answer = model.invoke(question)
    call_id = answer.response_metadata["opengradient"]["call_id"]
    return [json.dumps({"call_id": call_id, "worker": os.getpid()}).encode()]


def pieces(question: str) -> Iterable[bytes]:
    for chunk in model.stream(question):
        yield chunk.text.encode()
        if (receipt := chunk.response_metadata.get("opengradient")) is not None:
            yield b"\n" + receipt["call_id"].encode()
