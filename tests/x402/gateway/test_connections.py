"""What the copies of a model share: clients, payments and sessions, looked up by value and closed in the end."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
from dataclasses import replace

import pytest
from pydantic import SecretStr

from opengradient_devnet import Account, Devnet
from opengradient_x402.errors import InsecureEndpoint, InvalidPrivateKey
from opengradient_x402.gateway.clients import Connections, Route, Spender
from support.payers import PROMPT, payments_for


@pytest.fixture
def route(devnet: Devnet, wallet: Account, tmp_path) -> Route:
    spender = Spender(
        private_key=SecretStr(wallet.private_key),
        network=f"{devnet.gateway_url}/network",
        ledger=tmp_path / "ledger.sqlite",
    )
    return Route(spender=spender)


@pytest.fixture
def connections():
    made = Connections()
    yield made
    made.close()


def test_one_client_per_route_however_many_threads_ask(connections: Connections, route: Route):
    found = []
    threads = [threading.Thread(target=lambda: found.append(connections.client(replace(route)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_routes_of_one_spender_share_its_payments(connections: Connections, route: Route):
    proving = replace(route, verify_tee="require")
    assert connections.client(proving) is not connections.client(route)
    assert connections.client(proving).payments is connections.client(route).payments
    assert asyncio.run(connections.async_client(route)).payments is connections.client(route).payments


def test_another_key_never_spends_the_first_one_s_money(connections: Connections, route: Route, devnet: Devnet):
    other = devnet.account(opg="1", approved=True)
    theirs = replace(route, spender=replace(route.spender, private_key=SecretStr(other.private_key)))
    connections.client(route).chat(PROMPT)
    assert connections.client(theirs).chat(PROMPT).receipt.payer == other.address


def test_what_is_closed_opens_again(connections: Connections, route: Route):
    async def twice() -> None:
        for _ in range(2):
            assert (await (await connections.async_client(route)).chat(PROMPT)).content
            await connections.aclose()

    for _ in range(2):
        assert connections.client(route).chat(PROMPT).content
        connections.close()
    asyncio.run(twice())


def test_payments_that_were_given_stay_open(connections: Connections, devnet: Devnet, wallet: Account, tmp_path):
    with payments_for(devnet, wallet, tmp_path / "theirs.sqlite") as payments:
        given = Route(spender=Spender(payments=payments))
        connections.client(given).chat(PROMPT)
        connections.close()
        assert len(payments.ledger.receipts().result()) == 1
        assert connections.client(given).payments is payments
        connections.close()


def test_what_was_dropped_is_closed(route: Route):
    before = set(threading.enumerate())
    connections = Connections()
    connections.client(route).payments.ledger.receipts().result()
    assert set(threading.enumerate()) > before
    del connections
    gc.collect()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before:  # the ledger's writer
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_copy_is_the_same_one_and_a_pickle_is_an_empty_one(connections: Connections, route: Route, wallet: Account):
    client = connections.client(route)
    assert copy.deepcopy(connections).client(route) is client
    pickled = pickle.dumps(connections)
    assert wallet.private_key.removeprefix("0x").encode() not in pickled
    again: Connections = pickle.loads(pickled)
    assert again.client(route) is not client
    again.close()


def test_the_environment_decides_what_was_left_open(
    connections: Connections, route: Route, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OG_PRIVATE_KEY", route.spender.private_key.get_secret_value())
    monkeypatch.setenv("OG_NETWORK", str(route.spender.network))
    monkeypatch.setenv("OG_SETTLEMENT_MODE", "private")
    left_open = Route(spender=Spender(ledger=route.spender.ledger))
    receipt = connections.client(left_open).chat(PROMPT).receipt
    assert receipt.settlement_mode == "private"
    connections.close()
    monkeypatch.setenv("OG_GATEWAY_URL", "http://gateway.example")
    with pytest.raises(InsecureEndpoint, match=r"gateway\.example"):
        connections.client(left_open).chat(PROMPT)


def test_a_missing_key_opens_nothing_and_can_be_supplied_later(
    connections: Connections, route: Route, monkeypatch: pytest.MonkeyPatch
):
    keyless = replace(route, spender=replace(route.spender, private_key=None))
    with pytest.raises(InvalidPrivateKey):
        connections.client(keyless)
    monkeypatch.setenv("OG_PRIVATE_KEY", route.spender.private_key.get_secret_value())
    assert connections.client(keyless).chat(PROMPT).content


def test_neither_key_nor_ledger_password_is_shown(route: Route, wallet: Account):
    spender = replace(route.spender, ledger="postgresql://user:hunter2@db/ledger")
    shown = repr(replace(route, spender=spender))
    assert "hunter2" not in shown
    assert wallet.private_key not in shown
