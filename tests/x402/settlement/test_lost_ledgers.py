"""A ledger whose whole folder was deleted: what the chain shows of today decides whether a new one may be begun."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from opengradient_x402.errors import ChainUnavailable, LedgerUnavailable, PolicyRefused
from opengradient_x402.ledger import place as places
from opengradient_x402.ledger import schema
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.upkeep import check, repair
from opengradient_x402.payment.payments import Payments
from opengradient_x402.payment.policy import SpendPolicy
from support.ledger_rows import entry
from support.mounts import mounts
from support.node import serving
from support.payers import PROMPT, async_client_for, client_for, network_of, opg_balance, payments_for

pytestmark = pytest.mark.devnet(sessions=False)
"""Each call is a payment of its own."""


@pytest.fixture
def mountinfo(tmp_path, monkeypatch):
    """The machine is an ordinary one: its files last."""
    return mounts(monkeypatch, tmp_path, kind="ext4")


@pytest.fixture
def place(tmp_path, mountinfo):
    """A folder that holds one ledger, and nothing else."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder / "ledger.sqlite"


@pytest.fixture
def pay(net, account):
    """Pays for calls, and waits until they are settled; how much was taken, in atomic units."""

    def paid(ledger: Path | str, *, calls: int = 1, account=account) -> int:
        before = opg_balance(net, account.address)
        with payments_for(net, account, ledger) as payments, client_for(payments) as client:
            for _ in range(calls):
                client.chat(PROMPT)
        net.close_sessions()
        return before - opg_balance(net, account.address)

    return paid


@pytest.fixture
def delete(monkeypatch):
    """Deletes a ledger's folder, as `rm -rf` does, and lets this process forget the ledger, as a new one does."""

    def deleted(ledger: Path) -> None:
        shutil.rmtree(ledger.parent)
        monkeypatch.setattr(places, "_SEEN_HERE", {})

    return deleted


def far_mark(tmp_path: Path) -> Path:
    [found] = (tmp_path / "cache" / "opengradient" / "ledgers").iterdir()
    return found


def test_a_ledger_that_was_deleted_with_its_folder_is_refused_while_the_chain_shows_its_payments(
    net, account, place, pay, delete
):
    taken = pay(place, calls=3)
    assert taken > 0
    delete(place)
    balance = opg_balance(net, account.address)
    with payments_for(net, account, place) as payments, client_for(payments) as client:
        for _ in range(2):
            with pytest.raises(LedgerUnavailable) as refused:
                client.chat(PROMPT)
        assert payments.ledger.authorizations().result() == []  # they are there before a signature leaves
    net.close_sessions()
    text = str(refused.value)
    assert f"Another ledger was in use at the place of {payments.ledger!r} before, and is gone" in text
    assert f"3 payments of {account.address} in the last 24 hours that this ledger does not have" in text
    assert f"{network_of(net).asset.format(taken)} in total" in text
    assert "Nothing was signed and nothing was paid" in text
    assert "opengradient-x402 ledger repair" in text
    assert not refused.value.is_retryable
    assert opg_balance(net, account.address) == balance


def test_a_process_of_its_own_refuses_it_too(net, account, place, pay, mountinfo):
    pay(place)
    shutil.rmtree(place.parent)
    program = (
        "from pathlib import Path\n"
        "from langchain_opengradient import ChatOpenGradient\n"
        "from opengradient_x402.ledger import place\n"
        f"place._MOUNTS = Path({str(mountinfo)!r})\n"
        "try:\n    ChatOpenGradient(model='openai/gpt-5').invoke('hi')\n"
        "except Exception as exc:\n    print(type(exc).__name__, exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "OG_PRIVATE_KEY": account.private_key,
            "OG_NETWORK": f"{net.gateway_url}/network",
            "OG_GATEWAY_URL": net.gateway_url,
            "OG_LEDGER_URL": str(place),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("LedgerUnavailable Another ledger was in use")


async def test_async_calls_are_refused_in_the_same_way(net, account, place, pay, delete):
    pay(place)
    delete(place)
    with payments_for(net, account, place) as payments:
        async with async_client_for(payments) as client:
            with pytest.raises(LedgerUnavailable, match="does not have"):
                await client.chat(PROMPT)


def test_it_is_used_again_once_it_was_accepted(place, pay, delete):
    pay(place)
    delete(place)
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)
    [done] = repair(f"sqlite:///{place}").done
    assert done.startswith("Accepted: another ledger was here before, and is gone.")
    assert pay(place) > 0


def test_it_can_be_accepted_before_anything_was_tried(place, pay, delete):
    pay(place)
    delete(place)
    place.parent.mkdir()
    [done] = repair(f"sqlite:///{place}").done
    assert done.startswith("Accepted: another ledger was here before, and is gone.")
    assert repair(f"sqlite:///{place}").done == []
    assert pay(place) > 0


