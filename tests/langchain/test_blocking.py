"""Async calls never block the event loop: no file, socket, certificate, chain read or lock on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from langchain_opengradient import ChatOpenGradient, get_settlement_callback
from opengradient_devnet import Devnet
from opengradient_x402.settings import Settings

from .surfaces import agent, graph


@pytest.fixture
def strict_loop() -> Iterator[BlockBuster]:
    """Every blocking call on the loop raises, if a frame of ours or of the framework led to it."""
    with blockbuster_ctx(
        ["langchain_opengradient", "opengradient_x402", "langchain_core", "langchain", "langgraph"]
    ) as guard:
        yield guard


async def test_a_first_call_and_all_later_ones_leave_the_loop_free(net: Devnet, strict_loop: BlockBuster):
    account = await asyncio.to_thread(lambda: net.account(opg="10", approved=True))
    model = await asyncio.to_thread(
        lambda: ChatOpenGradient(
            model="openai/gpt-5", private_key=account.private_key, network=f"{net.gateway_url}/network"
        )
    )
    with get_settlement_callback() as settlements:
        assert (await model.ainvoke("Hello")).text
        assert [chunk async for chunk in model.astream("Hello")]
        await asyncio.gather(*(model.ainvoke("Hello") for _ in range(5)))
        runnable, given = agent(model)
        await runnable.ainvoke(given)
        [_ async for _ in runnable.astream(given, stream_mode="messages")]
        runnable, given = graph(model)
        await runnable.ainvoke(given)
    assert settlements.calls == 7 + 4 + 2
    await model.aclose()


async def test_the_guard_is_awake(strict_loop: BlockBuster, tmp_path: Path):
    await asyncio.to_thread((tmp_path / ".env").write_text, "OG_NETWORK=base")
    with pytest.raises(BlockingError):
        Settings.load(dotenv_path=tmp_path / ".env")
