"""Receipts as LlamaIndex events.

`SettlementEvent` is dispatched once per paid call, as soon as its payment is known: for a stream that is when
it opens, so a stream that nobody reads to its end is reported all the same. What is learned later about the
same call (its end, tokens, cost) follows as `SettlementUpdateEvent` with the same call id.

Both are dispatched inside the model's own call and in its context, so the active span and the tags of the
surrounding run (`llamaindex.run_id`) are theirs: engines and agents drop `ChatResponse.raw`, events they cannot
drop. Does not know the gateway client beyond the receipts that it reports.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from llama_index_opengradient.runs import RUN_ID_TAG, current_run
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.telemetry.blocks import Blocks
from opengradient_x402.telemetry.spans import annotate, openinference

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger

_logger = logging.getLogger(__name__)

DISPATCHER_NAME: Final = "llama_index_opengradient"


class ReceiptEvent(BaseEvent):
    """What both events share; listen to this type to get every state of every receipt."""

    receipt: SettlementReceipt

    @classmethod
    def class_name(cls) -> str:
        return "ReceiptEvent"

    @property
    def run_id(self) -> str | None:
        """The run of the agent or workflow that made the call; None for a call outside of one."""
        run_id: str | None = self.tags.get(RUN_ID_TAG)
        return run_id

    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        """Plain data, with the receipt in its JSON form."""
        data = super().model_dump(**kwargs)
        data["receipt"] = self.receipt.to_json()
        return data


class SettlementEvent(ReceiptEvent):
    """A call was paid for: dispatched exactly once for each call."""

    @classmethod
    def class_name(cls) -> str:
        return "SettlementEvent"


class SettlementUpdateEvent(ReceiptEvent):
    """More is known of a call than its `SettlementEvent` said: this receipt replaces the earlier one."""

    @classmethod
    def class_name(cls) -> str:
        return "SettlementUpdateEvent"


class Listener(Protocol):
    """A handler that listens in a context."""

    def handle(self, event: BaseEvent, **kwargs: Any) -> Any: ...


@runtime_checkable
class Expecting(Protocol):
    """A handler that finds the calls of other processes in the ledger, by the group that their ids begin with."""

    group: str

    def expect(self, group: str, ledger: Ledger) -> None: ...


listening: Final = Blocks[Listener]("listening")
"""The handlers that listen in `with` blocks."""


def expect_calls(ledger: Callable[[], Ledger]) -> str:
    """For a model that is about to leave for another process: the group of the calls that it makes there.

    They are found by the handlers of this context; where there are none, by those of the only block that listens, and
    by those that listen to the whole process. Empty when nobody listens.
    """
    # A pool pickles in a thread of its own, outside of any block.
    listeners = listening.values() or listening.alone()
    expecting = [one for one in (*_attached(), *listeners) if isinstance(one, Expecting)]
    group = expecting[-1].group if expecting else ""
    for one in expecting:
        one.expect(group, ledger())
    return group


def _attached() -> Iterable[Any]:
    """The handlers on the dispatchers that settlement events pass."""
    dispatcher = get_dispatcher(DISPATCHER_NAME)
    while True:
        yield from dispatcher.event_handlers
        if not dispatcher.propagate:
            return
        dispatcher = dispatcher.parent


class ReceiptReporter:
    """Tells everybody who listens of the receipts of one call. Made when the call starts, in its context.

    The context is kept because a call may end elsewhere: an abandoned stream is closed where it is dropped, in
    another task or thread, where other tags and spans are active.
    """

    def __init__(self, listeners: Iterable[Callable[[SettlementReceipt], None]] = ()) -> None:
        self._context = contextvars.copy_context()
        tracing = openinference("llama_index")
        self._span = None if tracing is None else tracing.get_current_span()
        self._listeners = tuple(listeners)
        self._handlers = listening.values()
        self._run = current_run()
        self._told: SettlementReceipt | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the gateway client is told: where the receipt goes, the limits of the runs, and the run of the call."""
        limits = [getattr(handler, "run_limit", None) for handler in (*self._handlers, *_attached())]
        return {
            "on_receipt": self,
            "limits": [one for one in dict.fromkeys(limits) if isinstance(one, RunLimit)],
            "run": self._run,
        }

    def __call__(self, receipt: SettlementReceipt | None) -> None:
        """Tell of a receipt, unless there is none or this very state of it was told. Never raises.

        Money has moved when this is called, so a listener's fault must not turn a paid answer into an error.
        """
        if receipt is None or receipt == self._told:
            return
        event_type = SettlementEvent if self._told is None else SettlementUpdateEvent
        self._context.run(self._tell, event_type, receipt)
        self._told = receipt

    def _tell(self, event_type: type[ReceiptEvent], receipt: SettlementReceipt) -> None:
        annotate(receipt, span=self._span)
        event = event_type(receipt=receipt)
        get_dispatcher(DISPATCHER_NAME).event(event)  # swallows what its handlers raise, and adds the run's tags
        told: list[Callable[[], None]] = [partial(handler.handle, event) for handler in self._handlers]
        for tell in told + [partial(listener, receipt) for listener in self._listeners]:
            try:
                tell()
            except Exception:
                _logger.exception("A settlement listener failed for call %s; the call goes on", receipt.call_id)
