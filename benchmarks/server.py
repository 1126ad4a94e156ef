"""The one gateway that every client is measured against, in a process of its own. Standard library only.

It listens on two ports, one that asks for payment and one that does not, and answers both alike. Its work per request
is a search in the body and a write of bytes that were made before, so that a client is measured and not the server.
The paid port speaks x402 v2 as the devnet's gateway does: 402 with terms, a session for a signature, answers for that
session. It checks no signature and settles nothing. It also answers the two reads of the chain that stand in front of
a first payment.

What is asked for stands in the first message: `call`, `slow` (after 50 ms), `burst N`, `paced N` (one piece each
millisecond), `tools N`, `agent` (two tool calls; text once a message of the role `tool` is there).
Prints one JSON line when it is up, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import cache

SLOW_S = 0.05
PACE_S = 0.001
PAYEE = "0x9deEBB5D1b22e4a6e027977CeAd13893A7E4cC1a"
ASSET = "0x240b09731D96979f50B2C649C9CE10FcF9C7987F"
FACILITATOR = "0x2222222222222222222222222222222222222222"
CHAIN_ID = 8453  # the only one that OpenGradient's SDK pays on; nothing here can be settled on any chain
MODEL = "gpt-5"

_ASKED = re.compile(rb'"content":\s*"(call|slow|burst|paced|tools|agent)(?: (\d+))?"')
_AFTER_TOOLS = re.compile(rb'"role":\s*"tool"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream":\s*true')
_SESSION = re.compile(rb"\r\nx-upto-session:\s*(\S+)", re.IGNORECASE)
_SIGNATURE = re.compile(rb"\r\n(?:payment-signature|x-payment):\s*(\S+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}
_TEXT = "The quick brown fox jumps over the lazy dog. " * 4


def terms() -> str:
    """The content of PAYMENT-REQUIRED: one tenth of a token, `upto`, good for an hour."""
    offer = {
        "scheme": "upto",
        "network": f"eip155:{CHAIN_ID}",
        "asset": ASSET,
        "amount": str(10**17),
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "extra": {
            "name": "OPG",
            "version": "2",
            "assetTransferMethod": "permit2",
            "facilitatorAddress": FACILITATOR,
        },
    }
    resource = {"url": "http://127.0.0.1/v1/chat/completions", "description": "", "mimeType": "application/json"}
    required = {"x402Version": 2, "error": "Payment required", "resource": resource, "accepts": [offer]}
    return base64.b64encode(json.dumps(required).encode()).decode()


def _asking() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\npayment-required: {terms()}\r\n".encode()


def network(url: str) -> dict[str, object]:
    """The network file of the paid port."""
    return {
        "name": "benchmark",
        "chain_id": CHAIN_ID,
        "rpc_url": f"{url}/rpc",
        "gateway_url": url,
        "asset": {"address": ASSET, "symbol": "OPG", "decimals": 18, "name": "OPG", "version": "2"},
        "payees": [PAYEE],
        "facilitators": [FACILITATOR],
        "session_idle_s": 60,
    }


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _head(status: str, kind: str, more: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n".encode() + more


def _plain(content: bytes, *, status: str = "200 OK", more: bytes = b"") -> bytes:
    head = _head(status, "application/json", more)
    return b"%scontent-length: %d\r\n\r\n%s" % (head, len(content), content)


def _event(delta: dict[str, object], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + _json({**event, **more}) + b"\n\n"


def _chunked(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def _tool_call(name: str, arguments: str, *, number: int = 0) -> dict[str, object]:
    function = {"name": name, "arguments": arguments}
    return {"index": number, "id": f"call_{number}", "type": "function", "function": function}


@cache
def answer(kind: bytes) -> bytes:
    """A whole answer."""
    message: dict[str, object] = {"role": "assistant", "content": _TEXT}
    reason = "stop"
    if kind == b"agent":
        calls = [_tool_call("weather", f'{{"city": "{city}"}}', number=n) for n, city in enumerate(("Paris", "Rome"))]
        message, reason = {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return _json({**body, "usage": _USAGE})


@cache
def pieces(kind: bytes, number: int) -> list[bytes]:
    """A stream of `number` events, each in a chunk of its own, and then the end."""
    if kind == b"tools":
        first: dict[str, object] = {"role": "assistant", "tool_calls": [_tool_call("weather", '{"city": "')]}
        piece = {"index": 0, "function": {"arguments": "word "}}
        last = {"index": 0, "function": {"arguments": '"}'}}
        deltas = [first, *[{"tool_calls": [piece]} for _ in range(number - 2)], {"tool_calls": [last]}]
    else:
        deltas = [{"role": "assistant", "content": "word "}, *[{"content": "word "} for _ in range(number - 1)]]
    reason = "tool_calls" if kind == b"tools" else "stop"
    end = _event({}, finish_reason=reason, usage=_USAGE) + b"data: [DONE]\n\n"
    return [*[_chunked(_event(delta)) for delta in deltas], _chunked(end) + b"0\r\n\r\n"]


@cache
def burst(kind: bytes, number: int) -> bytes:
    """The whole stream at once."""
    return b"".join(pieces(kind, number))


class Gateway(asyncio.Protocol):
    """One connection."""

    def __init__(self, sessions: set[bytes] | None) -> None:
        self._sessions = sessions
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._line = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._held[: end + 2]
        found = _LENGTH.search(head)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self._held) < size:
            return
        body, self._held = self._held[end + 4 : size], self._held[size:]
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST /rpc"):
            self._line.write(_plain(_json(_chain_answer(json.loads(body)))))
            return
        if not head.startswith(b"POST"):
            self._line.write(_plain(b'{"data":[]}'))
            return
        more = self._admitted(head)
        if more is None:
            self._line.write(_plain(b"{}", status="402 Payment Required", more=_asking()))
            return
        found = _ASKED.search(body)
        kind, number = (found[1], int(found[2] or 0)) if found else (b"call", 0)
        if kind == b"agent" and _AFTER_TOOLS.search(body):
            kind = b"call"
        if _STREAM.search(body):
            self._stream(kind, number or 1, more)
        else:
            self._whole(kind, more)

    def _admitted(self, head: bytes) -> bytes | None:
        """The headers of a session that this request opens; None when it is not paid."""
        if self._sessions is None:
            return b""
        if (found := _SESSION.search(head)) and found[1] in self._sessions:
            return b""
        if not _SIGNATURE.search(head):
            return None
        session = str(uuid.uuid4()).encode()
        self._sessions.add(session)
        return b"X-Upto-Session: " + session + b"\r\n"

    def _whole(self, kind: bytes, more: bytes) -> None:
        content = _plain(answer(kind), more=more)
        if kind == b"slow":
            asyncio.get_running_loop().call_later(SLOW_S, self._line.write, content)
        else:
            self._line.write(content)

    def _stream(self, kind: bytes, number: int, more: bytes) -> None:
        head = _head("200 OK", "text/event-stream", more + b"transfer-encoding: chunked\r\n") + b"\r\n"
        if kind != b"paced":
            self._line.write(head + burst(kind, number))
            return
        self._line.write(head)
        self._next(iter(pieces(kind, number)), asyncio.get_running_loop().time())

    def _next(self, rest: Iterator[bytes], at_s: float) -> None:
        piece = next(rest, None)
        if piece is not None and not self._line.is_closing():
            self._line.write(piece)
            asyncio.get_running_loop().call_at(at_s + PACE_S, self._next, rest, at_s + PACE_S)


def _chain_answer(asked: dict[str, object]) -> dict[str, object]:
    """Enough of a node: the wallet holds all there is, and Permit2 may move it."""
    result: str | None = "0x" + "0" * 32 + "f" * 32 if asked["method"] == "eth_call" else hex(CHAIN_ID)
    return {"jsonrpc": "2.0", "id": asked["id"], "result": result}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    sessions: set[bytes] = set()
    makers: list[Callable[[], Gateway]] = [lambda: Gateway(sessions), lambda: Gateway(None)]
    servers = [await loop.create_server(make, "127.0.0.1", 0, backlog=1024) for make in makers]
    paid, unpaid = (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
    print(json.dumps({"paid": paid, "unpaid": unpaid, "network": network(paid)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())  # noqa: TID251  (a program)