def test_a_ledger_whose_chain_shows_nothing_is_begun_anew_with_a_warning(net, account, place, pay, delete, caplog):
    ledger = Ledger(place)
    ledger.authorize(entry(1)).result()  # another wallet's, and never settled
    ledger.close()
    delete(place)
    assert pay(place) > 0
    [said] = [record.message for record in caplog.records if "Another ledger" in record.message]
    assert f"shows no payment of {account.address} in the last 24 hours" in said
    assert "counts in no budget" in said
    caplog.clear()
    places._SEEN_HERE.clear()
    assert pay(place) > 0  # it is known by now
    assert not [record for record in caplog.records if "Another ledger" in record.message]


def test_only_the_wallet_whose_payments_are_missing_is_refused(net, place, pay, delete):
    pay(place)
    delete(place)
    other = net.account(opg="10", approved=True)
    assert pay(place, account=other) > 0
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)
    assert pay(place, account=other) > 0


def test_a_node_that_does_not_answer_leaves_it_refused(net, account, place, pay, delete):
    pay(place)
    delete(place)
    with serving(net.chain) as node:
        node.misbehave = lambda method, params, count: (500, b"") if method == "eth_getLogs" else None
        network = replace(network_of(net), rpc_url=node.url)
        payments = Payments.open(network=network, private_key=account.private_key, ledger=place)
        with client_for(payments) as client, pytest.raises(ChainUnavailable) as refused:
            client.chat(PROMPT)
        assert payments.ledger.authorizations().result() == []
        payments.close()
    assert "could not be read from the chain" in str(refused.value)
    assert "Nothing was signed" in str(refused.value)


async def test_calls_that_come_together_ask_the_chain_once_and_a_refusal_holds_for_later_ones(
    net, account, place, pay, delete
):
    pay(place)
    delete(place)
    with serving(net.chain) as node:
        payments = Payments.open(
            network=replace(network_of(net), rpc_url=node.url), private_key=account.private_key, ledger=place
        )
        async with async_client_for(payments) as client:
            with pytest.raises(LedgerUnavailable):
                await client.chat(PROMPT)
            once = node.count("eth_getLogs")
            assert once > 0
            answers = await asyncio.gather(*(client.chat(PROMPT) for _ in range(8)), return_exceptions=True)
        payments.close()
        assert [type(answer) for answer in answers] == [LedgerUnavailable] * 8
        assert node.count("eth_getLogs") == once


def test_a_call_whose_time_is_over_leaves_the_answer_to_the_next_one(net, account, place, pay, delete):
    pay(place)
    delete(place)
    may_answer = threading.Event()

    def slow(method, params, count):
        may_answer.wait(20)

    with serving(net.chain) as node:
        node.misbehave = slow
        payments = Payments.open(
            network=replace(network_of(net), rpc_url=node.url), private_key=account.private_key, ledger=place
        )
        with client_for(payments, timeout_s=1.0) as client:
            with pytest.raises(ChainUnavailable) as late:
                client.chat(PROMPT)
            may_answer.set()
            payments.doubts.refusal().result(20)
            asked = node.count("eth_getLogs")
            node.misbehave = lambda method, params, count: (500, b"")
            with pytest.raises(LedgerUnavailable, match="does not have"):
                client.chat(PROMPT)
        assert node.count("eth_getLogs") == asked
        payments.close()
    assert "payments are missing could not be read from the chain within the 1 s of call" in late.value.message


def test_a_call_that_the_policy_refuses_asks_no_chain(net, account, place, pay, delete):
    pay(place)
    delete(place)
    with serving(net.chain) as node:
        payments = Payments.open(
            network=replace(network_of(net), rpc_url=node.url),
            private_key=account.private_key,
            ledger=place,
            policy=SpendPolicy(max_per_authorization="0.000000001"),
        )
        with client_for(payments) as client, pytest.raises(PolicyRefused):
            client.chat(PROMPT)
        payments.close()
        assert node.count("eth_getLogs") == 0


def _is_yesterdays(mark: Path) -> None:
    known = json.loads(mark.read_text())
    mark.write_text(json.dumps(known | {"at": int(time.time()) - 2 * 86_400}))


def _is_garbage(mark: Path) -> None:
    mark.write_bytes(b"\xff{")


def _is_endless(mark: Path) -> None:
    mark.write_text('{"ledger": "1", "authorizations": Infinity, "at": Infinity}')


def _is_gone(mark: Path) -> None:
    mark.unlink()


@pytest.mark.parametrize("change", [_is_yesterdays, _is_garbage, _is_endless, _is_gone])
def test_what_is_not_remembered_of_today_refuses_nothing(place, pay, delete, tmp_path, change: Callable[[Path], None]):
    pay(place)
    change(far_mark(tmp_path))
    delete(place)
    assert pay(place) > 0


def authorize(ledger: Path | str, *numbers: int) -> None:
    opened = Ledger(ledger)
    try:
        for number in numbers:
            opened.authorize(entry(number)).result()
        opened.authorizations().result()
    finally:
        opened.close()


