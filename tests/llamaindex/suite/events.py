"""What handlers hear of a call: each call once, with the right payload, whichever way it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

from llamaindex.suite.base import LLMTestBase
from llamaindex.suite.forms import ALL, STREAMS, ask, is_async, run, subject
from llamaindex.suite.server import USAGE, Reply, ScriptedServer

STARTS = LLMChatStartEvent, LLMCompletionStartEvent
ENDS = LLMChatEndEvent, LLMCompletionEndEvent
CHUNKS = LLMChatInProgressEvent, LLMCompletionInProgressEvent


class EventRecorder(BaseEventHandler):
    """Keeps every event of the dispatcher."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "EventRecorder"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self._events.append(event)

    def of(self, *kinds: type[BaseEvent]) -> list[Any]:
        """The events of some kinds, in order."""
        return [event for event in self._events if isinstance(event, kinds)]


@contextmanager
def recorded() -> Iterator[EventRecorder]:
    """Hear the root dispatcher's events inside the block."""
    dispatcher = get_dispatcher()
    recorder = EventRecorder()
    dispatcher.add_event_handler(recorder)
    try:
        yield recorder
    finally:
        dispatcher.event_handlers = [handler for handler in dispatcher.event_handlers if handler is not recorder]


class CallbackRecorder(BaseCallbackHandler):
    """Keeps every LLM event of the legacy callback manager."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.starts: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def on_event_start(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        if event_type == CBEventType.LLM:
            self.starts.append(payload or {})
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: dict[str, Any] | None = None, *_: Any, **__: Any) -> None:
        if event_type == CBEventType.LLM:
            self.ends.append(payload or {})

    def start_trace(self, trace_id: str | None = None) -> None:
        """Not needed."""

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        """Not needed."""


class EventTests(LLMTestBase):
    """One start and one end for each call, and the payloads that tracing and token counting live on."""

    @pytest.mark.parametrize("form", ALL)
    def test_one_start_and_one_end_per_call(self, scripted_llm: Any, form: str) -> None:
        with recorded() as events:
            ask(scripted_llm, form, subject(form))
        assert len(events.of(*STARTS)) == 1
        assert len(events.of(*ENDS)) == 1

    @pytest.mark.parametrize("form", ALL)
    def test_the_end_event_holds_the_form_s_own_response(self, scripted_llm: Any, form: str) -> None:
        with recorded() as events:
            last = ask(scripted_llm, form, subject(form))[-1]
        end = events.of(*ENDS)[0]
        assert isinstance(end.response, CompletionResponse if "complete" in form else ChatResponse)
        assert end.response == last

    @pytest.mark.parametrize("form", STREAMS)
    def test_each_chunk_is_an_event(self, scripted_llm: Any, form: str) -> None:
        with recorded() as events:
            pieces = ask(scripted_llm, form, subject(form))
        assert [event.response for event in events.of(*CHUNKS)] == pieces

    @pytest.mark.parametrize("form", ALL)
    def test_legacy_callbacks_hear_one_start_and_one_end(self, scripted_llm: Any, form: str) -> None:
        callbacks = CallbackRecorder()
        scripted_llm.callback_manager = CallbackManager([callbacks])
        last = ask(scripted_llm, form, subject(form))[-1]
        assert len(callbacks.starts) == len(callbacks.ends) == 1
        key = EventPayload.COMPLETION if "complete" in form else EventPayload.RESPONSE
        assert callbacks.ends[0][key] == last

    @pytest.mark.parametrize("form", ALL)
    def test_a_failed_call_is_heard_of_once(self, scripted_llm: Any, script: ScriptedServer, form: str) -> None:
        script.say(*[Reply(status=400)] * 3)
        callbacks = CallbackRecorder()
        scripted_llm.callback_manager = CallbackManager([callbacks])
        with recorded() as events, pytest.raises(Exception):  # noqa: B017, PT011 - any type will do
            ask(scripted_llm, form, subject(form))
        assert len(events.of(*STARTS)) == 1
        assert not events.of(*ENDS)
        assert [EventPayload.EXCEPTION in end for end in callbacks.ends] == [True]

    @pytest.mark.parametrize("form", ALL)
    def test_token_counting_takes_the_reported_usage(self, scripted_llm: Any, form: str) -> None:
        counter = TokenCountingHandler(tokenizer=str.split)
        scripted_llm.callback_manager = CallbackManager([counter])
        ask(scripted_llm, form, subject(form))
        assert counter.prompt_llm_token_count == USAGE["prompt_tokens"]
        assert counter.completion_llm_token_count == USAGE["completion_tokens"]

    @pytest.mark.parametrize("form", STREAMS)
    def test_a_handler_that_keeps_events_does_not_keep_a_stream_open(
        self, scripted_llm: Any, script: ScriptedServer, form: str
    ) -> None:
        script.say(Reply(text="One two three four five.", hold_after=3))
        with recorded():
            self._abandon(scripted_llm, form)
            assert script.client_hung_up()

    def _abandon(self, llm: Any, form: str) -> None:
        async def abandon() -> None:
            stream = await getattr(llm, form)(subject(form))
            await anext(stream)
            await stream.aclose()

        if is_async(form):
            run(abandon())
            return
        stream = getattr(llm, form)(subject(form))
        next(stream)
        stream.close()
