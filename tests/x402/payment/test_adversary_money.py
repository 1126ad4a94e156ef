"""Attacks on the money path: races, lies, endless answers, and failures in the middle of everything."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_all
from contextlib import nullcontext, suppress
from dataclasses import replace

import httpx
import pytest

from opengradient_devnet import faults
from opengradient_x402.errors import (
    ChallengeInvalid,
    LedgerUnavailable,
    NotPaid,
    PaidButFailed,
    PaymentOutcomeUnknown,
    ResponseInvalid,
    StreamInterrupted,
)
from opengradient_x402.gateway.answer import EventDecoder
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.sessions import SessionKey, SessionPool, Ticket
from opengradient_x402.payment.transport import AsyncX402Transport, X402Transport
from support.ledger_rows import NOW, entry
from support.payers import PROMPT, async_client_for, client_for, payments_for

pytestmark = pytest.mark.devnet(pace_s=0.002)

SIGNATURE, SESSION, CHALLENGE = "PAYMENT-SIGNATURE", "X-Upto-Session", "PAYMENT-REQUIRED"


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "l.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def heard():
    return []


def authorizations(payments):
    return payments.ledger.authorizations().result()


def seats_taken(payments):
    return sum(session.in_flight for kept in payments.sessions._sessions.values() for session in kept)


class Body(httpx.SyncByteStream):
    """A response body made by hand; `pieces` may never end."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.is_closed = False

    def __iter__(self):
        yield from self.pieces

    def close(self):
        self.is_closed = True


class AsyncBody(Body, httpx.AsyncByteStream):
    async def __aiter__(self):
        for piece in self.pieces:
            yield piece

    async def aclose(self):
        self.is_closed = True


class Meddler(httpx.BaseTransport):
    """A wire on which somebody sits: `meddle(request, send)` may refuse to connect, or answer by itself."""

    def __init__(self, meddle):
        self._wire = httpx.HTTPTransport()
        self._meddle = meddle

    def handle_request(self, request):
        return self._meddle(request, self._wire.handle_request)

    def close(self):
        self._wire.close()


@pytest.fixture
def meddled(payments):
    """A client behind a meddler."""
    wires = []

    def make(meddle, **options):
        wires.append(Meddler(meddle))
        with client_for(payments, http_transport=wires[-1], **options) as client:
            return client

    yield make
    for wire in wires:
        wire.close()


def replace_answer(content, *, headers=None, status=200):
    """Lets the payment through, and answers something else."""

    def meddle(request, send):
        response = send(request)
        if SIGNATURE not in request.headers and SESSION not in request.headers:
            return response
        session = response.headers.get(SESSION)
        response.read()
        response.close()
        kept = {SESSION: session} if session else {}
        return httpx.Response(status, headers={**kept, **(headers or {})}, stream=Body(content))

    return meddle


# -- the ledger


async def test_a_cancelled_question_does_not_stop_the_ledger(ledger):
    ledger.authorize(entry(1)).result(60)
    blocker = threading.Event()
    ledger.submit(lambda *_: blocker.wait(60))
    asked = ledger.authorizations()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.wrap_future(asked), 0.05)
    blocker.set()
    assert len(ledger.authorizations().result(60)) == 1


def test_a_number_that_the_database_cannot_hold_fails_its_own_job_only(ledger):
    ledger.authorize(entry(1)).result(60)
    with pytest.raises(LedgerUnavailable):
        ledger.record_settlement(replace(entry(1), status="settled", settled_atomic=2**250)).result(60)
    (row,) = ledger.authorizations().result(60)
    assert row.status == "signed"


def test_a_ledger_that_is_closed_under_its_callers_answers_every_one_of_them(tmp_path):
    for attempt in range(20):
        ledger = Ledger(tmp_path / f"{attempt}.sqlite")
        ledger.authorizations().result(60)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ledger.authorizations) for _ in range(40)]
            ledger.close()
            futures = [future.result() for future in asked]
        done, waiting = wait_all(futures, timeout=60)
        assert not waiting
        assert all(f.exception() is None or isinstance(f.exception(), LedgerUnavailable) for f in done)


# -- what was signed


