from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from opengradient_devnet.faults import AlterTerms, DripHeaders, ErrorEvent, SettleAtCap
from opengradient_x402.cli.main import build_app
from opengradient_x402.cli.options import parse_since
from opengradient_x402.ledger.ledger import Ledger
from support.node import serving
from support.node_faults import failing_node
from support.payers import PROMPT, client_for, payments_for

COMMAND = [sys.executable, "-c", "from opengradient_x402.cli.main import main; main()"]


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(net, monkeypatch):
    """Runs a command in this process, as the wallet of `account`."""
    account = net.account(approved=True)
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")

    def command(*arguments: str, stdin: str | None = None) -> Result:
        done = CliRunner().invoke(build_app(list(arguments)), list(arguments), input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    command.account = account
    command.monkeypatch = monkeypatch
    return command


def test_help_names_every_command_and_the_exit_codes(run):
    shown = run("--help").out
    for word in (
        "chat",
        "approve",
        "balance",
        "cancel",
        "doctor",
        "models",
        "serve",
        "receipts",
        "demo",
        "Exit codes",
        "130",
    ):
        assert word in shown
    shown = run("receipts", "--help").out
    for word in ("list", "show", "reconcile", "export", "verify"):
        assert word in shown


def test_a_mistyped_command_is_wrong_usage(run):
    done = run("chatt")
    assert done.code == 2
    assert "chatt" in done.err


def test_help_imports_no_heavy_library():
    script = (
        "import sys; sys.argv = ['x', 'receipts', '--help']\n"
        "from opengradient_x402.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('sqlalchemy', 'httpx', 'web3', 'langchain_core', 'cryptography')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


# -- chat


def test_chat_prints_the_answer_to_stdout_and_the_bill_to_stderr(run):
    done = run("chat", "What is x402?")
    assert done.code == 0
    assert done.out.strip()
    assert "OPG quoted" in done.err
    assert "enclave proof verified" in done.err
    assert done.out.count("receipt") == 0
    (receipt,) = run("receipts", "list", "--json").json()
    assert receipt["call_id"] in done.err


def test_chat_as_json_holds_text_usage_and_receipt_and_can_wait_for_the_settlement(net, run):
    done = run("chat", "What is x402?", "--json", "--mode", "private", "-s", "Be brief.", "--max-tokens", "40")
    said = done.json()
    assert said["text"]
    assert said["usage"]["completion_tokens"] <= 40
    assert said["receipt"]["settlement_mode"] == "private"
    assert said["receipt"]["status"] == "served"


def test_chat_reads_a_pipe(run):
    assert run("chat", stdin="What is x402?\n").code == 0
    assert run("chat", "-", "--json", stdin="What is x402?\n").json()["text"]
    done = run("chat", stdin="  \n")
    assert (done.code, done.out) == (2, "")


def test_chat_that_is_refused_before_paying_exits_3_and_after_paying_4(net, run):
    net.faults.inject(AlterTerms(amount=str(10**20)))
    refused = run("chat", "What is x402?")
    assert refused.code == 3
    assert "PolicyRefused" in refused.err
    assert run("receipts", "list", "--json").json() == []
    net.faults.inject(ErrorEvent())
    failed = run("chat", "What is x402?")
    assert failed.code == 4
    assert "GatewayError" in failed.err
    assert len(run("receipts", "list", "--json").json()) == 1


def test_chat_with_what_cannot_be_configured_exits_2(run):
    for arguments, said in (
        (("chat", "hi", "--network", "nowhere"), "nowhere"),
        (("chat", "hi", "--gateway", "http://example.com"), "https"),
        (("chat", "hi", "--mode", "everything"), "everything"),
        (("chat", "hi", "--verify-tee", "perhaps"), "perhaps"),
    ):
        done = run(*arguments)
        assert done.code == 2, done
        assert said in done.err
    run.monkeypatch.delenv("OG_PRIVATE_KEY")
    done = run("chat", "hi")
    assert done.code == 2
    assert "OG_PRIVATE_KEY" in done.err


def test_a_real_process_streams_into_a_pipe_and_survives_a_reader_that_leaves(net, run):
    environ = os.environ | {"OG_PRIVATE_KEY": run.account.private_key, "OG_NETWORK": f"{net.gateway_url}/network"}
    done = subprocess.run(
        [*COMMAND, "chat", "What is x402?"], capture_output=True, text=True, env=environ, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "\x1b[" not in done.stdout + done.stderr
    listing = subprocess.Popen(
        [*COMMAND, "receipts", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    )
    listing.stdout.close()
    _, said = listing.communicate(timeout=240)
    assert b"Traceback" not in said


@pytest.mark.parametrize("arguments", [("models",), ("receipts", "list"), ("--help",), ("chat", "What is x402?")])
def test_output_that_cannot_be_written_is_said_in_a_sentence(net, run, arguments):
    environ = os.environ | {"OG_PRIVATE_KEY": run.account.private_key, "OG_NETWORK": f"{net.gateway_url}/network"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=environ, check=False
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "could not be written (No space left on device)" in done.stderr


def test_closed_streams_are_no_accident(net, run):
    environ = os.environ | {"OG_PRIVATE_KEY": run.account.private_key, "OG_NETWORK": f"{net.gateway_url}/network"}

    def shell(arguments: str) -> subprocess.CompletedProcess[str]:
        line = f'"{sys.executable}" -c "{COMMAND[2]}" {arguments}'
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environ, check=False)

    for command in ("chat hello", "models", "receipts list"):
        done = shell(f"{command} >&-")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    done = shell("chat <&-")
    assert done.returncode == 2
    assert "say what to ask" in done.stderr


def test_words_of_strangers_move_no_cursor():
    from opengradient_x402.cli.output import shown

    assert shown("a\x1b[2J\x9b1m\n0 refuted\u202e\ud800é 文 👩‍🚀") == (
        "a\\x1b[2J\\x9b1m\\n0 refuted\\u202e\\ud800é 文 👩‍🚀"
    )
    assert shown("a\tb\nc\r", keep="\n\t") == "a\tb\nc\\r"


def test_an_answer_that_is_no_text_is_written_all_the_same(capsys):
    from opengradient_x402.cli.output import print_json, write_answer

    write_answer("half an emoji: \ud83d")
    print_json({"text": "\ud83d"})
    assert capsys.readouterr().out == 'half an emoji: ?{\n  "text": "\\ud83d"\n}\n'


def test_a_chat_that_is_interrupted_says_where_its_receipt_is(net, run):
    from opengradient_x402.cli import output

    def interrupt(text):
        raise KeyboardInterrupt

    run.monkeypatch.setattr(output, "write_answer", interrupt)
    done = run("chat", "What is x402?")
    assert done.code == 130
    (receipt,) = run("receipts", "list", "--json").json()
    assert f"receipts show {receipt['call_id']}" in done.err


def test_a_wait_that_is_interrupted_says_that_the_answer_is_paid(net, run):
    command = [*COMMAND, "chat", "What is x402?", "--wait", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        assert "What is x402?" in chat.stdout.readline()
        time.sleep(0.3)  # the answer is there; now it waits for a settlement that takes a minute
        chat.send_signal(signal.SIGINT)
        _, said = chat.communicate(timeout=20)
    assert chat.returncode == 130
    (receipt,) = run("receipts", "list", "--json").json()
    assert f"the answer is paid: `opengradient-x402 receipts show {receipt['call_id']} --refresh`" in said


def test_an_interruption_before_the_first_word_says_where_the_payment_is(net, run):
    net.faults.inject(DripHeaders(pace_s=1))
    command = [*COMMAND, "chat", "What is x402?"]
    with (
        contextlib.closing(Ledger(os.environ["OG_LEDGER_URL"])) as ledger,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat,
    ):
        while not ledger.authorizations().result():
            time.sleep(0.1)
        time.sleep(0.3)
        chat.send_signal(signal.SIGINT)
        _, said = chat.communicate(timeout=20)
    assert chat.returncode == 130
    assert re.search(r"Interrupted.+`opengradient-x402 receipts (list|show call_\w+)`", said)


def test_an_unknown_model_is_answered_with_those_that_are_meant_and_not_with_a_page_of_names(run):
    done = run("chat", "hello", "-m", "openai/gtp-5")
    assert done.code == 2
    assert "Did you mean openai/gpt-5" in done.err
    assert "models --live` lists them" in done.err
    assert len(done.err) < 300


def test_an_empty_list_says_which_ledger_was_looked_at(run, tmp_path):
    ledger = tmp_path / "mistyped.sqlite"
    assert run("receipts", "list", "--ledger", str(ledger)).out == f"There are no such receipts in {ledger}.\n"
    assert str(ledger) in run("receipts", "list", "--by", "run", "--ledger", str(ledger)).out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("receipts", "list", "--status", "payed"), "is not one of authorized"),
        (("chat", "hello", "--gateway", "http://[::1"), "cannot be read"),
        (("models", "--live", "--gateway", "http://[::1"), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(run, arguments, problem):
    done = run(*arguments)
    assert done.code == 2
    assert problem in " ".join(done.err.replace("│", " ").split())


def test_the_status_is_read_in_any_case(run):
    run("chat", "hello")
    assert len(run("receipts", "list", "--json", "--status", "SERVED").json()) == 1
    assert run("receipts", "list", "--json", "--status", "settled").json() == []


# -- wallet


def test_balance_shows_what_the_chain_says_and_what_is_reserved(net, run):
    run("chat", "What is x402?")
    shown = run("balance", "--json").json()
    assert shown["address"] == run.account.address
    assert int(shown["balance_atomic"]) == net.chain.token_balance(run.account.address) == 10 * 10**18
    assert int(shown["spent_or_reserved_today_atomic"]) == 10**17
    text = run("balance").out
    assert "10 OPG" in text
    assert "0.1 OPG spent or reserved" in text


def test_the_balance_of_another_address_needs_no_key(net, run):
    other = net.account(opg="3").address
    run.monkeypatch.delenv("OG_PRIVATE_KEY")
    assert "3 OPG" in run("balance", other).out
    assert run("balance", "0x12").code == 2


def test_a_payment_that_is_open_is_cancelled_once(net, run):
    assert run("chat", "hello").code == 0
    (receipt,) = run("receipts", "list", "--payer", run.account.address.lower(), "--json").json()
    before = net.chain.token_balance(run.account.address)
    first = run("cancel", receipt["call_id"][:12], "--json").json()
    assert (first["call_id"], first["status"]) == (receipt["call_id"], "cancelled")
    net.close_sessions()
    assert net.chain.token_balance(run.account.address) == before
    assert "used already" in run("cancel", receipt["call_id"]).out
    assert run("cancel", "call_nobody").code == 2


def test_a_payer_is_found_in_every_spelling_and_a_typing_error_is_refused(net, run):
    assert run("chat", "hello").code == 0
    lower = run.account.address.lower()
    net.close_sessions()
    assert run("receipts", "reconcile", "--payer", lower, "--json").json()["settled"] == 1
    assert len(run("receipts", "list", "--payer", lower, "--json").json()) == 1
    assert run("receipts", "list", "--payer", lower[:-1]).code == 2


def test_approve_allows_what_was_typed_and_does_nothing_the_second_time(net, run):
    fresh = net.account(approved=False)
    run.monkeypatch.setenv("OG_PRIVATE_KEY", fresh.private_key)
    first = run("approve", "2", "--json").json()
    assert (first["allowance_before_atomic"], first["allowance_after_atomic"]) == ("0", str(2 * 10**18))
    assert net.chain.rpc("eth_getTransactionReceipt", [first["tx_hash"]])["status"] == "0x1"
    again = run("approve", "2")
    assert "nothing was sent" in again.out
    assert "2 OPG" in again.out
    assert "7 OPG" in run("approve", "3", "--approve", "7").out
    assert "everything" in run("approve", "100", "--approve", "unlimited").out
    assert run("approve", "much").code == 2


def test_an_approval_that_is_interrupted_says_where_its_effect_shows(net, run, tmp_path):
    fresh = net.account(approved=False)
    run.monkeypatch.setenv("OG_PRIVATE_KEY", fresh.private_key)
    sent, held = threading.Event(), threading.Event()

    def holding(method, params, number):
        if method == "eth_getTransactionReceipt":
            sent.set()
            held.wait(20)

    with serving(net.chain) as node:
        node.misbehave = holding
        command = [*COMMAND, "approve", "2", "--rpc-url", node.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as approving:
            assert sent.wait(20)
            time.sleep(0.2)
            approving.send_signal(signal.SIGINT)
            _, said = approving.communicate(timeout=30)
            held.set()
    assert approving.returncode == 130
    assert "What was sent by then can still take effect: `opengradient-x402 balance` shows it" in said
    assert "2 OPG" in run("balance").out


# -- doctor


def states(done: Result) -> dict[str, str]:
    return {check["name"]: check["state"] for check in done.json()}


def test_doctor_finds_nothing_wrong_on_a_good_machine_and_pays_nothing(net, run):
    before = net.chain.token_balance(run.account.address)
    done = run("doctor", "--json")
    assert done.code == 0
    found = states(done)
    assert list(found) == [
        "key", "network", "gateway", "clock", "account", "gas", "tokens", "allowance", "registry", "ledger",
        "channels",
    ]  # fmt: skip
    assert set(found.values()) <= {"ok", "warning"}
    assert run("receipts", "list", "--json").json() == []
    assert net.chain.token_balance(run.account.address) == before
    text = run("doctor")
    assert text.out.count("✓") == 11  # a devnet's own wallet, with the allowance that it came with, is no warning


def test_doctor_says_that_a_wallet_has_code(net, run, tmp_path):
    with serving(net.chain) as node:
        network = net.network | {"rpc_url": node.url}
        path = tmp_path / "delegated.json"
        path.write_text(json.dumps(network))
        for code, said in (("0xef0100" + "12" * 20, "EIP-7702"), ("0x6001", "is a contract"), ("0x", "no code")):
            node.misbehave = lambda method, params, number, code=code: (
                (200, {"result": code}) if method == "eth_getCode" else None
            )
            found = {check["name"]: check for check in run("doctor", "--network", str(path), "--json").json()}
            assert said in found["account"]["found"]


def test_doctor_names_each_problem_with_its_fix(net, run):
    poor = net.account(opg="0", approved=False)
    run.monkeypatch.setenv("OG_PRIVATE_KEY", poor.private_key)
    done = run("doctor", "--json")
    assert done.code == 1
    problems = {check["name"]: check for check in done.json() if check["state"] == "problem"}
    assert set(problems) == {"tokens", "allowance"}
    assert poor.address in problems["tokens"]["fix"]
    assert "approve 5" in problems["allowance"]["fix"]


def test_doctor_asks_a_node_that_stops_answering_only_once(net, run, tmp_path):
    """Such a node says which chain it serves, and its newest block; everything else it leaves unanswered."""
    with serving(net.chain) as node:
        path = tmp_path / "network.json"
        registry = net.network["registry"] | {"rpc_url": node.url}
        path.write_text(json.dumps(net.network | {"rpc_url": node.url, "registry": registry}))
        silence = threading.Event()
        node.misbehave = lambda method, params, number: silence.wait(30) if method == "eth_getCode" else None
        began = time.monotonic()
        found = run("doctor", "--network", str(path), "--json").json()
        took_s = time.monotonic() - began
        silence.set()
    assert took_s < 5
    states_of = {check["name"]: check["state"] for check in found}
    assert (states_of["network"], states_of["account"]) == ("ok", "problem")
    assert {states_of[name] for name in ("gas", "tokens", "allowance", "registry")} == {"skipped"}


def test_doctor_waits_for_no_gateway_that_drips_its_headers(net, run):
    with failing_node("drips headers", 1) as url:
        began = time.monotonic()
        assert states(run("doctor", "--json", "--gateway", url))["gateway"] == "problem"
    assert time.monotonic() - began < 5


def test_doctor_is_as_quick_where_node_gateway_and_registry_are_all_silent(net, run, tmp_path):
    path = tmp_path / "network.json"
    with contextlib.ExitStack() as silent:
        node, gateway, registry = (silent.enter_context(failing_node("drips headers", 1)) for _ in range(3))
        described = net.network | {"rpc_url": node, "gateway_url": gateway}
        path.write_text(json.dumps(described | {"registry": net.network["registry"] | {"rpc_url": registry}}))
        began = time.monotonic()
        found = states(run("doctor", "--json", "--network", str(path)))
    assert time.monotonic() - began < 4
    assert {found[name] for name in ("network", "gateway", "registry")} == {"problem"}


def test_the_advice_to_approve_names_the_network_as_it_was_given(net, run, tmp_path):
    path = tmp_path / "my network.json"
    path.write_text(json.dumps(net.network))
    run.monkeypatch.setenv("OG_PRIVATE_KEY", net.account(opg="1", approved=False).private_key)
    run.monkeypatch.setenv("OG_NETWORK", "base")
    refused = run("chat", "hi", "--network", str(path))
    assert refused.code == 3
    command = re.search(r"`opengradient-x402 (approve [^`]*)`", refused.err)[1]
    assert run(*shlex.split(command)).code == 0
    assert run("chat", "hi", "--network", str(path)).code == 0


def test_doctor_goes_on_without_a_key_a_gateway_or_a_network(net, run):
    run.monkeypatch.delenv("OG_PRIVATE_KEY")
    done = run("doctor", "--json")
    assert done.code == 1
    found = states(done)
    assert (found["key"], found["network"], found["tokens"]) == ("problem", "ok", "skipped")
    away = states(run("doctor", "--json", "--gateway", "http://127.0.0.1:9"))
    assert (away["gateway"], away["clock"]) == ("problem", "ok")
    wrong = run("doctor", "--json", "--gateway", net.unpaid_url)
    assert "instead of naming its price" in next(item["found"] for item in wrong.json() if item["name"] == "gateway")
    lost = states(run("doctor", "--json", "--network", "nowhere"))
    assert (lost["network"], lost["gateway"], lost["ledger"]) == ("problem", "skipped", "ok")


def test_doctor_sees_terms_that_the_policy_refuses_and_a_clock_that_is_wrong(net, run):
    net.faults.inject(AlterTerms(pay_to=net.account(opg="0").address))
    done = run("doctor", "--json")
    assert states(done)["gateway"] == "problem"
    real = time.time
    run.monkeypatch.setattr("opengradient_x402.cli.doctor.time", SimpleNamespace(time=lambda: real() + 500))
    assert states(run("doctor", "--json"))["clock"] == "problem"


@pytest.mark.parametrize("date", ["yesterday", "", "Mon, 99 Foo 99999 00:00:00 GMT"])
def test_doctor_is_not_put_out_by_a_gateway_whose_date_is_none(net, run, date):
    import httpx

    real = httpx.stream

    @contextmanager
    def dated(*args, **kwargs):
        with real(*args, **kwargs) as response:
            response.headers["date"] = date
            yield response

    run.monkeypatch.setattr(httpx, "stream", dated)
    assert states(run("doctor", "--json"))["clock"] == "ok"


def test_doctor_reminds_of_authorizations_that_were_never_reconciled(net, run, tmp_path):
    from support.ledger_rows import entry

    ledger = Ledger(tmp_path / "old.sqlite")
    ledger.authorize(entry(1, deadline=1000)).result()
    ledger.close()
    found = run("doctor", "--json", "--ledger", str(tmp_path / "old.sqlite")).json()
    (check,) = [item for item in found if item["name"] == "ledger"]
    assert check["state"] == "warning"
    assert "receipts reconcile" in check["fix"]


# -- models


def test_models_lists_names_limits_and_prices(run):
    listed = run("models", "--json").json()
    gpt = next(model for model in listed if model["name"] == "openai/gpt-5")
    assert (gpt["context_tokens"], gpt["input_usd_per_mtok"], gpt["output_usd_per_mtok"]) == (400_000, "1.25", "10")
    assert "tools" in gpt["abilities"]
    shown = run("models", "claude")
    assert "anthropic/claude-sonnet-4-6" in shown.out
    assert "openai/" not in shown.out
    assert "Published prices" in shown.err


def test_models_live_are_those_of_the_gateway(net, run):
    listed = run("models", "--live", "--json").json()
    assert {"openai/gpt-5", "anthropic/claude-sonnet-4-0"} <= {model["name"] for model in listed}
    assert "0.20 USD" in run("models", "--live").err
    away = run("models", "--live", "--gateway", "http://127.0.0.1:9")
    assert away.code == 3
    assert "gave no list of models" in away.err


# -- receipts


@pytest.fixture
def paid(net, run):
    """Three calls, one per mode; their sessions are open."""
    for mode in ("batch", "individual", "private"):
        assert run("chat", "What is x402?", "--mode", mode).code == 0
    return run


def test_receipts_are_reconciled_listed_and_shown(net, paid):
    net.flush_batches()
    waiting = paid("receipts", "reconcile", "--json").json()
    assert (waiting["settled"], waiting["open"]) == (0, 3)  # every process pays for its own session
    net.close_sessions()
    done = paid("receipts", "reconcile", "--data", "--json")
    assert done.code == 0
    report = done.json()
    assert (report["settled"], report["open"]) == (3, 0)
    assert {receipt["status"] for receipt in report["changed"]} == {"settled"}
    assert [(proof["totals"]["read"] > 0, proof["mode"]) for proof in report["data"]] == [
        (True, "batch"),
        (True, "individual"),
        (False, "private"),
    ]
    assert sum(proof["totals"]["refuted"] + proof["totals"]["undecided"] for proof in report["data"]) == 0
    listed = paid("receipts", "list", "--json").json()
    assert [receipt["settlement_mode"] for receipt in listed] == ["batch", "individual", "private"]
    assert len(paid("receipts", "list", "--json", "--limit", "1").json()) == 1
    assert paid("receipts", "list", "--json", "--status", "expired").json() == []
    assert paid("receipts", "list", "--json", "--since", "1s", "--payer", "0x" + "12" * 20).json() == []
    table = paid("receipts", "list").out
    for receipt in listed:
        assert receipt["call_id"] in table
        assert receipt["payment_tx_hash"] in table  # a pipe cuts nothing off
    shown = paid("receipts", "show", listed[0]["call_id"][:12], "--json").json()
    assert shown == listed[0]
    assert "settled_atomic" in paid("receipts", "show", listed[0]["call_id"], "--refresh", "--full").out
    assert paid("receipts", "show", "call_").code == 2
    assert paid("receipts", "show", "nothing").code == 2


def test_reconcile_waits_for_settlements_and_says_so_in_words(net, run):
    run("chat", "What is x402?")
    import threading

    closing = threading.Timer(0.5, net.close_sessions)
    closing.start()
    done = run("receipts", "reconcile", "--wait", "20")
    closing.join()
    assert done.code == 0
    assert "settled 1" in done.out


def test_a_disputed_receipt_makes_reconcile_exit_1_with_the_numbers(net, run):
    net.close_sessions()
    run("chat", "What is x402?")
    net.faults.inject(SettleAtCap())
    net.close_sessions()
    done = run("receipts", "reconcile")
    assert done.code == 1
    assert "too much" in done.err


def test_exports_as_lines_and_as_a_table_hold_the_same(net, paid, tmp_path):
    lines = [json.loads(line) for line in paid("receipts", "export", "--format", "jsonl").out.splitlines()]
    assert lines == paid("receipts", "list", "--json").json()
    path = tmp_path / "receipts.csv"
    done = paid("receipts", "export", "--format", "csv-raw", "-o", str(path), "--since", "1h", "--json")
    assert done.json() == {"file": str(path), "format": "csv-raw", "bytes": path.stat().st_size}
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["call_id"] for row in rows] == [line["call_id"] for line in lines]
    assert [row["cost_atomic"] for row in rows] == [line["cost_atomic"] for line in lines]
    assert paid("receipts", "export", "--format", "xml").code == 2
    assert paid("receipts", "export", "-o", str(tmp_path / "no" / "folder")).code == 2


def test_a_spreadsheet_runs_nothing_that_a_gateway_wrote(tmp_path):
    from opengradient_x402.cli.exports import raw_csv
    from support.ledger_rows import entry, served

    row = served(entry(1), "call_1", data_blob_id='=HYPERLINK("http://evil")')
    text = b"".join(raw_csv([[row]])).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["data_blob_id"] == '\'=HYPERLINK("http://evil")'


def test_a_bundle_is_written_signed_and_verified_from_the_shell(net, paid, tmp_path):
    net.flush_batches()
    net.close_sessions()
    paid("receipts", "reconcile")
    path = tmp_path / "bundle.json"
    assert paid("receipts", "export", "--format", "bundle", "-o", str(path)).code == 0
    paid.monkeypatch.delenv("OG_PRIVATE_KEY")
    paid.monkeypatch.delenv("OG_NETWORK")
    rpc, network = net.network["rpc_url"], f"{net.gateway_url}/network"
    done = paid("receipts", "verify", str(path), "--network", network, "--json")
    assert done.code == 0
    report = done.json()
    totals = {"proven": 8, "read": 23, "stated": 13, "undecided": 0, "refuted": 0}
    assert (report["totals"], report["receipts"], report["signed_by"]) == (totals, 3, paid.account.address)
    twice = ["--rpc-url", rpc, "--rpc-url", rpc.replace("127.0.0.1", "localhost")]
    shown = paid("receipts", "verify", str(path), "-n", network, *twice, "--signer", paid.account.address)
    assert shown.code == 0
    assert "8 proven by a signature, 23 read from a source,\n13 only stated, 0 not decided, 0 refuted." in shown.out
    assert " and localhost:" in shown.out
    assert re.search(r"\[chain 31402 by [^]]*, block [0-9]+ \(0x[0-9a-f]{64}\)\]", shown.out)
    kept = ["--earlier", report["head"]]
    assert "the history continues the earlier one" in paid("receipts", "verify", str(path), "--offline", *kept).out
    assert "the history continues" in paid("receipts", "verify", str(path), "--offline", "--earlier", str(path)).out
    other = f"{report['head'].partition(':')[0]}:0x{'12' * 32}"
    assert paid("receipts", "verify", str(path), "--offline", "--earlier", other).code == 1
    alone = paid("receipts", "verify", str(path), "--rpc-url", rpc)
    assert alone.code == 0
    assert "the contracts are named by the file alone" in alone.out
    offline = paid("receipts", "verify", str(path), "--offline")
    assert offline.code == 0
    assert "the chain was not asked" in offline.out
    assert "offline, from the file alone" in offline.out
    assert paid("receipts", "verify", "-", "--offline", stdin=path.read_text()).code == 0
    assert paid("receipts", "verify", str(path), "--offline", "--signer", "0x" + "12" * 20).code == 1
    needs = paid("receipts", "verify", str(path))
    assert needs.code == 2
    assert "--network" in needs.err
    changed = path.read_bytes().replace(b"settled", b"Settled", 1)
    path.write_bytes(changed)
    tampered = paid("receipts", "verify", str(path), "--offline")
    assert tampered.code == 1
    assert "was changed" in tampered.err
    assert paid("receipts", "verify", str(tmp_path / "absent")).code == 2


@pytest.mark.parametrize(
    ("format_", "what"),
    [("jsonl", "a list of 3 receipts"), ("csv", "a table of receipts"), ("csv-raw", "a table of receipts")],
)
def test_a_file_of_receipts_that_is_no_bundle_is_called_what_it_is(paid, tmp_path, format_, what):
    path = tmp_path / f"receipts.{format_}"
    assert paid("receipts", "export", "--format", format_, "-o", str(path)).code == 0
    done = paid("receipts", "verify", str(path), "--offline")
    assert done.code == 1
    assert what in done.err
    assert "--format bundle" in done.err
    assert "was changed" not in done.err


def test_an_unsigned_bundle_needs_no_key(net, paid, tmp_path):
    paid.monkeypatch.delenv("OG_PRIVATE_KEY")
    path = tmp_path / "bundle.json"
    assert paid("receipts", "export", "-f", "bundle", "-o", str(path)).code == 2
    assert paid("receipts", "export", "-f", "bundle", "-o", str(path), "--unsigned").code == 0
    done = paid("receipts", "verify", str(path), "--offline", "--json")
    assert done.code == 0
    assert done.json()["signed_by"] is None


def test_receipts_of_another_ledger_are_read_by_name(net, run, tmp_path):
    path = tmp_path / "another.sqlite"
    with payments_for(net, run.account, path) as payments, client_for(payments) as client:
        client.chat(PROMPT)
    assert len(run("receipts", "list", "--json", "--ledger", str(path)).json()) == 1
    assert run("receipts", "list", "--json").json() == []
    broken = Path(tmp_path / "broken.sqlite")
    broken.write_bytes(b"no database" * 100)
    done = run("receipts", "list", "--ledger", str(broken))
    assert done.code == 3
    assert "LedgerUnavailable" in done.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 0),
        ("1795000000", 1795000000),
        ("2026-11-21", 1795219200),
        ("2026-11-21T10:00", 1795255200),
        ("2026-11-21T10:00+01:00", 1795251600),
    ],
)
def test_since_is_read_in_every_form(text, expected):
    assert parse_since(text) == expected


def test_since_ago_counts_back_from_now_and_nonsense_is_refused():
    import typer

    for text, seconds in (("90s", 90), ("2m", 120), ("24h", 86_400), ("7d", 604_800), ("1w", 604_800)):
        before = time.time()
        assert before - 1 <= parse_since(text) + seconds <= time.time() + 1
    for text in ("yesterday", "", "1x", "-5h"):
        with pytest.raises(typer.BadParameter):
            parse_since(text)
