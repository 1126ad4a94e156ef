"""A SpendGuard ends a run before the call that could take it over its limit."""

import threading

import pytest
from langchain_core.runnables import RunnableParallel

from langchain_opengradient import SpendGuard
from langchain_opengradient.callbacks import spent_at_most_atomic
from opengradient_x402.errors import BudgetExceeded, NotPaid
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt

from .conftest import Payer
from .surfaces import agent


def cost_of_one_call(payer: Payer) -> int:
    return int(payer.model().invoke("Hello").response_metadata["opengradient"]["cost_atomic"])


def opg(atomic: int) -> str:
    return f"{atomic // 10**18}.{atomic % 10**18:018d}"


def test_the_call_over_the_limit_is_not_made(payer: Payer):
    guard = SpendGuard(opg(2 * cost_of_one_call(payer)))
    model = payer.model()
    model.invoke("Hello", {"callbacks": [guard]})
    model.invoke("Hello", {"callbacks": [guard]})
    before = len(payer.receipts())
    with pytest.raises(BudgetExceeded, match="not made and not paid") as caught:
        model.invoke("Hello", {"callbacks": [guard]})
    assert isinstance(caught.value, NotPaid)
    assert len(payer.receipts()) == before
    assert guard.calls == 2


async def test_it_stops_streams_async_calls_and_agents_too(payer: Payer):
    model = payer.model()
    for limit in ("0",):
        config = {"callbacks": [SpendGuard(limit)]}
        with pytest.raises(BudgetExceeded):
            list(model.stream("Hello", config))
        with pytest.raises(BudgetExceeded):
            await model.ainvoke("Hello", config)
        runnable, given = agent(model)
        with pytest.raises(BudgetExceeded):
            await runnable.ainvoke(given, config)
    assert payer.receipts() == {}


def test_an_agent_is_stopped_between_its_calls(payer: Payer):
    runnable, given = agent(payer.model())
    guard = SpendGuard("0.000000000000000001")
    with pytest.raises(BudgetExceeded):
        runnable.invoke(given, {"callbacks": [guard]})
    assert guard.calls == 1


def test_parallel_branches_cannot_all_pass_while_none_has_a_receipt(payer: Payer):
    model = payer.model()
    guard = SpendGuard("0.05", reserve_per_call="0.02")
    branches = RunnableParallel({f"b{number}": model for number in range(5)})
    barrier = threading.Barrier(2, timeout=60)
    guard._on_receipt = lambda _: barrier.wait()  # hold the first two calls until both have been admitted
    with pytest.raises(BudgetExceeded):
        branches.invoke("Hello", {"callbacks": [guard], "max_concurrency": 5})
    assert len(payer.receipts()) == 2


def receipt(call: str, authorization: str, **amounts: int | None) -> SettlementReceipt:
    return SettlementReceipt(
        call_id=call,
        status=ReceiptStatus.SERVED,
        created_at=0,
        outcome="ok",
        network="eip155:1",
        scheme="upto",
        asset="0x",
        payer="0x",
        payee="0x",
        authorization_id=authorization,
        nonce="1",
        deadline=1,
        authorized_atomic=100,
        endpoint="",
        model="",
        settlement_mode="batch",
        **amounts,
    )


def test_what_is_not_known_counts_up_to_what_was_authorized():
    assert spent_at_most_atomic([receipt("1", "a", cost_atomic=10), receipt("2", "a", cost_atomic=5)]) == 15
    assert spent_at_most_atomic([receipt("1", "a", cost_atomic=10), receipt("2", "a")]) == 100
    assert spent_at_most_atomic([receipt("1", "a"), receipt("2", "a"), receipt("3", "b")]) == 200
    assert spent_at_most_atomic([receipt("1", "a", cost_atomic=10, settled_atomic=7)]) == 7
    assert spent_at_most_atomic([]) == 0
