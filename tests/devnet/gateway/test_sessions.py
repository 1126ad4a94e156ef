"""When a session takes calls, when it ends, and what it is settled for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from opengradient_devnet.facilitator.facilitator import Settlement
from opengradient_devnet.gateway.payment.sessions import DEADLINE_MARGIN_S, NonceInUse, Payment, SessionBook

ROUTE = ("POST", "/v1/chat/completions")
NOW_S = 1_795_000_000.0
CAP = 1000


@dataclass
class Clock:
    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class RecordingSettler:
    amounts: list[int | None] = field(default_factory=list)

    def settle(
        self, payload: dict[str, Any], requirements: dict[str, Any], amount_atomic: int | None = None
    ) -> Settlement:
        self.amounts.append(amount_atomic)
        return Settlement(
            success=True,
            transaction=f"0x{len(self.amounts):064x}",
            block_number=len(self.amounts),
            amount_atomic=amount_atomic,
            payer="0xpayer",
            network=requirements["network"],
        )


def payment(*, nonce: int = 1, deadline_s: float = NOW_S + 300, signature: str = "0x01") -> Payment:
    authorization = {"nonce": str(nonce), "deadline": str(int(deadline_s))}
    return Payment(
        payload={"payload": {"permit2Authorization": authorization, "signature": signature}},
        requirements={"amount": str(CAP), "payTo": "0xpayee", "network": "eip155:31402", "scheme": "upto"},
        payer="0xPayer",
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settler() -> RecordingSettler:
    return RecordingSettler()


@pytest.fixture
def book(clock: Clock, settler: RecordingSettler) -> SessionBook:
    return SessionBook(settler, idle_timeout_s=100, clock=clock)


def test_calls_of_a_session_are_settled_once_for_their_sum(book, clock, settler):
    first = book.open(payment(), route=ROUTE)
    first.finish(cost_atomic=7)
    for cost_atomic in (11, 13):
        call = book.enter(first.session_id, route=ROUTE)
        assert call is not None
        call.finish(cost_atomic=cost_atomic)
    assert book.settle_due() == []

    clock.now_s += 100
    (record,) = book.settle_due()

    assert settler.amounts == [31]
    assert (record.amount_atomic, record.calls, record.session_id) == (31, 3, first.session_id)
    assert book.settle_due() == []
    assert book.settlements == [record]


def test_finishing_a_call_twice_charges_it_once(book, settler):
    call = book.open(payment(), route=ROUTE)
    call.finish(cost_atomic=7)
    call.finish(cost_atomic=7)
    book.close(wait_s=0)

    assert settler.amounts == [7]


def test_session_is_bound_to_method_and_path(book):
    session_id = book.open(payment(), route=ROUTE).session_id

    assert book.enter(session_id, route=("GET", ROUTE[1])) is None
    assert book.enter(session_id, route=("POST", "/v1/completions")) is None
    assert book.enter("unknown", route=ROUTE) is None
    assert book.enter(session_id, route=ROUTE) is not None


def test_the_same_payment_attaches_to_the_session_that_it_opened(book, settler):
    one, twin = book.open(payment(), route=ROUTE), book.open(payment(), route=ROUTE)
    assert one.session_id == twin.session_id

    one.finish(cost_atomic=1)
    twin.finish(cost_atomic=2)
    book.close(wait_s=0)

    assert settler.amounts == [3]


def test_another_signature_with_the_same_nonce_is_refused_while_the_session_is_open(book):
    book.open(payment(), route=ROUTE)

    with pytest.raises(NonceInUse):
        book.open(payment(signature="0x02"), route=ROUTE)
    with pytest.raises(NonceInUse):
        book.open(payment(), route=("POST", "/v1/completions"))


def test_twenty_parallel_twins_share_one_session(book):
    barrier = threading.Barrier(20)
    ids: list[str] = []

    def open_session() -> None:
        barrier.wait()
        ids.append(book.open(payment(), route=ROUTE).session_id)

    threads = [threading.Thread(target=open_session) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 20
    assert len(set(ids)) == 1


def test_a_call_beyond_the_cap_is_served_and_its_excess_goes_unpaid(book, settler):
    first = book.open(payment(), route=ROUTE)
    second = book.enter(first.session_id, route=ROUTE)
    assert second is not None
    first.finish(cost_atomic=CAP - 1)
    second.finish(cost_atomic=500)

    assert book.enter(first.session_id, route=ROUTE) is None
    (record,) = book.settle_due()
    assert settler.amounts == [CAP]
    assert record.amount_atomic == CAP


def test_session_ends_before_its_deadline_even_when_busy_with_calls(book, clock, settler):
    deadline_s = NOW_S + 60
    call = book.open(payment(deadline_s=deadline_s), route=ROUTE)
    call.finish(cost_atomic=5)
    busy = book.enter(call.session_id, route=ROUTE)
    assert busy is not None

    clock.now_s = deadline_s - DEADLINE_MARGIN_S
    assert book.enter(call.session_id, route=ROUTE) is None
    assert book.settle_due() == [], "a call in flight may still add its cost"

    clock.now_s = deadline_s - 7
    book.settle_due()
    assert settler.amounts == [5]
    busy.finish(cost_atomic=100)
    assert settler.amounts == [5]


def test_session_is_at_most_ten_minutes_old(book, clock):
    session_id = book.open(payment(deadline_s=NOW_S + 10_000), route=ROUTE).session_id

    for _ in range(10):
        clock.now_s += 60
        call = book.enter(session_id, route=ROUTE)
        if call is not None:
            call.finish(cost_atomic=1)

    assert call is None


def test_idle_time_begins_when_the_last_call_ends(book, clock, settler):
    call = book.open(payment(), route=ROUTE)
    clock.now_s += 150
    assert book.settle_due() == []
    call.finish(cost_atomic=5)
    clock.now_s += 99
    assert book.settle_due() == []
    clock.now_s += 1
    assert len(book.settle_due()) == 1


def test_a_session_without_costs_leaves_nothing_to_settle(book, clock, settler):
    book.open(payment(), route=ROUTE).finish(cost_atomic=0)
    clock.now_s += 100
    book.settle_due()

    assert book.settlements == []
    assert book.open_sessions == []


def test_closing_waits_for_calls_in_flight(book, settler):
    call = book.open(payment(), route=ROUTE)
    ending = threading.Timer(0.05, call.finish, kwargs={"cost_atomic": 9})
    ending.start()
    book.close(wait_s=5)
    ending.join()

    assert settler.amounts == [9]


def test_a_call_that_outlasts_closing_is_settled_when_it_ends(book, settler):
    call = book.open(payment(), route=ROUTE)
    book.close(wait_s=0.01)
    assert settler.amounts == []
    assert book.enter(call.session_id, route=ROUTE) is None

    call.finish(cost_atomic=9)
    book.settle_due()
    assert settler.amounts == [9]


def test_an_exhausted_session_asks_to_be_settled_at_once(clock, settler):
    asked = threading.Event()
    book = SessionBook(settler, idle_timeout_s=100, clock=clock, on_work=asked.set)
    book.open(payment(), route=ROUTE).finish(cost_atomic=CAP)

    assert asked.is_set()
