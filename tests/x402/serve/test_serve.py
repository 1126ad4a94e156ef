"""Any OpenAI client pays through the server: what it sends, what it gets back, and what that costs."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import AnswerStatus, ErrorEvent, HangUp, SlowDrip
from opengradient_x402.payment.payments import Payments
from opengradient_x402.serve import app, heads, waiting
from support.payers import PROMPT, opg_balance, payments_for, settled_receipts
from support.paying_server import PayingServer, paying_server

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
PERSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def shared(net: Devnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PayingServer]:
    account = net.account(opg="10", approved=True)
    ledger = tmp_path_factory.mktemp("serve") / "ledger.sqlite"
    with payments_for(net, account, ledger) as paying, paying_server(paying) as running:
        yield running


@pytest.fixture
def server(shared: PayingServer) -> PayingServer:
    """A server that all tests share which leave no payment in doubt; its receipts are those of this test."""
    shared.receipts.clear()
    return shared


@pytest.fixture
def own_server(payments: Payments) -> Iterator[PayingServer]:
    """A server that pays with `payments`."""
    with paying_server(payments) as running:
        yield running


@contextmanager
def tool_of(server: PayingServer, name: str = "default", **headers: str) -> Iterator[httpx.Client]:
    """An HTTP client that has the key of this name."""
    with httpx.Client(base_url=server.url, headers=server.headers(name) | headers, timeout=60) as client:
        yield client


def ask(server: PayingServer, name: str = "default", **body: Any) -> httpx.Response:
    with tool_of(server, name) as tool:
        return tool.post("/chat/completions", json={**PROMPT, **body})


def events_of(server: PayingServer, **body: Any) -> tuple[list[dict[str, Any]], httpx.Headers]:
    """The events of a stream, which has to end with [DONE]."""
    response = ask(server, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines], response.headers


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def outcomes(payments: Payments) -> list[str]:
    return [receipt.outcome for receipt in payments.ledger.receipts().result()]


def waits_for(payments: Payments, outcome: str) -> None:
    until = time.monotonic() + 20
    while outcomes(payments) != [outcome] and time.monotonic() < until:
        time.sleep(0.05)
    assert outcomes(payments) == [outcome]


def test_an_answer_has_openais_shape_and_names_its_receipt(server):
    response = ask(server)
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] > 0
    ((_, receipt),) = server.receipts
    assert answer["opengradient"]["call_id"] == receipt.call_id
    assert response.headers["x-opengradient-receipt"] == (
        f"{receipt.call_id}; status=served; cost_atomic={receipt.cost_atomic}"
    )


def test_messages_of_the_developer_go_to_the_gateway_as_those_of_the_system(server):
    messages = [{"role": "developer", "content": "Answer in French."}, *PROMPT["messages"]]
    as_system = [{**messages[0], "role": "system"}, *PROMPT["messages"]]
    answers = [ask(server, messages=sent).json()["choices"][0]["message"] for sent in (messages, as_system)]
    assert answers[0] == answers[1]
    assert len(server.receipts) == 2


def test_the_last_event_of_a_stream_has_the_reason_and_the_receipt(server):
    events, headers = events_of(server)
    ((_, receipt),) = server.receipts
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"][0]["finish_reason"]] == [
        "stop"
    ]
    assert [event["opengradient"]["call_id"] for event in events if "opengradient" in event] == [receipt.call_id]
    assert events[-1]["opengradient"]["cost_atomic"] == str(receipt.cost_atomic)
    assert headers["x-opengradient-receipt"].startswith(receipt.call_id)
    assert "usage" not in events[-1]
    assert text_of(events) == ask(server).json()["choices"][0]["message"]["content"]


def test_a_stream_ends_with_the_usage_when_it_is_asked_for(server):
    events, _ = events_of(server, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] > 0
    assert "opengradient" in events[-1]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert {event["usage"] for event in events[:-1]} == {None}


def test_tool_calls_come_whole_and_in_a_stream(server):
    asked = {
        "messages": [{"role": "user", "content": "Use add on 2 and 3."}],
        "tools": [ADD],
        "tool_choice": "required",
    }
    choice = ask(server, **asked).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "add"
    events, _ = events_of(server, **asked)
    pieces = [piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", ())]
    assert (pieces[0]["index"], pieces[0]["type"], pieces[0]["function"]["name"]) == (0, "function", "add")
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    follow_up = [
        *asked["messages"],
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "5"},
    ]
    assert "5" in ask(server, messages=follow_up, tools=[ADD]).json()["choices"][0]["message"]["content"]


def test_structured_output_follows_its_schema(server):
    content = ask(server, response_format=PERSON).json()["choices"][0]["message"]["content"]
    person = json.loads(content)
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)


def test_an_image_is_passed_on(server):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    seen = ask(server, messages=[{"role": "user", "content": parts}]).json()
    assert "image/png (70 bytes)" in seen["choices"][0]["message"]["content"]


def test_a_client_that_hangs_up_ends_the_call_and_its_receipt_is_recorded(net, own_server, payments):
    net.faults.inject(SlowDrip(pace_s=0.2))
    body = {**PROMPT, "stream": True}
    with tool_of(own_server) as tool, tool.stream("POST", "/chat/completions", json=body) as response:
        next(response.iter_lines())
    waits_for(payments, "abandoned")
    assert [receipt.outcome for receipt in own_server.receipts_of("default")] == ["abandoned"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_retry_of_a_client_that_timed_out_gets_the_answer_that_was_paid(net, own_server, payments, is_stream):
    net.faults.inject(HangUp(after_s=1.0))
    body = {**PROMPT, "stream": is_stream}
    with tool_of(own_server) as tool, pytest.raises(httpx.ReadTimeout):
        tool.post("/chat/completions", json=body, timeout=0.4)
    time.sleep(0.2)
    with tool_of(own_server, **{"x-stainless-retry-count": "1"}) as tool:
        response = tool.post("/chat/completions", json=body)
    assert response.status_code == 424, response.text
    assert response.headers["x-should-retry"] == "false"
    (receipt,) = payments.ledger.receipts().result()
    assert response.json()["opengradient"]["call_id"] == receipt.call_id


def test_each_time_that_a_client_hangs_up_its_call_is_kept_anew(net, own_server, payments, monkeypatch):
    monkeypatch.setattr(waiting, "RETRIED_WITHIN_S", 1.5)
    net.faults.inject(HangUp(after_s=4.0))
    for attempt, timeout_s in enumerate((0.4, 1.0, 1.0)):  # the second one leaves just before the first time ends
        with tool_of(own_server, **{"x-stainless-retry-count": str(attempt)}) as tool, pytest.raises(httpx.ReadTimeout):
            tool.post("/chat/completions", json=PROMPT, timeout=timeout_s)
        time.sleep(0.2 if attempt == 0 else 0.5)
    with tool_of(own_server, **{"x-stainless-retry-count": "3"}) as tool:
        assert tool.post("/chat/completions", json=PROMPT).status_code == 424
    assert len(payments.ledger.receipts().result()) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_that_nobody_comes_back_for_ends(net, own_server, payments, monkeypatch, is_stream):
    monkeypatch.setattr(waiting, "RETRIED_WITHIN_S", 0.1)
    net.faults.inject(HangUp(after_s=20.0))
    with tool_of(own_server) as tool, pytest.raises(httpx.ReadTimeout):
        tool.post("/chat/completions", json={**PROMPT, "stream": is_stream}, timeout=0.4)
    waits_for(payments, "abandoned")


def test_the_models_are_those_of_the_gateway(server):
    with tool_of(server) as tool:
        listed = tool.get("/models").json()
        assert listed["object"] == "list"
        assert "openai/gpt-5" in [model["id"] for model in listed["data"]]
        assert tool.get("/models/openai/gpt-5").json()["object"] == "model"
        assert tool.get("/models/nobody/none").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "word"), [("POST", "/responses", "chat completions"), ("GET", "/chat/completions", "POST")]
)
def test_what_the_server_does_not_have_is_a_clear_404(server, method, path, word):
    with tool_of(server) as tool:
        response = tool.request(method, path, json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer sk-og-wrong"}, 401),
        ({"host": "rebound.example:80"}, 403),
        ({"origin": "https://page.example"}, 403),
        ({"origin": "null"}, 403),
        ([("origin", "OWN"), ("origin", "https://page.example")], 403),
        ([("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], 403),
        ({"host": "localhost.:80"}, 403),
        ({"host": "user@localhost:80"}, 403),
        ({"host": "2130706433:80"}, 403),
        ({"host": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_strangers_get_nothing_and_nothing_is_paid(server, headers, status):
    own = server.url.removesuffix("/v1")
    headers = [(name, value.replace("OWN", own)) for name, value in httpx.Headers(headers).multi_items()]
    with tool_of(server) as tool:
        for method, path in (("POST", "/chat/completions"), ("OPTIONS", "/chat/completions"), ("GET", "/models")):
            if status == 415 and method != "POST":
                continue
            response = tool.request(method, path, content=json.dumps(PROMPT), headers=headers)
            assert response.status_code == status
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert response.headers["x-should-retry"] == "false"
            assert not [name for name in response.headers if name.startswith("access-control")]
    assert server.receipts == []


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"messages": []}', "model"),
        (b'{"model": "openai/gpt-5", "messages": []}', "messages"),
        (json.dumps({**PROMPT, "n": 3}).encode(), "n > 1"),
        (json.dumps({**PROMPT, "temperature": 9}).encode(), "temperature"),
        (json.dumps({**PROMPT, "private_key": "0x1"}).encode(), "private_key"),
        (json.dumps({**PROMPT, "settlement_mode": "individual"}).encode(), "settlement_mode"),
        (json.dumps({**PROMPT, "messages": [{"role": "user", "content": None}]}).encode(), "content"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_request_that_no_gateway_serves_is_refused_before_it_is_paid(server, content, word):
    with tool_of(server, **{"content-type": "application/json"}) as tool:
        response = tool.post("/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert word in response.json()["error"]["message"]
    assert server.receipts == []


def test_an_unknown_model_is_openais_404(server):
    response = ask(server, model="openai/gpt-none")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_body_without_end_is_not_read_to_its_end(server):
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 1024 * 1024

    with tool_of(server, **{"content-type": "application/json"}) as tool:
        try:
            response = tool.post("/chat/completions", content=pieces())
        except httpx.WriteError:  # the server has answered and closed before all was written
            return
    assert response.status_code == 413


def test_a_body_that_drips_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(app, "LONGEST_UPLOAD_S", 0.5)

    def pieces() -> Iterator[bytes]:
        for _ in range(8):
            yield b" "
            time.sleep(0.2)

    with tool_of(server, **{"content-type": "application/json"}) as tool:
        began = time.monotonic()
        try:
            response = tool.post("/chat/completions", content=pieces())
        except httpx.WriteError:
            return
    assert (response.status_code, response.headers["x-should-retry"]) == (408, "false")
    assert time.monotonic() - began < 5
    assert server.receipts == []


_ASKS = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@contextmanager
def line_to(server: PayingServer, *pieces: bytes) -> Iterator[socket.socket]:
    """A connection, on which these were sent."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=10) as line:
        for piece in pieces:
            line.sendall(piece)
        yield line


