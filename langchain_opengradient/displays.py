"""Handlers that show tokens, dots, counts and Markdown while an answer streams.

Attach one in `callbacks`; each works with `stream`, `astream`, agents and v3 event streams. They only show:
they do not know prices beyond the model catalog, and they never change what is streamed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from importlib import import_module
from typing import Any, Protocol, TextIO
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from langchain_opengradient.conversions import RECEIPT_KEY, is_from_cache
from langchain_opengradient.messages import count_text
from opengradient_x402.models import find_model
from opengradient_x402.money import format_amount


class _TokenHandler(BaseCallbackHandler):
    """Turns both of core's streaming events into one: `on_text(text, run_id=…)`."""

    run_inline = True  # in order, also in async runs

    def on_text_piece(self, text: str, *, run_id: UUID) -> None:
        raise NotImplementedError

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Core's event for streamed chunks; `token` is a string, or content blocks (`output_version="v1"`)."""
        if text := _text_of(token):
            self.on_text_piece(text, run_id=run_id)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Core's event for v3 streams."""
        delta = event.get("delta") or {}
        if event.get("event") == "content-block-delta" and delta.get("type") == "text-delta":
            self.on_text_piece(delta["text"], run_id=run_id)


class OnTokenHandler(_TokenHandler):
    """Calls `on_token(text)` for every piece of text: `OnTokenHandler(print)`."""

    def __init__(self, on_token: Callable[[str], object]) -> None:
        self._on_token = on_token

    def on_text_piece(self, text: str, *, run_id: UUID) -> None:  # noqa: ARG002 - one listener for all runs
        """Pass the text on."""
        self._on_token(text)


class ProgressDotsHandler(_TokenHandler):
    """Prints a label when an answer starts, a dot per piece of text, and ends the line with it."""

    def __init__(self, *, label: str = "Generating response", file: TextIO | None = None) -> None:
        self._label = label
        self._file = file

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the framework's signature
        messages: list[list[BaseMessage]],  # noqa: ARG002 - the framework's signature
        **kwargs: Any,  # noqa: ARG002 - the framework's signature
    ) -> None:
        """Print the label."""
        self._write(self._label)

    def on_text_piece(self, text: str, *, run_id: UUID) -> None:  # noqa: ARG002 - a dot is a dot
        """Print a dot."""
        self._write(".")

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """End the line."""
        self._write("\n")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """End the line with the reason why the answer stopped."""
        self._write(f" ({type(error).__name__})\n")

    def _write(self, text: str) -> None:
        file = self._file if self._file is not None else sys.stdout
        file.write(text)
        file.flush()


