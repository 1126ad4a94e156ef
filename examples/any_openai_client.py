"""Two tools that speak OpenAI's chat completions pay from one wallet, each within its own budget.

    python examples/any_openai_client.py

Starts `opengradient-x402 serve` on a devnet with test money. When OG_PRIVATE_KEY is set, it pays from that wallet
instead. The tools here are plain HTTP; `OpenAI(base_url=…, api_key=…)` works as well, in every language.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from opengradient_x402 import Wallet, load_network
from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.keys.signer import signer_of
from opengradient_x402.settings import Settings

SERVE = [sys.executable, "-c", "from opengradient_x402.cli.main import main; main()", "serve", "--json", "--port=0"]
QUESTION = {"model": "openai/gpt-5-mini", "messages": [{"role": "user", "content": "What is x402?"}], "max_tokens": 50}


def wallet_of_a_devnet(cleanup: ExitStack) -> dict[str, str]:
    """Start a devnet, and return the settings of a new wallet there; Permit2 may move its tokens."""
    devnet = cleanup.enter_context(DevnetProcess("--idle-timeout=2"))
    account = httpx.post(devnet.network["accounts_url"], json={"opg": "10"}).raise_for_status().json()
    wallet = Wallet(load_network(devnet.network_file), signer_of(account["private_key"]))
    wallet.ensure_opg_approval(min_allowance="1")
    folder = cleanup.enter_context(tempfile.TemporaryDirectory())
    return {
        "OG_NETWORK": str(devnet.network_file),
        "OG_PRIVATE_KEY": account["private_key"],
        "OG_LEDGER_URL": f"sqlite:///{Path(folder) / 'ledger.sqlite'}",
    }


@contextmanager
def serving(environment: dict[str, str], *budgets: str) -> Iterator[dict[str, Any]]:
    """A server while the block lasts; what it announced."""
    command = [*SERVE, *(f"--budget={budget}" for budget in budgets)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            text = ""
            while not text.endswith("\n}\n") and (line := process.stdout.readline()):
                text += line
            yield json.loads(text)
        finally:
            process.send_signal(signal.SIGINT)


def main() -> None:
    """One tool streams an answer; the other asks until its budget is used up."""
    with ExitStack() as cleanup:
        settings = {} if Settings.load().private_key is not None else wallet_of_a_devnet(cleanup)
        environment = {**os.environ, **settings}  # noqa: TID251 - handed on to the server
        server = cleanup.enter_context(serving(environment, "writer=0.05", "critic=0.001"))
        writer, critic = (
            httpx.Client(headers={"authorization": f"Bearer {key['api_key']}"}, timeout=120) for key in server["keys"]
        )
        url = f"{server['base_url']}/chat/completions"

        with writer, writer.stream("POST", url, json=QUESTION | {"stream": True}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    print(event["choices"][0]["delta"].get("content", ""), end="")
        print(f"\n{event['opengradient']}")

        with critic:
            while (refusal := critic.post(url, json=QUESTION)).is_success:
                print(refusal.headers["x-opengradient-receipt"])
        print(refusal.status_code, refusal.json()["error"]["message"])


if __name__ == "__main__":
    main()
