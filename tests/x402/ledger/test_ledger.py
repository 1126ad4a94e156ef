"""The ledger: durable before the signature leaves, atomic over processes, exact to the unit."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opengradient_x402.errors import BudgetExceeded, ConfigurationError, LedgerUnavailable
from opengradient_x402.ledger.authorizations import Budget
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.receipts import ReceiptStatus
from support.ledger_rows import OPG, entry, served


@pytest.fixture
def ledger(tmp_path: Path):
    book = Ledger(tmp_path / "deep" / "ledger.sqlite")
    yield book
    book.close()


def test_an_authorization_is_readable_by_another_connection_when_its_future_is_done(ledger, tmp_path):
    ledger.authorize(entry()).result()
    other = Ledger(tmp_path / "deep" / "ledger.sqlite")
    assert other.authorizations().result() == [entry()]
    other.close()


def test_a_256_bit_amount_and_nonce_survive_the_round_trip(ledger):
    huge = entry(amount_atomic=9 * 10**27, nonce=2**256 - 1)
    ledger.authorize(huge).result()
    assert ledger.authorizations().result() == [huge]


def test_an_authorized_call_has_a_receipt_before_anything_else_is_known(ledger):
    ledger.authorize(entry()).result()
    (receipt,) = ledger.receipts().result()
    assert (receipt.call_id, receipt.status, receipt.outcome) == ("call_1", ReceiptStatus.AUTHORIZED, "unknown")


def test_a_budget_refuses_the_authorization_that_does_not_fit_and_records_nothing(ledger):
    budget = Budget(limit_atomic=OPG // 4)
    ledger.authorize(entry(1), budget=budget).result()
    ledger.authorize(entry(2), budget=budget).result()
    with pytest.raises(BudgetExceeded, match=r"0\.1 OPG would exceed the budget: 0\.2 OPG of 0\.25 OPG"):
        ledger.authorize(entry(3), budget=budget).result()
    assert [row.id for row in ledger.authorizations().result()] == ["auth_1", "auth_2"]


def test_a_settlement_frees_what_was_reserved_and_not_taken(ledger):
    budget = Budget(limit_atomic=OPG // 10)
    ledger.authorize(entry(1), budget=budget).result()
    with pytest.raises(BudgetExceeded):
        ledger.authorize(entry(2, amount_atomic=OPG // 100), budget=budget).result()
    ledger.record_settlement(
        replace(entry(1), status="settled", settled_atomic=7, tx_hash="0xab", block_number=5, block_hash="0xcd")
    ).result()
    ledger.authorize(entry(2, amount_atomic=OPG // 100), budget=budget).result()


def test_an_unsent_authorization_frees_its_budget_and_leaves_no_receipt(ledger):
    ledger.authorize(entry(1)).result()
    ledger.mark_unsent("auth_1").result()
    assert ledger.receipts().result() == []
    assert [row.status for row in ledger.authorizations().result()] == ["unsent"]
    assert ledger.spent(payer=entry().payer, asset=entry().asset, network=entry().network).result() == 0


def test_a_budget_in_a_token_with_six_decimals_is_exact_to_the_unit(ledger):
    usdc = {"asset_symbol": "USDC", "asset_decimals": 6, "amount_atomic": 333_333}
    budget = Budget(limit_atomic=1_000_000)
    for number in (1, 2, 3):
        ledger.authorize(entry(number, **usdc), budget=budget).result()
    with pytest.raises(BudgetExceeded, match=r"0\.000002 USDC would exceed the budget: 0\.999999 USDC of 1 USDC are"):
        ledger.authorize(entry(4, **usdc | {"amount_atomic": 2}), budget=budget).result()
    ledger.authorize(entry(5, **usdc | {"amount_atomic": 1}), budget=budget).result()
    one = entry(1)
    assert ledger.spent(payer=one.payer, asset=one.asset, network=one.network).result() == 1_000_000


def test_signing_again_under_the_same_nonce_reserves_the_larger_amount_once(ledger):
    ledger.authorize(entry(1, amount_atomic=3 * 10**9)).result()
    ledger.authorize(entry(1, amount_atomic=2 * 10**9)).result()
    assert ledger.spent(payer=entry().payer, asset=entry().asset, network=entry().network).result() == 3 * 10**9


def test_hundred_threads_cannot_overdraw_a_budget_together(ledger):
    budget = Budget(limit_atomic=OPG)

    def attempt(number: int) -> bool:
        try:
            ledger.authorize(entry(number), budget=budget).result()
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(attempt, range(100))) == 10


def test_two_processes_cannot_overdraw_a_budget_together(tmp_path):
    path = tmp_path / "shared.sqlite"
    script = textwrap.dedent("""
        import json, sys
        from opengradient_x402.errors import BudgetExceeded
        from opengradient_x402.ledger.authorizations import Authorization, Budget, SignedTerms
        from opengradient_x402.ledger.ledger import Ledger
        path, base, template = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
        ledger, won = Ledger(path), 0
        for n in range(base, base + 30):
            signed = tuple(SignedTerms(**terms) for terms in template["signed"])
            row = Authorization(**template | {"signed": signed, "id": f"auth_{n}", "call_id": f"call_{n}"})
            try:
                ledger.authorize(row, budget=Budget(limit_atomic=10**18)).result(); won += 1
            except BudgetExceeded: pass
        ledger.close(); print(won)
    """)
    template = json.dumps(asdict(entry()))
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(base), template], stdout=subprocess.PIPE)
        for base in (0, 100, 200)
    ]
    assert sum(int(worker.communicate(timeout=240)[0]) for worker in workers) == 10


def test_shares_of_a_settlement_add_up_to_it_and_follow_the_claims(ledger):
    ledger.authorize(entry(1)).result()
    for call, cost in (("call_1", 10), ("call_2", 20), ("call_3", 3)):
        ledger.record_call(served(entry(1), call, cost_atomic=cost)).result()
    ledger.record_settlement(
        replace(entry(1), status="settled", settled_atomic=34, tx_hash="0x1", block_number=1)
    ).result()
    receipts = {r.call_id: r for r in ledger.receipts().result()}
    assert sum(r.settled_atomic for r in receipts.values()) == 34
    assert receipts["call_2"].settled_atomic == 21
    assert {r.status for r in receipts.values()} == {ReceiptStatus.SETTLED}


def test_a_call_recorded_after_its_settlement_is_shared_in(ledger):
    ledger.authorize(entry(1)).result()
    ledger.record_call(served(entry(1), "call_1", cost_atomic=10)).result()
    ledger.record_settlement(
        replace(entry(1), status="settled", settled_atomic=30, tx_hash="0x1", block_number=1)
    ).result()
    ledger.record_call(served(entry(1), "call_2", cost_atomic=20)).result()
    assert {r.call_id: r.settled_atomic for r in ledger.receipts().result()} == {"call_1": 10, "call_2": 20}


def test_an_expired_authorization_makes_its_receipts_expired_and_costs_nothing(ledger):
    ledger.authorize(entry(1)).result()
    ledger.record_settlement(replace(entry(1), status="expired")).result()
    (receipt,) = ledger.receipts().result()
    assert (receipt.status, receipt.settled_atomic) == (ReceiptStatus.EXPIRED, None)
    assert ledger.spent(payer=entry().payer, asset=entry().asset, network=entry().network).result() == 0


def test_a_pin_keeps_the_first_value(ledger):
    assert ledger.pin("k", "first").result() == "first"
    assert ledger.pin("k", "second").result() == "first"


def test_an_unwritable_ledger_says_so_and_that_nothing_was_paid(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ledger = Ledger(tmp_path / "file" / "ledger.sqlite")
    with pytest.raises(LedgerUnavailable, match="Nothing was signed and nothing was paid"):
        ledger.authorize(entry()).result()
    ledger.close()


def test_a_database_without_its_driver_is_answered_with_what_to_install():
    ledger = Ledger("mysql://payer@127.0.0.1/ledger")
    with pytest.raises(LedgerUnavailable, match=r"driver is missing.*opengradient-integrations\[postgresql\]"):
        ledger.authorize(entry()).result()
    ledger.close()


def test_a_corrupt_ledger_file_is_refused_and_not_overwritten(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    ledger = Ledger(path)
    with pytest.raises(LedgerUnavailable):
        ledger.authorize(entry()).result()
    ledger.close()
    assert path.read_bytes().startswith(b"this is not a database")


def test_a_closed_ledger_refuses_to_record(ledger):
    ledger.close()
    with pytest.raises(LedgerUnavailable, match="was closed"):
        ledger.authorize(entry()).result()


def test_the_ledger_file_is_readable_by_its_owner_only(ledger):
    ledger.authorize(entry()).result()
    path = Path(ledger.url.removeprefix("sqlite:///"))
    assert path.stat().st_mode & 0o077 == 0


def test_the_password_of_a_database_url_is_not_shown():
    assert "secret" not in repr(Ledger("postgresql://user:secret@host/db"))


def test_many_ledgers_can_open_the_same_new_file_at_once(tmp_path):
    for attempt in range(8):
        books = [Ledger(tmp_path / f"{attempt}.sqlite") for _ in range(8)]
        futures = [book.authorize(entry(number)) for number, book in enumerate(books)]
        for future in futures:
            future.result()
        assert len(books[0].authorizations().result()) == 8
        for book in books:
            book.close()


def test_a_wallet_is_found_under_every_spelling_of_its_address(ledger):
    ledger.authorize(entry()).result()
    for spelling in (entry().payer, entry().payer.lower(), "0x" + entry().payer[2:].upper()):
        assert ledger.authorizations(payer=spelling).result() == [entry()]
        assert ledger.unfinished(payer=spelling, network=entry().network).result() == [entry()]
        assert len(ledger.receipts(payer=spelling).result()) == 1
        spent = ledger.spent(
            payer=spelling, asset=entry().asset.lower(), network=entry().network, window_s=2 * entry().signed_at
        )
        assert spent.result() == entry().amount_atomic


def test_an_authorization_is_written_in_one_spelling_however_its_addresses_came(ledger):
    ledger.authorize(entry(payer=entry().payer.lower(), asset=entry().asset.lower())).result()
    assert ledger.authorizations().result() == [entry()]
    assert [receipt.payer for receipt in ledger.receipts().result()] == [entry().payer]


def test_a_payer_that_is_no_address_is_an_error_and_not_an_empty_list(ledger):
    with pytest.raises(ConfigurationError, match=r"is not an address .*Nothing was read"):
        ledger.receipts(payer="0x1234")
