from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from opengradient_x402.channels.book import ChannelBook
from opengradient_x402.errors import BudgetExceeded, LedgerUnavailable
from opengradient_x402.ledger.authorizations import Budget
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.upkeep import check
from support.ledger_rows import NOW, OPG, entry, served

_FIRST_TABLES = """
CREATE TABLE authorizations (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, call_id TEXT NOT NULL, network TEXT NOT NULL,
    scheme TEXT NOT NULL, transfer_method TEXT NOT NULL, asset TEXT NOT NULL, payer TEXT NOT NULL,
    payee TEXT NOT NULL, facilitator TEXT, spender TEXT NOT NULL, nonce TEXT NOT NULL, amount_atomic TEXT NOT NULL,
    signed_at BIGINT NOT NULL, deadline BIGINT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
    settlement_mode TEXT NOT NULL, status TEXT NOT NULL, settled_atomic TEXT, tx_hash TEXT, block_number BIGINT,
    block_hash TEXT, reserved_gwei BIGINT NOT NULL
);
CREATE INDEX authorizations_budget ON authorizations (payer, network, asset, signed_at);
CREATE INDEX authorizations_status ON authorizations (status);
CREATE TABLE calls (
    sequence INTEGER PRIMARY KEY, call_id TEXT NOT NULL UNIQUE, authorization_id TEXT NOT NULL,
    created_at BIGINT NOT NULL, receipt TEXT NOT NULL
);
CREATE TABLE pins ("key" TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_TO_SECOND_VERSION = """
DROP INDEX authorizations_budget;
UPDATE authorizations SET reserved_gwei = reserved_gwei + (reserved_rest > 0);
UPDATE reserved SET gwei = (SELECT sum(reserved_gwei) FROM authorizations);
UPDATE calls SET receipt = json_remove(receipt, '$.asset_symbol', '$.asset_decimals');
ALTER TABLE authorizations DROP COLUMN reserved_rest;
ALTER TABLE authorizations DROP COLUMN asset_symbol;
ALTER TABLE authorizations DROP COLUMN asset_decimals;
ALTER TABLE reserved DROP COLUMN rest;
CREATE INDEX authorizations_budget ON authorizations (payer, network, asset, signed_at, reserved_gwei);
UPDATE schema SET version = 2;
"""
"""A ledger of today as version 2 had it: what is reserved was rounded up, and no record named its token."""


@pytest.fixture
def first(tmp_path):
    """A ledger as the first tables had it, with an open authorization of 0.1 OPG and its call."""
    path, known = tmp_path / "first.sqlite", entry(1)
    terms = known.terms
    row = {
        "id": known.id,
        "call_id": known.call_id,
        "network": known.network,
        "scheme": terms.scheme,
        "transfer_method": terms.transfer_method,
        "asset": terms.asset,
        "payer": known.payer,
        "payee": terms.payee,
        "spender": terms.spender,
        "nonce": str(known.nonce),
        "amount_atomic": str(terms.amount_atomic),
        "signed_at": terms.signed_at,
        "deadline": terms.deadline,
        "endpoint": known.endpoint,
        "model": known.model,
        "settlement_mode": known.settlement_mode,
        "status": "signed",
        "reserved_gwei": terms.amount_atomic // 10**9,
    }
    receipt = served(known, "call_1", cost_atomic=5)
    connection = sqlite3.connect(path)
    with connection:
        connection.executescript(_FIRST_TABLES)
        connection.execute(
            f"INSERT INTO authorizations ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        )
        connection.execute(
            "INSERT INTO calls (call_id, authorization_id, created_at, receipt) VALUES (?, ?, ?, ?)",
            ("call_1", known.id, NOW, json.dumps(receipt.to_json())),
        )
    connection.close()
    return path


def test_a_ledger_of_the_first_version_keeps_its_authorizations_receipts_and_reservations(first):
    ledger = Ledger(first)
    assert ledger.authorizations().result() == [entry(1)]
    (receipt,) = ledger.receipts().result()
    assert (receipt.call_id, receipt.cost_atomic) == ("call_1", 5)
    budget = Budget(limit_atomic=OPG // 10)
    with pytest.raises(BudgetExceeded):
        ledger.authorize(entry(2), budget=budget).result()
    ledger.close()
    again = Ledger(first)
    assert again.authorizations().result() == [entry(1)]
    again.close()


def test_a_ledger_of_the_second_version_counts_exactly_from_then_on_and_stays_the_same_ledger(tmp_path):
    path = tmp_path / "second.sqlite"
    amounts = {1: 10**17 + 5, 2: 7, 3: 10**18}
    with closing(Ledger(path)) as ledger:
        for number, amount_atomic in amounts.items():
            ledger.authorize(entry(number, amount_atomic=amount_atomic)).result()
        settled = replace(entry(3), status="settled", settled_atomic=123_456_789_012_345_678)
        ledger.record_settlement(settled).result()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_TO_SECOND_VERSION)
    with closing(Ledger(path)) as again:
        known = again.authorizations().result()
        spent = again.spent(payer=entry().payer, asset=entry().asset, network=entry().network).result()
        assert spent == sum(one.reserved_atomic for one in known) == 10**17 + 5 + 7 + 123_456_789_012_345_678
        assert {(one.asset_symbol, one.asset_decimals) for one in known} == {("OPG", 18)}
        assert {(one.asset_symbol, one.asset_decimals) for one in again.receipts().result()} == {("OPG", 18)}
    assert check(f"sqlite:///{path}") == []


def test_a_ledger_of_a_newer_version_is_refused_before_anything_is_signed_and_left_as_it_is(tmp_path):
    path = tmp_path / "newer.sqlite"
    ledger = Ledger(path)
    ledger.authorize(entry(1)).result()
    ledger.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE schema SET version = version + 1")
    connection.close()
    before = path.read_bytes()
    ledger = Ledger(path)
    with pytest.raises(LedgerUnavailable, match=r"Nothing was signed.*Upgrade this package"):
        ledger.authorize(entry(2)).result()
    ledger.close()
    assert path.read_bytes() == before


def test_all_signatures_of_a_nonce_are_kept_and_the_largest_stays_reserved_until_the_latest_deadline(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.authorize(entry(1, amount_atomic=10**17, deadline=NOW + 300)).result()
    whole = ledger.authorize(entry(1, amount_atomic=10**16, deadline=NOW + 60)).result()
    assert [(terms.amount_atomic, terms.deadline) for terms in whole.signed] == [
        (10**17, NOW + 300),
        (10**16, NOW + 60),
    ]
    assert (whole.reserved_atomic, whole.deadline) == (10**17, NOW + 300)
    assert ledger.authorizations().result() == [whole]
    spent = ledger.spent(payer=whole.payer, asset=whole.asset, network=whole.network).result()
    assert spent == 10**17
    ledger.close()


def test_a_signature_that_is_added_to_an_expired_authorization_opens_it_again(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    first = ledger.authorize(entry(1, deadline=NOW + 60)).result()
    ledger.record_settlement(replace(first, status="expired", confirmations=0, confirmations_needed=0)).result()
    whole = ledger.authorize(entry(1, deadline=NOW + 900)).result()
    assert (whole.status, whole.reserved_atomic) == ("signed", first.amount_atomic)
    ledger.record_settlement(replace(first, status="expired", confirmations=0, confirmations_needed=0)).result()
    assert [one.status for one in ledger.authorizations().result()] == ["signed"], "it was judged before the second"
    ledger.close()


_TO_THIRD_VERSION = """
DROP INDEX calls_of_run;
ALTER TABLE calls DROP COLUMN run;
UPDATE schema SET version = 3;
"""
"""A ledger of today as version 3 had it: no call named its run."""


def test_a_ledger_of_the_third_version_finds_calls_by_their_run_from_then_on(tmp_path):
    path = tmp_path / "third.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.authorize(entry(1)).result()
        ledger.record_call(served(entry(1), "call_1")).result()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_TO_THIRD_VERSION)
    with closing(Ledger(path)) as again:
        again.record_call(served(entry(1), "call_2", run="nightly")).result()
        assert {one.call_id: one.run for one in again.receipts().result()} == {"call_1": None, "call_2": "nightly"}
        assert [one.call_id for one in again.newest_receipts(9, run="nightly").result()] == ["call_2"]
    assert check(f"sqlite:///{path}") == []


_TO_FOURTH_VERSION = """
ALTER TABLE vouchers DROP COLUMN signed_atomic;
INSERT INTO vouchers (authorization_id, channel_id, base_atomic, max_atomic, state)
VALUES ('auth_1', '0xab', '40', '100', 'newest');
UPDATE schema SET version = 4;
"""
"""A ledger of today as version 4 had it: a voucher that was signed anew for less had only the last sum."""


def test_a_ledger_of_the_fourth_version_keeps_its_vouchers(tmp_path):
    path = tmp_path / "fourth.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.receipts().result()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(_TO_FOURTH_VERSION)
    with closing(Ledger(path)) as again:
        (voucher,) = ChannelBook(again).vouchers(["0xab"]).result().values()
    assert (voucher.base_atomic, voucher.max_atomic, voucher.ceiling_atomic) == (40, 100, 100)
    assert check(f"sqlite:///{path}") == []
