"""OpenAI's own clients and LiteLLM pay through the server: what they get, and what is paid when something fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import AnswerStatus, SlowDrip
from opengradient_devnet.model.protocol import Answer, Delivery
from opengradient_devnet.model.rules import RulesModel
from opengradient_x402.payment.payments import Payments
from support.node_js import run_lines
from support.payers import payments_for, settled_receipts
from support.paying_server import PayingServer, paying_server
from support.venvs import Venv, make_venv

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
_HERE = Path(__file__).parent


@pytest.fixture
def server(payments) -> Iterator[PayingServer]:
    with paying_server(payments) as running:
        yield running


def task_for(server: PayingServer) -> dict[str, Any]:
    return {"base_url": server.url, "api_key": server.token(), "model": "openai/gpt-5", "image": PIXEL}


def run(venv: Venv, script: str, server: PayingServer, *does: str) -> dict[str, Any]:
    return venv.run(_HERE / "scripts" / script, task_for(server) | {"does": does}, timeout_s=120)


class Slow(RulesModel):
    """Answers later than an impatient client waits."""

    async def complete(self, request: Mapping[str, Any], *, delivery: Delivery) -> Answer:
        await asyncio.sleep(1.2)
        return await super().complete(request, delivery=delivery)


@pytest.fixture(scope="module")
def slow_net() -> Iterator[Devnet]:
    with Devnet(upstream=Slow()) as net:
        yield net


@pytest.fixture
def slow_payments(slow_net, tmp_path) -> Iterator[Payments]:
    account = slow_net.account(opg="10", approved=True)
    with payments_for(slow_net, account, tmp_path / "slow.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module", params=[pytest.param("openai-2", marks=pytest.mark.soak), "openai-3"])
def openai_client(request) -> Venv:
    return make_venv(_HERE / "requirements" / f"{request.param}.txt")


def test_openais_client_gets_every_kind_of_answer_and_pays_once_for_each(net, payments, server, openai_client):
    answers = ("chat", "stream", "helped_stream", "tools", "structured", "image", "asynchronous")
    came = run(openai_client, "openai_client.py", server, *answers, "models", "responses", "wrong_key")
    assert came["chat"]["text"] == came["stream"]["text"] == came["helped_stream"] == came["asynchronous"]
    assert came["chat"]["tokens"] == came["stream"]["tokens"]
    assert came["chat"]["header"].startswith(f"{came['chat']['receipt']}; status=served; cost_atomic=")
    assert came["tools"]["name"] == "add"
    assert "five" in came["tools"]["text"]
    assert came["structured"] == ["age", "name"]
    assert "image/png" in came["image"]
    assert "openai/gpt-5" in came["models"]
    assert "chat completions" in came["responses"]
    assert came["wrong_key"] == {"error": "AuthenticationError", "status": 401, "code": "invalid_api_key"}
    settled = settled_receipts(net, payments)
    assert len(settled) == len(answers) + 1  # tools are two calls
    assert {came["chat"]["receipt"], came["stream"]["receipt"]} <= {receipt.call_id for receipt in settled}


def test_openais_client_never_pays_for_its_own_retries(net, payments, server, openai_client):
    net.faults.inject(AnswerStatus(status=500))
    came = run(openai_client, "openai_client.py", server, "failure")
    assert (came["failure"]["status"], came["failure"]["code"]) == (424, "provider")
    assert len(payments.ledger.receipts().result()) == 1


def test_a_retry_after_a_time_limit_gets_the_answer_that_was_paid(slow_payments, openai_client):
    with paying_server(slow_payments) as server:
        came = run(openai_client, "openai_client.py", server, "timed_out")
    (receipt,) = slow_payments.ledger.receipts().result()
    assert came["timed_out"] == receipt.call_id


def test_a_stream_that_openais_client_closes_is_over(net, payments, server, openai_client):
    net.faults.inject(SlowDrip(pace_s=0.3))
    assert run(openai_client, "openai_client.py", server, "cancelled")["cancelled"]
    until = time.monotonic() + 20
    while not server.receipts and time.monotonic() < until:
        time.sleep(0.05)
    assert [receipt.outcome for receipt in payments.ledger.receipts().result()] == ["abandoned"]


@pytest.mark.soak
def test_litellm_gets_every_kind_of_answer_and_never_pays_for_its_retries(net, payments, server):
    venv = make_venv(_HERE / "requirements" / "litellm.txt")
    answers = ("chat", "stream", "tools", "structured", "image")
    came = run(venv, "litellm_client.py", server, *answers)
    assert came["chat"]["text"] == came["stream"]
    assert came["chat"]["header"].startswith("call_")
    assert came["tools"] == "add"
    assert isinstance(came["structured"]["age"], int)
    assert "image/png" in came["image"]
    assert len(payments.ledger.receipts().result()) == len(answers)
    net.faults.inject(AnswerStatus(status=500), times=None)
    assert run(venv, "litellm_client.py", server, "failure")["failure"] == 424
    assert len(payments.ledger.receipts().result()) == len(answers) + 1


@pytest.mark.soak
def test_openais_client_for_javascript_gets_the_same(net, payments, server, slow_payments):
    answers = ("chat", "stream", "tools", "structured", "image")
    chat, stream, tools, structured, image = in_javascript(server, *answers)
    assert chat["text"] == stream["text"]
    assert chat["header"].startswith(f"{chat['receipt']}; status=served; cost_atomic=")
    assert (tools, structured) == ("add", ["age"])
    assert "image/png" in image
    receipts = payments.ledger.receipts().result()
    assert len(receipts) == len(answers)
    assert {chat["receipt"], stream["receipt"]} <= {receipt.call_id for receipt in receipts}
    net.faults.inject(AnswerStatus(status=500))
    assert in_javascript(server, "failure") == [{"status": 424, "code": "provider"}]
    assert len(payments.ledger.receipts().result()) == len(answers) + 1
    with paying_server(slow_payments) as slow:
        (call_id,) = in_javascript(slow, "timed_out")
    assert [receipt.call_id for receipt in slow_payments.ledger.receipts().result()] == [call_id]


def in_javascript(server: PayingServer, *does: str) -> list[Any]:
    tasks = [task_for(server) | {"does": name} for name in does]
    return run_lines(_HERE / "javascript" / "client.js", tasks)
