"""The handlers of the tutorials show what arrives, as it arrives, on every way of streaming."""

from __future__ import annotations

import io
import sys
from uuid import uuid4

import pytest

from langchain_opengradient import (
    MarkdownDisplayHandler,
    OnTokenHandler,
    ProgressDotsHandler,
    TokenCounterHandler,
)
from opengradient_x402.errors import GatewayUnreachable

from .conftest import BETA, HAS_V3
from .surfaces import agent

pytestmark = pytest.mark.filterwarnings(BETA)


class Screen:
    """Where Markdown is rendered: keeps every state that a reader would have seen."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def update(self, markdown: str) -> None:
        self.states.append(markdown)


async def test_every_token_reaches_the_function_on_every_way(chat):
    for run in ("stream", "v1", "astream", *(["v3"] if HAS_V3 else [])):
        tokens: list[str] = []
        model = chat(output_version="v1") if run == "v1" else chat()
        config = {"callbacks": [OnTokenHandler(tokens.append)]}
        if run == "v3":
            text = (await (await model.astream_events("Hello", config, version="v3")).output).text
        elif run == "astream":
            text = "".join([chunk.text async for chunk in model.astream("Hello", config)])
        else:
            text = "".join(chunk.text for chunk in model.stream("Hello", config))
        assert len(tokens) > 3
        assert "".join(tokens) == text


def test_dots_show_progress_and_end_the_line(chat):
    file = io.StringIO()
    pieces = [c for c in chat().stream("Hello", {"callbacks": [ProgressDotsHandler(file=file)]}) if c.text]
    assert file.getvalue() == "Generating response" + "." * len(pieces) + "\n"


def test_dots_say_why_they_stopped(chat):
    file = io.StringIO()
    broken = chat(base_url="http://127.0.0.1:9", max_retries=0)
    with pytest.raises(GatewayUnreachable):
        list(broken.stream("Hello", {"callbacks": [ProgressDotsHandler(file=file)]}))
    assert file.getvalue() == "Generating response (GatewayUnreachable)\n"


def test_the_counter_estimates_while_streaming_and_is_exact_afterwards(chat):
    file = io.StringIO()
    counter = TokenCounterHandler(file=file)
    chunks = list(chat().stream("Hello", {"callbacks": [counter]}))
    shown = file.getvalue().split("\r")
    assert len(shown) > 3
    assert all(line.startswith("Tokens so far: ~") for line in shown[1:-1])
    assert counter.tokens == chunks[-1].usage_metadata["output_tokens"]
    assert counter.cost_atomic == int(chunks[-1].response_metadata["opengradient"]["cost_atomic"])
    assert f"Tokens: {counter.tokens} ($" in shown[-1]
    assert "OPG" in shown[-1]


def test_the_counter_adds_up_an_agents_answers(chat):
    counter = TokenCounterHandler(is_quiet=True)
    runnable, given = agent(chat())
    answers = [m for m in runnable.invoke(given, {"callbacks": [counter]})["messages"] if m.type == "ai"]
    assert len(answers) == 2
    assert counter.tokens == sum(answer.usage_metadata["output_tokens"] for answer in answers)
    assert counter.cost_usd > 0


def test_markdown_grows_on_the_screen_and_ends_complete(chat):
    screens: list[Screen] = []

    def open_screen() -> Screen:
        screens.append(Screen())
        return screens[-1]

    handler = MarkdownDisplayHandler(min_interval_s=0, open_display=open_screen)
    text = "".join(chunk.text for chunk in chat().stream("Hello", {"callbacks": [handler]}))
    [screen] = screens
    assert len(screen.states) > 3
    assert all(later.startswith(earlier) for earlier, later in zip(screen.states, screen.states[1:], strict=False))
    assert screen.states[-1] == text


def test_markdown_is_rendered_at_most_so_often_and_for_whole_answers_too(chat):
    screen = Screen()
    handler = MarkdownDisplayHandler(min_interval_s=60, open_display=lambda: screen)
    text = "".join(chunk.text for chunk in chat().stream("Hello", {"callbacks": [handler]}))
    assert len(screen.states) == 2
    assert screen.states[-1] == text
    assert chat().invoke("Hello", {"callbacks": [handler]}).text == screen.states[-1]


def test_outside_jupyter_the_markdown_display_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    handler = MarkdownDisplayHandler()
    with pytest.raises(ImportError, match="ipython"):
        handler.on_llm_new_token("x", run_id=uuid4())
