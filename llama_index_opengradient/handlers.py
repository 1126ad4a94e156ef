"""Handlers that keep the receipts of everything that was paid for.

`SettlementLedgerHandler` listens to the event dispatcher and sorts receipts by run; it is the one to use.
`SettlementCallbackHandler` does the same for code that still works with the legacy `CallbackManager`.

Both are views for programs: the ledger (`opengradient_x402.ledger.ledger`) is the durable record, and the chain is
the truth. Neither raises into the call that it reports.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler

from llama_index_opengradient import events
from llama_index_opengradient.events import ReceiptEvent
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.telemetry.kept_receipts import KeptReceipts

if TYPE_CHECKING:
    from opengradient_x402.ledger.ledger import Ledger


class _Receipts(KeptReceipts):
    """Receipts with the runs that made their calls."""

    def __init__(self, *, most: int | None = None, on_news: Callable[[SettlementReceipt], None] | None = None) -> None:
        super().__init__(most=most, on_news=on_news)
        self._run_of: dict[str, str | None] = {}

    def put(self, receipt: SettlementReceipt, run_id: str | None) -> None:
        if not self.add(receipt):
            self.replace(receipt)
        elif run_id is not None:
            self._run_of[receipt.call_id] = run_id
            while len(self._run_of) > 2 * self.most:
                self._run_of.pop(next(iter(self._run_of)))

    def by_run(self) -> dict[str | None, tuple[SettlementReceipt, ...]]:
        runs: dict[str | None, list[SettlementReceipt]] = {}
        for receipt in self.now():
            runs.setdefault(self._run_of.get(receipt.call_id), []).append(receipt)
        return {run_id: tuple(receipts) for run_id, receipts in runs.items()}

    def clear(self) -> None:
        super().clear()
        self._run_of.clear()


class SettlementLedgerHandler(BaseEventHandler):
    """Keeps the receipts that the dispatcher reports, once per call, sorted by the run that made the call.

    `with handler.listening():` gets the calls of the block; `get_dispatcher().add_event_handler(handler)` gets those
    of the whole process.
    Safe to share between threads, tasks and models.
    """

    _receipts: _Receipts = PrivateAttr(default_factory=_Receipts)
    _group: str = PrivateAttr(default_factory=lambda: secrets.token_hex(6))

    def __init__(self, *, most: int | None = None) -> None:
        """`most` is how many receipts are kept (10,000), the newest ones."""
        super().__init__()
        self._receipts = _Receipts(most=most, on_news=self._take_news)

    @classmethod
    def class_name(cls) -> str:
        return "SettlementLedgerHandler"

    def _take_news(self, receipt: SettlementReceipt) -> None:
        """More is known of a call; its receipt is replaced already."""

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:  # noqa: ARG002 - core's signature
        """Takes settlement events, ignores all others."""
        if isinstance(event, ReceiptEvent):
            self._receipts.put(event.receipt, event.run_id)

    @property
    def receipts(self) -> tuple[SettlementReceipt, ...]:
        """One receipt per paid call, as the ledger knows it now, oldest call first."""
        return self._receipts.now()

    @property
    def runs(self) -> dict[str | None, tuple[SettlementReceipt, ...]]:
        """The same receipts by run id; None holds the calls that no agent or workflow made."""
        return self._receipts.by_run()

    def receipts_of(self, run_id: str) -> tuple[SettlementReceipt, ...]:
        """The receipts of one run; `handler.run_id` of a running agent or workflow is its id."""
        return self.runs.get(run_id, ())

    def refresh(self) -> None:
        """Ask the chain about what is not final yet. What the ledger knows is shown without it.

        Raises ChainUnavailable.
        """
        self._receipts.refresh()

    async def arefresh(self) -> None:
        """As `refresh`, for coroutines."""
        await self._receipts.arefresh()

    def clear(self) -> None:
        """Forget the receipts. The ledger keeps them."""
        self._receipts.clear()

    @property
    def group(self) -> str:
        """What the ids of calls begin with that other processes make for this handler."""
        return self._group

    def expect(self, group: str, ledger: Ledger) -> None:
        """Called by a model that is pickled for another process: the receipts of its calls are in this ledger."""
        self._receipts.expect(group, ledger)

    @contextmanager
    def listening(self) -> Generator[Self, None, None]:
        """Get the calls of the `with` block: its own, and those of the tasks and of LlamaIndex's threads in it.

        Calls of worker processes (`num_workers`) are found in the ledger, if no other block listens at that time.

        Requests that a server answers at the same time do not get each other's calls. A plain `threading.Thread`
        starts with an empty context: run it through `contextvars.copy_context().run`. A block in a generator gets the
        calls of all its steps, also where a web server runs each step in another thread.
        """
        with events.listening.opened(self):
            yield self


class SpendGuard(SettlementLedgerHandler):
    """Ends a run before the call that could take it over `limit`, in whole tokens as text ("0.5" of OPG, or USDC, …).

    ```python
    from llama_index_opengradient import OpenGradient, SpendGuard

    with SpendGuard("0.5").listening() as guard:
        print(OpenGradient(model="openai/gpt-5").complete("What is a TEE?"))
    print(guard.spent)
    ```

    Calls that have ended count with their cost, calls under way with their worst case: the price of the whole prompt
    and of all the tokens that the answer may have, or all that the payment allows where no price is known.
    `reserve_per_call` is counted in its place. The call that does not fit raises BudgetExceeded, and nothing is paid
    for it. What a wallet may spend at all is the `SpendPolicy`'s business.
    """

    _run_limit: RunLimit = PrivateAttr()

    def __init__(self, limit: str, *, reserve_per_call: str | None = None, most: int | None = None) -> None:
        super().__init__(most=most)
        self._run_limit = RunLimit(limit, reserve_per_call=reserve_per_call)

    @classmethod
    def class_name(cls) -> str:
        return "SpendGuard"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Takes settlement events, ignores all others."""
        super().handle(event, **kwargs)
        if isinstance(event, ReceiptEvent):
            self._run_limit.update([event.receipt])

    def _take_news(self, receipt: SettlementReceipt) -> None:
        self._run_limit.count(receipt)
        self._run_limit.update([receipt])

    def clear(self) -> None:
        """Forget the calls that have ended: the limit begins anew."""
        self._run_limit.clear()
        super().clear()

    @property
    def run_limit(self) -> RunLimit:
        """What the calls that this guard listens to may spend."""
        return self._run_limit

    @property
    def spent_atomic(self) -> int:
        """What the calls that have ended cost, at most: the worst case of a call whose cost is not known yet."""
        self._receipts.now()
        return self._run_limit.spent_atomic

    @property
    def spent(self) -> str:
        """`spent_atomic` for people, also of several tokens: "0.0125 OPG"."""
        self._receipts.now()
        return self._run_limit.spent