@pytest.mark.parametrize("kept_numbers", [(), (1,)])
@pytest.mark.parametrize("is_mark_kept", [False, True])
def test_an_old_copy_is_refused_with_and_without_its_mark_and_can_be_accepted(
    place, tmp_path, delete, is_mark_kept, kept_numbers
):
    authorize(place, *kept_numbers)
    kept = tmp_path / "backup"
    shutil.copytree(place.parent, kept)
    authorize(place, 2, 3)
    delete(place)
    shutil.copytree(kept, place.parent)
    if not is_mark_kept:
        (place.parent / f".{place.name}.mark").unlink()
    held = f"it holds {len(kept_numbers)} authorization.*, and .* recorded in it before"
    with pytest.raises(LedgerUnavailable, match=held):
        authorize(place, 4)
    [problem] = check(f"sqlite:///{place}")
    assert problem.startswith("This is not the ledger that was used here: it holds")
    [done] = repair(f"sqlite:///{place}").done
    assert done.startswith("Accepted: it holds")
    assert check(f"sqlite:///{place}") == []
    authorize(place, 4)


def test_a_ledger_that_another_process_adds_to_while_it_is_checked_is_no_old_copy(place, monkeypatch):
    authorize(place, 1)
    version_of = schema.version_of

    def overtaken(conn):
        version = version_of(conn)  # from here on the check sees the ledger as it is now
        monkeypatch.setattr(schema, "version_of", version_of)
        authorize(place, 2)
        return version

    monkeypatch.setattr(schema, "version_of", overtaken)
    assert check(f"sqlite:///{place}") == []


def test_deleting_the_new_ledger_too_does_not_hide_the_old_one(place, pay, delete, monkeypatch):
    pay(place)
    delete(place)
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)
    place.unlink()  # and its mark stays: it has never held anything
    monkeypatch.setattr(places, "_SEEN_HERE", {})
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)


def test_what_was_accepted_stays_accepted_where_no_mark_can_be_kept(place, pay, delete, monkeypatch):
    pay(place)
    delete(place)
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)
    assert repair(f"sqlite:///{place}").done
    (place.parent / f".{place.name}.mark").unlink()
    monkeypatch.setattr(places, "_SEEN_HERE", {})
    assert pay(place) > 0


def test_what_a_ledger_did_not_miss_before_another_one_it_may_miss_after_it(net, place, pay, delete, tmp_path):
    authorize(place, 1)
    delete(place)
    assert pay(place) > 0  # the second ledger: nothing is missing in it
    kept = tmp_path / "second"
    shutil.copytree(place.parent, kept)
    delete(place)
    place.parent.mkdir()
    repair(f"sqlite:///{place}")
    assert pay(place) > 0  # the third
    delete(place)
    shutil.copytree(kept, place.parent)
    (place.parent / f".{place.name}.mark").unlink()
    with pytest.raises(LedgerUnavailable, match="1 payment of"):
        pay(place)


def test_a_ledger_is_known_however_its_url_is_written(place, pay, delete):
    pay(place)
    delete(place)
    place.parent.mkdir()
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(f"sqlite:///{place}?timeout=5")


def test_another_machine_with_the_same_home_has_its_own_ledger(place, pay, delete, tmp_path, monkeypatch):
    machine = tmp_path / "machine-id"
    monkeypatch.setattr(places, "_MACHINE", machine)
    machine.write_text("1" * 32 + "\n")
    pay(place)
    delete(place)  # the disk of another machine has nothing there
    machine.write_text("2" * 32 + "\n")
    assert pay(place) > 0
    delete(place)
    machine.write_text("1" * 32 + "\n")
    with pytest.raises(LedgerUnavailable, match="does not have"):
        pay(place)


def test_a_ledger_moves_from_a_containers_own_file_system_to_a_volume(place, pay, delete, tmp_path, monkeypatch):
    mounts(monkeypatch, tmp_path, kind="overlay")
    pay(place)
    delete(place)
    mounts(monkeypatch, tmp_path, kind="ext4")
    assert pay(place) > 0


@pytest.mark.parametrize("kind", ["overlay", "tmpfs"])
def test_a_ledger_in_a_place_that_does_not_last_may_begin_anew(place, pay, delete, tmp_path, monkeypatch, kind):
    mounts(monkeypatch, tmp_path, kind=kind)
    pay(place)
    delete(place)
    assert pay(place) > 0


def test_a_cache_directory_that_cannot_be_written_stops_nothing(place, pay, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert pay(place) > 0


def test_programs_that_begin_a_new_ledger_each_time_leave_no_files_without_end(tmp_path, mountinfo):
    for number in range(3):
        ledger = Ledger(tmp_path / f"{number}.sqlite")
        ledger.authorize(entry(1)).result()
        ledger.close()
        for known in (tmp_path / "cache" / "opengradient" / "ledgers").iterdir():
            os.utime(known, (1, 1))
    assert far_mark(tmp_path).name.endswith(".mark")
