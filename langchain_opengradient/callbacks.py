"""Receipts where LangChain users look for them: callback handlers that get every receipt of a run.

A receipt can reach a handler in four ways, and is counted once, by its call id:

    on_llm_end             inside the finished message (invoke, stream, batch, agents, graphs)
    on_llm_error           on the error
    on_stream_event        in the `message-finish` event of v3 streams
    the model's own report at the end of every call, also when core says nothing: a stream that was dropped
                           half-way, a call that was cancelled or timed out. It goes to the handler of
                           `get_settlement_callback()` that was active when the call began, and to those of its run.

An answer out of a cache was paid for earlier and is not counted again. Receipts are shown as the ledger knows them
when they are looked at. It does not know how payments work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.manager import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook

from langchain_opengradient.blocks import PROVIDER
from langchain_opengradient.conversions import RECEIPT_KEY, is_from_cache
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import only, shown
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.telemetry.blocks import Blocks
from opengradient_x402.telemetry.kept_receipts import KeptReceipts
from opengradient_x402.telemetry.spans import annotate, openinference

if TYPE_CHECKING:
    from opengradient_x402.gateway.streams import AsyncCompletionStream, CompletionStream

_log = logging.getLogger(__name__)


class SettlementCallbackHandler(BaseCallbackHandler):
    """Collects the receipt of every paid call of the runs that it is attached to.

    Attach it (`config={"callbacks": [handler]}`, or a model's `callbacks`), or use `get_settlement_callback()`.
    Safe to share between threads, tasks and runs.
    """

    run_limit: RunLimit | None = None
    """What the calls that this handler listens to may spend; a `SpendGuard` has one."""

    run_inline = True  # in async runs: before the run returns, and on the caller's side of a thread pool

    def __init__(
        self,
        *,
        on_receipt: Callable[[SettlementReceipt], None] | None = None,
        parent: SettlementCallbackHandler | None = None,
        most: int | None = None,
    ) -> None:
        """`most` is how many receipts are kept (10,000); of older ones, number and cost are."""
        self._kept = KeptReceipts(most=most, on_news=self._take_news)
        self._on_receipt = on_receipt
        self._parent = parent

    @property
    def receipts(self) -> tuple[SettlementReceipt, ...]:
        """One receipt per paid call, in the order in which they came, as the ledger knows them now."""
        return self._kept.now()

    @property
    def calls(self) -> int:
        """How many paid calls there were."""
        return self._kept.calls

    @property
    def authorizations(self) -> int:
        """How many payment signatures they needed: one serves all calls of a session."""
        return self._kept.authorizations

    @property
    def spent_atomic(self) -> int:
        """What the calls cost, at most, in atomic units of the asset. Raises ValueError for two assets.

        A settled share where the ledger knows it, else the gateway's claim. Where neither is known (a dropped
        stream), what is left of the authorization: it may still be taken.
        """
        return only(self._kept.spent_at_most(self._kept.now()))

    @property
    def spent(self) -> str:
        """What the calls cost, at most: "0.0125 OPG", or "0.0125 OPG + 0.02 USDC"."""
        return shown(self._kept.spent_at_most(self._kept.now()))

    @property
    def spent_opg(self) -> str:
        """`spent` without the symbol, where OPG is the only token: "0.0125". Raises ValueError for another token."""
        number, _, symbol = self.spent.partition(" ")
        if symbol not in ("", "OPG"):
            raise ValueError(f"These calls were not paid in OPG alone ({self.spent}): look at `spent`.")
        return number

    def __repr__(self) -> str:
        return f"{type(self).__name__}(calls={self.calls}, authorizations={self.authorizations})"

    def receive(self, receipt: SettlementReceipt) -> None:
        """Count `receipt`, unless its call was counted already."""
        is_new = self._kept.add(receipt)
        if is_new and self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except Exception:  # noqa: BLE001 - the listener's boundary: its fault must not hide a paid answer
                _log.exception("A receipt listener failed for call %s", receipt.call_id)
        if self._parent is not None:
            self._parent.receive(receipt)

    def update(self, receipt: SettlementReceipt) -> None:
        """Replace what is kept of a call by what is known now (settled, expired, disputed)."""
        self._kept.replace(receipt)
        if self._parent is not None:
            self._parent.update(receipt)

    def refresh(self) -> None:
        """Ask the chain about what is not final yet. What the ledger knows is shown without it.

        Raises ChainUnavailable.
        """
        self._kept.refresh()

    async def arefresh(self) -> None:
        """As `refresh`, for coroutines."""
        await self._kept.arefresh()

    def clear(self) -> None:
        """Forget the calls. The ledger keeps them."""
        self._kept.clear()

    def _take_news(self, receipt: SettlementReceipt) -> None:
        """More is known of a call than before; its receipt is replaced already."""

    # LangChain's events

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the framework's signature
        messages: list[list[BaseMessage]],  # noqa: ARG002 - the framework's signature
        *,
        run_id: UUID,  # noqa: ARG002 - the framework's signature
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002 - the framework's signature
    ) -> None:
        """Let the model know that this handler listens to the call, before core makes it."""
        if (metadata or {}).get("ls_provider") == PROVIDER:
            _announced.set((*_announced.get(), self))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Take the receipts inside the finished messages."""
        self._hear_generations(response)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Take the receipt on the error, or in what was streamed before it."""
        receipt = getattr(error, "receipt", None)
        if isinstance(receipt, SettlementReceipt):
            self.receive(receipt)
        if isinstance(response := kwargs.get("response"), LLMResult):
            self._hear_generations(response)

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Take the receipt in the last event of a v3 stream."""
        if event.get("event") == "message-finish" and not is_from_cache(event.get("usage")):
            self._hear_metadata(event.get("metadata") or {})

    def _hear_generations(self, response: LLMResult) -> None:
        for generation in (one for several in response.generations for one in several):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if isinstance(message, AIMessage) and not is_from_cache(message.usage_metadata):
                self._hear_metadata(message.response_metadata)

    def _hear_metadata(self, metadata: Mapping[str, Any]) -> None:
        receipt = metadata.get(RECEIPT_KEY)
        if isinstance(receipt, dict) and str(receipt.get("call_id")) not in self._kept:
            self.receive(SettlementReceipt.from_json(receipt))


