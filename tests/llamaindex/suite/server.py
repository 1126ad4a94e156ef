"""An OpenAI-shaped server that says exactly what a test tells it to, and remembers what it was asked.

For the cases that no obliging model produces: fragments without an index, broken JSON, cut streams, errors in
mid-stream, pauses. Real HTTP over loopback, standard library only. It knows nothing of the LLM under test.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(kw_only=True)
class Reply:
    """One answer. `deltas` are the `choices[0].delta`s of a streamed answer; left out, they follow from the rest.

    `hold_after` chunks the server stops until `ScriptedServer.release()`, or until the client hangs up.
    """

    text: str | None = "Hello from the script."
    tool_calls: Sequence[dict[str, Any]] = ()
    deltas: Sequence[dict[str, Any]] | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    extra: dict[str, Any] = field(default_factory=dict)
    """Further members of the message, e.g. `reasoning_content`."""
    status: int = 200
    is_cut: bool = False
    """End a streamed answer after its deltas, without a finish reason and `[DONE]`."""
    error_event: dict[str, Any] | None = None
    hold_after: int | None = None

    @property
    def reason(self) -> str:
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, **self.extra}
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message

    def stream(self) -> list[dict[str, Any]]:
        if self.deltas is not None:
            return list(self.deltas)
        words = [] if self.text is None else self.text.split(" ")
        pieces = [word if at == 0 else f" {word}" for at, word in enumerate(words)]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{name: value} for name, value in self.extra.items()]
        deltas += [{"content": piece} for piece in pieces if piece]
        for index, call in enumerate(self.tool_calls):
            arguments = call["function"]["arguments"] or ""
            head = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
            deltas.append({"tool_calls": [head]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 5]}}]}
                for at in range(0, len(arguments), 5)
            ]
        return deltas


def call_to(name: str, arguments: str | dict[str, Any] | None, *, call_id: str | None = "call_1") -> dict[str, Any]:
    """A tool call as the wire has it."""
    text = json.dumps(arguments) if isinstance(arguments, dict) else arguments
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the standard 5 refuses connections when fifty calls come at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about clients that hang up between two requests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ScriptedServer:
    """Answers `/chat/completions` (under any prefix) with the replies queued by `say`, then with a plain one."""

    def __init__(self) -> None:
        self._replies: deque[Reply] = deque()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._hung_up = threading.Event()
        self._asked = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self._server = _Server(("127.0.0.1", 0), self._handler_class())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL, up to and with `/v1`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def say(self, *replies: Reply) -> None:
        """Queue replies."""
        with self._lock:
            self._replies.extend(replies)

    def reset(self) -> None:
        """Forget replies and requests of the test before."""
        self._released.set()
        with self._lock:
            self._replies.clear()
            self.requests.clear()
        self._released, self._hung_up, self._asked = threading.Event(), threading.Event(), threading.Event()

    def release(self) -> None:
        """Let held replies go on."""
        self._released.set()

    def client_hung_up(self, *, within_s: float = 5.0) -> bool:
        """Whether a client closed its connection in the middle of a reply, now or soon."""
        return self._hung_up.wait(within_s)

    def was_asked(self, *, within_s: float = 5.0) -> bool:
        """Whether a request has come in, now or soon."""
        return self._asked.wait(within_s)

    @property
    def last_request(self) -> dict[str, Any]:
        """The body of the latest request."""
        assert self.requests, (
            f"The LLM sent nothing to the scripted server at {self.url}: check `base_url_param`, and that the LLM "
            "opens no connection of its own elsewhere."
        )
        return self.requests[-1]

    def _take(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests.append(request)
            self._asked.set()
            return self._replies.popleft() if self._replies else Reply()

    def _handler_class(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                script._answer(self, request, script._take(request))

            def log_message(self, *_: object) -> None:
                """Quiet: prompts do not belong into logs."""

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], reply: Reply) -> None:
        released, hung_up = self._released, self._hung_up
        try:
            if reply.status != 200:
                _send_json(handler, {"error": {"message": "scripted failure", "type": "server_error"}}, reply.status)
            elif request.get("stream"):
                self._stream(handler, request, reply, released)
            else:
                if reply.hold_after is not None:
                    _wait(handler, released)
                _send_json(handler, _completion(request, reply), 200)
        except (BrokenPipeError, ConnectionResetError):
            hung_up.set()
            handler.close_connection = True

    def _stream(
        self, handler: BaseHTTPRequestHandler, request: dict[str, Any], reply: Reply, released: threading.Event
    ) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for sent, delta in enumerate(reply.stream()):
            if sent == reply.hold_after:
                _wait(handler, released)
            _send_event(handler, _chunk(request, {"delta": delta, "finish_reason": None}))
        if reply.error_event is not None:
            _send_event(handler, reply.error_event)
        elif not reply.is_cut:
            end = _chunk(request, {"delta": {}, "finish_reason": reply.reason})
            if reply.usage is not None:
                end["usage"] = reply.usage
            _send_event(handler, end)
            _send_chunk(handler, b"data: [DONE]\n\n")
        _send_chunk(handler, b"")


def _wait(handler: BaseHTTPRequestHandler, released: threading.Event) -> None:
    """Wait for the release; raises ConnectionResetError when the client hangs up first."""
    handler.connection.settimeout(0.02)
    deadline = time.monotonic() + 30
    while not released.is_set() and time.monotonic() < deadline:
        try:
            if not handler.connection.recv(1):
                raise ConnectionResetError
        except TimeoutError:
            continue
    handler.connection.settimeout(None)


def _completion(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    choice = {"index": 0, "message": reply.message(), "finish_reason": reply.reason}
    body = {**_head(request, "chat.completion"), "choices": [choice]}
    return body if reply.usage is None else {**body, "usage": reply.usage}


def _chunk(request: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    return {**_head(request, "chat.completion.chunk"), "choices": [{"index": 0, **choice}]}


def _head(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 1_750_000_000, "model": request.get("model", "")}


def _send_json(handler: BaseHTTPRequestHandler, body: dict[str, Any], status: int) -> None:
    payload = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


def _send_event(handler: BaseHTTPRequestHandler, event: dict[str, Any]) -> None:
    _send_chunk(handler, f"data: {json.dumps(event)}\n\n".encode())


def _send_chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.flush()