class TokenCounterHandler(_TokenHandler):
    """Shows a live estimate of tokens and cost while an answer streams, and the real ones at its end.

    `tokens`, and `cost_usd` while the model's price is known, are estimates until the answer is complete.
    """

    def __init__(self, *, file: TextIO | None = None, is_quiet: bool = False) -> None:
        self._file = file
        self._is_quiet = is_quiet
        self._price: dict[UUID, Decimal] = {}
        self._running: dict[UUID, int] = {}
        self._finished_tokens = 0
        self.cost_usd = Decimal(0)
        self.cost_atomic = 0
        self._costs: dict[str, Decimal] = {}

    @property
    def tokens(self) -> int:
        """Output tokens so far, over all runs."""
        return self._finished_tokens + sum(self._running.values())

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the framework's signature
        messages: list[list[BaseMessage]],  # noqa: ARG002 - the framework's signature
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002 - the framework's signature
    ) -> None:
        """Look up the price."""
        info = find_model((metadata or {}).get("ls_model_name", ""))
        usd_per_mtok = None if info is None else info.output_usd_per_mtok
        self._price[run_id] = (usd_per_mtok or Decimal(0)) / 1_000_000
        self._running[run_id] = 0

    def on_text_piece(self, text: str, *, run_id: UUID) -> None:
        """Count and show."""
        added = count_text(text)
        self._running[run_id] = self._running.get(run_id, 0) + added
        self.cost_usd += added * self._price.get(run_id, Decimal(0))
        self._show(f"\rTokens so far: ~{self.tokens} (~${self.cost_usd:.6f})")

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Replace this run's estimate by what the gateway counted, and add what it cost."""
        estimate, price = self._running.pop(run_id, 0), self._price.pop(run_id, Decimal(0))
        for message in _messages_of(response):
            if is_from_cache(message.usage_metadata):
                continue
            counted = estimate if message.usage_metadata is None else message.usage_metadata["output_tokens"]
            self._finished_tokens += counted
            self.cost_usd += (counted - estimate) * price
            receipt = message.response_metadata.get(RECEIPT_KEY) or {}
            cost_atomic = int(receipt.get("settled_atomic") or receipt.get("cost_atomic") or 0)
            self.cost_atomic += cost_atomic
            if cost_atomic:
                self._count(receipt, cost_atomic)
        costs = " + ".join(f"{format(amount.normalize(), 'f')} {symbol}" for symbol, amount in self._costs.items())
        paid = f", {costs} with the prompt" if costs else ""
        self._show(f"\rTokens: {self.tokens} (${self.cost_usd:.6f}{paid})\n")

    def _count(self, receipt: Mapping[str, Any], cost_atomic: int) -> None:
        text, _, symbol = str(receipt.get("cost", "")).partition(" ")
        if (decimals := receipt.get("asset_decimals")) is not None:  # a whole receipt
            text, symbol = format_amount(cost_atomic, decimals=int(decimals)), str(receipt.get("asset_symbol"))
        if text:
            self._costs[symbol] = self._costs.get(symbol, Decimal(0)) + Decimal(text)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Keep the estimate: what was streamed is charged."""
        self._finished_tokens += self._running.pop(run_id, 0)
        self._price.pop(run_id, None)
        self._show("\n")

    def _show(self, text: str) -> None:
        if not self._is_quiet:
            file = self._file if self._file is not None else sys.stdout
            file.write(text)
            file.flush()


class _Display(Protocol):
    def update(self, markdown: str) -> None: ...


class MarkdownDisplayHandler(_TokenHandler):
    """Renders the answer as Markdown in a Jupyter cell, and keeps it up to date as tokens arrive.

    `open_display` makes the place to render into; by default IPython's, which must be installed.
    """

    def __init__(self, *, min_interval_s: float = 0.05, open_display: Callable[[], _Display] | None = None) -> None:
        self._min_interval_s = min_interval_s
        self._open_display = open_display if open_display is not None else _open_jupyter_display
        self._displays: dict[UUID, _Display] = {}
        self._texts: dict[UUID, str] = {}
        self._shown_at_s: dict[UUID, float] = {}

    def on_text_piece(self, text: str, *, run_id: UUID) -> None:
        """Add the text, and render unless that was done a moment ago."""
        self._texts[run_id] = self._texts.get(run_id, "") + text
        now_s = time.monotonic()
        if now_s - self._shown_at_s.get(run_id, float("-inf")) >= self._min_interval_s:
            self._shown_at_s[run_id] = now_s
            self._render(run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Render the whole answer, streamed or not."""
        if run_id not in self._texts:
            self._texts[run_id] = "".join(message.text for message in _messages_of(response))
        self._close(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Render what there is."""
        self._close(run_id)

    def _render(self, run_id: UUID) -> None:
        if run_id not in self._displays:
            self._displays[run_id] = self._open_display()
        self._displays[run_id].update(self._texts[run_id])

    def _close(self, run_id: UUID) -> None:
        if self._texts.get(run_id):
            self._render(run_id)
        for state in (self._displays, self._texts, self._shown_at_s):
            state.pop(run_id, None)


class _JupyterDisplay:
    def __init__(self) -> None:
        try:
            display = import_module("IPython.display")
        except ImportError as exc:
            raise ImportError(
                "MarkdownDisplayHandler renders through IPython, which is not installed. Install `ipython`, "
                "run inside Jupyter, or pass `open_display`."
            ) from exc
        self._markdown = display.Markdown
        self._handle = display.display(self._markdown(""), display_id=True)

    def update(self, markdown: str) -> None:
        self._handle.update(self._markdown(markdown))


def _open_jupyter_display() -> _Display:
    return _JupyterDisplay()


def _text_of(token: Any) -> str:
    if isinstance(token, str):
        return token
    return "".join(block.get("text", "") for block in token if isinstance(block, dict) and block.get("type") == "text")


def _messages_of(response: LLMResult) -> list[AIMessage]:
    generations = (generation for several in response.generations for generation in several)
    return [
        generation.message
        for generation in generations
        if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage)
    ]
