"""`opengradient-x402 serve` as a process: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.serve.keys import kept, keys_of
from support.payers import PROMPT

_COMMAND = [sys.executable, "-c", "from opengradient_x402.cli.main import main; main()", "serve"]
_WITHOUT_STARLETTE = (
    "import sys; sys.modules['starlette'] = None; sys.modules['uvicorn'] = None\n"
    "from opengradient_x402.cli.main import main; main()"
)


@pytest.fixture
def environment(net, account, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OG_PRIVATE_KEY": account.private_key,
        "OG_NETWORK": f"{net.gateway_url}/network",
        "OG_LEDGER_URL": f"sqlite:///{tmp_path / 'served.sqlite'}",
        "COLUMNS": "80",
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def started(environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [*_COMMAND, "--port", "0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def refused(*options: str) -> str:
    arguments = ["serve", *options]
    done = CliRunner().invoke(build_app(arguments), arguments)
    assert done.exit_code == 2, done.stderr
    assert "Nothing was paid" in done.stderr
    return done.stderr


def announced_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    text = ""
    while not text.endswith("\n}\n"):
        text += process.stdout.readline()
    return json.loads(text)


def test_a_tool_pays_with_its_key_and_the_server_ends_well(environment, tmp_path):
    with started(environment, "--json", "--budget", "editor=0.5", "--budget", "webui=2") as process:
        announced = announced_by(process)
        editor, webui = announced["keys"]
        assert (editor["name"], editor["budget"], webui["name"]) == ("editor", "0.5", "webui")
        assert editor["api_key"] != webui["api_key"]
        headers = {"authorization": f"Bearer {editor['api_key']}"}
        answer = httpx.post(f"{announced['base_url']}/chat/completions", headers=headers, json=PROMPT).json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()
    ledger = Ledger(f"sqlite:///{tmp_path / 'served.sqlite'}")
    (receipt,) = ledger.receipts().result()
    ledger.close()
    assert answer["opengradient"]["call_id"] == receipt.call_id


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_kept_key_that_has_used_up_its_budget_pays_nothing_after_a_restart_either(environment, tmp_path, sent):
    options = ("--json", "--keys", str(tmp_path / "keys.json"), "--budget", "editor=0.006", "--budget", "webui=1")

    def statuses(process: subprocess.Popen[str], *names: str) -> list[int]:
        announced = announced_by(process)
        tokens = {key["name"]: key["api_key"] for key in announced["keys"]}
        url, body = f"{announced['base_url']}/chat/completions", {**PROMPT, "max_tokens": 50}
        return [
            httpx.post(url, headers={"authorization": f"Bearer {tokens[name]}"}, json=body, timeout=30).status_code
            for name in names
        ]

    with started(environment, *options) as process:
        before = statuses(process, *["editor"] * 20)
        process.send_signal(sent)
        process.wait(30)
    assert 0 < before.count(200) < 20
    with started(environment, *options) as process:
        assert statuses(process, "editor", "webui") == [429, 200]
    with started(environment, *options[:3], "--budget", "editor=0.5") as process:
        assert statuses(process, "editor") == [200]


def test_the_first_screen_says_what_to_paste_and_fits_80_columns(environment):
    with started(environment, "--budget", "editor=0.5") as process:
        lines = []
        while not any("OPENAI_API_KEY=sk-og-" in line for line in lines):
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert max(len(line) for line in lines) <= 80
    assert any(line.startswith("  OPENAI_BASE_URL=http://127.0.0.1:") for line in lines)
    assert any("editor: at most 0.5 OPG" in line for line in lines)


def test_what_cannot_be_served_is_said_before_anything_is_paid(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refused("--port", str(taken.getsockname()[1]))
    assert "'tool'" in refused("--budget", "tool")
    assert "'tool=much'" in refused("--budget", "tool=much")
    assert "Two budgets" in refused("--budget", "tool=1", "--budget", "tool=2")


def test_without_the_extra_the_command_says_what_to_install(environment):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_STARLETTE, "serve"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "opengradient-integrations[serve]" in done.stderr


def test_a_file_keeps_the_keys_for_the_next_start_and_for_its_owner_alone(tmp_path):
    file = tmp_path / "keys.json"
    (editor,) = kept(keys_of(["editor=0.5"]), file)
    again, webui = kept(keys_of(["editor=2", "webui=1"]), file)
    assert (again.token, again.limit.limit) == (editor.token, "2")
    assert kept(keys_of(["webui=1"]), file)[0].token == webui.token != editor.token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "mode", "word"),
    [
        ("{", 0o600, "delete this one"),
        ('{"editor": {"token": "short", "since": 0}}', 0o600, "sk-og-"),
        (f'{{"editor": "sk-og-{"a" * 32}"}}', 0o600, "since"),
        ("[]", 0o600, "object"),
        ("{}", 0o644, "chmod"),
    ],
)
def test_a_file_that_is_none_of_keys_or_that_others_read_is_refused(tmp_path, content, mode, word):
    file = tmp_path / "keys.json"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=word):
        kept(keys_of(["editor=0.5"]), file)
    assert file.read_text() == content
