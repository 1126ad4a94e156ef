"""Receipts where LangChain users look for them: callback handlers that hear every settlement of a run.

A receipt can reach a handler in four ways, and is counted once, by its call id:

    on_llm_end             inside the finished message (invoke, stream, batch, agents, graphs)
    on_llm_error           on the error
    on_stream_event        in the `message-finish` event of v3 streams
    the model's own report when core says nothing: a stream that was dropped half-way, a call that was
                           cancelled or timed out. It goes to the handler of `get_settlement_callback()` that
                           was active when the call began, and to the handlers that saw the run start.

An answer out of a cache was paid for earlier and is not counted again. It does not know how payments work,
and it does not read the chain: `update` takes what a reconciler found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from uuid import UUID
from weakref import WeakSet, WeakValueDictionary

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.manager import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.tracers.context import register_configure_hook

from langchain_opengradient.blocks import PROVIDER
from langchain_opengradient.conversions import RECEIPT_KEY, is_from_cache
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import format_amount
from opengradient_x402.process import OwnLock

_log = logging.getLogger(__name__)

_UUID_LENGTH: Final = 36


class SettlementCallbackHandler(BaseCallbackHandler):
    """Collects the receipt of every paid call of the runs that it is attached to.

    Attach it (`config={"callbacks": [handler]}`, or a model's `callbacks`), or use `get_settlement_callback()`.
    Safe to share between threads, tasks and runs.
    """

    run_inline = True  # in async runs: before the run returns, and on the caller's side of a thread pool

    def __init__(
        self,
        *,
        on_receipt: Callable[[SettlementReceipt], None] | None = None,
        parent: SettlementCallbackHandler | None = None,
    ) -> None:
        self._lock = OwnLock()  # reentrant: a guard reads the receipts while it decides
        self._receipts: dict[str, SettlementReceipt] = {}
        self._on_receipt = on_receipt
        self._parent = parent
        self._open_runs: dict[UUID, _Listeners] = {}

    @property
    def receipts(self) -> tuple[SettlementReceipt, ...]:
        """One receipt per paid call, in the order in which they were heard."""
        with self._lock:
            return tuple(self._receipts.values())

    @property
    def calls(self) -> int:
        """How many paid calls were heard."""
        return len(self._receipts)

    @property
    def authorizations(self) -> int:
        """How many payment signatures they needed: one serves all calls of a session."""
        return len({receipt.authorization_id for receipt in self.receipts})

    @property
    def spent_atomic(self) -> int:
        """What the calls cost, at most, in atomic units of the asset.

        A settled share where the chain is known, else the gateway's claim. Where neither is known (a dropped
        stream), what is left of the authorization: it may still be taken.
        """
        return spent_at_most_atomic(self.receipts)

    @property
    def spent_opg(self) -> str:
        """`spent_atomic` in OPG, as a decimal string."""
        return format_amount(self.spent_atomic)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(calls={self.calls}, authorizations={self.authorizations}, "
            f"spent_opg={self.spent_opg!r})"
        )

    def hear(self, receipt: SettlementReceipt) -> None:
        """Count `receipt`, unless its call was counted already."""
        with self._lock:
            is_new = receipt.call_id not in self._receipts
            if is_new:
                self._receipts[receipt.call_id] = receipt
        if is_new and self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except Exception:  # noqa: BLE001 - the listener's boundary: its fault must not hide a paid answer
                _log.exception("A receipt listener failed for call %s", receipt.call_id)
        if self._parent is not None:
            self._parent.hear(receipt)

    def update(self, receipt: SettlementReceipt) -> None:
        """Replace what was heard of a call by what is known now (settled, expired, disputed)."""
        with self._lock:
            if receipt.call_id in self._receipts:
                self._receipts[receipt.call_id] = receipt
        if self._parent is not None:
            self._parent.update(receipt)

    # LangChain's events

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002 - the framework's signature
        messages: list[list[BaseMessage]],  # noqa: ARG002 - the framework's signature
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ARG002 - the framework's signature
    ) -> None:
        """Remember that this handler listens to the run, in case only the model hears how it ends."""
        if (metadata or {}).get("ls_provider") == PROVIDER:
            listeners = _listening.setdefault(run_id, _Listeners())
            listeners.handlers.add(self)
            self._open_runs[run_id] = listeners

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Hear the receipts inside the finished messages."""
        self._hear_generations(response)
        self.forget(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Hear the receipt on the error, or in what was streamed before it."""
        receipt = getattr(error, "receipt", None)
        if isinstance(receipt, SettlementReceipt):
            self.hear(receipt)
        if isinstance(response := kwargs.get("response"), LLMResult):
            self._hear_generations(response)
        if receipt is not None or isinstance(error, Exception):
            self.forget(run_id)
        # else: dropped or cancelled. The model reports when it has closed the connection.

    def forget(self, run_id: UUID) -> None:
        """The run is over: nothing more will be heard of it."""
        self._open_runs.pop(run_id, None)

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Hear the receipt in the last event of a v3 stream."""
        if event.get("event") == "message-finish" and not is_from_cache(event.get("usage")):
            self._hear_metadata(event.get("metadata") or {})

    def _hear_generations(self, response: LLMResult) -> None:
        for generation in (one for several in response.generations for one in several):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if isinstance(message, AIMessage) and not is_from_cache(message.usage_metadata):
                self._hear_metadata(message.response_metadata)

    def _hear_metadata(self, metadata: Mapping[str, Any]) -> None:
        if isinstance(receipt := metadata.get(RECEIPT_KEY), dict):
            self.hear(SettlementReceipt.from_json(receipt))


@contextmanager
def get_settlement_callback() -> Iterator[SettlementCallbackHandler]:
    """Hear every receipt of the `with` block: chains, agents, parallel branches, tools, dropped streams.

    Blocks nest; the outer one hears everything that the inner one hears. A plain `threading.Thread` starts
    with an empty context: run it through `contextvars.copy_context().run`, as LangChain's own threads are.
    """
    handler = SettlementCallbackHandler(parent=_active.get())
    token = _active.set(handler)
    try:
        yield handler
    finally:
        _active.reset(token)


def spent_at_most_atomic(receipts: Iterable[SettlementReceipt]) -> int:
    """Upper bound of what the calls cost; see `SettlementCallbackHandler.spent_atomic`."""
    total = 0
    known: dict[str, int] = {}
    open_ended: dict[str, int] = {}
    for receipt in receipts:
        amount = receipt.settled_atomic if receipt.settled_atomic is not None else receipt.cost_atomic
        if amount is None and receipt.is_final:
            amount = 0
        if amount is None:
            open_ended[receipt.authorization_id] = receipt.authorized_atomic
        else:
            total += amount
            known[receipt.authorization_id] = known.get(receipt.authorization_id, 0) + amount
    return total + sum(max(cap - known.get(key, 0), 0) for key, cap in open_ended.items())


class SettlementReport:
    """One call's way to the handlers that core may forget to tell. Made when the call begins."""

    __slots__ = ("_chunk", "_context_handler", "_run_id", "receipt")

    def __init__(self, run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> None:
        # Read now: a dropped async stream is closed later, by the event loop, in somebody else's context.
        self._context_handler = _active.get()
        self._run_id = None if run_manager is None else run_manager.run_id
        self._chunk: ChatGenerationChunk | None = None
        self.receipt: SettlementReceipt | None = None

    def watch(self, chunk: ChatGenerationChunk) -> None:
        """Keep a chunk that core is about to see: it writes the run's id on it, and says it nowhere else."""
        self._chunk = chunk

    def attach(self, error: BaseException) -> None:
        """Put the receipt on a cancellation, which core shows to the handlers and knows nothing about."""
        if self.receipt is not None:
            error.__dict__["receipt"] = self.receipt

    def receive(self, receipt: SettlementReceipt) -> None:
        """Take the call's receipt; the gateway client calls this exactly once per paid call."""
        self.receipt = receipt
        if self._context_handler is not None:
            self._context_handler.hear(receipt)

    def close(self) -> None:
        """Tell the handlers that saw the run start. They count a call once, so this is right at any end."""
        run_id = self._run_id if self._run_id is not None else self._run_id_on_chunk()
        listeners = None if run_id is None else _listening.get(run_id)
        if run_id is None or listeners is None:
            return
        for handler in list(listeners.handlers):
            if self.receipt is not None:
                handler.hear(self.receipt)
            handler.forget(run_id)

    def _run_id_on_chunk(self) -> UUID | None:
        if self._chunk is None or not self._chunk.message.id:
            return None
        try:
            return UUID(self._chunk.message.id[-_UUID_LENGTH:])
        except ValueError:
            return None


class _Listeners:
    """The handlers that saw one run start. Lives as long as one of them remembers the run."""

    __slots__ = ("__weakref__", "handlers")

    def __init__(self) -> None:
        self.handlers: WeakSet[SettlementCallbackHandler] = WeakSet()


_listening: WeakValueDictionary[UUID, _Listeners] = WeakValueDictionary()

_active: ContextVar[SettlementCallbackHandler | None] = ContextVar("opengradient_settlements", default=None)
# Once per process: every registered hook is looked at on every run, and hooks cannot be taken back.
register_configure_hook(_active, inheritable=True)
