"""Streams: what their chunks hold, when they arrive, and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import (
    ALL,
    CHAT_STREAMS,
    STREAMS,
    ask,
    is_async,
    joined,
    run,
    subject,
    text_of,
)
from llamaindex.suite.server import USAGE, Reply, ScriptedServer

TEXT = "One answer in several pieces."


class StreamTests(LLMTestBase):
    """Deltas, last chunks, abandoned, cancelled and broken streams."""

    @pytest.mark.parametrize("form", STREAMS)
    def test_deltas_add_up_to_the_text(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT))
        pieces = ask(scripted_llm, form, subject(form))
        assert len(pieces) > 2
        assert joined(pieces) == text_of(pieces[-1]) == TEXT

    @pytest.mark.parametrize("form", STREAMS)
    def test_each_chunk_holds_the_text_so_far(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT))
        so_far = ""
        for piece in ask(scripted_llm, form, subject(form)):
            so_far += piece.delta or ""
            assert text_of(piece) == so_far

    @pytest.mark.parametrize("form", ALL)
    def test_the_last_chunk_has_the_usage(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT))
        last = ask(scripted_llm, form, subject(form))[-1]
        raw = last.raw if isinstance(last.raw, dict) else last.raw.model_dump()
        assert {name: raw["usage"][name] for name in USAGE} == USAGE

    @pytest.mark.parametrize("form", CHAT_STREAMS)
    def test_the_last_chunk_has_the_whole_message(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT))
        last = ask(scripted_llm, form, subject(form))[-1]
        assert last.message.role == "assistant"
        assert last.message.content == TEXT

    @pytest.mark.parametrize("form", STREAMS)
    def test_the_first_chunk_comes_before_the_answer_is_written(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=TEXT, hold_after=3))

        async def first_then_rest() -> list[Any]:
            pieces = []
            async for piece in await getattr(scripted_llm, form)(subject(form)):
                pieces.append(piece)
                script.release()
            return pieces

        if is_async(form):
            pieces = run(first_then_rest())
        else:
            pieces = []
            for piece in getattr(scripted_llm, form)(subject(form)):
                pieces.append(piece)
                script.release()
        assert joined(pieces) == TEXT

    @pytest.mark.parametrize("form", STREAMS)
    def test_a_stream_without_content_ends_in_peace(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text="", deltas=[]))
        pieces = ask(scripted_llm, form, subject(form))
        assert joined(pieces) == ""
        assert pieces, "agents need a last chunk"
        assert text_of(pieces[-1]) == ""

    @pytest.mark.parametrize("form", ["stream_chat", "stream_complete"])
    @pytest.mark.parametrize("read", [0, 1])
    def test_closing_a_stream_closes_the_connection(
        self, scripted_llm: Any, script: ScriptedServer, form: str, read: int
    ) -> None:
        script.say(Reply(text=TEXT, hold_after=3))
        stream = getattr(scripted_llm, form)(subject(form))
        for _ in range(read):
            next(stream)
        stream.close()
        assert nobody_waits(script)

    @pytest.mark.parametrize("form", ["astream_chat", "astream_complete"])
    @pytest.mark.parametrize("read", [0, 1])
    def test_closing_an_async_stream_closes_the_connection(
        self, scripted_llm: Any, script: ScriptedServer, form: str, read: int
    ) -> None:
        script.say(Reply(text=TEXT, hold_after=3))

        async def abandon() -> bool:
            stream = await getattr(scripted_llm, form)(subject(form))
            for _ in range(read):
                await anext(stream)
            await stream.aclose()
            return await asyncio.to_thread(nobody_waits, script)

        assert run(abandon())

    @pytest.mark.parametrize("form", ["astream_chat", "astream_complete"])
    def test_cancelling_a_stream_closes_the_connection(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=TEXT, hold_after=3))

        async def read(first: asyncio.Event) -> None:
            async for _ in await getattr(scripted_llm, form)(subject(form)):
                first.set()

        async def cancel() -> bool:
            first = asyncio.Event()
            task = asyncio.create_task(read(first))
            await first.wait()
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await asyncio.to_thread(script.client_hung_up)

        assert run(cancel())

    @pytest.mark.parametrize("form", ["achat", "acomplete"])
    def test_cancelling_a_call_closes_the_connection(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text=TEXT, hold_after=0))

        async def cancel() -> bool:
            task = asyncio.create_task(getattr(scripted_llm, form)(subject(form)))
            await asyncio.to_thread(script.was_asked)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await asyncio.to_thread(self.call_was_dropped, script)

        assert run(cancel())

    @pytest.mark.parametrize("form", STREAMS)
    def test_a_cut_stream_is_an_error(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT, is_cut=True))
        with pytest.raises(Exception):  # noqa: B017, PT011 - any type will do: half an answer must not look whole
            ask(scripted_llm, form, subject(form))

    @pytest.mark.parametrize("form", STREAMS)
    def test_an_error_inside_a_stream_is_raised(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(Reply(text=TEXT, error_event={"error": {"message": "provider went away", "code": 502}}))
        with pytest.raises(Exception):  # noqa: B017, PT011 - any type will do
            ask(scripted_llm, form, subject(form))


def nobody_waits(script: ScriptedServer) -> bool:
    """Whether the client hung up, or never called: some streams open when they are first read."""
    return not script.was_asked(within_s=0.2) or script.client_hung_up()
