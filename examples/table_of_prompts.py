"""A table of prompts is answered, many at once; the second run finds the answers on disk and pays nothing.

    python examples/table_of_prompts.py

Starts a devnet with test money. When OG_PRIVATE_KEY is set, it pays from that wallet instead.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from opengradient_x402 import ChatBatch, Payments, Wallet, load_network
from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.keys.signer import signer_of
from opengradient_x402.settings import Settings

CITIES = ("Bern", "Oslo", "Lima", "Accra", "Hanoi", "Quito", "Rabat", "Suva")
ROWS = [{"city": city, "prompt": f"In which country is {city}? Answer in one word."} for city in CITIES]


def payments_on_a_devnet(cleanup: ExitStack, folder: Path) -> Payments:
    """Start a devnet, and return the payments of a new wallet there; Permit2 may move its tokens."""
    devnet = cleanup.enter_context(DevnetProcess("--idle-timeout=2"))
    account = httpx.post(devnet.network["accounts_url"], json={"opg": "10"}).raise_for_status().json()
    network = load_network(devnet.network_file)
    Wallet(network, signer_of(account["private_key"])).ensure_opg_approval(min_allowance="1")
    payments = Payments.open(network=network, private_key=account["private_key"], ledger=folder / "ledger.sqlite")
    cleanup.callback(payments.close)
    return payments


def main() -> None:
    """Answers the table twice."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        wallet: dict[str, Any] = {}
        if Settings.load().private_key is None:
            wallet["payments"] = payments_on_a_devnet(cleanup, folder)
        for run in (1, 2):
            batch = ChatBatch(
                model="openai/gpt-5-mini",
                parameters={"max_tokens": 50},
                max_in_flight=4,
                call_key="city",
                answers=folder / "answers",
                **wallet,
            )
            with batch:
                answered = batch(ROWS)
            paid = sum(int(row["cost_atomic"] or 0) for row in answered if not row["reused"])
            print(f"run {run}: {sum(row['error'] is None for row in answered)} answers, {paid} atomic units paid")
        for row in answered:
            print(
                f"{row['city']}: {row['answer'] or row['error']} ({row['cost']} {row['cost_symbol']}, {row['call_id']})"
            )


if __name__ == "__main__":
    main()
