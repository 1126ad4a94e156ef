"""Twenty minutes of fifty users under random faults: what the process holds does not grow, and the books are equal."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.faults import (
    AnswerStatus,
    DemandAnew,
    ErrorEvent,
    GarbleBody,
    HangUp,
    InflateCost,
    KillSession,
    LagNode,
    NodeCut,
    NodeStatus,
    OmitDate,
    OmitUsage,
    SettleAtCap,
    TruncateStream,
)
from opengradient_x402.errors import ChainUnavailable
from opengradient_x402.ledger.upkeep import check
from opengradient_x402.payment.payments import Payments
from support.payers import opg_balance, payments_for

FAULTS = (
    *(AnswerStatus(status=status) for status in (429, 500, 503)),
    DemandAnew(),
    ErrorEvent(),
    GarbleBody(),
    HangUp(),
    InflateCost(factor=3),
    KillSession(),
    LagNode(blocks=2),
    NodeCut(),
    NodeStatus(status=502),
    OmitDate(),
    OmitUsage(),
    SettleAtCap(),
    TruncateStream(cut_connection=True),
)
SECONDS = int(os.environ.get("SOAK_S", "1200"))
WALLETS = 5


def growth(samples: list[dict[str, int]]) -> dict[str, tuple[float, float]]:
    """The medians of the middle and of the last third."""
    third = len(samples) // 3
    parts = samples[third : 2 * third], samples[2 * third :]
    names = ("memory_kb", "files", "threads", "tasks")
    return {name: tuple(statistics.median(sample[name] for sample in part) for part in parts) for name in names}


def reconciled(payments: Payments) -> None:
    """Reads the chain, however busy the node still is with what the users left behind."""
    for _ in range(20):
        with suppress(ChainUnavailable):
            payments.reconciler.reconcile(payer=payments.payer)
            return
    payments.reconciler.reconcile(payer=payments.payer)


@pytest.mark.soak
@pytest.mark.timeout(2 * SECONDS + 1200)
def test_twenty_minutes_of_fifty_users_leave_nothing_behind_but_equal_books(tmp_path):
    path, stop, rng = tmp_path / "ledger.sqlite", threading.Event(), random.Random(402)
    with Devnet(idle_timeout_s=3) as net:
        accounts = [net.account(opg="1000", approved=True) for _ in range(WALLETS)]
        before = [opg_balance(net, account.address) for account in accounts]
        task = {
            "network": f"{net.gateway_url}/network",
            "gateway": net.gateway_url,
            "private_keys": [account.private_key for account in accounts],
            "ledger": str(path),
            "seconds": SECONDS,
            "every_s": max(2, SECONDS // 60),
        }

        def trouble() -> None:
            while not stop.wait(rng.random() * 0.6):
                net.faults.inject(rng.choice(FAULTS))

        troubling = threading.Thread(target=trouble)
        troubling.start()
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("users.py"))],
                input=json.dumps(task) + "\n",
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=2 * SECONDS + 600,
            )
        finally:
            stop.set()
            troubling.join()
        net.faults.clear()
        *samples, last = map(json.loads, done.stdout.splitlines())
        grown = growth(samples)
        print(f"{SECONDS} s, {last['ended']}; middle and last third: {grown}; {last['said']}", flush=True)
        net.close_sessions(wait_s=60)
        books = []
        for account, start in zip(accounts, before, strict=True):
            with payments_for(net, account, path) as payments:
                reconciled(payments)
                authorizations = payments.ledger.authorizations(payer=account.address).result()
            settled = sum(one.settled_atomic or 0 for one in authorizations)
            books.append((start - opg_balance(net, account.address), settled))
    print(f"taken and settled: {books}")

    assert last["foreign"] == []
    assert all(taken == settled > 0 for taken, settled in books)
    assert check(f"sqlite:///{path}") == []
    for name, slack in (("memory_kb", 12_000), ("files", 10), ("threads", 10), ("tasks", 10)):
        middle, end = grown[name]
        assert end <= middle * 1.05 + slack, name
