"""Pages of other origins in a real browser: they get nothing from the paying server, and pay nothing with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from support.loopback_server import serving
from support.payers import PROMPT
from support.paying_server import PayingServer, paying_server

PAGE = """<!doctype html><title>page</title><img src="/end">
<iframe name="inner"></iframe><form id="form" target="inner" method="post" enctype="text/plain"></form>
<script>
const {url, token, prompt} = TASK, chat = url + "/chat/completions", came = {};
const authorized = {"content-type": "application/json", "authorization": "Bearer " + token};
const tell = (name, promise) => promise.then(said => came[name] = said, error => came[name] = error.name);
const body = JSON.stringify(prompt);
const text = response => response.text();
const loaded = (tag, src) => new Promise((done, failed) => {
  const element = document.createElement(tag);
  element.onload = () => done("loaded");
  element.onerror = () => failed(new Error());
  element.src = src;
  document.body.append(element);
});
const opened = new Promise((done, failed) => {
  const socket = new WebSocket(chat.replace("http", "ws"));
  socket.onopen = () => done("opened");
  socket.onerror = () => failed(new Error());
});
document.querySelector("#form").action = chat;
document.querySelector("#form").submit();
navigator.sendBeacon(chat, new Blob([body], {type: "text/plain"}));
Promise.allSettled([
  tell("own", fetch("/own").then(text)),
  tell("chat", fetch(chat, {method: "POST", headers: authorized, body}).then(text)),
  tell("models", fetch(url + "/models", {headers: authorized}).then(text)),
  tell("simple", fetch(chat, {method: "POST", headers: {"content-type": "text/plain"}, body}).then(text)),
  tell("opaque", fetch(chat, {method: "POST", mode: "no-cors", body}).then(text)),
  tell("script", loaded("script", url + "/models")),
  tell("image", loaded("img", url + "/models")),
  tell("socket", opened),
]).then(() => fetch("/report", {method: "POST", body: JSON.stringify(came)}));
</script>"""


@dataclass
class Page:
    """A site of somebody else, and what its script has reported."""

    url: str = ""
    came: dict[str, Any] = field(default_factory=dict)


@contextmanager
def page_about(server: PayingServer) -> Iterator[Page]:
    page, ended = Page(), asyncio.Event()
    task = json.dumps({"url": server.url, "token": server.token(), "prompt": PROMPT})

    async def home(_: Request) -> HTMLResponse:
        return HTMLResponse(PAGE.replace("TASK", task))

    async def own(_: Request) -> PlainTextResponse:
        return PlainTextResponse("own")

    async def report(request: Request) -> PlainTextResponse:
        page.came = await request.json()
        ended.set()
        return PlainTextResponse("")

    async def end(_: Request) -> PlainTextResponse:
        """The page is not loaded, and the browser goes on, until the report is there."""
        await asyncio.wait_for(ended.wait(), 30)
        return PlainTextResponse("")

    routes = [Route("/", home), Route("/own", own), Route("/report", report, methods=["POST"]), Route("/end", end)]
    with serving(Starlette(routes=routes)) as url:
        page.url = url
        yield page


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "page.example"])
def test_a_page_of_another_origin_gets_nothing_even_with_the_key(payments, browse, name):
    with paying_server(payments) as server, page_about(server) as page:
        browse(page.url.replace("127.0.0.1", name), "--host-resolver-rules=MAP page.example 127.0.0.1", "--dump-dom")
        assert page.came.pop("own") == "own"
        assert page.came.pop("opaque") in ("", "TypeError")  # sent without the key, and the answer cannot be read
        assert set(page.came.values()) <= {"TypeError", "Error"}
        assert page.came.keys() == {"chat", "models", "simple", "script", "image", "socket"}
        assert server.receipts == []
        answer = httpx.post(f"{server.url}/chat/completions", headers=server.headers(), json=PROMPT, timeout=30)
        assert answer.status_code == 200  # a program gets its answer
        assert len(server.receipts) == 1


def test_a_name_that_was_turned_into_a_loopback_address_gets_nothing(payments, browse):
    with paying_server(payments) as server:
        url = httpx.URL(server.url).copy_with(host="rebound.example")
        dom, _ = browse(f"{url}/models", "--host-resolver-rules=MAP rebound.example 127.0.0.1", "--dump-dom")
        assert "is not a name of this server" in dom
        assert server.receipts == []
