"""The session pool: who rides, who waits, who opens, and when a session is left alone."""

from __future__ import annotations

import threading

import pytest

from opengradient_x402.payment.sessions import PaidSession, SessionKey, SessionPool, Ticket, Waiting
from support.ledger_rows import NOW, entry

KEY = SessionKey("http://127.0.0.1:1", "POST", "/v1/chat/completions", "0xpayer")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return NOW + self.now - 1000.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pool(clock):
    return SessionPool(idle_s=60, clock=clock.monotonic, wall_clock=clock.wall)


def open_session(pool, **changes) -> PaidSession:
    ticket = pool.enter(KEY, blocking=False)
    assert isinstance(ticket, Ticket)
    return pool.opened(ticket, session_id="session-0001", authorization=entry(**changes))


def elsewhere(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_the_first_opens_and_the_others_wait_then_ride(pool):
    ticket = pool.enter(KEY, blocking=False)
    waiting = [pool.enter(KEY, blocking=False) for _ in range(99)]
    assert isinstance(ticket, Ticket)
    assert all(isinstance(seat, Waiting) and not seat.done.done() for seat in waiting)
    session = pool.opened(ticket, session_id="session-0001", authorization=entry())
    assert all(seat.done.done() for seat in waiting)
    assert pool.enter(KEY, blocking=False) is session


def test_after_a_failed_opening_the_next_one_opens(pool):
    ticket = pool.enter(KEY, blocking=False)
    waiting = pool.enter(KEY, blocking=False)
    pool.closed(ticket)
    assert waiting.done.done()
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_blocking_caller_never_waits_for_an_opening_in_its_own_thread(pool):
    opening = pool.enter(KEY, blocking=False)  # a task of this thread's loop is opening
    seat = pool.enter(KEY, blocking=True)
    assert isinstance(seat, Ticket)
    pool.closed(seat)  # nobody waits for this one
    waiting = elsewhere(lambda: pool.enter(KEY, blocking=True))
    assert isinstance(waiting, Waiting)
    assert waiting.done is opening.done
    assert not waiting.done.done()


def test_nobody_waits_where_there_are_no_sessions(pool):
    pool.sessionless(pool.enter(KEY, blocking=False))
    assert all(isinstance(pool.enter(KEY, blocking=False), Ticket) for _ in range(3))


def test_a_session_is_left_alone_before_it_idles_out(pool, clock):
    session = open_session(pool)
    pool.leave(session)
    clock.now += 44
    assert pool.enter(KEY, blocking=False) is session
    pool.leave(session)
    clock.now += 46
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_session_with_a_call_in_flight_does_not_idle_out(pool, clock):
    session = open_session(pool)
    clock.now += 100
    assert pool.enter(KEY, blocking=False) is session


def test_a_session_is_left_alone_before_its_deadline(pool, clock):
    session = open_session(pool)
    clock.now += 268
    assert pool.enter(KEY, blocking=False) is session
    clock.now += 5
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_session_of_a_long_signature_is_left_alone_before_the_gateway_ends_it(pool, clock):
    session = open_session(pool, deadline=NOW + 3601)
    session.opened_at += 3400  # opened late: by a payment whose fate was unknown
    clock.now += 3449
    assert pool.enter(KEY, blocking=False) is session
    clock.now += 5
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_nearly_exhausted_session_is_left_alone(pool):
    session = open_session(pool, amount_atomic=100)
    pool.leave(session, cost_atomic=40)
    assert pool.enter(KEY, blocking=False) is session
    pool.leave(session, cost_atomic=40)
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_retired_session_serves_nobody(pool):
    session = open_session(pool)
    pool.retire(session)
    assert isinstance(pool.enter(KEY, blocking=False), Ticket)


def test_a_session_id_is_shown_nowhere(pool):
    assert "session-0001" not in repr(open_session(pool))
