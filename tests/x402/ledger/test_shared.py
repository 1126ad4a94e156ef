"""One ledger object for each database of a process, whatever number of wallets pay into it."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from support.ledger_rows import entry
from support.payers import PROMPT, client_for, payments_for, settled_receipts

_FILES = Path("/proc/self/fd")


def test_wallets_of_one_process_share_the_ledger_and_the_last_one_closes_it(tmp_path):
    path, network = tmp_path / "ledger.sqlite", load_network("base")
    first = Payments.open(network=network, private_key="0x" + "11" * 32, ledger=path)
    second = Payments.open(network=network, private_key="0x" + "22" * 32, ledger=f"sqlite:///{path}")
    assert first.ledger is second.ledger
    first.close()
    first.close()
    second.ledger.authorize(entry(1)).result()
    second.close()
    with pytest.raises(LedgerUnavailable, match="was closed"):
        second.ledger.authorize(entry(2)).result()
    third = Payments.open(network=network, private_key="0x" + "11" * 32, ledger=path)
    assert third.ledger.authorizations().result() == [entry(1)]
    third.close()


def test_ledgers_in_memory_are_not_shared():
    network = load_network("base")
    first, second = (Payments.open(network=network, private_key="0x" + "11" * 32, ledger="sqlite://") for _ in range(2))
    assert first.ledger is not second.ledger
    first.close()
    second.close()


def _open_files() -> set[tuple[str, str]]:
    """The descriptors, each with what it leads to; not the one that lists them, which is gone."""
    found = set()
    for file in list(_FILES.iterdir()):
        with suppress(OSError):
            found.add((file.name, str(file.readlink())))
    return found


def test_two_hundred_wallets_need_no_more_threads_and_files_than_one(tmp_path):
    network, path = load_network("base"), tmp_path / "ledger.sqlite"

    def opened(number: int) -> Payments:
        payments = Payments.open(network=network, private_key=f"0x{number:064x}", ledger=path)
        payments.ledger.noted("use it").result()
        return payments

    wallets = [opened(1)]
    threads, files = set(threading.enumerate()), _open_files()
    wallets += [opened(number) for number in range(2, 201)]
    assert set(threading.enumerate()) - threads == set()  # what earlier tests left may end meanwhile
    assert _open_files() - files == set()
    for wallet in wallets:
        wallet.close()


def test_each_wallet_sees_its_own_receipts(net, tmp_path):
    path = tmp_path / "ledger.sqlite"
    accounts = [net.account(approved=True) for _ in range(2)]
    with payments_for(net, accounts[0], path) as one, payments_for(net, accounts[1], path) as other:
        for payments, number in ((one, 1), (other, 3)):
            with client_for(payments) as client:
                for _ in range(number):
                    client.chat(PROMPT)
        settled_receipts(net, one)
        assert len(one.ledger.receipts(payer=one.payer).result()) == 1
        assert {receipt.payer for receipt in one.ledger.receipts(payer=other.payer).result()} == {other.payer}
        pages = list(one.ledger.pages_of_receipts(payer=other.payer, most=2))
        assert [len(page) for page in pages] == [2, 1]