class SettlementCallbackHandler(BaseCallbackHandler):
    """Keeps receipts for code that uses the legacy `CallbackManager`, once per call.

    The model reports to it directly, so errors, cancelled calls and abandoned streams are reported as well,
    for which a callback's payload has no receipt.
    """

    def __init__(self, *, most: int | None = None) -> None:
        """`most` is how many receipts are kept (10,000), the newest ones."""
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self._receipts = _Receipts(most=most)

    @property
    def receipts(self) -> tuple[SettlementReceipt, ...]:
        """One receipt per paid call, as the ledger knows it now, oldest call first."""
        return self._receipts.now()

    def on_settlement(self, receipt: SettlementReceipt) -> None:
        """Called by the model with each receipt, and again when more is known of it. Override to be told."""
        self._receipts.put(receipt, None)

    def refresh(self) -> None:
        """Ask the chain about what is not final yet. What the ledger knows is shown without it.

        Raises ChainUnavailable.
        """
        self._receipts.refresh()

    async def arefresh(self) -> None:
        """As `refresh`, for coroutines."""
        await self._receipts.arefresh()

    def clear(self) -> None:
        """Forget the receipts. The ledger keeps them."""
        self._receipts.clear()

    def on_event_start(
        self,
        event_type: CBEventType,  # noqa: ARG002 - core's signature
        payload: dict[str, Any] | None = None,  # noqa: ARG002
        event_id: str = "",
        parent_id: str = "",  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        """Nothing is paid when an event starts."""
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Receipts come through `on_settlement`."""

    def start_trace(self, trace_id: str | None = None) -> None:
        """Traces are not kept."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Traces are not kept."""
