"""What people see: commands in a terminal of 80 columns, tables for a spreadsheet, and the page of an auditor."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import struct
import sys
import termios
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer import BadParameter
from typer.testing import CliRunner

from opengradient_devnet import Scheme
from opengradient_devnet.faults import SettleAtCap
from opengradient_x402.cli.main import build_app
from opengradient_x402.cli.options import KnownNetworks
from opengradient_x402.cli.output import note, rounded
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import PRESETS
from opengradient_x402.telemetry.runs import named_run
from support.ledger_rows import entry, served
from support.payers import client_for, payments_for, settled_receipts

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\|\x1b\([A-Z]")
LONG = "google/gemini-3.1-flash-lite-preview"
RUN = "the nightly report about all of the rivers of the world, number 12345678"
MODELS = ("openai/gpt-5", "openai/gpt-5", "anthropic/claude-sonnet-4-6", LONG)


@dataclass
class Shop:
    """A wallet with a settled session of four calls and one that is open, and a bundle of both."""

    private_key: str
    calls: list
    bundle: str
    settled_atomic: int


@pytest.fixture(scope="module")
def shop(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    account = net.account(opg="10", approved=True)
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OG_PRIVATE_KEY", account.private_key)
        patch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
        patch.setenv("OG_LEDGER_URL", url)
        patch.setenv("TZ", "UTC")
        for name in ("TERM_PROGRAM", "VTE_VERSION", "WT_SESSION", "KITTY_WINDOW_ID", "NO_COLOR"):
            patch.delenv(name, raising=False)
        before = net.chain.token_balance(account.address)
        with payments_for(net, account, folder / "ledger.sqlite") as payments:
            with client_for(payments) as client:
                for model in MODELS:
                    with named_run(RUN) if model == MODELS[0] else nullcontext():
                        client.chat({"model": model, "messages": [{"role": "user", "content": "Hi."}]})
            net.close_sessions()
            payments.reconciler.reconcile()
        settled = before - net.chain.token_balance(account.address)
        time.sleep(1)  # receipts have whole seconds: this call is a later one than those before
        with payments_for(net, account, folder / "ledger.sqlite") as payments, client_for(payments) as client:
            client.chat({"model": LONG, "messages": [{"role": "user", "content": "Hi."}]})
        bundle = str(folder / "bundle.json")
        assert piped("receipts", "export", "-f", "bundle", "-o", bundle).exit_code == 0
        yield Shop(account.private_key, json.loads(piped("receipts", "list", "--json").stdout), bundle, settled)


@pytest.fixture(autouse=True)
def _shops_environment(shop, net, monkeypatch):
    """The environment of the shop, over that of the single test."""
    monkeypatch.setenv("OG_PRIVATE_KEY", shop.private_key)
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{Path(shop.bundle).parent / 'ledger.sqlite'}")
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")


def piped(*arguments: str):
    return CliRunner().invoke(build_app(list(arguments)), list(arguments))


def in_terminal(*arguments: str, columns: int = 80, raw: bool = False, **environ: str) -> str:
    """What a terminal gets on its standard output."""
    parent, child = os.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 100, columns, 0, 0))
    read: list[bytes] = []

    def drain() -> None:
        try:
            while part := os.read(parent, 65536):
                read.append(part)
        except OSError:  # its other end is closed
            return

    reader = threading.Thread(target=drain)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm-256color", **environ}.items():
            patch.setenv(name, value)
        with os.fdopen(child, "w", encoding="utf-8") as screen:
            patch.setattr(sys, "stdout", screen)
            with suppress(SystemExit):
                build_app(list(arguments))(list(arguments), standalone_mode=False)
            screen.flush()
    reader.join(20)
    os.close(parent)
    text = b"".join(read).decode().replace("\r", "")
    return text if raw else ESCAPES.sub("", text)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    "command",
    [
        ("receipts", "list"),
        ("receipts", "list", "--full"),
        ("receipts", "list", "--by", "run"),
        ("receipts", "list", "--by", "model"),
        ("receipts", "list", "--by", "day"),
        ("receipts", "show", "@"),
        ("receipts", "show", "@", "--full"),
        ("receipts", "verify", "@bundle", "--offline"),
        ("receipts", "reconcile"),
        ("doctor",),
        ("models",),
        ("models", "--live"),
        ("balance",),
        ("channels", "list"),
        ("ledger", "check"),
        ("--help",),
        *((command, "--help") for command in ("approve", "balance", "cancel", "chat", "doctor", "models", "serve")),
        *(("channels", command, "--help") for command in ("list", "refund", "withdraw")),
        *(("ledger", command, "--help") for command in ("check", "repair", "compact", "anchor")),
        *(("receipts", command, "--help") for command in ("show", "reconcile", "export", "report", "verify")),
    ],
    ids=" ".join,
)
def test_no_line_is_wider_than_a_terminal_of_80_columns_and_no_cell_is_cut(shop, command):
    words = [{"@": shop.calls[0]["call_id"], "@bundle": shop.bundle}.get(word, word) for word in command]
    shown = in_terminal(*words)
    assert lines_of(shown)
    for line in lines_of(shown):
        assert cell_len(line) <= 80, line
        assert not re.search(r"\w…(\s|$)", line), line  # the end of a cell that had no room


@pytest.mark.parametrize("columns", [80, 120])
def test_channels_are_listed_with_amounts_that_stand_below_each_other(devnets, tmp_path, monkeypatch, columns):
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT])
    account = net.account(opg="10", approved=True)
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    assert "no payment channels" in in_terminal("channels", "list")
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments, client_for(payments) as client:
        client.chat({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi."}]})
    head, row = lines_of(in_terminal("channels", "list", columns=columns))
    assert cell_len(row) <= columns
    assert "…" not in head + row
    for name in ("deposited", "claimed", "free"):
        end = head.index(name) + len(name)
        assert re.fullmatch(r"\d+\.\d{6}", row[:end].split()[-1]), name
    assert (net.gateway_url in row) is (columns == 120)


def test_what_is_said_beside_the_output_breaks_no_word_in_a_terminal(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, words = Screen(), [f"word{number}" for number in range(60)]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    note(" ".join(words))
    lines = ESCAPES.sub("", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == words


def test_a_receipt_is_one_line_with_totals_by_day_and_by_model(shop):
    for columns in (80, 120):
        shown = lines_of(in_terminal("receipts", "list", columns=columns))
        rows = [line for line in shown if line.startswith("call_")]
        assert len(rows) == 5
        assert len(shown) == 1 + 1 + 5 + 1 + 3 + 2  # heading, day, receipts, total, models, what `?` means
        assert all(row.startswith(call["call_id"][:13]) for row, call in zip(rows, shop.calls, strict=True))
        total = next(line for line in shown if line.startswith("total"))
        costs = sum(int(call.get("settled_atomic", call["cost_atomic"])) for call in shop.calls)
        assert "5 calls" in total
        assert rounded(costs, decimals=18) in total
        assert shown[-2].startswith("?  quoted by the gateway")
        points = {line.rindex(".") for line in (*rows, total)} if columns == 80 else set()
        assert len(points) <= 1  # amounts stand below each other


def test_a_quote_is_no_word_about_what_was_taken_and_the_list_says_how_to_learn_more(shop):
    for by in ((), ("--by", "model")):
        listed = piped("receipts", "list", *by).stdout
        assert "?  quoted by the gateway; no settlement is known yet\n" in listed
        assert "`opengradient-x402 receipts reconcile` asks the chain" in listed
        of_a_file = piped("receipts", "list", shop.bundle, *by).stdout
        assert "?  quoted by the gateway; no settlement is known yet\n" in of_a_file
        assert "reconcile" not in of_a_file


def test_spending_is_added_up_by_run_of_the_ledger_and_of_a_bundle(shop):
    of_run = [call for call in shop.calls if call.get("run") == RUN]
    assert len(of_run) == 2
    for source in ([], [shop.bundle]):
        sums = json.loads(piped("receipts", "list", *source, "--by", "run", "--json").stdout)
        assert [(one["run"], one["calls"]) for one in sums] == [(RUN, 2), (None, 3)]
        assert int(sums[0]["amount_atomic"]) == sum(int(call["settled_atomic"]) for call in of_run)
        chosen = json.loads(piped("receipts", "list", *source, "--run", RUN, "--json").stdout)
        assert [call["call_id"] for call in chosen] == [call["call_id"] for call in of_run]
    shown = lines_of(in_terminal("receipts", "list", "--by", "run"))
    row = next(line for line in shown if line.startswith("the nightly"))
    assert RUN[-8:] in row
    assert rounded(int(sums[0]["amount_atomic"]), decimals=18) in row
    assert piped("receipts", "list", "--by", "colour").exit_code == 2


def test_models_are_rows_of_one_line(shop):
    from opengradient_x402.models import catalog

    shown = in_terminal("models")
    for model in catalog():
        assert len(re.findall(rf"^{re.escape(model.name)} ", shown, re.MULTILINE)) == 1


def test_a_mistyped_model_is_answered_with_those_that_were_meant(shop):
    assert "Did you mean google/gemini" in piped("models", "gemni").stderr
    assert "Did you mean anthropic/claude" in piped("models", "cluade").stderr


def test_a_transaction_is_a_link_where_the_terminal_can_link_and_a_url_elsewhere(net, shop):
    call = shop.calls[0]
    page = f"{net.gateway_url}/explorer/tx/{call['payment_tx_hash']}"
    linking = in_terminal("receipts", "show", call["call_id"], raw=True, TERM_PROGRAM="WezTerm")
    assert f";{page}\x1b\\{call['payment_tx_hash']}" in linking.replace("\x1b[0m", "")
    assert page not in ESCAPES.sub("", linking)
    assert page in "".join(in_terminal("receipts", "show", call["call_id"]).split())
    assert page in piped("receipts", "show", call["call_id"]).stdout


def test_times_are_dates_and_amounts_are_decimals_for_people(shop):
    shown = in_terminal("receipts", "show", shop.calls[0]["call_id"])
    assert not re.search(r"\b1[78]\d{8}\b", shown)
    assert not re.search(r"\b\d{15,}\b", shown)
    assert "OPG, taken by the settlement on chain" in " ".join(shown.split())


def test_verify_begins_with_the_verdict_and_the_costs_and_fits_a_page(shop):
    shown = lines_of(in_terminal("receipts", "verify", shop.bundle, "--offline"))
    assert shown[0] == "✓ Nothing is refuted: 5 receipts checked offline, from the file alone."
    assert len(shown) <= 50
    text = "\n".join(shown)
    assert text.index("openai/gpt-5") < text.index("Only recorded in the file") < text.index("Proven by a signature")
    full = in_terminal("receipts", "verify", shop.bundle, "--offline", "--full", columns=200)
    assert all(call["call_id"] in full for call in shop.calls)


def test_a_bundle_is_listed_and_exported_as_the_ledger_is(shop):
    listed = json.loads(piped("receipts", "list", shop.bundle, "--json").stdout)
    assert {call["call_id"] for call in listed} == {call["call_id"] for call in shop.calls}
    assert piped("receipts", "list", shop.bundle, "--status", "settled", "--json").stdout.count('"call_id"') == 4
    of_ledger = piped("receipts", "export", "--format", "csv").stdout
    assert sorted(piped("receipts", "export", shop.bundle, "--format", "csv").stdout.splitlines()) == sorted(
        of_ledger.splitlines()
    )
    assert piped("receipts", "list", __file__).exit_code == 1
    assert piped("receipts", "export", shop.bundle, "--format", "bundle").exit_code == 2


def test_a_table_for_people_has_dates_decimal_amounts_and_links(net, shop):
    rows = list(csv.DictReader(io.StringIO(piped("receipts", "export", "--format", "csv").stdout)))
    paid = [row for row in rows if row["amount_is"] == "settled"]
    assert sum(round(float(row["amount"]) * 10**18) for row in paid) == pytest.approx(shop.settled_atomic)
    for row in paid:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", row["date"])
        assert row["explorer"] == f"{net.gateway_url}/explorer/tx/{row['transaction']}"
        assert (row["status"], row["token"]) == ("settled", "OPG")
    assert [row["amount_is"] for row in rows if row not in paid] == ["quoted"]


# -- the report


def test_every_figure_of_the_page_leads_to_its_records_and_nothing_is_loaded(shop):
    page = piped("receipts", "report", shop.bundle).stdout
    ids = set(re.findall(r' id="([^"]+)"', page))
    links = re.findall(r' href="#([^"]+)"', page)
    assert {call["call_id"] for call in shop.calls} <= ids
    assert set(links) <= ids
    assert len(links) == 4 * len(shop.calls)  # by day, by model, by run, by payment
    assert not re.search(r"<script|<link|<img|<iframe|\ssrc=|@import|url\(", page)
    assert (
        page.count("<svg") == 1 + 3 + 2
    )  # the days, and a bar for each model, for the run, and for the calls outside of it
    assert page.count(f", of the run {RUN}</p>") == 2
    for word in ("proven", "read", "stated", "undecided", "refuted", "disputed", "settled", "quoted"):
        assert f"<dt>{word}</dt>" in page


def test_a_page_is_not_poured_into_a_terminal(shop, tmp_path):
    with pytest.raises(BadParameter, match=r"--output report\.html"):
        in_terminal("receipts", "report", shop.bundle, "--offline")
    assert in_terminal("receipts", "report", shop.bundle, "--offline", "--format", "markdown").startswith("#")
    page = tmp_path / "report.html"
    in_terminal("receipts", "report", shop.bundle, "--offline", "--output", str(page))
    assert page.read_text().startswith("<!doctype html>")


def test_sums_of_the_report_are_what_the_chain_took_and_shares_are_the_payers_word(shop):
    rows = list(csv.DictReader(io.StringIO(piped("receipts", "report", shop.bundle, "--format", "csv").stdout)))
    part = {name: [row for row in rows if row["part"] == name] for name in ("total", "model", "day", "run", "payment")}

    def atomic(row, column="amount"):
        whole, _, fraction = row[column].partition(".")
        return int(whole + fraction.ljust(18, "0"))

    (total,) = part["total"]
    assert atomic(total, "read") == shop.settled_atomic
    for name in ("model", "day", "run", "payment"):
        assert sum(map(atomic, part[name])) == atomic(total)
    assert sorted(atomic(row, "read") for row in part["payment"]) == [0, shop.settled_atomic]
    # A model's share of a session that served several models is no fact of the chain.
    assert all(atomic(row, "read") == 0 for row in part["model"])
    assert sum(atomic(row, "stated") for row in part["model"]) == shop.settled_atomic
    calls = {call["call_id"] for call in shop.calls}
    assert {call for row in part["model"] for call in row["records"].split()} == calls


def test_a_bundle_has_what_was_settled_since_anybody_looked(net, account, tmp_path, monkeypatch):
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with payments_for(net, account, tmp_path / "ledger.sqlite") as payments, client_for(payments) as client:
        client.chat({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi."}]})
    net.close_sessions()
    assert piped("receipts", "export", "-f", "bundle", "-o", str(tmp_path / "bundle.json")).exit_code == 0
    verified = piped("receipts", "verify", str(tmp_path / "bundle.json"), "--network", f"{net.gateway_url}/network")
    assert verified.exit_code == 0, verified.stdout
    assert re.search(r"openai/gpt-5 +1 +0\.\d{6} +settled", verified.stdout)


def test_amounts_of_a_strangers_token_are_whole_and_name_it(shop, monkeypatch):
    monkeypatch.delenv("OG_NETWORK")
    monkeypatch.delenv("OG_LEDGER_URL")
    token = json.loads(Path(shop.bundle).read_text())["network"]["asset"]["address"]
    shown = in_terminal("receipts", "verify", shop.bundle, "--offline")
    together = next(line for line in lines_of(shown) if line.startswith("together"))
    assert int(together.split()[2]) > shop.settled_atomic
    assert f"The decimals of {token} are not" in shown
    assert max(map(cell_len, lines_of(shown))) <= 80
    assert not re.search(r"\w…(\s|$)", shown)
    page = piped("receipts", "report", shop.bundle, "--offline").stdout
    assert f"The decimals of the token {token} are not known here" in page
    assert f"By model, in units of {token[:6]}…{token[-4:]}" in page


@pytest.mark.parametrize(("name", "symbol"), [(one.name, one.asset.symbol) for one in PRESETS.values()])
def test_tokens_of_every_preset_are_known_whatever_network_is_set(name, symbol):
    network = PRESETS[name]
    found = KnownNetworks("base", is_own=False).token(
        served(
            entry(network=network.caip2, asset=network.asset.address, asset_symbol="LIE", asset_decimals=1), "call_1"
        )
    )
    assert found == (network.asset.decimals, symbol)


def test_a_report_of_the_ledger_is_checked_with_the_node_and_offline_it_says_that_nothing_was(shop):
    checked = piped("receipts", "report", "--since", "1h", "--format", "markdown").stdout
    assert "Nothing is refuted." in checked
    assert f"read {shop.settled_atomic / 10**18:.18f}".rstrip("0") in checked
    offline = piped("receipts", "report", "--offline").stdout
    assert "Nothing was checked." in offline
    assert 'class="chip read"' not in offline


def test_words_of_a_gateway_are_text_on_the_page_and_in_markdown(net, tmp_path, monkeypatch):
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'words.sqlite'}")
    ledger = Ledger(tmp_path / "words.sqlite")
    signed = entry(1, network=f"eip155:{net.network['chain_id']}")
    ledger.authorize(signed).result()
    ledger.record_call(served(signed, "call_1", model="<script>alert(1)</script>|=1")).result()
    ledger.close()
    page = piped("receipts", "report", "--offline")
    assert page.exit_code == 0, page.stderr
    assert "<script" not in page.stdout
    assert "&lt;script&gt;" in page.stdout
    text = piped("receipts", "report", "--offline", "--format", "markdown").stdout
    assert not re.search(r"(?<!\\)<script", text)


def test_a_disputed_call_is_named_on_the_page(net, tmp_path, monkeypatch):
    account = net.account(opg="10", approved=True)
    monkeypatch.setenv("OG_LEDGER_URL", f"sqlite:///{tmp_path / 'disputed.sqlite'}")
    with payments_for(net, account, tmp_path / "disputed.sqlite") as payments:
        with client_for(payments) as client:
            call = client.chat({"model": "gpt-5", "messages": [{"role": "user", "content": "Hi."}]}).receipt
        net.faults.inject(SettleAtCap(), times=None)
        settled_receipts(net, payments)
    page = piped("receipts", "report").stdout
    assert f'<a href="#{call.call_id}"' in page.partition("<h3>Disputed</h3>")[2].partition("</ul>")[0]
    assert "too much" in page
    assert "✗ disputed" in in_terminal("receipts", "list")