@contextmanager
def get_settlement_callback() -> Iterator[SettlementCallbackHandler]:
    """Get every receipt of the `with` block: chains, agents, parallel branches, tools, dropped streams.

    Blocks nest; the outer one gets everything that the inner one gets. A plain `threading.Thread` starts
    with an empty context: run it through `contextvars.copy_context().run`, as LangChain's own threads are. A block
    in a generator gets the calls of all its steps, also where a web server runs each step in another thread.
    """
    handler = SettlementCallbackHandler(parent=_Innermost.get())
    with _listening.opened(handler):
        try:
            yield handler
        finally:
            for inner in _listening.values():
                if inner._parent is handler:  # generators that take turns: the inner block ends later
                    inner._parent = handler._parent


class SettlementReport:
    """One call's way to the handlers of its run, whatever core tells them. Made when the call begins."""

    __slots__ = ("_handlers", "_outermost", "_run_id", "receipt")

    def __init__(self, run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> None:
        # Read now: a dropped async stream is closed later, by the event loop, in somebody else's context.
        told = _announced.get() if run_manager is None else run_manager.handlers
        found = dict.fromkeys((*told, *_listening.values()))
        self._handlers = tuple(handler for handler in found if isinstance(handler, SettlementCallbackHandler))
        self._run_id, parent = _run.get() if run_manager is None else (run_manager.run_id, run_manager.parent_run_id)
        self._outermost = _RUNS.outermost_above(parent)
        self.receipt: SettlementReceipt | None = None

    def begin(self) -> dict[str, Any]:
        """What the gateway client is told: where the receipt goes, the limits of the runs, and the outermost one."""
        limits = [handler.run_limit for handler in self._handlers if handler.run_limit is not None]
        return {
            "on_receipt": self._receive,
            "limits": limits,
            "run": None if self._outermost is None else str(self._outermost),
        }

    def attach(self, error: BaseException) -> None:
        """Put the receipt on a cancellation, which core shows to the handlers and knows nothing about."""
        if self.receipt is not None:
            error.__dict__["receipt"] = self.receipt

    def _receive(self, receipt: SettlementReceipt) -> None:
        """Take the call's receipt; the gateway client calls this exactly once per paid call."""
        self.receipt = receipt
        annotate(receipt, span=self._span())
        for handler in self._handlers:
            handler.receive(receipt)

    def opened(self, stream: CompletionStream | AsyncCompletionStream) -> None:
        """Put on the run's span what pays for a stream: of a dropped one, core ends the span before the receipt."""
        if (span := self._span()) is not None:
            annotate(stream.receipt, span=span)

    def _span(self) -> Any | None:
        """The span of this run, where OpenInference traces LangChain; it is nobody's current one."""
        tracing = openinference("langchain")
        if tracing is None or self._run_id is None:
            return None
        return tracing.LangChainInstrumentor().get_span(self._run_id)


def expect_call() -> None:
    """A call of a model is about to begin: the listeners of the call before do not listen to this one.

    Core asks a model for its parameters, tells the handlers that the call starts, and makes it, in one context.
    """
    _announced.set(())
    _run.set((None, None))


class _Runs(BaseCallbackHandler):
    """Knows the outermost run of every run that is under way, of which core tells a model only the nearest.

    It gets the events of all chains, tools and retrievers. A run that never ends is forgotten after a while.
    """

    run_inline = True
    ignore_llm = ignore_retry = ignore_custom_event = True

    def __init__(self) -> None:
        self._outermost: dict[UUID, UUID] = {}

    def outermost_above(self, parent_run_id: UUID | None) -> UUID | None:
        """The outermost run of what has this parent; None for what no run made.

        Core knows no parent where a run gives its calls callbacks of their own: then the context knows it.
        """
        if parent_run_id is None and (config := var_child_runnable_config.get()) is not None:
            parent_run_id = getattr(config.get("callbacks"), "parent_run_id", None)
        return None if parent_run_id is None else self._outermost.get(parent_run_id, parent_run_id)

    def on_chat_model_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        """Core makes the call next, perhaps without a run manager."""
        _run.set((run_id, parent_run_id))

    def on_chain_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        """A run begins; what it starts has the same outermost run."""
        self._outermost[run_id] = self.outermost_above(parent_run_id) or run_id
        while len(self._outermost) > _MOST_RUNS:
            self._outermost.pop(next(iter(self._outermost), run_id), None)

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        """It has ended."""
        self._outermost.pop(run_id, None)

    on_tool_start = on_retriever_start = on_chain_start
    on_chain_error = on_tool_end = on_tool_error = on_retriever_end = on_retriever_error = on_chain_end


_MOST_RUNS: Final = 10_000
_RUNS: Final = _Runs()
_run: ContextVar[tuple[UUID | None, UUID | None]] = ContextVar("opengradient_run_of_call", default=(None, None))
"""The run of the call that core is about to make, and the one that it belongs to."""
# Every run of the process has it: a call is the innermost of its runs, and has to know the outermost.
register_configure_hook(ContextVar("opengradient_runs", default=_RUNS), inheritable=True)


def are_ours(handlers: Sequence[BaseCallbackHandler]) -> bool:
    """Whether nobody hears of this run but this package."""
    return all(type(handler) in (_Runs, SettlementCallbackHandler) for handler in handlers)


_announced: ContextVar[tuple[SettlementCallbackHandler, ...]] = ContextVar("opengradient_announced", default=())
"""The handlers that were told of the call that core is about to make: it streams without a run manager."""

_listening: Final = Blocks[SettlementCallbackHandler]("settlements")


class _Innermost:
    """What core asks, as it asks context variables, for the handler of the innermost block, which tells the others."""

    @staticmethod
    def get() -> SettlementCallbackHandler | None:
        handlers = _listening.values()
        return handlers[-1] if handlers else None


# Once per process: every registered hook is looked at on every run, and hooks cannot be taken back.
register_configure_hook(cast("ContextVar[Any]", _Innermost), inheritable=True)
