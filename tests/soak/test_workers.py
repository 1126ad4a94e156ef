"""Sixteen processes of one wallet: exact to the wei under one budget, and hardly slower than one process."""

from __future__ import annotations

import os

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.ledger.upkeep import check
from support.payers import opg_balance, payments_for, settled_receipts
from support.paying_workers import work_at_once
from support.postgresql import running_server

PROCESSES = int(os.environ.get("SOAK_PROCESSES", "16"))
CALLS = int(os.environ.get("SOAK_CALLS", "100"))
PRICE = 10**15


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_sixteen_processes_spend_one_budget_exactly_and_take_at_most_half_as_long_again_as_one():
    """Every call is a payment of its own, and the budget has room for half of them."""
    with running_server() as server, Devnet(sessions=False, schemes=["exact-permit2"], exact_price_opg="0.001") as net:

        def work(processes: int, calls: int) -> tuple[float, int]:
            account, url = net.account(opg="100", approved=True), server.new_database()
            before = opg_balance(net, account.address)
            paid = processes * calls // 2
            task = {
                "network": f"{net.gateway_url}/network",
                "private_key": account.private_key,
                "ledger": url,
                "max_per_day": paid * PRICE,
                "calls": calls,
            }
            results = work_at_once([task | {"lower_case": number % 2 == 1} for number in range(processes)])
            with payments_for(net, account, url) as payments:
                settled_receipts(net, payments)
                authorizations = payments.ledger.authorizations().result()
            said = {name: text for result in results for name, text in result["said"].items()}
            assert said.keys() <= {"BudgetExceeded"}, said
            assert sum(result["ended"].get("ok", 0) for result in results) == paid
            taken = before - opg_balance(net, account.address)
            assert taken == sum(one.settled_atomic or 0 for one in authorizations) == paid * PRICE
            assert check(url) == []
            return max(result["took_s"] for result in results), taken

        work(1, 20)  # the devnet's and the server's first steps are no part of the comparison
        one, _ = work(1, PROCESSES * CALLS)
        many, taken = work(PROCESSES, CALLS)
        print(f"{PROCESSES} x {CALLS} calls: {many:.1f} s, one process {one:.1f} s ({many / one:.2f} x); {taken} taken")
    assert many <= 1.5 * one
