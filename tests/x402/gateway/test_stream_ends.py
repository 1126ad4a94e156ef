"""The end of a stream: the HTTP body is read to its end, so that the call is billed and its connection used again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.gateway.client import AsyncGatewayClient, GatewayClient
from opengradient_x402.gateway.streams import REST_S
from opengradient_x402.ledger.receipts import ReceiptStatus
from support.payers import PROMPT, payments_for, settled_receipts

STREAMS = 80


def read_to_the_end(stream):
    with stream:
        return "".join(delta.content for delta in stream)


def stop_at_the_last_delta(stream):
    with stream:
        for delta in stream:
            if delta.finish_reason is not None:
                return


def drop_at_the_last_delta(stream):
    for delta in stream:
        if delta.finish_reason is not None:
            return


async def aread_to_the_end(stream):
    async with stream:
        return "".join([delta.content async for delta in stream])


async def astop_at_the_last_delta(stream):
    async with stream:
        async for delta in stream:
            if delta.finish_reason is not None:
                return


def test_eighty_streams_of_the_gateway_of_april_are_billed_and_in_the_batches_eighty_times(tmp_path):
    with (
        Devnet(behaves_like="gateway-2026-04") as net,
        payments_for(net, net.account(opg="10", approved=True), tmp_path / "ledger.sqlite") as payments,
    ):

        async def read_async():
            async with AsyncGatewayClient(payments) as client:
                for number in range(STREAMS // 2):
                    reader = (aread_to_the_end, astop_at_the_last_delta)[number % 2]
                    await reader(await client.stream(PROMPT))

        with GatewayClient(payments) as client:
            readers = (read_to_the_end, stop_at_the_last_delta, drop_at_the_last_delta)
            for number in range(STREAMS // 2):
                readers[number % 3](client.stream(PROMPT))
        asyncio.run(read_async())
        assert sum(record.calls for record in net.close_sessions()) == STREAMS
        receipts = settled_receipts(net, payments)
        assert sum(batch.size for batch in net.flush_batches()) == STREAMS
        assert [(receipt.outcome, receipt.status) for receipt in receipts] == [("ok", ReceiptStatus.SETTLED)] * STREAMS
        cheapest, dearest = min(r.settled_atomic for r in receipts), max(r.settled_atomic for r in receipts)
        assert 0 < cheapest <= dearest <= cheapest + 1


class Connections:
    """A line to a gateway that counts its connections, and holds the end of each body back until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.count = 0
        self.let_go = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            self.count += 1
            gateway = socket.create_connection(self._target)
            threading.Thread(target=self._pass_on, args=(client, gateway), daemon=True).start()
            threading.Thread(target=self._pass_back, args=(gateway, client), daemon=True).start()

    @staticmethod
    def _pass_on(client: socket.socket, gateway: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                gateway.sendall(data)
        except OSError:
            pass
        gateway.close()

    def _pass_back(self, gateway: socket.socket, client: socket.socket) -> None:
        try:
            while data := gateway.recv(65536):
                cut = data.find(b"[DONE]\n\n\r\n")
                if cut >= 0:
                    client.sendall(data[: cut + 10])
                    self.let_go.wait(10)
                    data = data[cut + 10 :]
                client.sendall(data)
        except OSError:
            pass
        client.close()


@contextmanager
def line_to(net: Devnet) -> Iterator[Connections]:
    host, port = net.gateway_url.removeprefix("http://").split(":")
    line = Connections((host, int(port)))
    try:
        yield line
    finally:
        line.let_go.set()
        line.server.close()


def test_every_delta_is_there_before_the_end_of_the_body_is_waited_for(net, payments):
    with line_to(net) as line, GatewayClient(payments, base_url=line.url) as client:
        client.chat(PROMPT)
        started = time.monotonic()
        stream = client.stream(PROMPT)
        for delta in stream:
            if delta.finish_reason is not None:
                assert time.monotonic() - started < REST_S
        assert stream.completion.content
        assert stream.receipt.outcome == "ok"


@pytest.mark.parametrize("reader", [read_to_the_end, stop_at_the_last_delta])
def test_a_body_that_does_not_end_is_left_after_a_second(net, payments, reader):
    with line_to(net) as line, GatewayClient(payments, base_url=line.url) as client:
        client.chat(PROMPT)
        started = time.monotonic()
        stream = client.stream(PROMPT)
        reader(stream)
        assert REST_S <= time.monotonic() - started < REST_S + 1.5
        assert stream.completion.content
        assert stream.receipt.outcome == "ok"


@pytest.mark.parametrize("reader", [aread_to_the_end, astop_at_the_last_delta])
def test_a_body_that_does_not_end_is_left_after_a_second_by_coroutines_too(net, payments, reader):
    async def run(url):
        async with AsyncGatewayClient(payments, base_url=url) as client:
            await client.chat(PROMPT)
            started = time.monotonic()
            stream = await client.stream(PROMPT)
            await reader(stream)
            assert REST_S <= time.monotonic() - started < REST_S + 1.5
            assert stream.completion.content
            assert stream.receipt.outcome == "ok"

    with line_to(net) as line:
        asyncio.run(run(line.url))


def test_connections_of_streams_are_used_again(net, payments):
    async def run(url):
        async with AsyncGatewayClient(payments, base_url=url) as client:
            await client.chat(PROMPT)
            for reader in (aread_to_the_end, astop_at_the_last_delta, aread_to_the_end):
                await reader(await client.stream(PROMPT))

    with line_to(net) as line, GatewayClient(payments, base_url=line.url) as client:
        line.let_go.set()
        client.chat(PROMPT)  # the 402 before it is left unread, and its connection with it
        paid = line.count
        for reader in (read_to_the_end, stop_at_the_last_delta, drop_at_the_last_delta, read_to_the_end):
            reader(client.stream(PROMPT))
        assert line.count == paid
        asyncio.run(run(line.url))
        assert line.count == paid + 1


def test_a_stream_that_is_left_before_its_last_delta_is_abandoned_at_once(net, payments):
    with line_to(net) as line, GatewayClient(payments, base_url=line.url) as client:
        stream = client.stream({**PROMPT, "messages": [{"role": "user", "content": "Count to 40, please"}]})
        next(stream)
        started = time.monotonic()
        stream.close()
        assert time.monotonic() - started < REST_S + 1.5
        assert stream.receipt.outcome == "abandoned"
