"""What the models of a process share: clients, payments and sessions, looked up by value and closed in the end."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import threading
import time
from dataclasses import replace

import pytest
from pydantic import SecretStr

from opengradient_devnet import Account, Devnet
from opengradient_x402.errors import InsecureEndpoint, InvalidPrivateKey, UnknownNetwork
from opengradient_x402.gateway.clients import Connections, Registry, Route
from opengradient_x402.gateway.connections import _LOOPS, AsyncEndpointTransport
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.payment.policy import SpendPolicy
from support.payers import PROMPT, async_client_for, network_of, payments_for


@pytest.fixture
def route(net: Devnet, account: Account, tmp_path) -> Route:
    return Route(
        private_key=SecretStr(account.private_key),
        network=f"{net.gateway_url}/network",
        ledger=tmp_path / "ledger.sqlite",
    )


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def connections(registry: Registry):
    made = Connections(registry)
    yield made
    made.close()


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


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


def test_another_key_never_spends_the_first_one_s_money(connections: Connections, route: Route, net: Devnet):
    other = net.account(opg="1", approved=True)
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


def test_payments_that_were_given_stay_open(connections: Connections, net: Devnet, account: Account, tmp_path):
    with payments_for(net, account, tmp_path / "theirs.sqlite") as payments:
        given = Route(payments=payments)
        connections.client(given).chat(PROMPT)
        connections.close()
        assert len(payments.ledger.receipts().result()) == 1
        assert connections.client(given).payments is payments
        connections.close()


def test_models_of_one_wallet_share_everything_whatever_they_were_made_from(
    registry: Registry, route: Route, net: Devnet, account: Account, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    network_file = tmp_path / "network.json"
    network_file.write_text(json.dumps(net.network))
    written_otherwise = (
        replace(route, private_key=SecretStr(account.private_key.removeprefix("0x"))),
        replace(route, ledger="ledger.sqlite"),
        replace(route, ledger=f"sqlite:///{tmp_path}/ledger.sqlite"),
        replace(route, network=network_of(net)),
        replace(route, network=network_file),
        replace(route, network=str(network_file)),
        replace(route, policy=SpendPolicy()),
    )
    first = Connections(registry).client(route)
    assert len({Connections(registry).client(replace(route)) for _ in range(5)} | {first}) == 1
    for other in written_otherwise:
        assert Connections(registry).client(other) is first
    assert len(registry) == 1


def test_models_that_differ_in_what_they_may_spend_share_nothing(
    registry: Registry, route: Route, net: Devnet, tmp_path
):
    kept = Connections(registry)
    different = (
        route,
        replace(route, private_key=SecretStr(net.account(opg="1", approved=True).private_key)),
        replace(route, policy=SpendPolicy(max_per_day="3")),
        replace(route, ledger=tmp_path / "other.sqlite"),
        replace(route, network=replace(network_of(net), confirmations=7)),
        replace(route, ledger=Ledger(tmp_path / "ledger.sqlite")),
    )
    payments = [kept.client(each).payments for each in different]
    assert len({id(each) for each in payments}) == len(different)
    assert len({id(each.sessions) for each in payments}) == len(different)
    assert payments[0].ledger is payments[1].ledger is payments[2].ledger, "one ledger for one database"
    for each in payments[1:]:
        each.ledger.close()


def test_the_next_request_s_model_uses_the_session_of_the_last_one(registry: Registry, route: Route):
    ids = set()
    for closes in (False, True, False, True):
        connections = Connections(registry)
        ids.add(connections.client(route).chat(PROMPT).receipt.authorization_id)
        if closes:
            connections.close()
        del connections
        gc.collect()
    assert len(ids) == 1


def test_closing_one_model_leaves_the_stream_of_another_alone(registry: Registry, route: Route, net: Devnet):
    closed, reading = Connections(registry), Connections(registry)
    closed.client(route).chat(PROMPT)
    with reading.client(route).stream(PROMPT) as stream:
        next(stream)
        closed.close()
        assert list(stream)
    assert stream.receipt.outcome == "ok"
    assert reading.client(route).chat(PROMPT).receipt.authorization_id == stream.receipt.authorization_id


async def test_closing_one_model_leaves_the_async_stream_of_another_alone(registry: Registry, route: Route):
    closed, reading = Connections(registry), Connections(registry)
    await (await closed.async_client(route)).chat(PROMPT)
    async with await (await reading.async_client(route)).stream(PROMPT) as stream:
        await anext(stream)
        await closed.aclose()
        assert [delta async for delta in stream]
    assert stream.receipt.outcome == "ok"
    await reading.aclose()


def test_a_stream_goes_on_when_its_model_was_dropped_and_its_time_is_over(route: Route):
    registry = Registry(rest_s=0.1, linger_s=0.1)
    connections = Connections(registry)
    stream = connections.client(route).stream(PROMPT)
    next(stream)
    del connections
    gc.collect()
    time.sleep(0.5)
    assert list(stream)
    assert stream.receipt.outcome == "ok"
    assert wait_until(lambda: registry._keeper is None)


def test_what_no_model_uses_any_more_is_closed_after_a_while(route: Route):
    before = set(threading.enumerate())
    registry = Registry(rest_s=0.2, linger_s=0.2)
    connections = Connections(registry)
    client = connections.client(route)
    client.chat(PROMPT)
    time.sleep(0.5)
    assert connections.client(route) is client, "a model that lives keeps what it uses"
    del connections, client
    gc.collect()
    assert wait_until(lambda: not set(threading.enumerate()) - before), "the ledger's writer and the keeper have ended"
    again = Connections(registry)
    assert again.client(replace(route, policy=SpendPolicy(max_per_day="3"))).chat(PROMPT).content
    assert wait_until(lambda: len(registry) == 1), "what was not used for long is forgotten"
    again.close()


def test_thousands_of_wallets_do_not_stay_open(route: Route):
    registry = Registry(rest_s=0.1, most_wallets=8)
    for number in range(1, 2001):
        wallet = replace(route, network="base", private_key=SecretStr(f"{number:064x}"))
        Connections(registry).client(wallet)
    assert wait_until(lambda: len(registry) <= 8)
    assert wait_until(lambda: len(registry._spellings) <= 8)


def test_one_model_whose_copies_have_many_keys_keeps_those_that_are_in_use(route: Route):
    registry = Registry(rest_s=0.1, most_wallets=4)
    connections = Connections(registry)
    first = connections.client(route)
    for number in range(1, 50):
        connections.client(replace(route, network="base", private_key=SecretStr(f"{number:064x}")))
    assert connections.client(route) is first
    for wallet in registry._wallets.values():
        wallet.used_at -= 601  # longer ago than any call takes
    connections.client(route)
    registry.look()
    assert wait_until(lambda: len(registry) <= 5)
    assert connections.client(route) is first
    assert wait_until(lambda: len(connections._clients) <= 50)


def test_a_ledger_that_somebody_closed_is_opened_anew(registry: Registry, route: Route):
    connections = Connections(registry)
    connections.client(route).payments.ledger.close()
    assert connections.client(route).chat(PROMPT).content
    assert Connections(registry).client(route).chat(PROMPT).content


def test_a_devnet_that_was_started_again_is_read_again(registry: Registry, route: Route, net: Devnet, tmp_path):
    file = tmp_path / "network.json"
    file.write_text(json.dumps(net.network))
    first = Connections(registry).client(replace(route, network=file)).payments.network
    file.write_text(json.dumps({**net.network, "confirmations": first.confirmations + 4}))
    os.utime(file, ns=(1, 1))
    assert Connections(registry).client(replace(route, network=file)).payments.network.confirmations == (
        first.confirmations + 4
    )


def test_of_many_that_open_at_once_each_gets_the_error_of_its_own(registry: Registry, route: Route):
    unknown = replace(route, network="no-such-network")
    problems = []

    def ask():
        try:
            Connections(registry).client(unknown)
        except UnknownNetwork as exc:
            problems.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(problem) for problem in problems}) == 8
    assert len(registry) == 0


async def test_clients_of_one_loop_share_its_connections_and_leave_none_behind(registry: Registry, route: Route):
    models = [Connections(registry) for _ in range(4)]
    for verify, model in zip(("off", "warn", "off", "warn"), models, strict=True):
        await (await model.async_client(replace(route, verify_tee=verify))).chat(PROMPT)
    assert len(_LOOPS[asyncio.get_running_loop()]) == 1
    for model in models:
        await model.aclose()
    assert asyncio.get_running_loop() not in _LOOPS


def test_a_copy_is_the_same_one_and_a_pickle_is_an_empty_one(connections: Connections, route: Route, account: Account):
    client = connections.client(route)
    assert copy.deepcopy(connections).client(route) is client
    pickled = pickle.dumps(connections)
    assert account.private_key.removeprefix("0x").encode() not in pickled
    again: Connections = pickle.loads(pickled)
    assert again is not connections
    assert again._clients == {}


def test_the_environment_changes_nothing_about_a_route(
    connections: Connections, route: Route, net: Devnet, account: Account, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OG_PRIVATE_KEY", net.account(opg="1", approved=True).private_key)
    monkeypatch.setenv("OG_NETWORK", "base-sepolia")
    monkeypatch.setenv("OG_SETTLEMENT_MODE", "private")
    monkeypatch.setenv("OG_GATEWAY_URL", "http://gateway.example")
    receipt = connections.client(route).chat(PROMPT).receipt
    assert (receipt.payer, receipt.settlement_mode) == (account.address, "batch")
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


def test_neither_key_nor_ledger_password_is_shown(route: Route, account: Account):
    shown = repr(replace(route, ledger="postgresql://user:hunter2@db/ledger"))
    assert "hunter2" not in shown
    assert account.private_key not in shown


def test_a_client_that_is_retired_while_its_loop_ends_leaves_no_task_behind(
    net, account, tmp_path, monkeypatch, caplog
):
    closed, at_once = [], AsyncEndpointTransport.aclose

    async def slowly(self: AsyncEndpointTransport) -> None:
        is_own_task = getattr(asyncio.current_task().get_coro(), "__name__", "") == "slowly"
        for _ in range(50 * is_own_task):  # the end of the loop is quicker
            await asyncio.sleep(0)
        await at_once(self)
        closed.append(self)

    monkeypatch.setattr(AsyncEndpointTransport, "aclose", slowly)
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments:
        client = async_client_for(payments)

        async def call() -> None:
            await client.chat(PROMPT)
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, client.retire)  # when this has ended, and the loop has not

        asyncio.run(call())
    gc.collect()
    assert closed
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
