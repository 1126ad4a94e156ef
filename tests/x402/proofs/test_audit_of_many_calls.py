"""Three wallets with one ledger, calls of every kind, one bundle: everything that can be proven of it is.

That receipts, transfers and balances agree is shown for more calls, and through both faces, in `acceptance/test_books`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

from opengradient_x402.ledger.receipts import ReceiptStatus
from opengradient_x402.proofs.export import export_bundle
from opengradient_x402.proofs.findings import Refuted, Statement, Undecided
from opengradient_x402.proofs.verification import verify_bundle
from support.payers import async_client_for, client_for, network_of, payments_for

CALLS = 90
MODES = ("batch", "individual", "private")
MODELS = ("openai/gpt-5", "anthropic/claude-sonnet-4-5", "google/gemini-2.5-flash", "x-ai/grok-4")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def body(number: int) -> dict:
    request = {
        "model": MODELS[number % len(MODELS)],
        "messages": [{"role": "user", "content": f"What is the weather of city {number}?"}],
        "max_tokens": 60,
    }
    return request | {"tools": [TOOL]} if number % 5 == 0 else request


def call(client, number: int) -> None:
    mode = MODES[number % 3]
    if number % 2:
        with client.stream(body(number), settlement_mode=mode) as stream:
            for _ in stream:
                if number % 9 == 1:
                    break  # somebody who leaves early pays for what was served
    else:
        client.chat(body(number), settlement_mode=mode)


async def acall(client, number: int) -> None:
    mode = MODES[number % 3]
    if number % 2:
        async with await client.stream(body(number), settlement_mode=mode) as stream:
            async for _ in stream:
                pass
    else:
        await client.chat(body(number), settlement_mode=mode)


def test_an_audit_of_many_mixed_calls_leaves_nothing_open_but_what_nobody_can_know(net, tmp_path):
    accounts = [net.account(opg="50", approved=True) for _ in range(3)]
    with ExitStack() as stack:
        ledger_path = tmp_path / "shared.sqlite"
        wallets = [stack.enter_context(payments_for(net, account, ledger_path)) for account in accounts]

        async def asynchronously() -> None:
            clients = [async_client_for(payments) for payments in wallets]
            await asyncio.gather(*(acall(clients[number % 3], number) for number in range(CALLS // 2)))
            for client in clients:
                await client.aclose()

        with asyncio.Runner() as runner:
            runner.run(asynchronously())
        for position, payments in enumerate(wallets):
            with client_for(payments) as client:
                for number in range(CALLS // 2 + position, CALLS, 3):
                    call(client, number)

        net.flush_batches()
        net.close_sessions()
        for payments in wallets:
            payments.reconciler.reconcile(payer=payments.payer)
        ledger = wallets[0].ledger
        receipts = ledger.receipts().result()
        assert len(receipts) == CALLS
        assert {(receipt.status, receipt.is_final) for receipt in receipts} == {(ReceiptStatus.SETTLED, True)}
        content = export_bundle(ledger, network=network_of(net)).to_bytes()
    verification = verify_bundle(content, network=network_of(net))
    assert verification.of(Refuted) == []
    open_questions = Counter(finding.statement for finding in verification.of(Undecided))
    left_early = sum(receipt.outcome == "abandoned" for receipt in receipts)
    assert left_early == 2
    # Unsigned, and those who left early never saw the enclave's proof: nothing else is left open.
    assert open_questions == {
        Statement.MADE: 1,
        Statement.ENCLAVE: left_early,
        Statement.DATA: sum(
            receipt.outcome == "abandoned" and receipt.settlement_mode != "private" for receipt in receipts
        ),
    }
