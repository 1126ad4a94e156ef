"""Forty ways in which a public node fails, over a real socket. All but one say which chain they serve."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Piece = bytes | float
"""What goes over the wire, or seconds of silence."""
Fault = Callable[[int], Iterator[Piece]]
"""(id of the request) -> the answer."""


def http(body: bytes, status: str = "200 OK", headers: str = "", *, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body) if length is None else length}\r\n{headers}\r\n"
    return head.encode() + body


def document(**members: Any) -> bytes:
    return json.dumps(members).encode()


def said(body: bytes, status: str = "200 OK", headers: str = "") -> Fault:
    return lambda _id: iter([http(body, status, headers)])


def answered(**members: Any) -> Fault:
    """A JSON-RPC document with right version and id, but for what `members` say."""
    return lambda number: iter([http(document(**{"jsonrpc": "2.0", "id": number} | members))])


def dripping(start: bytes, drop: bytes) -> Fault:
    def fault(_id: int) -> Iterator[Piece]:
        yield start
        while True:
            yield 0.05
            yield drop

    return fault


HTML = b"<html><body>Bad gateway</body></html>"
LIMIT = {"code": -32005, "message": "limit exceeded"}
FAULTS: dict[str, Fault] = {
    "hangs": lambda _id: iter([60.0]),
    "drips headers": dripping(b"HTTP/1.1 200 OK\r\nx: ", b"a"),
    "drips the body": dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n", b" "),
    "drips a chunk's size": dripping(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"a"),
    "closes at once": lambda _id: iter([]),
    "closes in the headers": lambda _id: iter([b"HTTP/1.1 200 OK\r\nconte"]),
    "closes in the body": lambda _id: iter([http(b'{"jsonrpc"', length=500)]),
    "is not HTTP": lambda _id: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]),
    "429": said(b"", "429 Too Many Requests"),
    "429, later": said(b"", "429 Too Many Requests", "retry-after: 5\r\n"),
    "503 with HTML": said(HTML, "503 Service Unavailable"),
    "502 with HTML": said(HTML, "502 Bad Gateway"),
    "502 with JSON": said(b'{"message": "bad gateway"}', "502 Bad Gateway"),
    "502 with an error": said(document(error={"code": -32603, "message": "upstream"}), "502 Bad Gateway"),
    "500": said(b"", "500 Internal Server Error"),
    "401": said(b"{}", "401 Unauthorized"),
    "403 with HTML": said(HTML, "403 Forbidden"),
    "404": said(b"", "404 Not Found"),
    "redirects": said(b"", "301 Moved Permanently", "location: http://127.0.0.1:1/\r\n"),
    "HTML": said(HTML),
    "nothing": said(b""),
    "cut JSON": said(b'{"jsonrpc": "2.0", "id": 1, "resu'),
    "null": said(b"null"),
    "a list": said(b"[1]"),
    "a number": said(b"7"),
    "deep JSON": said(b"[" * 5000),
    "not UTF-8": said(b'{"jsonrpc": "2.0", "result": "\xff\xfe"}'),
    "no gzip": said(b"plain", headers="content-encoding: gzip\r\n"),
    "null result": answered(result=None),
    "result is an object": answered(result={"a": 1}),
    "result is a number": answered(result=5),
    "result is empty": answered(result="0x"),
    "result is a list": answered(result=[None]),
    "result is long": answered(result="0x" + "f" * 5000),
    "result is negative": answered(result="-0x1"),
    "another id": answered(id=-1, result="0x1"),
    "another version": answered(jsonrpc="1.0", result="0x1"),
    "result and error": answered(result="0x1", error=None),
    "error is text": answered(error="no"),
    "error has no code": answered(error={"message": None, "code": "x", "data": 5}),
    "limit": answered(error=LIMIT),
    "too many results": answered(error={"code": -32005, "message": "query returned more than 10000 results"}),
    "too many logs": answered(error={"code": -32005, "message": "logs matched by query exceeds limit of 10000"}),
    "401 with an error": said(document(error={"code": -32000, "message": "no such key"}), "401 Unauthorized"),
    "not served": answered(error={"code": -32601, "message": "the method is not available on your plan"}),
    "internal error": answered(error={"code": -32603, "message": "Internal error"}),
    "not seen yet": answered(error={"code": -32000, "message": "header not found"}),
    "repeats the key": answered(error={"code": -32000, "message": "no project at /v2/SECRETKEY?token=OTHERSECRET"}),
    "another chain": answered(result="0x1"),
    "a chain without end": answered(result="0x" + "9" * 5_000),
}


@contextmanager
def failing_node(fault: str, chain_id: int) -> Iterator[str]:
    """The URL of a node with this fault."""
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline().strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            request = json.loads(self.rfile.read(length) or b"{}")
            number = request.get("id", 0)
            if request.get("method") == "eth_chainId" and "chain" not in fault:
                pieces = answered(result=hex(chain_id))(number)
            else:
                pieces = FAULTS[fault](number)
            try:
                for piece in pieces:
                    if isinstance(piece, float):
                        if over.wait(piece):
                            return
                    else:
                        self.wfile.write(piece)
            except OSError:
                return  # the client has gone

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()