def ends_within(line: socket.socket, seconds: float, *, dripping: bytes = b"") -> bool:
    """Whether the server closes the connection in this time, whatever it says before."""
    line.settimeout(0.1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            line.sendall(dripping)
            if not line.recv(65536):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    ("sent", "dripping"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (_ASKS, b"a"),
        (_ASKS + b"\r\nGET /v1/mod", b"e"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n", b"{"),
    ],
    ids=["nothing", "blank lines", "half a head", "half a second head", "the rest of a refused request"],
)
def test_a_connection_that_drips_is_closed(server, monkeypatch, sent, dripping):
    monkeypatch.setattr(heads, "LONGEST_HEAD_S", 0.5)
    with line_to(server, sent) as line:
        assert not ends_within(line, 0.3, dripping=dripping)
        assert ends_within(line, 5, dripping=dripping)


def test_a_connection_is_kept_between_two_requests_and_while_an_answer_takes_long(net, own_server, monkeypatch):
    monkeypatch.setattr(heads, "LONGEST_HEAD_S", 0.2)
    net.faults.inject(SlowDrip(pace_s=0.1))
    with tool_of(own_server) as tool:
        streamed = tool.post("/chat/completions", json={**PROMPT, "stream": True})
        time.sleep(0.5)
        again = tool.get("/models")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert streamed.elapsed.total_seconds() > 0.2
    assert again.status_code == 200
    assert streamed.extensions["network_stream"] is again.extensions["network_stream"]


def test_a_head_without_end_is_not_read_to_its_end(server):
    with line_to(server, _ASKS) as line:
        for number in range(80):
            try:
                line.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
            except ConnectionError:
                break
        assert ends_within(line, 3)


def test_headers_below_the_limit_are_read(server):
    assert ask(server).status_code == 200
    with tool_of(server, **{f"x-{number}": "a" * 1000 for number in range(40)}) as tool:
        assert tool.get("/models").status_code == 200


@pytest.mark.parametrize("status", [429, 500, 503])
def test_no_client_tries_a_failure_again_that_may_have_been_paid(net, own_server, payments, status):
    net.faults.inject(AnswerStatus(status=status))
    response = ask(own_server)
    assert response.status_code == 424
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    (receipt,) = payments.ledger.receipts().result()
    assert response.json()["opengradient"]["call_id"] == receipt.call_id


@pytest.mark.filterwarnings("error::opengradient_x402.gateway.request.GatewayLimitation")
def test_a_fault_of_the_server_itself_is_not_tried_again(server):
    response = ask(server, seed=1)  # the warning that gateways may ignore it is an error here, which nobody expects
    assert (response.status_code, response.json()["error"]["code"]) == (424, "internal_error")
    assert response.headers["x-should-retry"] == "false"


def test_a_client_that_leaves_while_it_sends_is_no_fault(server, caplog):
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {server.token()}\r\nContent-Length: 1000\r\n\r\n{{"
    )
    with socket.create_connection((host, port)) as line:
        line.sendall(head.encode())
        time.sleep(0.1)
    assert ask(server).status_code == 200
    logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
    # The fault of the test before may be logged as late as now.
    assert [record for record in caplog.records if "Disconnect" in caplog.handler.format(record)] == []


def test_an_error_in_a_stream_is_an_event_with_the_receipt(net, own_server, payments):
    net.faults.inject(ErrorEvent(message="The provider failed."))
    events = [json.loads(line[6:]) for line in ask(own_server, stream=True).text.split("\n\n") if line]
    (receipt,) = payments.ledger.receipts().result()
    assert "The provider failed" in events[-1]["error"]["message"]
    assert events[-1]["opengradient"]["call_id"] == receipt.call_id


def test_a_gateway_that_is_not_there_may_be_asked_again(payments):
    with paying_server(payments, base_url="http://127.0.0.1:9/v1", max_retries=0) as server:
        response = ask(server)
    assert response.status_code == 503
    assert response.headers["x-should-retry"] == "true"
    assert int(response.headers["retry-after"]) > 0


def test_a_wallet_without_money_is_402(net, tmp_path):
    account = net.account(opg="0", approved=True)
    with payments_for(net, account, tmp_path / "poor.sqlite") as poor, paying_server(poor) as server:
        response = ask(server)
    assert (response.status_code, response.json()["error"]["type"]) == (402, "insufficient_quota")


def test_budgets_hold_under_parallel_calls_and_one_key_does_not_touch_the_other(net, payments):
    with paying_server(payments, budgets=["small=0.006", "large=1"]) as server:
        with ThreadPoolExecutor(20) as pool:
            small = list(pool.map(lambda _: ask(server, "small", max_tokens=50), range(20)))
            large = list(pool.map(lambda _: ask(server, "large", max_tokens=50), range(10)))
        refused = [response for response in small if response.status_code == 429]
        limits = {name: key.limit for name, key in server.keys.items()}
    assert {response.status_code for response in small} == {200, 429}
    assert {response.json()["error"]["code"] for response in refused} == {"insufficient_quota"}
    assert {response.headers["x-should-retry"] for response in refused} == {"false"}
    assert "The key 'small' has spent" in refused[0].json()["error"]["message"]
    assert {response.status_code for response in large} == {200}
    settled = {receipt.call_id: receipt for receipt in settled_receipts(net, payments)}
    for name, limit in limits.items():
        paid = sum(settled[receipt.call_id].settled_atomic for receipt in server.receipts_of(name))
        assert paid == limit.spent_atomic
        of_run = {call_id for call_id, receipt in settled.items() if receipt.run == name}
        assert of_run == {receipt.call_id for receipt in server.receipts_of(name)}
        assert paid <= payments.network.asset.parse(limit.limit)
    assert opg_balance(net, payments.payer) == 10 * 10**18 - sum(receipt.settled_atomic for receipt in settled.values())
