"""Many tools at once on one server: each spends within its own budget, and the wallet pays what the receipts say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.payers import PROMPT, opg_balance, settled_receipts
from support.paying_server import paying_server

pytestmark = pytest.mark.soak
_CALLS, _AT_A_TIME = 500, 50


@pytest.mark.timeout(600)
def test_500_calls_50_at_a_time_with_two_keys_are_exact_to_the_unit(net, payments):
    with (
        paying_server(payments, budgets=["small=0.05", "large=5"]) as server,
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=_AT_A_TIME)) as http,
        ThreadPoolExecutor(_AT_A_TIME) as pool,
    ):

        def ask(number: int) -> tuple[str, int]:
            name = "small" if number % 2 else "large"
            body = {**PROMPT, "max_tokens": 50, "stream": number % 4 < 2}
            response = http.post(f"{server.url}/chat/completions", headers=server.headers(name), json=body)
            response.read()
            return name, response.status_code

        came = list(pool.map(ask, range(_CALLS)))
    answered = {name: came.count((name, 200)) for name in ("small", "large")}
    refused = {name: came.count((name, 429)) for name in ("small", "large")}
    print(f"\nanswered {answered}, refused {refused}")
    assert answered["large"] == _CALLS // 2
    assert answered["small"] + refused["small"] == _CALLS // 2
    assert refused["small"] > 0 < answered["small"]
    settled = {receipt.call_id: receipt.settled_atomic for receipt in settled_receipts(net, payments)}
    asset = payments.network.asset
    for name, key in server.keys.items():
        paid = sum(settled.pop(receipt.call_id) for receipt in server.receipts_of(name))
        print(f"{name}: {asset.format(paid)} of {key.limit.limit}, {len(server.receipts_of(name))} receipts")
        assert len(server.receipts_of(name)) == answered[name]
        assert paid == key.limit.spent_atomic
        assert paid <= asset.parse(key.limit.limit)
    assert settled == {}
    paid_in_all = sum(key.limit.spent_atomic for key in server.keys.values())
    assert opg_balance(net, payments.payer) == 10 * 10**18 - paid_in_all
