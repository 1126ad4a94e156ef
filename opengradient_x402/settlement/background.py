"""The reconciler in a thread of its own: every few seconds it updates the ledger, and reports what changed.

It goes on after outages of nodes and after faults of listeners. What is asked and written is in `reconciler`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from opengradient_x402.errors import OpenGradientError
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.process import Ending, Resident, belongs
from opengradient_x402.settlement.reconciler import Reconciler

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 300.0


class BackgroundReconciler(Resident):
    """`with BackgroundReconciler(reconciler): …` reconciles every `interval_s` until the block ends.

    `on_change` is called, in the thread, with every receipt whose state moved: settled, final, expired,
    cancelled, disputed, or open again.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        *,
        interval_s: float = 15.0,
        on_change: Callable[[SettlementReceipt], None] | None = None,
    ) -> None:
        self._reconciler = reconciler
        self._interval_s = interval_s
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        belongs(self, Ending.WATCHERS)

    def start(self) -> None:
        """Begins, with a first run at once. Starting twice changes nothing; after a fork the child starts its own."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()  # its own: a thread that is ending must still see that it was stopped
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="opengradient-reconciler", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for the run that is under way, unless `on_change` calls this in that run."""
        self._halt(None)

    def _renew(self) -> None:
        """A child has no thread until it calls `start`."""
        self._lock, self._stop, self._thread = threading.Lock(), threading.Event(), None

    def _end(self, timeout_s: float, /) -> None:
        """At the end of the process: `stop`, without waiting longer than this for a slow node."""
        self._halt(timeout_s)

    def _halt(self, timeout_s: float | None) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, stop: threading.Event) -> None:
        pause_s = self._interval_s
        while True:
            pause_s = self._interval_s if self._reconciled() else min(2 * pause_s, _LONGEST_PAUSE_S)
            if stop.wait(pause_s):
                return

    def _reconciled(self) -> bool:
        try:
            for report in self._reconciler.reports():
                for changed in report.changed:
                    self._tell(changed)
        except OpenGradientError as exc:
            _log.warning("Settlements could not be looked up; receipts stay as they are. %s", exc)
            return False
        except Exception:  # noqa: BLE001  the thread's boundary: if it ended, no receipt would be updated
            _log.exception("Settlements could not be looked up; receipts stay as they are.")
            return False
        return True

    def _tell(self, receipt: SettlementReceipt) -> None:
        if self._on_change is not None:
            try:
                self._on_change(receipt)
            except Exception:  # noqa: BLE001  the listener's boundary: its fault must not stop the reconciling
                _log.exception("A listener failed for the receipt of call %s", receipt.call_id)