def test_a_second_signature_that_never_left_does_not_free_what_the_first_one_reserved(net, payments, meddled, heard):
    signed = []

    def meddle(request, send):
        if SIGNATURE in request.headers:
            signed.append(request.headers[SIGNATURE])
            if len(signed) == 3:
                raise httpx.ConnectError("gone")
        return send(request)

    client = meddled(meddle, max_retries=0)
    client.chat(PROMPT)
    net.close_sessions()
    net.faults.inject(faults.AlterTerms(amount=str(15 * 10**16)), times=None)
    with pytest.raises(PaymentOutcomeUnknown) as caught:  # session dead, known terms refused, new terms never sent
        client.chat(PROMPT, on_receipt=heard.append)
    assert len(signed) == 3
    assert authorizations(payments)[-1].status == "signed", "the gateway still holds the first signature"
    assert (
        payments.ledger.spent(
            payer=payments.payer, asset=payments.network.asset.address, network=payments.network.caip2
        ).result()
        >= 2 * 10**17
    )
    assert [caught.value.receipt] == heard


def is_paid(request):
    return SIGNATURE in request.headers or SESSION in request.headers


def once_more_and_fail(request, send):
    if is_paid(request):
        send(request).close()
        raise httpx.ConnectError("the second attempt found nobody")
    return send(request)


def log_it_nowhere(response):
    if is_paid(response.request):
        httpx.post("http://127.0.0.1:9/")


async def alog_it_nowhere(response):
    log_it_nowhere(response)


@pytest.mark.parametrize("way", ["a transport that sends twice", "a hook", "a hook of an async client"])
def test_what_was_sent_is_in_doubt_also_when_the_users_transport_says_that_it_could_not_connect(
    net, payments, meddled, way
):
    if way == "a hook of an async client":

        async def ask():
            async with httpx.AsyncClient(event_hooks={"response": [alog_it_nowhere]}) as wire:
                await async_client_for(payments, http_transport=wire).chat(PROMPT)

        with pytest.raises(PaymentOutcomeUnknown):
            asyncio.run(ask())
    elif way == "a hook":
        with (
            httpx.Client(event_hooks={"response": [log_it_nowhere]}) as wire,
            client_for(payments, http_transport=wire) as client,
            pytest.raises(PaymentOutcomeUnknown),
        ):
            client.chat(PROMPT)
    else:
        with pytest.raises(PaymentOutcomeUnknown):
            meddled(once_more_and_fail).chat(PROMPT)
    [only] = authorizations(payments)
    assert only.status == "signed", "the gateway has the signature"
    net.close_sessions()
    payments.reconciler.reconcile()
    [only] = authorizations(payments)
    assert only.status == "settled"
    assert len(payments.ledger.receipts().result()) == 1, "it was served once"


def test_a_402_that_reports_a_failed_settlement_leaves_the_outcome_open(devnets, tmp_path, heard):
    net = devnets(sessions=False)
    account = net.account(opg="1", approved=True)
    with payments_for(net, account, tmp_path / "l.sqlite") as payments, client_for(payments) as client:
        net.faults.inject(faults.FailSettlement())
        with pytest.raises(PaymentOutcomeUnknown) as caught:
            client.chat(PROMPT, on_receipt=heard.append)
        assert [caught.value.receipt] == heard
        client.chat(PROMPT)
        assert len(authorizations(payments)) == 1, "what was not settled is used before anything new is signed"


async def test_a_call_that_is_cancelled_before_it_signed_reserves_nothing(net, payments):
    client = async_client_for(payments)
    held = threading.Event()
    reserve = payments.reserve

    def slowly(entry, **how):
        payments.ledger.submit(lambda *_: held.wait(60))
        return reserve(entry, **how)

    payments.reserve = slowly
    task = asyncio.create_task(client.chat(PROMPT))
    while not payments.funds._known_atomic:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.set()
    rows = await asyncio.wrap_future(payments.ledger.authorizations())
    assert {row.status for row in rows} <= {"unsent"}
    await client.aclose()


def test_a_malformed_402_inside_a_session_charges_nobody_and_ends_the_session(payments, meddled, heard):
    def meddle(request, send):
        if SESSION in request.headers:
            return httpx.Response(402, headers={CHALLENGE: "!"}, stream=Body([b"{}"]))
        return send(request)

    client = meddled(meddle)
    client.chat(PROMPT)
    with pytest.raises(ChallengeInvalid) as caught:
        client.chat(PROMPT, on_receipt=heard.append)
    assert (caught.value.receipt, heard) == (None, [])
    assert seats_taken(payments) == 0
    assert payments.sessions.live() == []


