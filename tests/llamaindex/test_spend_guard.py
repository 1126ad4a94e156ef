"""A SpendGuard ends a LlamaIndex run before the call that could take it over its limit; listeners hear their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index_instrumentation import get_dispatcher

from llama_index_opengradient import OpenGradient, SettlementLedgerHandler, SpendGuard
from opengradient_devnet import Devnet
from opengradient_x402.errors import BudgetExceeded
from opengradient_x402.money import format_amount
from support.steps import in_steps


def cost_of_one_call(llm: OpenGradient) -> int:
    return int(llm.complete("Hello").raw["x402"]["cost_atomic"])


def test_the_call_over_the_limit_is_not_made(llm: OpenGradient) -> None:
    cost = format_amount(cost_of_one_call(llm), decimals=18)
    with SpendGuard(cost, reserve_per_call=cost).listening() as guard:
        llm.complete("Hello")
        with pytest.raises(BudgetExceeded, match="not made and not paid"):
            llm.complete("Hello")
        with pytest.raises(BudgetExceeded):
            list(llm.stream_complete("Hello"))
    assert len(guard.receipts) == 1
    assert guard.spent == f"{cost} OPG"
    llm.complete("Outside of the block there is no limit.")


async def test_calls_under_way_count_with_their_worst_case(make_llm: Callable[..., OpenGradient]) -> None:
    llm = make_llm(max_tokens=200)
    await llm.acomplete("Hello")
    with SpendGuard("0.05").listening() as guard:
        for _ in range(3):
            answers = await asyncio.gather(*(llm.acomplete("Hello") for _ in range(30)), return_exceptions=True)
    assert any(isinstance(answer, BudgetExceeded) for answer in answers)
    assert 0 < guard.spent_atomic <= 5 * 10**16
    assert guard.spent_atomic == sum(receipt.cost_atomic or 0 for receipt in guard.receipts)
    await llm.aclose()


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
async def test_an_agent_is_stopped_between_its_calls(make_llm: Callable[..., OpenGradient]) -> None:
    def population(city: str) -> int:
        """The number of people who live in a city."""
        return 4_000_000

    llm = make_llm()
    cost = format_amount(cost_of_one_call(llm), decimals=18)
    with SpendGuard(cost, reserve_per_call=cost).listening() as guard:
        with pytest.raises(BudgetExceeded):
            await FunctionAgent(tools=[population], llm=llm).run("What is the population of the city of Berlin?")
        assert len(guard.receipts) == 1
    await llm.aclose()


def test_it_guards_all_steps_of_a_generator_that_a_web_server_reads(llm: OpenGradient) -> None:
    cost = format_amount(cost_of_one_call(llm), decimals=18)
    guard = SpendGuard(cost, reserve_per_call=cost)

    def answers() -> Iterator[str]:
        with guard.listening():
            while True:
                yield llm.complete("Hello").text

    with pytest.raises(BudgetExceeded):
        in_steps(answers())
    assert len(guard.receipts) == 1
    llm.complete("Outside of the block there is no limit.")


def test_a_guard_on_a_dispatcher_holds_for_the_whole_process(llm: OpenGradient) -> None:
    dispatcher, guard = get_dispatcher(), SpendGuard("0")
    dispatcher.add_event_handler(guard)
    try:
        with ThreadPoolExecutor(1) as pool, pytest.raises(BudgetExceeded):
            pool.submit(llm.complete, "Hello").result()
    finally:
        dispatcher.event_handlers.remove(guard)


async def test_requests_of_a_server_hear_their_own_calls(llm: OpenGradient) -> None:
    async def request(text: str) -> bool:
        with SettlementLedgerHandler().listening() as heard:
            response = await llm.acomplete(text)
            await asyncio.sleep(0.1)
            return [receipt.call_id for receipt in heard.receipts] == [response.raw["x402"]["call_id"]]

    assert all(await asyncio.gather(*(request(f"Say {number}.") for number in range(5))))
    await llm.aclose()


def test_threads_that_are_given_the_context_are_heard(llm: OpenGradient) -> None:
    outer, inner = SettlementLedgerHandler(), SettlementLedgerHandler()
    with outer.listening(), inner.listening(), ThreadPoolExecutor(1) as pool:
        pool.submit(copy_context().run, llm.complete, "Heard.").result()
        pool.submit(llm.complete, "Not heard.").result()
    assert len(inner.receipts) == 1
    assert inner.receipts == outer.receipts


def test_streams_that_are_settled_before_they_are_quoted_count_with_what_was_taken(
    devnets: Callable[..., Devnet],
) -> None:
    net = devnets(sessions=False)
    account = net.account(opg="10", approved=True)
    llm = OpenGradient(
        model="openai/gpt-5", network=f"{net.gateway_url}/network", private_key=account.private_key, max_tokens=200
    )
    llm.complete("Hello")  # from then on the token's price is known
    before = net.chain.token_balance(account.address)

    def streams() -> None:
        for _ in range(60):
            list(llm.stream_complete("Hello"))

    with closing(llm), SpendGuard("0.05").listening() as guard, pytest.raises(BudgetExceeded):
        streams()
    taken = before - net.chain.token_balance(account.address)
    assert 0 < taken <= 5 * 10**16
    assert guard.spent_atomic == taken
