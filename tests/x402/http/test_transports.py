"""What a call goes through counts a request as never sent only when it had no connection, phase by phase.

Each phase fails once, by itself or by cancelling, for threads and for event loops. The gateway is a socket that says
what a test tells it to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from opengradient_x402.gateway.connections import pinned_context
from opengradient_x402.http.loop_transport import LoopTransport
from opengradient_x402.http.thread_transport import ThreadTransport
from support.enclaves import impostor

NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def request(url: str, *, content: bytes = b"{}", connect_s: float = 5, read_s: float = 5) -> httpx.Request:
    limits = {"connect": connect_s, "read": read_s, "write": read_s, "pool": read_s}
    return httpx.Request("POST", url, content=content, extensions={"timeout": limits})


class Listener:
    """A server that talks as told; it keeps what it read."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.heard = b""
        self.connections = 0

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(self.reading(reader), writer)
        finally:
            writer.close()

    def reading(self, reader: asyncio.StreamReader) -> asyncio.StreamReader:
        until = reader.readuntil

        async def noted(separator: bytes = b"\n") -> bytes:
            piece = await until(separator)
            self.heard += piece
            return piece

        reader.readuntil = noted  # type: ignore[method-assign]
        return reader


async def read_request(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def hang_up_after_the_request(reader, writer):
    await read_request(reader)


async def say_nothing(reader, writer):
    await read_request(reader)
    await asyncio.sleep(30)


async def hang_up_in_the_headers(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
    await writer.drain()


async def say_what_is_not_http(reader, writer):
    await read_request(reader)
    writer.write(b"what do you want?\r\n\r\n")
    await writer.drain()


async def drip_the_headers(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(300):
        writer.write(f"x-{number}: drip\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def reset(reader, writer):
    await read_request(reader)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


async def half_a_body(reader, writer):
    await read_request(reader)
    writer.write(HEAD + b"content-length: 10\r\n\r\nhalf")
    await writer.drain()


async def half_a_chunk(reader, writer):
    await read_request(reader)
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhalf!\r\n")
    await writer.drain()


async def silent_body(reader, writer):
    await read_request(reader)
    writer.write(HEAD + b"content-length: 10\r\n\r\nhalf")
    await writer.drain()
    await asyncio.sleep(30)


async def whole(reader, writer):
    for _ in range(2):
        await read_request(reader)
        writer.write(HEAD + b"content-length: 5\r\n\r\nwhole")
        await writer.drain()


def transport_of(kind: type, verify: ssl.SSLContext | None = None) -> LoopTransport | ThreadTransport:
    verify = verify or ssl.create_default_context()
    if kind is ThreadTransport:
        return ThreadTransport(verify=verify, keepalive_s=4.0, most_idle=64)
    return LoopTransport(verify=verify, keepalive_s=4.0)


async def ended(transport: LoopTransport | ThreadTransport) -> None:
    if isinstance(transport, ThreadTransport):
        transport.close()
    else:
        await transport.aclose()


@pytest.fixture
async def loop_transport():
    one = transport_of(LoopTransport)
    yield one
    await ended(one)


@pytest.fixture(params=[LoopTransport, ThreadTransport])
async def transport(request):
    one = transport_of(request.param)
    yield one
    await ended(one)


async def exchange(transport: LoopTransport | ThreadTransport, asked: httpx.Request, *, is_read: bool = True) -> bytes:
    """The body of the answer, read to its end."""
    if isinstance(transport, ThreadTransport):
        return await asyncio.to_thread(exchanged, transport, asked, is_read=is_read)
    response = await transport.handle_async_request(asked)
    try:
        return await response.aread() if is_read else b""
    finally:
        await response.aclose()


def exchanged(transport: ThreadTransport, asked: httpx.Request, *, is_read: bool) -> bytes:
    response = transport.handle_request(asked)
    try:
        return response.read() if is_read else b""
    finally:
        response.close()


async def failure(transport: LoopTransport | ThreadTransport, asked: httpx.Request) -> httpx.TransportError:
    with pytest.raises(httpx.TransportError) as caught:
        await exchange(transport, asked)
    return caught.value


async def test_a_name_that_nobody_has_is_a_connect_error(transport):
    assert isinstance(await failure(transport, request("http://gateway.invalid/")), httpx.ConnectError)


async def test_a_port_where_nobody_listens_is_a_connect_error(transport):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert isinstance(await failure(transport, request(f"http://127.0.0.1:{port}/")), httpx.ConnectError)


@pytest.mark.parametrize("limits", [{"connect_s": 0.2}, {"read_s": 0.2}], ids=["connect", "whole head"])
async def test_a_connection_that_is_not_made_in_time_is_a_connect_timeout(transport, limits):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]  # the queue of connections is full: a further one hangs
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        problem = await failure(transport, request(f"http://127.0.0.1:{full.getsockname()[1]}/", **limits))
        for one in waiting:
            one.close()
    assert isinstance(problem, httpx.ConnectTimeout)


async def test_a_tls_handshake_that_never_ends_is_a_connect_timeout(transport):
    async def no_tls(reader, writer):
        await asyncio.sleep(30)

    async with Listener(no_tls) as server:
        problem = await failure(transport, request(server.url.replace("http:", "https:"), connect_s=0.3))
    assert isinstance(problem, httpx.ConnectTimeout)


async def test_what_does_not_speak_tls_is_a_connect_error(transport):
    async def plain(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)

    async with Listener(plain) as server:
        problem = await failure(transport, request(server.url.replace("http:", "https:")))
    assert isinstance(problem, httpx.ConnectError)


@pytest.mark.parametrize("kind", [LoopTransport, ThreadTransport])
async def test_another_certificate_than_the_registered_one_is_a_connect_error(kind):
    with impostor() as asked, impostor() as registered:
        transport = transport_of(kind, pinned_context(registered.certificate.der))
        problem = await failure(transport, request(asked.url + "/"))
        await ended(transport)
    assert isinstance(problem, httpx.ConnectError)
    assert "certificate" in str(problem).lower()


@pytest.mark.parametrize(
    "talk",
    [
        hang_up_after_the_request,
        say_nothing,
        hang_up_in_the_headers,
        say_what_is_not_http,
        drip_the_headers,
        reset,
        half_a_body,
        half_a_chunk,
        silent_body,
    ],
)
async def test_from_the_first_byte_on_a_failure_never_counts_as_one_before_it(transport, talk):
    async with Listener(talk) as server:
        problem = await failure(transport, request(server.url, read_s=0.5))
        assert server.heard.startswith(b"POST / HTTP/1.1")
        assert server.connections == 1  # and it was not sent again
    assert not isinstance(problem, NEVER_LEFT)
    timed_out = talk in (say_nothing, drip_the_headers, silent_body)
    assert isinstance(problem, httpx.ReadTimeout) == timed_out


async def test_a_request_that_nobody_reads_counts_as_sent(transport):
    async def read_nothing(reader, writer):
        writer.transport.pause_reading()
        await asyncio.sleep(30)

    async with Listener(read_nothing) as server:
        problem = await failure(transport, request(server.url, content=b"x" * 30_000_000, read_s=0.5))
    assert isinstance(problem, httpx.ReadTimeout | httpx.WriteTimeout)


async def test_a_connection_that_was_ended_while_it_was_idle_is_not_used_again(transport):
    async def once(reader, writer):
        await read_request(reader)
        writer.write(HEAD + b"content-length: 5\r\n\r\nwhole")
        await writer.drain()

    async with Listener(once) as server:
        for _ in range(2):
            assert await exchange(transport, request(server.url)) == b"whole"
            await asyncio.sleep(0.1)
        assert server.connections == 2


async def test_a_connection_that_was_ended_while_the_loop_was_busy_is_not_used_again(loop_transport):
    transport = loop_transport
    answer = HEAD + b"content-length: 5\r\n\r\nwhole"

    def serve(listener: socket.socket) -> int:
        for number in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                time.sleep(0.2 * (1 - number))
        return number + 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert await exchange(transport, request(url)) == b"whole"
        time.sleep(0.7)  # the loop sees nothing of what happens meanwhile
        assert await exchange(transport, request(url)) == b"whole"
        assert await served == 2


async def test_a_body_that_is_not_read_to_its_end_ends_its_connection_and_a_whole_one_keeps_it(transport):
    async with Listener(whole) as server:
        for _ in range(2):
            assert await exchange(transport, request(server.url)) == b"whole"
        assert server.connections == 1
    async with Listener(silent_body) as server:
        for _ in range(2):
            await exchange(transport, request(server.url), is_read=False)
        assert server.connections == 2


@pytest.mark.parametrize("talk", [say_nothing, silent_body], ids=["before the headers", "in the body"])
async def test_a_cancelled_request_ends_its_connection(loop_transport, talk):
    ended = asyncio.Event()

    async def watched(reader, writer):
        try:
            await asyncio.wait_for(talk(reader, writer), 0.05)
        except TimeoutError:
            assert await reader.read() == b"{}"  # the rest of the request, and then the end
            ended.set()

    async with Listener(watched) as server:
        task = asyncio.create_task(exchange(loop_transport, request(server.url)))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 5)
        assert server.connections == 1


async def test_every_piece_is_given_out_as_it_comes(transport):
    async def piecewise(reader, writer):
        await read_request(reader)
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for number in range(3):
            writer.write(b"1\r\n%d\r\n" % number)
            await writer.drain()
            await asyncio.wait_for(seen[number].wait(), 5)  # the next one is not made before this one was seen
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    seen = [asyncio.Event() for _ in range(3)]
    loop = asyncio.get_running_loop()

    def read(transport: ThreadTransport, asked: httpx.Request) -> None:
        response = transport.handle_request(asked)
        for piece in response.stream:  # type: ignore[union-attr]
            loop.call_soon_threadsafe(seen[int(piece)].set)
        response.close()

    async with Listener(piecewise) as server:
        if isinstance(transport, ThreadTransport):
            await asyncio.to_thread(read, transport, request(server.url))
        else:
            response = await transport.handle_async_request(request(server.url))
            async for piece in response.stream:  # type: ignore[union-attr]
                seen[int(piece)].set()
            await response.aclose()
    assert all(one.is_set() for one in seen)


async def test_a_request_is_one_write(transport):
    sizes = []

    async def first_read(reader, writer):
        sizes.append(len(await reader.read(65536)))
        writer.write(HEAD + b"content-length: 0\r\n\r\n")
        await writer.drain()

    async with Listener(first_read) as server:
        await exchange(transport, request(server.url, content=b"x" * 1000))
    assert sizes[0] > 1000


async def test_what_follows_an_answer_is_read_by_nobody_and_its_connection_serves_no_further_request(transport):
    async def two_answers(reader, writer):
        await read_request(reader)
        writer.write(2 * (HEAD + b"content-length: 5\r\n\r\nwhole"))
        await writer.drain()
        await asyncio.sleep(5)

    async with Listener(two_answers) as server:
        for _ in range(2):
            assert await exchange(transport, request(server.url)) == b"whole"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + HEAD + b"\r\nwhole", b"whole"),
        (b"HTTP/1.0 200 OK\r\n\r\nwhole", b"whole"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5;x=y\r\nwhole\r\n0\r\nx-trailer: 1\r\n\r\n", b"whole"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["interim answers", "until the line ends", "trailers", "no content"],
)
async def test_all_ways_to_frame_an_answer_are_read(transport, answer, body):
    async def says(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async with Listener(says) as server:
        assert await exchange(transport, request(server.url)) == body


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"content-length: 3\r\ncontent-length: 5\r\n\r\nwhole",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 400_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    ],
    ids=["two lengths", "length and chunks", "another protocol", "endless header", "endless interim answers"],
)
async def test_what_could_be_read_in_two_ways_or_never_ends_is_no_answer(transport, answer):
    async def says(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(5)

    async with Listener(says) as server:
        assert isinstance(await failure(transport, request(server.url)), httpx.RemoteProtocolError)


async def test_a_header_that_would_begin_another_one_is_not_sent(transport):
    async with Listener(whole) as server:
        asked = request(server.url)
        asked.headers["x-user"] = "one\r\nx-payment: two"
        assert isinstance(await failure(transport, asked), httpx.LocalProtocolError)
        assert server.connections == 0


async def too_large(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large")
    await writer.drain()
    while await reader.read(1_000_000):
        pass


async def test_an_answer_before_the_end_of_a_large_request_is_read(transport):
    async with Listener(too_large) as server:
        assert await exchange(transport, request(server.url, content=b"x" * 30_000_000)) == b"too large"


async def test_a_request_that_was_answered_before_its_end_is_followed_by_none_on_its_connection(loop_transport):
    async with Listener(too_large) as server:
        for _ in range(2):
            assert await exchange(loop_transport, request(server.url, content=b"x" * 30_000_000)) == b"too large"
        assert server.connections == 2


def test_a_body_that_two_threads_close_gives_its_connection_back_once():
    transport = transport_of(ThreadTransport)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(50):
                connection.recv(65536)
                connection.sendall(HEAD + b"content-length: 5\r\n\r\nwhole")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(4) as threads:
        threads.submit(serve, listener)
        for _ in range(50):
            response = transport.handle_request(request(f"http://127.0.0.1:{listener.getsockname()[1]}/"))
            response.read()
            body = response.stream
            for closing in [threads.submit(body.close) for _ in range(3)]:  # type: ignore[union-attr]
                closing.result()
            assert len(transport._idle) == 1
    transport.close()


async def test_a_large_body_that_nobody_reads_is_not_kept_in_memory(loop_transport):
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(HEAD + b"\r\n")
        for _ in range(1000):
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000

    async with Listener(endless) as server:
        response = await loop_transport.handle_async_request(request(server.url))
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(0.2)
        assert sent == before < 50_000_000  # what is on its way is in the system's buffers
        size = 0
        async for piece in response.stream:  # type: ignore[union-attr]
            size += len(piece)
        assert size == 100_000_000
        await response.aclose()
