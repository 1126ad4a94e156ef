"""The demo's tour: what users do, on a network of their own.

Makes and funds a wallet, approves the token, streams an answer, asks four providers the same, runs an agent
with two tools, and tries the three settlement modes. At the end the chain is asked what was really paid.
Only public names of the package are used here. `command` starts the devnet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import httpx
from langchain_core.tools import tool
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from langchain_opengradient.callbacks import SettlementCallbackHandler, get_settlement_callback
from langchain_opengradient.chat_models import ChatOpenGradient
from opengradient_x402.cli.output import rounded
from opengradient_x402.devnet_process import DevnetProcess
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import format_amount
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.wallet import Wallet
from opengradient_x402.settlement.reconciler import Reconciler
from opengradient_x402.settlement_mode import SettlementMode

PROVIDERS = ("openai/gpt-5", "anthropic/claude-sonnet-4-6", "google/gemini-2.5-flash", "x-ai/grok-4")
SETTLE_TIMEOUT_S = 20.0
PROMPT = """Use the following context to answer the question.

Context:
With x402, paying needs no account: the server names a price, the client signs.
OpenGradient answers from attested enclaves, and settles each payment on chain.
A receipt says what a call cost, and the chain confirms it.

Question: {question}
Answer:"""
"""The devnet has no model: rules answer, from what the prompt says."""


def give_tour(console: Console, devnet: DevnetProcess, ledger_path: Path) -> dict[str, Any]:
    """Runs everything, and reports it as plain JSON: amounts are decimal strings of atomic units."""
    made = httpx.post(devnet.network["accounts_url"], json={"opg": "10"}, timeout=10).raise_for_status().json()
    network = load_network(devnet.network_file)
    console.print(f"Wallet [bold]{made['address']}[/] with 10 OPG.")
    payments = Payments.open(network=network, private_key=made["private_key"], ledger=Ledger(ledger_path))
    try:
        wallet = Wallet(network, payments.signer)
        approval = wallet.ensure_opg_approval(min_allowance="5", approve_amount="5")
        console.print(f"Permit2 may move up to 5 OPG now (transaction {_short(approval.tx_hash)}).\n")
        before = wallet.balance()
        with get_settlement_callback() as settlements:
            _streamed_answer(console, payments)
            _four_providers(console, payments)
            _agent(console, payments)
            _settlement_modes(console, payments)
        receipts = _settled(console, payments, settlements)
        delta = before - wallet.balance()
        return _summary(console, receipts, payments, delta, ledger_path)
    finally:
        payments.close()
        payments.ledger.close()


def _model(payments: Payments, name: str = PROVIDERS[0], **options: Any) -> ChatOpenGradient:
    return ChatOpenGradient(model=name, payments=payments, **options)


def _streamed_answer(console: Console, payments: Payments) -> None:
    question = "Does a payment with x402 need an account?"
    console.rule("1. A streamed answer", align="left")
    console.print(f"[dim]{question}[/]")
    started = time.perf_counter()
    first: float | None = None
    for chunk in _model(payments).stream(PROMPT.format(question=question)):
        if chunk.text and first is None:
            first = time.perf_counter() - started
        console.print(chunk.text, end="", markup=False)
    console.print(f"\n[dim]first token after {(first or 0) * 1000:.0f} ms[/]\n")


def _four_providers(console: Console, payments: Payments) -> None:
    console.rule("2. The same prompt, four providers: one string changes", align="left")
    question = "What does a receipt say?"
    console.print(f"[dim]{question}[/]")
    for name in PROVIDERS:
        with console.status(f"Asking {name} …"):
            answer = _model(payments, name).invoke(PROMPT.format(question=question))
        console.print(f"[cyan]{name}[/]\n  {answer.text}")
    console.print()


@tool
def token_price(symbol: str) -> str:
    """Look up the price of a token by its symbol."""
    return {"ETH": "3150.20 USD", "OPG": "0.25 USD"}.get(symbol.upper(), "unknown")


@tool
def convert_to_euros(usd: float) -> str:
    """Convert an amount in US dollars to euros."""
    return f"{usd * 0.92:.2f} EUR"


def _agent(console: Console, payments: Payments) -> None:
    console.rule("3. An agent with two tools", align="left")
    from langchain.agents import create_agent

    agent = create_agent(_model(payments), tools=[token_price, convert_to_euros])
    question = 'Look up the token_price of "ETH", then use convert_to_euros on 3150.20 dollars.'
    console.print(f"[dim]{question}[/]")
    for step in agent.stream({"messages": [{"role": "user", "content": question}]}, stream_mode="updates"):
        for update in step.values():
            for message in update["messages"]:
                for call in getattr(message, "tool_calls", ()):
                    console.print(f"  calls   [cyan]{call['name']}[/]({json.dumps(call['args'])})", markup=True)
                if message.type == "tool":
                    console.print(f"  answer  {message.content}", markup=False)
                elif message.text:
                    console.print(message.text, markup=False)
    console.print()


def _settlement_modes(console: Console, payments: Payments) -> None:
    console.rule("4. Three settlement modes", align="left")
    meaning = {
        SettlementMode.PRIVATE: "payment only, nothing about the data on chain",
        SettlementMode.BATCH: "a Merkle root over many calls",
        SettlementMode.INDIVIDUAL: "the full record of this call",
    }
    for mode in SettlementMode:
        _model(payments, settlement_mode=mode).invoke("One word, please.")
        console.print(f"  [cyan]{mode.value:10}[/] {meaning[mode]}")
    console.print()


def _settled(console: Console, payments: Payments, settlements: SettlementCallbackHandler) -> list[SettlementReceipt]:
    call_ids = [receipt.call_id for receipt in settlements.receipts]
    reconciler = Reconciler(payments.network, payments.ledger)
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    with console.status("Waiting for the gateway to settle its sessions on chain …"):
        while True:
            reconciler.reconcile(payer=payments.payer)
            receipts = payments.ledger.receipts(call_ids=call_ids).result()
            if all(receipt.is_final for receipt in receipts) or time.monotonic() > deadline:
                return receipts
            time.sleep(0.2)


def _summary(
    console: Console, receipts: list[SettlementReceipt], payments: Payments, delta: int, ledger_path: Path
) -> dict[str, Any]:
    table = Table(title="Receipts", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("call", "model", "mode", "status"):
        table.add_column(heading, no_wrap=True)
    table.add_column("OPG", justify="right", no_wrap=True)
    table.add_column("payment", no_wrap=True)
    for receipt in receipts:
        table.add_row(
            receipt.call_id.removeprefix("call_")[:6],
            receipt.model.partition("/")[2],
            receipt.settlement_mode,
            receipt.status,
            rounded(receipt.settled_atomic or 0, decimals=18, places=8),
            _short(receipt.payment_tx_hash),
        )
    console.print(table)
    authorizations = payments.ledger.authorizations(payer=payments.payer).result()
    transactions = {receipt.payment_tx_hash for receipt in receipts if receipt.payment_tx_hash}
    spent = sum(receipt.settled_atomic or 0 for receipt in receipts)
    verdict = "equal" if spent == delta else "DIFFERENT"
    console.print(
        f"[bold]{_count(receipts, 'call')}, {_count(authorizations, 'authorization')}, "
        f"{_count(transactions, 'settlement')}.[/]\n"
        f"{format_amount(spent, decimals=18):<10} OPG by the receipts\n"
        f"{format_amount(delta, decimals=18):<10} OPG by the payer's balance: [bold]{verdict}[/]\n"
    )
    console.print(f"The receipts are kept in\n  {ledger_path}", soft_wrap=True)
    return {
        "calls": len(receipts),
        "authorizations": len(authorizations),
        "settlements": len(transactions),
        "spent_atomic": str(spent),
        "balance_delta_atomic": str(delta),
        "receipts": [receipt.to_json() for receipt in receipts],
        "ledger": str(ledger_path),
    }


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _short(tx_hash: str | None) -> str:
    return f"{tx_hash[:8]}…{tx_hash[-4:]}" if tx_hash else "-"
