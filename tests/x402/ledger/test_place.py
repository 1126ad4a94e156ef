"""A budget in a file is a budget of that file: said once, where users expect more of it."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from opengradient_devnet import Devnet
from opengradient_x402.errors import ConfigurationError
from opengradient_x402.ledger import place
from opengradient_x402.ledger.ledger import Ledger
from support.mounts import mounts
from support.payers import PROMPT, client_for, payments_for


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing was said yet, and the machine is an ordinary one."""
    monkeypatch.setattr(place, "SCOPE", place.Scope())
    mounts(monkeypatch, tmp_path, kind="ext4")
    for variable in ("AWS_LAMBDA_FUNCTION_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)


def pay(net: Devnet, account, *ledgers: Path) -> None:
    for ledger in ledgers:
        with payments_for(net, account, ledger) as payments, client_for(payments) as client:
            for _ in range(2):
                client.chat(PROMPT)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("kind", "found"), [("overlay", "a container's own file system"), ("tmpfs", "memory")])
def test_the_first_payment_warns_once_of_a_place_that_does_not_last(
    net, account, tmp_path, monkeypatch, caplog, new_process, kind, found
):
    mounts(monkeypatch, tmp_path, kind=kind)
    pay(net, account, tmp_path / "ledger.sqlite")
    [warning] = warnings_in(caplog)
    assert f"{tmp_path}/ledger.sqlite is in {found}" in warning
    assert "set OG_LEDGER_URL" in warning


def test_it_warns_of_a_platform_that_runs_several_copies(net, account, tmp_path, monkeypatch, caplog, new_process):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    pay(net, account, tmp_path / "ledger.sqlite")
    [warning] = warnings_in(caplog)
    assert "runs on Kubernetes (KUBERNETES_SERVICE_HOST is set)" in warning
    assert "set OG_LEDGER_URL" in warning


def test_it_warns_of_a_wallet_with_two_ledgers(net, account, tmp_path, caplog, new_process):
    pay(net, account, *(tmp_path / f"{number}.sqlite" for number in range(3)))
    [warning] = warnings_in(caplog)
    assert f"{account.address} pays from two ledgers" in warning


def test_one_ledger_on_a_disk_is_nothing_to_warn_of(net, account, tmp_path, caplog, new_process):
    pay(net, account, tmp_path / "ledger.sqlite", tmp_path / "ledger.sqlite")
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    "given",
    [
        "u:pw@host/db",
        "user:p@ss/w@db.example:5432/ledger",
        "user:pw@localhost",
        "me@db.example/ledger",
        "db.example:5432/ledger",
        "postgresql:user:pw@host/db",
        "postgresql+psycopg:/user:pw@host/db",
        "sqlite:ledger.sqlite",
    ],
)
def test_the_url_of_a_database_without_its_scheme_is_no_file_name(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no `scheme://`.*Nothing was paid") as caught:
        Ledger(given)
    assert "pw" not in str(caught.value).replace("password", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        "ledger.sqlite",
        "./u:pw@host",
        "/var/lib/me@home/ledger.sqlite",
        "C:\\Users\\me@home\\ledger.sqlite",
        "C:/Users/me@home/ledger.sqlite",
        "~/ledger.sqlite",
        "me@home.sqlite",
        Path("u:pw@host"),
    ],
    ids=str,
)
def test_a_path_of_any_form_is_a_file(given):
    assert place.as_url(given) == f"sqlite:///{given}"


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///file:kept?mode=memory&cache=shared&uri=true"])
def test_a_ledger_in_memory_leaves_no_file(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(Ledger(url)) as ledger:
        ledger.note("a", "b").result()
        assert ledger.noted("a").result() == "b"
    assert list(tmp_path.iterdir()) == []


class Keyed(SQLiteDialect_pysqlite):
    """As SQLAlchemy's `sqlite+pysqlcipher`, without the encryption: the password is taken from the engine's URL."""

    driver = "keyed"
    supports_statement_cache = True
    passwords: ClassVar[list[str | None]] = []

    def create_connect_args(self, url):
        return super().create_connect_args(url._replace(username=None, password=None, host=None, port=None))

    def on_connect_url(self, url):
        self.passwords.append(url.password)
        return super().on_connect_url(url)


def test_a_driver_that_encrypts_is_given_the_password_of_each_file(tmp_path):
    registry.register("sqlite.keyed", __name__, "Keyed")
    for password in ("one", "two"):
        with closing(Ledger(f"sqlite+keyed://:{password}@/{tmp_path}/{password}.db")) as ledger:
            ledger.note("a", "b").result()
    assert Keyed.passwords == ["one", "two"]
