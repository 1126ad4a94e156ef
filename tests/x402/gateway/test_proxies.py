"""Paid calls go through the proxies that the environment names, and believe no other certificate for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.chain.contracts import active_tees
from opengradient_x402.chain.questions import ChainReader
from opengradient_x402.errors import ConfigurationError, InsecureEndpoint
from opengradient_x402.payment.payments import Payments
from support.enclaves import impostor, registry
from support.payers import PROMPT, async_client_for, client_for, network_of
from support.proxy import proxying

Call = Callable[[Payments, str | None], str]


def chat(payments: Payments, base_url: str | None) -> str:
    with client_for(payments, base_url=base_url) as client:
        return client.chat(PROMPT).content


def async_stream(payments: Payments, base_url: str | None) -> str:
    async def call() -> str:
        async with async_client_for(payments, base_url=base_url) as client, await client.stream(PROMPT) as deltas:
            return "".join([delta.content async for delta in deltas])

    return asyncio.run(call())


@pytest.fixture(params=[chat, async_stream])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


@pytest.fixture(scope="module")
def book() -> Iterator:
    with registry() as one:
        yield one


@pytest.fixture
def payments(net: Devnet, book, tmp_path: Path) -> Iterator[Payments]:
    """A wallet on a network whose registry is the test's."""
    network = replace(network_of(net), registry=book.contract)
    key = net.account(opg="10", approved=True).private_key
    one = Payments.open(network=network, private_key=key, ledger=tmp_path / "ledger.sqlite")
    yield one
    one.close()
    book.clear()


def register(book, net: Devnet, endpoint: str | None = None) -> None:
    """Lists the devnet's own enclave, or another endpoint with that enclave's certificate."""
    network = network_of(net)
    (tee,) = ChainReader(network.rpc_url, network.chain_id).ask(active_tees(network.registry.address))
    named = {"payment_address": tee.payment_address, "public_key_der": tee.public_key_der}
    book.register(endpoint or tee.endpoint, tee.certificate_der, **named)


@pytest.mark.parametrize("bypass", ["", "127.0.0.1,localhost"])
def test_a_tunnel_carries_calls_to_a_pinned_enclave(call, payments, book, net, monkeypatch, bypass):
    register(book, net)
    with proxying() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", bypass)
        assert call(payments, "registry")
    assert bool([line for line in proxy.asked if line.startswith("CONNECT 127.0.0.1:")]) is not bool(bypass)


def test_an_impostor_behind_a_proxy_is_paid_nothing(call, payments, book, net, monkeypatch):
    with impostor() as other, proxying() as proxy:
        register(book, net, other.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(InsecureEndpoint):
            call(payments, "registry")
        assert proxy.asked
    assert payments.ledger.authorizations().result() == []


def test_plain_calls_go_through_a_proxy_too(call, payments, monkeypatch):
    with proxying() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert call(payments, None)
    assert [line for line in proxy.asked if "/v1/chat/completions" in line]


def test_a_proxy_of_another_kind_is_refused_before_anything_is_paid(call, payments, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(ConfigurationError, match="socks5 proxy"):
        call(payments, payments.network.gateway_url)
    assert payments.ledger.authorizations().result() == []