def test_forty_failed_openings_leave_the_others_waiting_for_the_next(net, payments):
    net.faults.inject(faults.HangUp(), times=40)

    async def go():
        client = async_client_for(payments)
        results = await asyncio.gather(*(client.chat(PROMPT) for _ in range(60)), return_exceptions=True)
        await client.aclose()
        return results

    results = asyncio.run(go())
    failed = [result for result in results if isinstance(result, Exception)]
    assert {type(error) for error in failed} == {PaymentOutcomeUnknown}
    assert len(failed) == 40


# -- what the gateway says


@pytest.mark.parametrize(
    "claim",
    [
        b'"tee_timestamp": "\xc2\xb2"',
        b'"tee_timestamp": "' + b"9" * 5000 + b'"',
        b'"usage": {"prompt_tokens": 1e400, "completion_tokens": 1}',
        b'"usage": {"prompt_tokens": 1e300, "completion_tokens": 1}',
        b'"opengradient": {"cost_opg": "' + b"9" * 5000 + b'"}',
        b'"opengradient": {"cost_opg": 1e400}',
        b'"usage": [], "opengradient": 7, "tee_id": {"a": 1}',
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_absurd_claims_cost_the_caller_neither_the_receipt_nor_the_seat(payments, meddled, heard, claim, is_stream):
    choice = b'"choices": [{"delta": {"content": "hi"}, "index": 0, "finish_reason": "stop"}]'
    body = b"{" + choice + b", " + claim + b"}"
    client = meddled(replace_answer([b"data: " + body + b"\n\ndata: [DONE]\n\n" if is_stream else body]))
    with suppress(ResponseInvalid):  # some JSON parsers refuse what others take for infinity
        if is_stream:
            list(client.stream(PROMPT, on_receipt=heard.append))
        else:
            client.chat(PROMPT, on_receipt=heard.append)
    assert len(heard) == 1
    assert seats_taken(payments) == 0
    assert payments.ledger.receipts(call_ids=[heard[0].call_id]).result(60) == heard


@pytest.mark.parametrize("encoding", ["gzip, gzip", "zstd", "br", "gzip,deflate,gzip"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_packed_in_a_way_that_nobody_asked_for_is_not_unpacked(meddled, heard, encoding, status):
    packed = gzip.compress(gzip.compress(b" " * 10_000_000))
    client = meddled(replace_answer([packed], headers={"content-encoding": encoding}, status=status))
    for call in (client.chat, client.stream):
        heard.clear()
        with pytest.raises(ResponseInvalid, match="encoded") as caught:
            call(PROMPT, on_receipt=heard.append)
        assert [caught.value.receipt] == heard


def test_a_body_that_does_not_unpack_is_an_error_with_the_receipt(meddled, heard):
    client = meddled(replace_answer([b"no gzip"], headers={"content-encoding": "gzip"}))
    with pytest.raises(ResponseInvalid) as caught:
        client.chat(PROMPT, on_receipt=heard.append)
    assert [caught.value.receipt] == heard
    with pytest.raises(ResponseInvalid):
        list(client.stream(PROMPT))


def test_a_stream_event_of_the_wrong_shape_is_an_error_with_the_receipt(meddled, heard):
    event = b'data: {"choices": [{"delta": 7, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    client = meddled(replace_answer([event]))
    with pytest.raises(ResponseInvalid) as caught:
        list(client.stream(PROMPT, on_receipt=heard.append))
    assert [caught.value.receipt] == heard


def test_a_stream_that_only_sends_signs_of_life_ends_at_the_time_limit(meddled, heard):
    def drip():
        while True:
            time.sleep(0.02)
            yield b": still here\n\n"

    client = meddled(replace_answer(drip()), timeout_s=1.5)
    with pytest.raises(StreamInterrupted) as caught:
        list(client.stream(PROMPT, on_receipt=heard.append))
    assert caught.value.kind == "timeout"
    assert [caught.value.receipt] == heard


def test_an_event_in_ten_thousand_pieces_is_read_in_one_go():
    decoder = EventDecoder()
    began = time.process_time()
    for _ in range(16 * 1024):
        assert decoder.feed(b"\r" + b"x" * 1023) == []
    assert time.process_time() - began < 3
    decoder = EventDecoder()
    pieces = [
        b"data: a",
        b"\r",
        b"\ndata: b\r\n",
        b"\r",
        b"\n",
        b"data: c\n",
        b"\n",
        b"data: d\r\r",
        b"data: e\n\r",
        b"\n",
    ]
    assert [event for piece in pieces for event in decoder.feed(piece)] == [b"a\nb", b"c", b"d", b"e"]


def test_a_page_that_answers_instead_of_the_gateway_was_not_paid(meddled, heard):
    portal = meddled(lambda request, send: httpx.Response(200, html="<h1>Welcome to the hotel</h1>"))
    for call in (portal.chat, lambda body, **options: list(portal.stream(body, **options))):
        with pytest.raises(NotPaid) as caught:
            call(PROMPT, on_receipt=heard.append)
        assert caught.value.receipt is None
    assert heard == []


def test_a_list_of_models_that_never_ends_is_not_waited_for(meddled):
    def drip():
        while True:
            time.sleep(0.01)
            yield b" " * 65536

    sent = []

    def meddle(request, send):
        if request.url.path == "/v1/models":
            sent.append(request)
            return httpx.Response(200, stream=Body(drip()))
        return send(request)

    client = meddled(meddle)
    with pytest.warns(UserWarning, match="could not be checked"), pytest.raises(PaidButFailed):
        client.chat({**PROMPT, "model": "nobody/unheard-of"})
    assert len(sent) == 1


@pytest.mark.parametrize(
    "date",
    ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "x" * 50_000, "", "0 0 0 0 0"],
)
def test_an_unreadable_date_is_no_date(payments, meddled, date):
    def meddle(request, send):
        response = send(request)
        response.headers["date"] = date
        return response

    refused = pytest.raises(NotPaid, match="clock") if "0001" in date else nullcontext()
    with refused:
        assert meddled(meddle).chat(PROMPT).content


def test_a_session_id_stays_below_the_client(payments):
    url = f"{payments.network.gateway_url}/v1/chat/completions"
    with httpx.Client(transport=X402Transport(payments), headers={"authorization": "Bearer x"}) as plain:
        response = plain.post(url, json={**PROMPT, "model": "gpt-5"})
    (session,) = payments.sessions.live()
    call = response.request.extensions["opengradient.call"]
    assert session.id not in repr(call) + repr(response.headers) + repr(response.request.extensions)


# -- who ends a call, and when


def test_two_threads_that_end_one_call_report_it_once(payments, heard, monkeypatch):
    from opengradient_x402.payment import payments as module

    original = module.build_receipt

    def slowly(*args, **kwargs):
        time.sleep(0.1)
        return original(*args, **kwargs)

    with client_for(payments) as client:
        stream = client.stream(PROMPT, on_receipt=heard.append)
        next(stream)
        monkeypatch.setattr(module, "build_receipt", slowly)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda outcome: stream._exchange.end(outcome), ["ok", "abandoned"]))
        stream.close()
    assert len(heard) == 1
    assert seats_taken(payments) == 0


def test_a_stream_that_another_thread_closes_ends_at_once_and_quietly(net, payments, heard):
    net.faults.inject(faults.SlowDrip(pace_s=600.0))
    with client_for(payments) as client:
        stream = client.stream(PROMPT, on_receipt=heard.append)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(list, stream)
            time.sleep(0.3)
            stream.close()
            assert reading.result(60) == [], "long before the gateway says its next word"
    assert [receipt.outcome for receipt in heard] == ["abandoned"]


def test_a_connection_that_cannot_be_closed_still_ends_the_call(payments, meddled, heard):
    def meddle(request, send):
        response = send(request)
        if SESSION in response.headers:
            response.read()
            stream = Body([b"\n\n".join(response.content.split(b"\n\n")[:3]) + b"\n\n"])  # more was to come
            stream.close = lambda: (_ for _ in ()).throw(httpx.CloseError("no"))
            return httpx.Response(200, headers={SESSION: response.headers[SESSION]}, stream=stream)
        return response

    client = meddled(meddle)
    stream = client.stream(PROMPT, on_receipt=heard.append)
    next(stream)
    with pytest.raises(httpx.CloseError):
        stream.close()
    assert len(heard) == 1
    assert seats_taken(payments) == 0
    url = f"{payments.network.gateway_url}/v1/chat/completions"
    plain = httpx.Client(transport=X402Transport(payments, wrapped=Meddler(meddle)), headers={"authorization": "B x"})
    with plain, pytest.raises(httpx.CloseError):
        plain.post(url, json={**PROMPT, "model": "gpt-5"})
    assert seats_taken(payments) == 0


def test_sessions_that_are_over_are_forgotten():
    clock = [1000.0]
    pool = SessionPool(idle_s=60, clock=lambda: clock[0], wall_clock=lambda: NOW)
    key = SessionKey("http://127.0.0.1:1", "POST", "/v1", "0xpayer")
    for number in range(50):
        seat = pool.enter(key, blocking=False)
        assert isinstance(seat, Ticket)
        pool.leave(pool.opened(seat, session_id=f"session-{number:04}", authorization=entry()))
        clock[0] += 100
    assert sum(map(len, pool._sessions.values())) <= 2


def test_a_forked_process_does_not_wait_for_an_opening_of_its_parent():
    pool = SessionPool(idle_s=60, wall_clock=lambda: NOW)
    key = SessionKey("http://127.0.0.1:1", "POST", "/v1", "0xpayer")
    parents = pool.enter(key, blocking=False)
    pool.renew()  # what happens in the child after a fork
    seat = pool.enter(key, blocking=False)
    assert isinstance(seat, Ticket)
    pool.closed(parents)
    assert not isinstance(pool.enter(key, blocking=False), Ticket), "the child's own opening is still under way"


def test_a_stream_that_is_collected_inside_the_pool_does_not_lock_it():
    pool = SessionPool(idle_s=60, wall_clock=lambda: NOW)
    key = SessionKey("http://127.0.0.1:1", "POST", "/v1", "0xpayer")
    session = pool.opened(pool.enter(key, blocking=False), session_id="session-0001", authorization=entry())

    def work():
        with pool._lock:  # the garbage collector may run here, and end a dropped stream
            pool.leave(session)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_one_client_does_not_keep_the_loops_it_served(payments):
    client = async_client_for(payments)
    for _ in range(5):
        asyncio.run(client.chat(PROMPT))
    gc.collect()
    assert len(client._lines) == 0


def test_a_loop_that_ends_during_a_chain_read_leaves_no_noise(payments, caplog):
    release = threading.Event()
    payments.funds._look = lambda terms, challenge: release.wait(60)

    async def go():
        client = async_client_for(payments)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.chat(PROMPT), 0.3)

    with caplog.at_level(logging.DEBUG, logger="concurrent.futures"):
        asyncio.run(go())
        release.set()
        time.sleep(0.2)
    assert [record.message for record in caplog.records if record.name.startswith("concurrent")] == []


