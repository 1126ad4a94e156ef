"""A limit on a run: what calls that have ended cost, and what calls under way could cost."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from opengradient_x402.errors import BudgetExceeded, ConfigurationError
from opengradient_x402.ledger.authorizations import Authorization, SignedTerms, receipt_fields
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.money import Asset
from opengradient_x402.payment.run_limit import RunLimit

TOKEN = "0x" + "11" * 20
USDC = Asset(address=TOKEN, symbol="USDC", decimals=6, name="USDC", version="2")


def authorization(name: str, *, scheme: str = "upto", amount_atomic: int = 1_000_000) -> Authorization:
    terms = SignedTerms(
        scheme=scheme,
        transfer_method="permit2",
        asset=TOKEN,
        payee=TOKEN,
        facilitator=None,
        spender=TOKEN,
        amount_atomic=amount_atomic,
        signed_at=0,
        deadline=1,
    )
    return Authorization(
        id=name,
        call_id=name,
        network="eip155:1",
        payer=TOKEN,
        nonce=1,
        endpoint="https://gateway",
        model="m",
        settlement_mode="batch",
        signed=(terms,),
    )


def receipt(call: str, paid_by: Authorization, *, cost_atomic: int | None) -> SettlementReceipt:
    return SettlementReceipt(
        call_id=call,
        status=ReceiptStatus.SERVED,
        created_at=0,
        outcome="ok",
        model="m",
        settlement_mode="batch",
        cost_atomic=cost_atomic,
        **receipt_fields(paid_by),
    )


def admit(limit: RunLimit, call: str, paid_by: Authorization, worst: int) -> None:
    limit.admit(call, paid_by, worst_case_atomic=worst, asset=USDC, model="m")


def test_amounts_are_read_in_the_decimals_of_the_token():
    limit, session = RunLimit("0.025"), authorization("s")
    admit(limit, "1", session, 10_000)
    admit(limit, "2", session, 10_000)
    with pytest.raises(BudgetExceeded, match=r"2 calls under way could cost 0\.02 USDC; its limit is 0\.025 USDC"):
        admit(limit, "3", session, 10_000)
    with pytest.raises(ConfigurationError, match="6 decimals"):
        admit(RunLimit("0.0000001"), "1", session, 1)
    with pytest.raises(ConfigurationError, match="Nothing was paid"):
        RunLimit("plenty")


def test_a_call_that_ends_counts_with_its_cost_and_one_that_was_not_paid_with_nothing():
    limit, session = RunLimit("0.01"), authorization("s")
    admit(limit, "1", session, 10_000)
    limit.ended("1", receipt("1", session, cost_atomic=4_000))
    admit(limit, "2", session, 6_000)
    limit.ended("2", None)
    admit(limit, "3", session, 6_000)
    assert (limit.spent_atomic, limit.under_way) == (4_000, ("3",))


def test_a_cost_that_is_not_known_counts_as_the_worst_case_until_it_is():
    limit, session = RunLimit("0.01"), authorization("s")
    admit(limit, "1", session, 8_000)
    failed = receipt("1", session, cost_atomic=None)
    limit.ended("1", failed)
    assert (limit.spent_atomic, limit.unknown) == (8_000, ("1",))
    with pytest.raises(BudgetExceeded):
        admit(limit, "2", session, 8_000)
    limit.update([replace(failed, status=ReceiptStatus.SETTLED, settled_atomic=0)])
    admit(limit, "2", session, 8_000)
    assert (limit.spent_atomic, limit.unknown) == (0, ())


def test_calls_of_one_authorization_cost_at_most_what_it_allows():
    limit, session = RunLimit("0.01"), authorization("s", amount_atomic=10_000)
    for call in "123":
        admit(limit, call, session, 10_000)
    limit.ended("1", receipt("1", session, cost_atomic=9_000))
    with pytest.raises(BudgetExceeded):
        admit(limit, "4", authorization("t"), 1)


def test_calls_that_offer_one_exact_payment_again_cost_it_once():
    limit, payment = RunLimit("0.25"), authorization("a", scheme="exact", amount_atomic=100_000)
    for name in ("one", "two", "three"):  # the outcome of each is unknown: the next one offers the same payment
        admit(limit, name, payment, 100_000)
        limit.ended(name, receipt(name, payment, cost_atomic=100_000))
    assert limit.spent_atomic == 100_000
    admit(limit, "four", authorization("b", scheme="exact", amount_atomic=100_000), 100_000)
    with pytest.raises(BudgetExceeded):
        admit(limit, "five", authorization("c", scheme="exact", amount_atomic=100_000), 100_000)


def test_a_reserve_takes_the_place_of_an_estimate_and_not_of_a_signed_price():
    limit = RunLimit("0.01", reserve_per_call="0.001")
    admit(limit, "1", authorization("s"), 1_000_000)
    with pytest.raises(BudgetExceeded):
        admit(limit, "2", authorization("t", scheme="exact", amount_atomic=10_000), 10_000)


def test_a_call_that_is_paid_anew_counts_once():
    limit = RunLimit("0.01")
    admit(limit, "1", authorization("s"), 10_000)
    admit(limit, "1", authorization("t"), 10_000)
    assert limit.under_way == ("1",)


def test_no_race_takes_calls_above_the_limit():
    limit, session = RunLimit("0.1"), authorization("s")

    def call(number: int) -> bool:
        try:
            admit(limit, str(number), session, 1_000)
        except BudgetExceeded:
            return False
        assert limit.spent_atomic <= 100_000
        limit.ended(str(number), receipt(str(number), session, cost_atomic=1_000))
        return True

    with ThreadPoolExecutor(16) as pool:
        made = sum(pool.map(call, range(1_000)))
    assert (made, limit.spent_atomic) == (100, 100_000)


def test_a_limit_that_lasts_keeps_the_sum_of_its_earlier_calls(monkeypatch):
    monkeypatch.setattr("opengradient_x402.payment.run_limit._MOST_CALLS", 20)
    limit = RunLimit("0.001")
    for number in range(100):
        paid_by = authorization(f"a{number // 10}")
        limit.admit(f"c{number}", paid_by, worst_case_atomic=9, asset=USDC, model="m")
        limit.ended(f"c{number}", receipt(f"c{number}", paid_by, cost_atomic=7))
    assert len(limit._calls) <= 22
    assert limit.spent_atomic == 700
    with pytest.raises(BudgetExceeded, match=r"spent up to 0\.0007 USDC"):
        limit.admit("more", authorization("b"), worst_case_atomic=301, asset=USDC, model="m")
    limit.clear()
    assert limit.spent_atomic == 0
