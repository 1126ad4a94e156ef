"""A SpendGuard ends a run before the call that could take it over its limit."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableParallel

from langchain_opengradient import SpendGuard, get_settlement_callback
from opengradient_devnet import Devnet
from opengradient_devnet.faults import AnswerStatus, HangUp, SlowDrip
from opengradient_devnet.gateway.payment.challenge import Scheme
from opengradient_x402.errors import BudgetExceeded, NotPaid, PaymentOutcomeUnknown
from opengradient_x402.ledger.receipts import ReceiptStatus, SettlementReceipt
from opengradient_x402.money import parse_amount
from opengradient_x402.telemetry.kept_receipts import spent_at_most_atomic

from .conftest import Payer
from .surfaces import agent


def cost_of_one_call(payer: Payer) -> int:
    return int(payer.model().invoke("Hello").response_metadata["opengradient"]["cost_atomic"])


def opg(atomic: int) -> str:
    return f"{atomic // 10**18}.{atomic % 10**18:018d}"


def test_the_call_over_the_limit_is_not_made(payer: Payer):
    cost = cost_of_one_call(payer)
    guard = SpendGuard(opg(2 * cost), reserve_per_call=opg(cost))
    model = payer.model()
    model.invoke("Hello", {"callbacks": [guard]})
    model.invoke("Hello", {"callbacks": [guard]})
    before = len(payer.receipts())
    with pytest.raises(BudgetExceeded, match="not made and not paid") as caught:
        model.invoke("Hello", {"callbacks": [guard]})
    assert isinstance(caught.value, NotPaid)
    assert len(payer.receipts()) == before
    assert guard.calls == 2
    assert guard.spent == f"{guard.spent_opg} OPG"


def worst_case_of_one_call(payer: Payer, **fields: int) -> int:
    """What a guard asks for before a call, read from its refusal."""
    with pytest.raises(BudgetExceeded) as caught:
        payer.model(**fields).invoke("Hello", {"callbacks": [SpendGuard("0")]})
    words = str(caught.value).split()
    return parse_amount(words[words.index("cost") + 1], decimals=18)


@pytest.mark.parametrize("how", ["one after another", "batch", "gather", "streams"])
def test_without_a_reserve_calls_under_way_count_with_their_worst_case(payer: Payer, how: str):
    cost_of_one_call(payer)
    limit = 3 * worst_case_of_one_call(payer, max_tokens=200)
    guard, before = SpendGuard(opg(limit)), payer.receipts()
    model, config = payer.model(max_tokens=200), {"callbacks": [guard]}

    async def gather() -> None:
        answers = await asyncio.gather(*(model.ainvoke("Hello", config) for _ in range(30)), return_exceptions=True)
        await model.aclose()
        raise next(answer for answer in answers if isinstance(answer, BaseException))

    def serially() -> None:
        for _ in range(100):
            model.invoke("Hello", config)

    def streams() -> None:
        for _ in range(100):
            list(model.stream("Hello", config))

    run = {
        "one after another": serially,
        "batch": lambda: model.batch(["Hello"] * 30, config),
        "gather": lambda: asyncio.run(gather()),
        "streams": streams,
    }[how]
    with pytest.raises(BudgetExceeded):
        run()
    made = [receipt for name, receipt in payer.receipts().items() if name not in before]
    assert len(made) >= 3
    assert guard.spent_atomic == sum(receipt.cost_atomic or 0 for receipt in made) <= limit
    assert not guard.run_limit.under_way


async def test_what_never_began_holds_nothing(payer: Payer):
    cost = cost_of_one_call(payer)
    guard = SpendGuard(opg(cost), reserve_per_call=opg(cost))
    config = {"callbacks": [guard]}
    waiting = payer.model(rate_limiter=InMemoryRateLimiter(requests_per_second=0.001, max_bucket_size=1))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.ainvoke("Hello", config), 0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(waiting.astream("Hello", config))), 0.1)
        with pytest.raises(BudgetExceeded):
            await payer.model().ainvoke("Hello", {"callbacks": [guard, SpendGuard("0")]})
    assert not guard.run_limit.under_way
    await payer.model().ainvoke("Hello", config)
    assert guard.calls == 1


def test_an_answer_from_a_cache_needs_no_room(payer: Payer):
    model = payer.model(cache=InMemoryCache())
    model.invoke("Hello")
    assert model.invoke("Hello", {"callbacks": [SpendGuard("0")]}).text


def test_a_stream_after_a_call_that_never_began_is_not_charged_to_its_guard(payer: Payer):
    """Core streams without saying for which run: the handlers of another call must not be taken for those of this."""
    model, guard = payer.model(cache=InMemoryCache()), SpendGuard("1")
    model.invoke("Hello")
    model.invoke("Hello", {"callbacks": [guard]})  # from the cache: announced, and not made
    list(model.stream("Hello"))
    assert guard.calls == 0


def test_a_call_that_failed_without_a_charge_leaves_room_for_a_fallback(payer: Payer, net: Devnet):
    cost_of_one_call(payer)
    guard = SpendGuard("0.1")
    net.faults.inject(AnswerStatus(status=503))
    model = payer.model().with_fallbacks([payer.model(model="openai/gpt-5-mini")])
    assert model.invoke("Hello", {"callbacks": [guard]}).text
    assert guard.calls == 2


def test_an_exact_payment_counts_at_its_signed_amount(devnets: Callable[..., Devnet], tmp_path: Path):
    net = devnets(schemes=(Scheme.EXACT_EIP3009,), sessions=False, exact_price_opg="0.01")
    payer, guard = Payer(net, tmp_path), SpendGuard("0.025", reserve_per_call="0")
    try:
        for _ in range(2):
            payer.model().invoke("Hello", {"callbacks": [guard]})
        with pytest.raises(BudgetExceeded, match=r"could cost 0\.01 OPG more"):
            payer.model().invoke("Hello", {"callbacks": [guard]})
        assert guard.spent == "0.02 OPG"
        assert payer.settle() == guard.spent_atomic
    finally:
        payer.close()


def test_one_exact_payment_that_several_calls_offer_counts_once(devnets: Callable[..., Devnet], tmp_path: Path):
    net = devnets(schemes=(Scheme.EXACT_EIP3009,), sessions=False, exact_price_opg="0.01")
    payer, guard = Payer(net, tmp_path), SpendGuard("0.025")
    try:
        net.faults.inject(HangUp(charge=False), times=3)  # unknown: the next call offers it again
        with get_settlement_callback() as settlements:
            for _ in range(3):
                with pytest.raises(PaymentOutcomeUnknown):
                    payer.model().invoke("Hello", {"callbacks": [guard]})
        assert (guard.spent, settlements.spent) == ("0.01 OPG", "0.01 OPG")
        assert payer.model().invoke("Hello", {"callbacks": [guard]}).text, "there is room for it"
        assert 0 < payer.settle() <= guard.spent_atomic <= 25 * 10**15
    finally:
        payer.close()


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
    cost = cost_of_one_call(payer)
    runnable, given = agent(payer.model())
    guard = SpendGuard(opg(cost), reserve_per_call=opg(cost))
    with pytest.raises(BudgetExceeded):
        runnable.invoke(given, {"callbacks": [guard]})
    assert guard.calls == 1


def test_parallel_branches_cannot_all_pass_while_none_has_a_receipt(payer: Payer):
    model = payer.model()
    guard = SpendGuard("0.05", reserve_per_call="0.02")
    branches = RunnableParallel({f"b{number}": model for number in range(5)})
    barrier = threading.Barrier(2, timeout=60)
    first_two = iter((barrier.wait, barrier.wait))  # both are held until both have been admitted
    guard._on_receipt = lambda _: next(first_two, int)()
    with pytest.raises(BudgetExceeded):
        branches.invoke("Hello", {"callbacks": [guard], "max_concurrency": 5})
    assert 2 <= len(payer.receipts()) <= 4


def test_the_bound_of_a_dropped_stream_comes_down_when_it_is_settled(payer: Payer, net: Devnet):
    net.faults.inject(SlowDrip(pace_s=0.05))  # or the whole answer may be there with its first piece
    guard = SpendGuard("1")
    stream = payer.model().stream("Hello", {"callbacks": [guard]})
    next(stream)
    stream.close()
    bound = guard.spent_atomic
    taken = payer.settle()
    assert 0 < taken < bound
    guard.refresh()
    assert guard.spent_atomic == taken
    assert [receipt.settled_atomic for receipt in guard.receipts] == [taken]


def test_a_guard_that_lasts_begins_anew_when_it_is_told(payer: Payer):
    cost = cost_of_one_call(payer)
    guard = SpendGuard(opg(cost), reserve_per_call=opg(cost))
    for _ in range(3):
        payer.model().invoke("Hello", {"callbacks": [guard]})
        guard.clear()
    assert (guard.calls, guard.spent_atomic) == (0, 0)


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


@pytest.mark.parametrize("status", [ReceiptStatus.EXPIRED, ReceiptStatus.CANCELLED])
def test_what_the_chain_never_took_cost_nothing_whatever_was_quoted_or_signed(status):
    gone = replace(receipt("1", "a", cost_atomic=10), status=status)
    assert spent_at_most_atomic([gone, receipt("2", "b", cost_atomic=5)]) == 5


@pytest.mark.parametrize("reads", ["to the end", "one chunk"])
def test_streams_that_are_settled_before_they_are_quoted_count_with_what_was_taken(
    devnets: Callable[..., Devnet], tmp_path: Path, reads: str
):
    """A gateway without sessions takes a stream's worst case first, and quotes what it was worth at the end."""
    net = devnets(sessions=False)
    with closing(Payer(net, tmp_path)) as payer:
        cost_of_one_call(payer)  # from then on the token's price is known
        guard, before = SpendGuard("0.05"), net.chain.token_balance(payer.account.address)

        def streams() -> None:
            for _ in range(60):
                stream = payer.model(max_tokens=200).stream("Hello", {"callbacks": [guard]})
                next(stream)
                if reads == "to the end":
                    list(stream)
                else:
                    stream.close()  # type: ignore[attr-defined]

        with pytest.raises(BudgetExceeded):
            streams()
        taken = before - net.chain.token_balance(payer.account.address)
        assert 0 < taken <= 5 * 10**16
        assert guard.spent_atomic == taken
