"""OpenTelemetry metrics of the paid calls of a process. Needs the extra `otel`; `instrument()` switches them on.

Counters follow the events. What is reserved, what is left of the budget and how old the oldest open payment is are read
from the ledger when a reader collects, for every wallet that the process has open. Amounts are whole tokens as floats:
good for a board, not for accounts, which are in the ledger to the last unit.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from opengradient_x402.errors import ConfigurationError, OpenGradientError
from opengradient_x402.ledger.authorizations import Authorization
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import SettlementReceipt
from opengradient_x402.money import PaidIn
from opengradient_x402.networks import Network
from opengradient_x402.telemetry import events

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

_log = logging.getLogger(__name__)
_PATIENCE_S: Final = 5.0
"""The longest that a collection waits for a ledger."""
_FRESH_S: Final = 1.0
"""Seconds for which one reading of the ledgers is used: all gauges of a collection share it."""
_LAGS_S: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)


class Payer(Protocol):
    """A wallet that is open (`Payments`)."""

    network: Network
    ledger: Ledger

    @property
    def payer(self) -> str: ...
    @property
    def budget_atomic(self) -> int: ...


_OPEN: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def opened(payer: Payer) -> None:
    """Has the gauges show this wallet as long as it is open."""
    _OPEN.add(payer)


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a wallet, or a ledger, stands at one moment."""

    labels: dict[str, str]
    budget: float
    budget_left: float
    reserved: float
    oldest_s: float


class _Gauges:
    """What observable gauges show, read from the ledgers at most once in `_FRESH_S`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._wallets: list[_Standing] = []

    def wallets(self) -> list[_Standing]:
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_S:
                self._wallets = list(_read(list(_OPEN)))
                self._read_at = time.monotonic()
            return self._wallets


def _read(payers: Iterable[Payer]) -> Iterator[_Standing]:
    found: dict[tuple[str, str, str, int], Payer] = {}
    for payer in payers:
        if not payer.ledger.is_closed:
            found[payer.payer, payer.network.caip2, payer.network.asset.address, id(payer.ledger)] = payer
    unfinished: dict[tuple[str, int], list[Authorization]] = {}
    for (address, caip2, _, ledger), payer in found.items():
        asset = payer.network.asset
        try:
            if (caip2, ledger) not in unfinished:
                unfinished[caip2, ledger] = payer.ledger.unfinished(network=caip2).result(_PATIENCE_S)
            spent = payer.ledger.spent(payer=address, asset=asset.address, network=caip2).result(_PATIENCE_S)
        except (OpenGradientError, TimeoutError) as exc:
            _log.warning("The ledger could not be read for metrics: %s", exc)
            continue
        mine = [
            one
            for one in unfinished[caip2, ledger]
            if (one.payer, one.asset) == (address, asset.address) and not one.is_final
        ]
        yield _Standing(
            labels={"payer": address, "network": caip2, "asset": asset.symbol},
            budget=_tokens(payer.budget_atomic, asset.decimals),
            budget_left=_tokens(max(0, payer.budget_atomic - spent), asset.decimals),
            reserved=_tokens(sum(one.reserved_atomic for one in mine), asset.decimals),
            oldest_s=max((time.time() - one.signed_at for one in mine), default=0.0),
        )


def _waiting() -> int:
    """Jobs that wait for the ledgers' writers."""
    return sum(ledger.waiting for ledger in {payer.ledger for payer in list(_OPEN)})


