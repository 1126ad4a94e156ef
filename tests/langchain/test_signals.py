"""An exception that a signal raises while a call ends (a job's time limit, Ctrl-C): the call is in the books, once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from langchain_opengradient import SettlementCallbackHandler, SpendGuard, get_settlement_callback
from langchain_opengradient.callbacks import SettlementReport
from opengradient_x402.gateway import exchange
from opengradient_x402.gateway.client import GatewayClient
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment import payments
from opengradient_x402.payment.run_limit import RunLimit
from opengradient_x402.payment.sessions import SessionPool
from support.payers import PROMPT

from .conftest import Payer


class TimeIsUp(BaseException):
    """As the time limits of job runners are."""


class SoftTimeIsUp(Exception):
    """As Celery's soft limit is."""


def whole(model: Any, config: Any) -> None:
    model.invoke("Hello", config)


def streamed(model: Any, config: Any) -> None:
    list(model.stream("Hello", config))


PLACES = {
    "before the receipt is made": (payments, "build_receipt", "before"),
    "when it is made": (payments, "build_receipt", "after"),
    "before the seat is free": (SessionPool, "leave", "before"),
    "before it is recorded": (Ledger, "record_call", "before"),
    "when it is recorded": (Ledger, "record_call", "after"),
    "before the limit knows": (RunLimit, "ended", "before"),
    "when the limit knows": (RunLimit, "ended", "after"),
    "before the handlers know": (SettlementReport, "_receive", "before"),
    "between two handlers": (SettlementCallbackHandler, "receive", "after"),
}


@pytest.fixture
def alarm_at(monkeypatch: pytest.MonkeyPatch):
    """Sends this process a signal at the first call of a function, with a handler that raises."""

    def arm(owner: Any, name: str, when: str, kind: type[BaseException]) -> list[str]:
        was, rung = getattr(owner, name), []

        def on_signal(*_: object) -> None:
            raise kind("time is up")

        def ring() -> None:
            if not rung:
                rung.append(name)
                signal.raise_signal(signal.SIGUSR1)

        def instead(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                ring()
            found = was(*args, **kwargs)
            if when == "after":
                ring()
            return found

        earlier.append(signal.signal(signal.SIGUSR1, on_signal))
        monkeypatch.setattr(owner, name, instead)
        return rung

    earlier: list[Any] = []
    yield arm
    for one in earlier:
        signal.signal(signal.SIGUSR1, one)


@pytest.mark.parametrize("way", [whole, streamed])
@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_a_signal_cuts_off_at_its_end_is_in_the_books_once(
    payer: Payer, alarm_at: Callable[..., list[str]], place: str, way: Callable[[Any, Any], None]
):
    model, guard, ears = payer.model(), SpendGuard("1", reserve_per_call="0.2"), SettlementCallbackHandler()
    rung = alarm_at(*PLACES[place], TimeIsUp)
    with get_settlement_callback() as active, pytest.raises(TimeIsUp):
        way(model, {"callbacks": [guard, ears]})
    assert rung
    (call_id,) = payer.receipts()
    assert [[one.call_id for one in handler.receipts] for handler in (active, guard, ears)] == [[call_id]] * 3
    assert guard.run_limit.under_way == ()
    model.invoke("The same session serves the next call.")
    assert len({receipt.authorization_id for receipt in payer.receipts().values()}) == 1
    lost_atomic = payer.settle()
    assert lost_atomic == sum(receipt.settled_atomic or 0 for receipt in payer.receipts().values()) > 0


@pytest.mark.parametrize("place", [place for place in PLACES if "handler" not in place and "limit" not in place])
def test_and_so_is_a_stream_that_is_cut_off_while_it_is_closed(
    payer: Payer, alarm_at: Callable[..., list[str]], place: str
):
    heard: list[str] = []
    with GatewayClient(payer.payments) as client:
        stream = client.stream(PROMPT, on_receipt=lambda receipt: heard.append(receipt.call_id))
        next(stream)
        alarm_at(*PLACES[place], TimeIsUp)
        with pytest.raises(TimeIsUp):
            stream.close()
        stream.close()
    assert heard == list(payer.receipts())
    assert [receipt.outcome for receipt in payer.receipts().values()] == ["abandoned"]


def test_a_soft_limit_is_the_callers_too(payer: Payer, alarm_at: Callable[..., list[str]]):
    alarm_at(exchange, "check_answer", "before", SoftTimeIsUp)
    with get_settlement_callback() as active, pytest.raises(SoftTimeIsUp):
        payer.model().invoke("Hello")
    assert [receipt.call_id for receipt in active.receipts] == list(payer.receipts())