async def test_a_coroutine_that_is_thrown_away_in_mid_stream_ends_its_call(net, payments, heard):
    net.faults.inject(faults.SlowDrip(pace_s=0.2))
    client = async_client_for(payments)
    stream = await client.stream(PROMPT, on_receipt=heard.append)

    async def read():
        async for _ in stream:
            pass

    reading = read()
    reading.send(None)
    reading.close()
    assert [receipt.outcome for receipt in heard] == ["abandoned"]
    await client.aclose()


async def test_no_call_blocks_the_event_loop(payments):
    from blockbuster import blockbuster_ctx

    client = async_client_for(payments)
    with blockbuster_ctx():
        assert (await client.chat(PROMPT)).content
        async with await client.stream(PROMPT) as stream:
            async for _ in stream:
                pass
        (await client.stream(PROMPT))
        await client.aclose()


async def test_a_plain_async_body_that_is_cancelled_while_closing_ends_its_call(payments):
    url = f"{payments.network.gateway_url}/v1/chat/completions"
    transport = AsyncX402Transport(payments)
    async with httpx.AsyncClient(transport=transport, headers={"authorization": "Bearer x"}) as plain:
        await plain.post(url, json={**PROMPT, "model": "gpt-5"})
        request = plain.build_request("POST", url, json={**PROMPT, "model": "gpt-5"})
        response = await plain.send(request, stream=True)
        inner = response.stream._stream._inner
        close = inner.aclose

        async def slowly():
            await close()
            await asyncio.sleep(5)

        inner.aclose = slowly
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.aclose(), 0.1)
        assert seats_taken(payments) == 0
