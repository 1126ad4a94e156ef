"""Thousands of mutated challenges, streams and node answers: nothing outside the policy is signed, every error is ours.

A few of each run always; the marker `soak` runs all. Each case says its number, which makes the same case again.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from opengradient_x402.errors import OpenGradientError
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import Network
from opengradient_x402.payment.challenge import SIGNATURE_HEADER
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from opengradient_x402.settlement.reconciler import Reconciler
from simulation.chain import Chain
from simulation.gateways import Terms, _entry, signature_in
from simulation.node import Nodes
from simulation.world import BODY, FACILITATOR, NETWORK, OPG, PAYEE, SIGNER
from support.ledger_rows import entry

POLICY = SpendPolicy(max_per_authorization="0.5", max_per_day="1000000", max_deadline_s=600, facilitators={FACILITATOR})
TIMEOUT_S = 5.0
MOST_S = 30.0
"""Of one case: its time limit, and what a machine that others use too takes for it."""
MOST_MB = 80
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**256, 2**255, 10**400, 1.5, 1e308, float("nan"), "", "0", "-1", "1e18", " 1", "0x1",
    "١٢", str(2**256), str(10**30), "9" * 4000, "\x00", "\r\nX: y", "\ud800", [], {}, [[]], {"": {}}, "exact", "upto",
    "eip155:1", "0x" + "00" * 20, "0x" + "ee" * 20, PAYEE.lower(), "permit2", "eip3009", 10**9, "300",
)  # fmt: skip

Answer = tuple[int, dict[str, str], bytes]


def sizes(few: int, many: int) -> list[Any]:
    return [few, pytest.param(many, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])]


class Server(ThreadingHTTPServer):
    """Answers every POST as it is told to."""

    daemon_threads = True
    answer: Callable[[httpx.Request], Answer]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no event."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = httpx.Request("POST", f"http://here{self.path}", headers=dict(self.headers), content=content)
        status, headers, body = self.server.answer(request)
        head = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
        head += [f"date: {formatdate(usegmt=True)}", f"content-length: {len(body)}", "", ""]
        self.wfile.write("\r\n".join(head).encode("utf-8", "surrogateescape") + body)

    do_GET = do_POST  # noqa: N815  (the name that http.server asks for)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(answer: Callable[[httpx.Request], Answer]) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answer = answer
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of JSON in which some places are something else, or are gone."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []

        def note(inside: Any, places: list[tuple[Any, Any]] = places) -> None:
            names = inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
            for name in list(names):
                places.append((inside, name))
                note(inside[name])

        note(whole)
        inside, name = rng.choice(places)
        match rng.randrange(4):
            case 0 if inside is not whole:
                del inside[name]
            case 1 if isinstance(inside, list) and inside is not whole:
                inside.append(copy.deepcopy(inside[name]))
            case 2 if isinstance(inside[name], str):
                text = inside[name]
                at = rng.randrange(len(text) + 1)
                inside[name] = text[:at] + rng.choice(("", "0", "1", "\n", "é", "x" * 300)) + text[at + 1 :]
            case _:
                inside[name] = rng.choice(JUNK)
    return whole[0]


def altered(terms: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Terms that could be meant, and are perhaps not what the policy allows."""
    terms = copy.deepcopy(terms)
    for name, values in (
        ("amount", (1, OPG // 2, OPG // 2 + 1, 5 * OPG, 2**255)),
        ("maxTimeoutSeconds", (1, 60, 600, 601, 10**9)),
        ("payTo", (PAYEE, PAYEE.lower(), FACILITATOR)),
        ("asset", (NETWORK.asset.address.lower(), PAYEE)),
        ("network", ("eip155:1", "eip155:031402")),
        ("scheme", ("exact", "upto")),
    ):
        if rng.random() < 0.25:
            value = rng.choice(values)
            terms[name] = str(value) if name == "amount" else value
    if rng.random() < 0.25:
        terms["extra"]["assetTransferMethod"] = rng.choice(("permit2", "eip3009"))
    if rng.random() < 0.1:
        terms["extra"]["facilitatorAddress"] = PAYEE
    return terms


def cut(content: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are others, or are gone, or come twice."""
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice((
        content[:at],
        content[:at] + content[to:],
        content[:to] + content[at:],
        content[:at] + bytes(rng.randrange(256) for _ in range(5)) + content[at:],
    ))  # fmt: skip


def held_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def bounded(cases: int) -> Iterator[None]:
    """The cases together may not make the process grow, but for what the first ones load."""
    before = held_mb()
    yield
    print(f"{cases} cases, {held_mb() - before:.0f} MB more")
    assert held_mb() - before < MOST_MB


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """A node of a rich wallet."""
    nodes = Nodes(Chain(time.time()), NETWORK, SIGNER.address, random.Random(0))

    def answer(request: httpx.Request) -> Answer:
        return 200, {"content-type": "application/json"}, nodes.answer(request).content

    with serving(answer) as url:
        yield url


def network_at(node: str) -> Network:
    return replace(NETWORK, rpc_url=node, gateway_url="http://127.0.0.1:9")


def challenge(terms: Terms, origin: str = "http://127.0.0.1") -> dict[str, Any]:
    return {
        "x402Version": 2,
        "error": "Payment required",
        "resource": {"url": f"{origin}/v1/chat/completions"},
        "accepts": [_entry(NETWORK, terms, PAYEE, FACILITATOR)],
    }


def encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


@contextmanager
def payer(node: str) -> Iterator[Payments]:
    """A wallet that knows nothing yet."""
    payments = Payments.open(network=network_at(node), private_key=SIGNER, policy=POLICY, ledger="sqlite://")
    try:
        yield payments
    finally:
        payments.close()


def check_signed(headers: list[str], began_s: float) -> None:
    """What a gateway has in its hands is within the policy, and one nonce."""
    signatures = [signature_in(httpx.Request("POST", "http://x", headers={SIGNATURE_HEADER: one})) for one in headers]
    assert len({one.nonce for one in signatures}) <= 1
    assert len({one.method for one in signatures}) <= 1
    for signature in signatures:
        assert signature.payee == PAYEE
        assert 0 < signature.amount_atomic <= OPG // 2
        assert signature.deadline <= time.time() + 600
        assert signature.deadline > began_s


@pytest.mark.parametrize("cases", sizes(60, 10_000))
def test_no_mutated_challenge_gets_a_signature_outside_the_policy(node, cases):
    ended: Counter[str] = Counter()
    told: dict[str, Any] = {}

    def answer(request: httpx.Request) -> Answer:
        if (signature := request.headers.get(SIGNATURE_HEADER)) is not None:
            told["signed"].append(signature)
            if len(told["signed"]) > told["patience"]:
                return 200, {"content-type": "application/json"}, _COMPLETION
        return 402, {"PAYMENT-REQUIRED": told["header"]}, b"{}"

    with serving(answer) as url, bounded(cases):
        for number in range(cases):
            rng, began_s, began = random.Random(f"challenge {number}"), time.time(), time.monotonic()
            terms = Terms(
                scheme=rng.choice(("upto", "exact")), method="permit2", amount_atomic=OPG // 10, timeout_s=300
            )
            asked = challenge(terms, url)
            if rng.random() < 0.5:
                asked["accepts"] = [altered(one, rng) for one in asked["accepts"] * rng.choice((1, 1, 2, 3))]
            else:
                asked = mutated(asked, rng)
            header = encoded(asked)
            if rng.random() < 0.1:
                header = cut(header.encode(), rng).decode("latin-1").translate({10: None, 13: None})
            told.update(header=header, signed=[], patience=rng.choice((0, 0, 1, 9)))
            with payer(node) as payments, GatewayClient(payments, base_url=url, timeout_s=TIMEOUT_S) as client:
                try:
                    client.chat(BODY)
                    ended["ok"] += 1
                except OpenGradientError as exc:
                    ended[type(exc).__name__] += 1
                except Exception as exc:
                    raise AssertionError(f"case {number}: {exc!r}") from exc
            assert time.monotonic() - began < MOST_S, number
            check_signed(told["signed"], began_s)
    print(dict(ended))
    assert len(ended) >= 3, "the cases were about something"
    assert ended["ok"] > cases / 50


_COMPLETION = json.dumps({
    "id": "1", "object": "chat.completion", "created": 1, "model": BODY["model"],
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}).encode()  # fmt: skip


def event_stream(rng: random.Random) -> bytes:
    """A stream in which events, or bytes, are others."""
    chunks = [
        {"id": "1", "object": "chat.completion.chunk", "model": BODY["model"],
         "choices": [{"index": 0, "delta": {"role": "assistant", "content": f"word {number} "}, "finish_reason": None}]}
        for number in range(6)
    ]  # fmt: skip
    function = {"name": "add", "arguments": '{"a": 1'}
    call = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
    chunks.append({**chunks[0], "choices": [{"index": 0, "delta": call, "finish_reason": None}]})
    usage = {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    chunks.append({**chunks[0], "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
    events: list[bytes] = []
    for chunk in chunks:
        told = mutated(chunk, rng) if rng.random() < 0.3 else chunk
        events.append(b"data: " + json.dumps(told).encode() + b"\n\n")
    events.append(b"data: [DONE]\n\n")
    extra = (b": ping\n\n", b"data: " + b"[" * 20_000 + b"\n\n", b"data: " + b"x" * 300_000 + b"\n\n", b"data:\n\n",
             b"event: error\ndata: {}\n\n", b"data: null\n\n", b"\xff\xfe\n\n", b"retry: 1\n\n")  # fmt: skip
    if rng.random() < 0.4:
        events.insert(rng.randrange(len(events) + 1), rng.choice(extra))
    if rng.random() < 0.2:
        rng.shuffle(events)
    content = b"".join(events)
    return cut(content, rng) if rng.random() < 0.4 else content


@pytest.mark.parametrize("cases", sizes(120, 10_000))
def test_no_mutated_stream_ends_in_an_error_that_is_not_ours(node, cases):
    ended: Counter[str] = Counter()
    told: dict[str, Any] = {}
    terms = Terms(scheme="upto", method="permit2", amount_atomic=OPG // 10, timeout_s=300)

    def answer(request: httpx.Request) -> Answer:
        if (signature := request.headers.get(SIGNATURE_HEADER)) is None:
            return 402, {"PAYMENT-REQUIRED": encoded(challenge(terms, url))}, b"{}"
        told["signed"].append(signature)
        return 200, {"content-type": "text/event-stream"}, told["body"]

    with serving(answer) as url, bounded(cases), payer(node) as payments:
        client = GatewayClient(payments, base_url=url, timeout_s=TIMEOUT_S)
        for number in range(cases):
            rng, began_s, began = random.Random(f"stream {number}"), time.time(), time.monotonic()
            told.update(body=event_stream(rng), signed=[])
            try:
                for _ in client.stream(BODY):
                    pass
                ended["ok"] += 1
            except OpenGradientError as exc:
                ended[type(exc).__name__] += 1
            except Exception as exc:
                raise AssertionError(f"case {number}: {exc!r}") from exc
            assert time.monotonic() - began < MOST_S, number
            assert told["signed"], number
            check_signed(told["signed"], began_s)
        outcomes = Counter(one.outcome for page in payments.ledger.pages_of_receipts() for one in page)
        client.close()
    assert outcomes.total() == cases
    assert outcomes["unknown"] == 0
    print(dict(ended))
    assert len(ended) >= 3, "the cases were about something"
    assert ended["ok"] > cases / 20


@pytest.mark.parametrize("cases", sizes(60, 2_000))
def test_no_mutated_answer_of_a_node_ends_in_an_error_that_is_not_ours(cases, tmp_path, monkeypatch):
    ended: Counter[str] = Counter()
    nodes = Nodes(Chain(time.time()), NETWORK, SIGNER.address, random.Random(0))
    rng = random.Random(0)

    def answer(request: httpx.Request) -> Answer:
        content = nodes.answer(request).content
        if rng.random() < 0.5:
            content = json.dumps(mutated(json.loads(content), rng)).encode()
        if rng.random() < 0.2:
            content = cut(content, rng)
        return rng.choice((200,) * 9 + (429, 502)), {"content-type": "application/json"}, content

    monkeypatch.setattr("opengradient_x402.chain.node._FIRST_PAUSE_S", 0.0)  # what is asked again is asked at once
    with serving(answer) as url, bounded(cases):
        ledger = Ledger(tmp_path / "ledger.sqlite")
        network = network_at(url)
        now = int(time.time())
        live = entry(1, payer=SIGNER.address, network=NETWORK.caip2, signed_at=now, deadline=now + 3600)
        ledger.authorize(live).result()
        for number in range(cases):
            rng.seed(f"node {number}")
            began = time.monotonic()
            try:
                Reconciler(network, ledger).reconcile()
                ended["ok"] += 1
            except OpenGradientError as exc:
                ended[type(exc).__name__] += 1
            except Exception as exc:
                raise AssertionError(f"case {number}: {exc!r}") from exc
            assert time.monotonic() - began < MOST_S, number
            (one,) = ledger.authorizations().result()
            assert one.status == "signed", f"case {number}: no answer with an error frees what can still be taken"
        ledger.close()
    print(dict(ended))
    assert ended["ok"] > cases / 20
    assert ended["RpcError"] > cases / 20
