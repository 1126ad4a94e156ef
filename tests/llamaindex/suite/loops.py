"""One instance, many callers: event loops one after another, loops that are running, tasks and threads at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import ALL, ask, is_async, run, subject, text_of
from llamaindex.suite.server import ScriptedServer

HELLO = "Hello from the script."


class LoopTests(LLMTestBase):
    """Sync and async use of one instance in every order."""

    @pytest.mark.parametrize("form", [form for form in ALL if is_async(form)])
    def test_three_event_loops_one_after_another(self, scripted_llm: Any, form: str) -> None:
        for _ in range(3):
            assert text_of(ask(scripted_llm, form, subject(form))[-1]) == HELLO

    @pytest.mark.parametrize("form", [form for form in ALL if not is_async(form)])
    def test_sync_calls_inside_a_running_loop(self, scripted_llm: Any, form: str) -> None:
        async def cell() -> str:
            return text_of(ask(scripted_llm, form, subject(form))[-1])

        assert run(cell()) == HELLO

    def test_sync_and_async_calls_take_turns_in_one_loop(self, scripted_llm: Any) -> None:
        async def notebook() -> list[str]:
            return [
                (await scripted_llm.acomplete("one")).text,
                scripted_llm.complete("two").text,
                (await scripted_llm.acomplete("three")).text,
            ]

        assert run(notebook()) == [HELLO] * 3

    def test_fifty_calls_at_once(self, scripted_llm: Any, script: ScriptedServer) -> None:
        async def crowd() -> list[str]:
            answers = await asyncio.gather(*(scripted_llm.acomplete(f"call {at}") for at in range(50)))
            return [answer.text for answer in answers]

        assert run(crowd()) == [HELLO] * 50
        asked = {request["messages"][-1]["content"] for request in script.requests}
        assert asked == {f"call {at}" for at in range(50)}

    def test_threads_share_an_instance(self, scripted_llm: Any, script: ScriptedServer) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda at: scripted_llm.complete(f"call {at}").text, range(24)))
        assert answers == [HELLO] * 24
        asked = {request["messages"][-1]["content"] for request in script.requests}
        assert asked == {f"call {at}" for at in range(24)}
