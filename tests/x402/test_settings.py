from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.settings import Settings, find_dotenv, state_directory
from opengradient_x402.settlement_mode import SettlementMode

KEY = "0x" + "ab" * 32


def test_an_empty_environment_gives_safe_defaults():
    settings = Settings.load({}, dotenv=False)
    assert settings.private_key is None
    assert settings.network == "base"
    assert settings.gateway_url is None
    assert settings.settlement_mode is SettlementMode.BATCH
    assert settings.ledger_url == f"sqlite:///{Path.home() / '.local/state/opengradient/ledger.sqlite'}"


def test_blanks_around_a_value_mean_nothing_except_in_a_password():
    given = {"OG_NETWORK": " devnet\r\n", "OG_GATEWAY_URL": "\thttps://gateway.example ", "OG_RPC_URL": "  "}
    settings = Settings.load(given | {"OG_KEYSTORE_PASSWORD": " open "}, dotenv=False)
    assert (settings.network, settings.gateway_url, settings.rpc_url) == ("devnet", "https://gateway.example", None)
    assert settings.keystore_password is not None
    assert settings.keystore_password.get_secret_value() == " open "


def test_every_variable_is_read():
    settings = Settings.load(
        {
            "OG_PRIVATE_KEY": KEY,
            "OG_NETWORK": "devnet",
            "OG_GATEWAY_URL": "https://gateway.example",
            "OG_LEDGER_URL": "postgresql://ledger",
            "OG_SETTLEMENT_MODE": "settle-metadata",
            "XDG_STATE_HOME": "/state",
        },
        dotenv=False,
    )
    assert settings.private_key is not None
    assert settings.private_key.get_secret_value() == KEY
    assert settings.network == "devnet"
    assert settings.gateway_url == "https://gateway.example"
    assert settings.ledger_url == "postgresql://ledger"
    assert settings.settlement_mode is SettlementMode.INDIVIDUAL
    assert settings.state_directory == Path("/state/opengradient")


def test_the_key_is_not_in_the_repr():
    settings = Settings.load({"OG_PRIVATE_KEY": KEY}, dotenv=False)
    assert "ab" * 8 not in repr(settings) + str(settings)


def test_a_missing_key_is_an_error_that_names_the_variable():
    with pytest.raises(InvalidPrivateKey, match="Set OG_PRIVATE_KEY"):
        Settings.load({}, dotenv=False).require_key()
    key = Settings.load({"OG_PRIVATE_KEY": KEY}, dotenv=False).require_key()
    assert key.get_secret_value() == KEY


def test_a_dotenv_of_a_parent_directory_is_read_and_the_environment_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(f"OG_PRIVATE_KEY={KEY}\nexport OG_NETWORK='base-sepolia'\n# comment\nEMPTY=\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    before = dict(os.environ)
    settings = Settings.load({})
    assert settings.private_key is not None
    assert settings.private_key.get_secret_value() == KEY
    assert settings.network == "base-sepolia"
    assert dict(os.environ) == before


def test_the_environment_wins_over_the_file_unless_it_is_empty(tmp_path):
    file = tmp_path / ".env"
    file.write_text("OG_NETWORK=from-file\nOG_GATEWAY_URL=https://from-file\n")
    settings = Settings.load({"OG_NETWORK": "from-environment", "OG_GATEWAY_URL": ""}, dotenv_path=file)
    assert (settings.network, settings.gateway_url) == ("from-environment", "https://from-file")


def test_the_file_can_be_left_out(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("OG_NETWORK=from-file\n")
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}, dotenv=False).network == "base"
    assert find_dotenv() == tmp_path / ".env"


def test_a_dollar_in_the_file_is_a_dollar(tmp_path):
    (tmp_path / ".env").write_text("OG_LEDGER_URL=postgresql://u:pa${HOME}ss@host/db\n")
    assert Settings.load({}, dotenv_path=tmp_path / ".env").ledger_url == "postgresql://u:pa${HOME}ss@host/db"


def test_a_file_that_is_not_text_is_an_error_that_says_so(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00OG=1")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read"):
        Settings.load({}, dotenv_path=tmp_path / ".env")


def test_an_unknown_settlement_mode_is_an_error():
    with pytest.raises(ConfigurationError, match="settlement mode"):
        Settings.load({"OG_SETTLEMENT_MODE": "public"}, dotenv=False)


def test_a_relative_state_directory_is_ignored_as_xdg_says():
    assert state_directory({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local/state/opengradient"


TOLD = {"OG_PRIVATE_KEY": KEY, "OG_NETWORK": "base", "OG_LEDGER_URL": "postgresql://ledger"}
LOST = """
import os, pwd, tempfile
from langchain_opengradient import ChatOpenGradient


def no_entry(uid):
    raise KeyError(uid)

pwd.getpwuid = no_entry
gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
print(ChatOpenGradient(model="openai/gpt-5")._route().network)
del os.environ["OG_LEDGER_URL"]
try:
    ChatOpenGradient(model="openai/gpt-5")
except ValueError as error:
    print(error)
"""


def test_a_process_that_was_told_everything_needs_no_home_and_no_working_directory():
    environ = {"PATH": os.environ["PATH"], **TOLD}
    lost = subprocess.run([sys.executable, "-c", LOST], env=environ, capture_output=True, text=True, check=False)
    told, _, untold = lost.stdout.partition("\n")
    assert told == "base", lost.stderr
    assert "Nothing was paid. Set OG_LEDGER_URL" in untold, lost.stderr


@pytest.mark.parametrize("name", ["OG_PRIVATE_KEY", "OG_NETWORK", "OG_LEDGER_URL"])
def test_a_file_that_cannot_be_read_matters_only_to_what_it_could_set(tmp_path, monkeypatch, caplog, name):
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00OG=1")
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(TOLD)
    assert settings.require_key().get_secret_value() == KEY
    assert (settings.network, settings.ledger_url) == ("base", "postgresql://ledger")
    assert str(tmp_path / ".env") in caplog.text
    untold = Settings.load({known: value for known, value in TOLD.items() if known != name})
    with pytest.raises(ConfigurationError, match=rf"{re.escape(str(tmp_path))}/\.env cannot be read.*{name}"):
        _ = untold.require_key(), untold.network, untold.ledger_url


def test_a_directory_that_must_not_be_looked_into_is_as_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "is_file", forbidden)
    assert Settings.load(TOLD).network == "base"
    with pytest.raises(ConfigurationError, match=r"\.env cannot be looked for.*OG_NETWORK"):
        _ = Settings.load({}).network
