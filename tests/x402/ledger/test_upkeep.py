"""A ledger that was emptied, deleted, damaged or put back from an old copy is noticed, and can be repaired."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.upkeep import check, compact, repair
from support.ledger_rows import OPG, entry, served


@pytest.fixture
def path(tmp_path):
    """A ledger with ten authorizations and their calls, closed."""
    file = tmp_path / "ledger.sqlite"
    ledger = Ledger(file)
    for number in range(10):
        ledger.authorize(entry(number)).result()
        ledger.record_call(served(entry(number), f"call_{number}", cost_atomic=5)).result()
    ledger.close()
    return file


def _refused(path, match):
    ledger = Ledger(path)
    try:
        with pytest.raises(LedgerUnavailable, match=match) as caught:
            ledger.authorize(entry(99)).result()
    finally:
        ledger.close()
    assert "Nothing was signed and nothing was paid" in str(caught.value)
    return str(caught.value)


def _url(path):
    return f"sqlite:///{path}"


def _counts(path):
    ledger = Ledger(path)
    try:
        return len(ledger.authorizations().result()), len(ledger.receipts().result())
    finally:
        ledger.close()


def test_a_sound_ledger_has_no_problems(path):
    assert check(_url(path)) == []


def test_a_ledger_that_was_never_used_has_no_problems(tmp_path):
    assert check(_url(tmp_path / "new.sqlite")) == []
    assert not (tmp_path / "new.sqlite").exists()


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_ledger_that_was_emptied_or_deleted_is_refused_and_not_begun_anew(path, how):
    path.unlink()
    if how == "emptied":
        path.touch()
    text = _refused(path, r"its file is (gone|empty), and 10 authorizations were recorded in it")
    assert "opengradient-x402 ledger repair" in text
    [problem] = check(_url(path))
    assert problem.startswith("This is not the ledger that was used here: its file is")
    assert not path.exists() or path.stat().st_size == 0


def test_another_ledger_under_the_same_name_is_refused_until_it_is_accepted(path, tmp_path):
    other = Ledger(tmp_path / "other.sqlite")
    other.authorize(entry(1)).result()
    other.close()
    shutil.copy(tmp_path / "other.sqlite", path)
    _refused(path, r"another ledger than the one that was used here before, which held 10 authorizations")
    result = repair(_url(path))
    assert any("Accepted: it is another ledger" in sentence for sentence in result.done)
    assert _counts(path) == (1, 1)
    assert check(_url(path)) == []


def test_an_old_copy_of_the_ledger_is_refused_since_it_lacks_what_was_signed_later(path, tmp_path):
    shutil.copy(path, tmp_path / "backup.sqlite")
    ledger = Ledger(path)
    ledger.authorize(entry(50)).result()
    ledger.close()
    shutil.copy(tmp_path / "backup.sqlite", path)
    _refused(path, r"it holds 10 authorizations, and 11 were recorded in it before")


def test_a_ledger_that_is_deleted_while_it_is_in_use_is_refused(path):
    ledger = Ledger(path)
    ledger.authorize(entry(20)).result()
    path.unlink()
    with pytest.raises(LedgerUnavailable, match=r"deleted, emptied or replaced while it was in use"):
        ledger.authorize(entry(21)).result()
    with pytest.raises(LedgerUnavailable, match=r"11 authorizations were recorded in it"):
        ledger.authorize(entry(22)).result()
    ledger.close()


def _emptied_in_place(path):
    with closing(sqlite3.connect(path)) as conn, conn:
        for table in ("authorizations", "signatures", "reserved"):
            conn.execute(f"DELETE FROM {table}")


def _put_back_in_place(path):
    with closing(sqlite3.connect(path.with_name("backup"))) as old, closing(sqlite3.connect(path)) as conn:
        old.backup(conn)


@pytest.mark.parametrize("lose", [_emptied_in_place, _put_back_in_place])
def test_what_an_open_ledger_loses_to_another_program_is_missed_before_the_next_signature(path, lose):
    shutil.copy(path, path.with_name("backup"))
    ledger = Ledger(path)
    ledger.authorize(entry(20)).result()
    lose(path)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=r"and 11 were recorded in it before"):
            ledger.authorize(entry(21)).result()
    ledger.close()


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_ledger_that_is_gone_with_its_folder_is_not_begun_anew_by_the_process_that_used_it(path, is_idle):
    ledger = Ledger(path)
    ledger.authorize(entry(20)).result()
    if is_idle:
        ledger.rest()
    shutil.rmtree(path.parent)
    for number in (21, 22):
        with pytest.raises(LedgerUnavailable, match=r"Nothing was signed"):
            ledger.authorize(entry(number)).result()
    ledger.close()
    _refused(path, r"its file is gone, and 11 authorizations were recorded in it")
    repair(_url(path))
    assert _counts(path) == (0, 0)


def test_a_ledger_that_was_deleted_begins_anew_after_a_repair(path):
    path.unlink()
    assert repair(_url(path)).copy is None
    assert _counts(path) == (0, 0)


def test_a_damaged_file_is_refused_and_a_repair_restores_what_can_be_read_and_keeps_a_copy(path):
    compact(_url(path))
    content = bytearray(path.read_bytes())
    page = 4096
    for number in range(1, len(content) // page):  # the root pages stay; some page of rows is destroyed
        if content[number * page] == 0x0D:  # a leaf of a table
            last = number
    content[last * page : last * page + page] = b"\xff" * page
    path.write_bytes(content)
    problems = check(_url(path))
    assert problems
    assert all(problem.startswith("The file is damaged") for problem in problems)
    result = repair(_url(path))
    assert result.copy is not None
    assert result.copy.read_bytes() == bytes(content)
    assert check(_url(path)) == []
    assert sum(_counts(path)) >= 10


def test_a_file_that_is_no_database_is_named_as_that_and_repair_keeps_it(path):
    path.write_bytes(b"this is not a database" * 400)
    assert "ledger repair" in _refused(path, "not a database")
    assert check(_url(path)) == ["The file is damaged: file is not a database."]
    result = repair(_url(path))
    assert result.copy is not None
    assert result.copy.read_bytes().startswith(b"this is not a database")
    assert any("10 authorizations" in sentence for sentence in result.done)
    assert _counts(path) == (0, 0)


def test_a_reservation_that_does_not_follow_from_the_signatures_is_found_and_computed_anew(path):
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE authorizations SET reserved_gwei = 0, asset = 'none', is_open = 0 WHERE id = 'auth_3'")
        conn.execute("UPDATE reserved SET gwei = 0")
        conn.execute("UPDATE calls SET payer = NULL WHERE call_id = 'call_4'")
    problems = check(_url(path))
    assert f"Authorization auth_3 reserves 0 atomic units, not {OPG // 10}." in problems
    assert len(problems) == 3
    repair(_url(path))
    assert check(_url(path)) == []
    ledger = Ledger(path)
    one = entry(3)
    assert ledger.spent(payer=one.payer, asset=one.asset, network=one.network).result() == OPG
    assert len(ledger.receipts(payer=one.payer).result()) == 10
    ledger.close()


def test_a_ledger_of_the_day_before_keeps_its_budget_through_a_repair(path):
    ledger = Ledger(path)
    settled = replace(entry(1), status="settled", settled_atomic=7 * 10**9, tx_hash="0xab", block_number=5)
    ledger.record_settlement(settled).result()
    one = entry(1)
    before = ledger.spent(payer=one.payer, asset=one.asset, network=one.network).result()
    ledger.close()
    repair(_url(path))
    ledger = Ledger(path)
    assert (
        ledger.spent(payer=one.payer, asset=one.asset, network=one.network).result()
        == before
        == OPG * 9 // 10 + 7 * 10**9
    )
    ledger.close()


def test_a_compact_ledger_is_smaller_and_says_the_same(path):
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("INSERT INTO pins VALUES ('long', ?)", ("x" * 1_000_000,))
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DELETE FROM pins WHERE key = 'long'")
    before, after = compact(_url(path))
    assert after < before - 900_000
    assert _counts(path) == (10, 10)


def test_the_commands_check_repair_and_compact_a_ledger(path):
    program = "import sys; from opengradient_x402.cli.main import main; sys.argv = ['x', *sys.argv[1:]]; main()"

    def start(*arguments):
        return subprocess.run(
            [sys.executable, "-c", program, "ledger", *arguments, "--ledger", str(path)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    sound = start("check")
    assert (sound.returncode, sound.stdout) == (0, "The ledger is sound.\n")
    path.write_bytes(b"")
    broken = start("check", "--json")
    assert broken.returncode == 1
    assert json.loads(broken.stdout)["problems"]
    assert start("repair").returncode == 0
    assert start("compact").returncode == 0
    assert start("check").returncode == 0


def test_a_full_disk_is_an_error_before_anything_is_signed(path):
    tests = str(Path(__file__).parents[2])
    program = f"""
import resource, sys
sys.path.insert(0, {tests!r})
from opengradient_x402.errors import LedgerUnavailable
from opengradient_x402.ledger.ledger import Ledger
from support.ledger_rows import entry
ledger = Ledger({str(path)!r})
ledger.authorize(entry(30)).result()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    for number in range(40, 60):
        ledger.authorize(entry(number)).result()
except LedgerUnavailable as exc:
    print(exc)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "Nothing was signed and nothing was paid" in ended.stdout
    assert "Free disk space" in ended.stdout


def test_a_ledger_that_can_only_be_read_is_an_error_before_anything_is_signed(path):
    ledger = Ledger(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(LedgerUnavailable, match=r"readonly database.*Nothing was signed.*check the permissions"):
        ledger.authorize(entry(30)).result()
    ledger.close()