def instrument(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Emits the metrics of this process from now on, to `meter_provider` or to the global one; call the result to stop.

    docs/how-to/monitoring.md lists them. Raises ConfigurationError without the extra `otel`.
    """
    try:
        from opentelemetry.metrics import Observation, get_meter_provider
    except ImportError as exc:
        raise ConfigurationError(
            "Metrics need OpenTelemetry, which is not installed. Nothing was paid. "
            'Run `pip install "opengradient-integrations[otel]"`.'
        ) from exc
    meter = (meter_provider or get_meter_provider()).get_meter("opengradient_x402")
    gauges, is_on = _Gauges(), threading.Event()
    is_on.set()

    def gauge(
        name: str, unit: str, description: str, read: Callable[[], Iterable[tuple[float, dict[str, str]]]]
    ) -> None:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, labels) for value, labels in read()] if is_on.is_set() else []

        meter.create_observable_gauge(name, callbacks=[observe], unit=unit, description=description)

    def of_wallets(field: str) -> Callable[[], Iterable[tuple[float, dict[str, str]]]]:
        return lambda: [(getattr(wallet, field), wallet.labels) for wallet in gauges.wallets()]

    gauge("opengradient.reserved", "{token}", "Signed for, and not settled for good", of_wallets("reserved"))
    gauge("opengradient.budget", "{token}", "What may be spent or reserved in 24 hours", of_wallets("budget"))
    gauge("opengradient.budget.left", "{token}", "Left of the budget of 24 hours", of_wallets("budget_left"))
    gauge("opengradient.authorization.oldest", "s", "Age of the oldest open payment", of_wallets("oldest_s"))
    gauge("opengradient.ledger.queue", "{job}", "Jobs that wait for the ledger's writer", lambda: [(_waiting(), {})])
    stop = events.listen(_Counters(meter))

    def end() -> None:
        is_on.clear()
        stop()

    return end


class _Counters:
    """Counts events. Listens."""

    def __init__(self, meter: Any) -> None:
        count, amount = meter.create_counter, "{token}"
        self._calls = count("opengradient.calls", unit="{call}", description="Paid calls, by model and outcome")
        self._tokens = count("opengradient.tokens", unit="{token}", description="Tokens of paid calls")
        self._cost = count("opengradient.cost", unit=amount, description="What calls cost by the gateways' quotes")
        self._refusals = count("opengradient.refusals", unit="{call}", description="Calls that ended with an error")
        self._signed = count("opengradient.signatures", unit="{signature}", description="Payments that were signed")
        self._sessions = count("opengradient.sessions", unit="{session}", description="Sessions opened and retired")
        self._settlements = count("opengradient.settlements", unit="{payment}", description="What became of payments")
        self._spend = count("opengradient.spend", unit=amount, description="What the chain shows as taken")
        self._disputes = count("opengradient.disputes", unit="{call}", description="Calls that are disputed")
        self._lag = meter.create_histogram(
            "opengradient.settlement.lag",
            unit="s",
            description="From the signature until the settlement was seen",
            explicit_bucket_boundaries_advisory=_LAGS_S,
        )

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.CallEnded():
                self._ended(event.receipt)
            case events.CallRefused():
                labels = {"error": event.error, "kind": event.kind, "money": str(event.money), "model": event.model}
                self._refusals.add(1, labels)
            case events.Signed():
                self._signed.add(1, {"model": event.model})
            case events.SessionOpened():
                self._sessions.add(1, {"event": "opened", "reason": ""})
            case events.SessionRetired():
                self._sessions.add(1, {"event": "retired", "reason": event.reason})
            case events.Disputed():
                self._disputes.add(1)
            case _:
                self._settled(event)

    def _ended(self, receipt: SettlementReceipt) -> None:
        self._calls.add(1, {"model": receipt.model, "outcome": receipt.outcome})
        self._tokens.add(receipt.prompt_tokens or 0, {"model": receipt.model, "kind": "prompt"})
        self._tokens.add(receipt.completion_tokens or 0, {"model": receipt.model, "kind": "completion"})
        cost = receipt.estimated_cost_atomic if receipt.cost_atomic is None else receipt.cost_atomic
        self._cost.add(_tokens(cost or 0, receipt.asset_decimals), {"model": receipt.model} | _named(receipt))

    def _settled(self, event: events.Event) -> None:
        status = "cancelled" if isinstance(event, events.Expired) and event.is_cancelled else event.name
        self._settlements.add(1, {"status": status})
        if isinstance(event, events.Settled):
            taken = _tokens(event.amount_atomic, event.asset_decimals)
            self._spend.add(taken, {"payer": event.payer} | _named(event))
            self._lag.record(event.lag_s)


def _tokens(amount_atomic: int, decimals: int | None) -> float:
    """Whole tokens. Tokens with unknown decimals are left out, since the sum would be wrong by powers of ten."""
    return 0.0 if decimals is None else amount_atomic / 10**decimals


def _named(record: PaidIn) -> dict[str, str]:
    return {"asset": record.asset_symbol or record.asset}
