"""Open WebUI, run as people run it, pays through the server: what it gets, and what that costs."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.payers import PROMPT, opg_balance, settled_receipts
from support.paying_server import PayingServer, paying_server
from support.venvs import make_venv

pytestmark = pytest.mark.soak
_HERE = Path(__file__).parent
_STARTS_WITHIN_S = 240


@pytest.fixture
def server(payments) -> Iterator[PayingServer]:
    with paying_server(payments, budgets=["webui=0.5"]) as running:
        yield running


@pytest.fixture
def webui(server, tmp_path) -> Iterator[httpx.Client]:
    """A client of Open WebUI, whose only models are those of the server."""
    venv = make_venv(_HERE / "requirements" / "open-webui.txt")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "DATA_DIR": str(tmp_path),
        "OPENAI_API_BASE_URL": server.url,
        "OPENAI_API_KEY": server.token("webui"),
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "of this test",
        "OFFLINE_MODE": "true",
        "ENABLE_OLLAMA_API": "False",
        "RAG_EMBEDDING_ENGINE": "openai",
        "AUDIO_STT_ENGINE": "openai",
        "CORS_ALLOW_ORIGIN": "http://127.0.0.1",
    }
    command = [venv.python.with_name("open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60) as client,
    ):
        try:
            until = time.monotonic() + _STARTS_WITHIN_S
            while not _is_up(client):
                assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
                assert time.monotonic() < until
                time.sleep(0.5)
            signed_in = client.post("/v1/auths/signin", json={"email": "", "password": ""}).json()
            client.headers["authorization"] = f"Bearer {signed_in['token']}"
            yield client
        finally:
            process.terminate()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/version").status_code == 200
    except httpx.HTTPError:
        return False


def test_open_webui_lists_the_models_and_pays_for_each_answer_once(net, payments, server, webui):
    models = [model["id"] for model in webui.get("/models").json()["data"]]
    assert "openai/gpt-5" in models
    whole = webui.post("/chat/completions", json=PROMPT).json()
    assert whole["choices"][0]["message"]["content"]
    streamed = webui.post("/chat/completions", json={**PROMPT, "stream": True}).text
    assert streamed.rstrip().endswith("data: [DONE]")
    settled = settled_receipts(net, payments)
    paid = sum(receipt.settled_atomic for receipt in settled)
    assert len(settled) == len(server.receipts_of("webui")) == 2
    assert whole["opengradient"]["call_id"] in {receipt.call_id for receipt in settled}
    assert paid == server.keys["webui"].limit.spent_atomic == 10 * 10**18 - opg_balance(net, payments.payer)
