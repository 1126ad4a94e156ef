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
from opengradient_x402.gateway.clients import Connections, Route
from support.payers import PROMPT, payments_for


@pytest.fixture
def route(devnet: Devnet, wallet: Account, tmp_path) -> Route:
    return Route(
        private_key=SecretStr(wallet.private_key),
        network=f"{devnet.gateway_url}/network",
        ledger=tmp_path / "ledger.sqlite",
    )


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


def test_routes_of_one_wallet_share_its_payments(connections: Connections, route: Route):
    proving = replace(route, verify_tee="require")
    assert connections.client(proving) is not connections.client(route)
    assert connections.client(proving).payments is connections.client(route).payments
    assert asyncio.run(connections.async_client(route)).payments is connections.client(route).payments


def test_another_key_never_spends_the_first_one_s_money(connections: Connections, route: Route, devnet: Devnet):
    other = devnet.account(opg="1", approved=True)
    theirs = replace(route, private_key=SecretStr(other.private_key))
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
        given = Route(payments=payments)
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
    deadline = time.monotonic() + 60
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


def test_the_environment_changes_nothing_about_a_route(
    connections: Connections, route: Route, devnet: Devnet, wallet: Account, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OG_PRIVATE_KEY", devnet.account(opg="1", approved=True).private_key)
    monkeypatch.setenv("OG_NETWORK", "base-sepolia")
    monkeypatch.setenv("OG_SETTLEMENT_MODE", "private")
    monkeypatch.setenv("OG_GATEWAY_URL", "http://gateway.example")
    receipt = connections.client(route).chat(PROMPT).receipt
    assert (receipt.payer, receipt.settlement_mode) == (wallet.address, "batch")
    with pytest.raises(InsecureEndpoint, match=r"gateway\.example"):
        connections.client(replace(route, base_url="http://gateway.example"))


def test_a_missing_key_opens_nothing_and_says_how_to_give_one(connections: Connections, route: Route):
    keyless = replace(route, private_key=None)
    with pytest.raises(InvalidPrivateKey, match="OG_PRIVATE_KEY"):
        connections.client(keyless)
    assert connections.client(route).chat(PROMPT).content


def test_a_route_without_network_or_ledger_is_refused(route: Route):
    for missing in ("network", "ledger"):
        with pytest.raises(TypeError, match="ledger"):
            replace(route, **{missing: None})


def test_neither_key_nor_ledger_password_is_shown(route: Route, wallet: Account):
    shown = repr(replace(route, ledger="postgresql://user:hunter2@db/ledger"))
    assert "hunter2" not in shown
    assert wallet.private_key not in shown
