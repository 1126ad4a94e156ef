"""`ledger check` beside the chain: what a wallet paid in the last day, and its ledger does not have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from opengradient_devnet import Scheme
from opengradient_devnet.contracts import MULTICALL3, OPG, contract
from opengradient_x402.chain.questions import ChainReader, Log
from opengradient_x402.cli.main import build_app
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.ledger.upkeep import Known, known_of
from opengradient_x402.settlement.unrecorded import Unrecorded, transfers_since, unrecorded
from support.node import serving
from support.payers import PROMPT, client_for, network_of, payments_for
from support.settling import mined, new_payer, settle, settle_call, settle_together

pytestmark = pytest.mark.devnet(sessions=False)
"""Each call is a payment of its own."""


@pytest.fixture
def place(tmp_path):
    """A folder that holds one ledger, and nothing else."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder / "ledger.sqlite"


@pytest.fixture
def check(net, account, place, monkeypatch):
    """Runs `ledger check --json`, as the wallet of `account`; the exit code, and what was printed."""
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    monkeypatch.setenv("OG_LEDGER_URL", str(place))

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        done = invoked(*options, "--json")
        return done.exit_code, json.loads(done.stdout)

    return run


def invoked(*options: str) -> Any:
    command = ["ledger", "check", *options]
    done = CliRunner().invoke(build_app(command), command)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def pay(net, account, ledger, calls: int) -> int:
    """Pays for calls, each with a settlement of its own; how much was taken, in atomic units."""
    before = net.chain.token_balance(account.address)
    with payments_for(net, account, ledger) as payments, client_for(payments) as client:
        for _ in range(calls):
            client.chat(PROMPT)
    net.close_sessions()
    taken = before - net.chain.token_balance(account.address)
    assert taken > 0
    return int(taken)


def wait_for_the_next_second() -> None:
    """Blocks and authorizations have times of whole seconds: what follows is later than what was before."""
    time.sleep(1.1)


def newest_transaction(net, payer: str) -> str:
    """Of the token's transfers out of a wallet, read from the chain itself."""
    topics = [contract("OPG").topic("Transfer"), "0x" + payer[2:].lower().rjust(64, "0")]
    found = net.chain.rpc("eth_getLogs", [{"address": OPG, "topics": topics, "fromBlock": "0x0", "toBlock": "latest"}])
    return str(found[-1]["transactionHash"])


def in_a_process_of_its_own(*options: str) -> subprocess.CompletedProcess[str]:
    """This process remembers which ledgers it used, also when their files are gone; a new one does not."""
    program = "from opengradient_x402.cli.main import main; main()"
    command = [sys.executable, "-c", program, "ledger", "check", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_ledger_that_was_deleted_with_its_mark_is_noticed_by_what_the_chain_shows(net, account, place, check):
    taken = pay(net, account, place, calls=3)
    for file in place.parent.iterdir():
        file.unlink()
    done = in_a_process_of_its_own("--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (3, str(taken))
    assert found["chain"]["newest_transaction"] == newest_transaction(net, account.address)
    assert found["chain"]["ledger_begins_later"]
    [problem] = found["problems"]
    assert f"3 payments of {account.address} in the last 24 hours" in problem
    assert f"{network_of(net).asset.format(taken)} in total" in problem
    assert "This ledger's budget does not count them" in problem
    assert "put it back from a backup" in problem
    assert list(place.parent.iterdir()) == []  # looking makes no new ledger
    shown = in_a_process_of_its_own()
    assert shown.returncode == 1
    assert shown.stdout == f"The ledger is not damaged.\n{problem}\n"


def test_a_new_file_that_was_used_since_is_still_told_from_the_ledger_that_it_replaced(net, account, place, check):
    lost = pay(net, account, place, calls=2)
    wait_for_the_next_second()
    anew = place.with_name("anew.sqlite")
    pay(net, account, anew, calls=1)
    code, found = check("--ledger", str(anew))
    assert code == 1
    assert (found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (2, str(lost))


def test_a_whole_ledger_lacks_nothing_whether_it_was_reconciled_or_not(net, account, place, check):
    pay(net, account, place, calls=2)
    for _ in range(2):
        code, found = check()
        assert (code, found["problems"], found["chain_not_read"]) == (0, [], None)
        assert (found["chain"]["payments_missing"], found["chain"]["newest_transaction"]) == (0, None)
        with payments_for(net, account, place) as payments:
            payments.reconciler.reconcile()
    shown = invoked().stdout
    assert "The ledger is sound." in shown
    assert f"All payments of {account.address}" in shown


def test_what_a_second_ledger_of_the_wallet_paid_is_said_and_is_no_problem(net, account, place, check, tmp_path):
    pay(net, account, place, calls=1)
    wait_for_the_next_second()
    second = tmp_path / "second.sqlite"
    by_second = pay(net, account, second, calls=2)
    code, found = check()
    assert (code, found["problems"]) == (0, [])
    assert (found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (2, str(by_second))
    assert not found["chain"]["ledger_begins_later"]
    shown = invoked().stdout
    assert "The ledger is sound." in shown
    assert "another ledger of this wallet paid them" in shown
    assert "Use one ledger for all programs of a wallet" in shown
    # The second one began after a payment that it does not have, as a ledger does that was emptied.
    assert check("--ledger", str(second))[0] == 1


def test_settlements_in_one_transaction_are_told_apart(net, place, check):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = [payer.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=5 + n) for n in range(3)]
    ledger = Ledger(place)
    ledger.authorize(signed[0].authorization).result()
    ledger.close()
    settle_together(net, facilitator, signed)
    code, found = check("--payer", payer.account.address)
    assert code == 0
    assert (found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (2, str(6 + 7))


@pytest.mark.parametrize(("scheme", "method"), [("upto", "permit2"), ("exact", "permit2"), ("exact", "eip3009")])
def test_a_payment_is_known_by_its_authorization_before_its_settlement_was_looked_for(
    net, place, check, scheme, method
):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, scheme=scheme, method=method, amount_atomic=8)
    ledger = Ledger(place)
    settle(net, facilitator, signed)
    code, found = check("--payer", payer.account.address)
    assert (code, found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (1, 1, "8")
    ledger.authorize(signed.authorization).result()
    code, found = check("--payer", payer.account.address)
    assert (code, found["chain"]["payments_missing"]) == (0, 0)
    ledger.close()


def test_a_transfer_that_the_wallet_sent_itself_is_no_payment(net, account, check):
    data = contract("OPG").encode("transfer", net.account(opg="0").address, 10**17)
    mined(net.chain.send(account, to=OPG, data=data))
    code, found = check()
    assert (code, found["chain"]["payments_missing"]) == (0, 0)


def test_a_transfer_of_nothing_that_a_stranger_made_in_the_wallets_name_costs_no_request(net, account, check):
    stranger = net.account(opg="0")
    mined(net.chain.send(stranger, to=OPG, data=contract("OPG").encode("transferFrom", account.address, OPG, 0)))
    assert newest_transaction(net, account.address)
    with serving(net.chain) as node:
        code, found = check("--rpc-url", node.url)
        assert (code, found["chain"]["payments_missing"]) == (0, 0)
        assert node.count("eth_getTransactionReceipt") == 0


def test_a_transfer_of_nothing_that_a_facilitator_adds_to_a_settlement_is_no_payment(net, account, place, check):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, scheme="exact", amount_atomic=5)
    ledger = Ledger(place)
    ledger.authorize(signed.authorization).result()
    ledger.close()
    nothing = contract("OPG").encode("transferFrom", payer.account.address, OPG, 0)
    data = contract("Multicall3").encode("tryAggregate", True, [(OPG, nothing), settle_call(signed)])
    mined(net.chain.send(facilitator, to=MULTICALL3, data=data))
    code, found = check("--payer", payer.account.address)
    assert (code, found["chain"]["payments_missing"]) == (0, 0)


def test_a_payment_whose_block_was_replaced_is_known_though_it_is_in_another_transaction_now(net, place, check):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, amount_atomic=8)
    seen = {"status": "settled", "settled_atomic": 8, "tx_hash": f"0x{1:064x}", "block_number": 1}
    ledger = Ledger(place)
    ledger.authorize(signed.authorization).result()
    ledger.record_settlement(replace(signed.authorization, **seen, confirmations=1, confirmations_needed=5)).result()
    ledger.close()
    settle(net, facilitator, signed)
    code, found = check("--payer", payer.account.address)
    assert (code, found["chain"]["payments_missing"]) == (0, 0)


def test_a_payment_from_just_before_the_time_is_known_too_though_its_deadline_is_over_by_then(net, place):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, amount_atomic=8, timeout_s=3)
    ledger = Ledger(place)
    ledger.authorize(signed.authorization).result()
    ledger.close()
    settle(net, facilitator, signed)
    while time.time() <= signed.authorization.deadline + 1:
        time.sleep(0.1)
    net.chain.rpc("evm_mine", [])
    wallet, network = payer.account.address, payer.network
    with ChainReader.at(network) as chain:
        transfers = chain.ask(transfers_since(int(time.time()), payer=wallet, network=network))
        asked = {"payer": wallet, "network": network.caip2, "asset": network.asset.address, "since": transfers.since}
        known = known_of(f"sqlite:///{place}", **asked)
        assert known is not None
        found = chain.ask(unrecorded(transfers.logs, known, payer=wallet, network=network))
    assert [log.block_number for log in transfers.logs] != []
    assert found == Unrecorded(count=0, amount_atomic=0)


@pytest.mark.parametrize("scheme", [Scheme.BATCH_SETTLEMENT, Scheme.BATCH_SETTLEMENT_EIP3009])
def test_a_deposit_into_a_channel_that_the_ledger_does_not_have_counts_in_full(
    devnets, place, monkeypatch, check, scheme
):
    net = devnets(schemes=[scheme])
    account = net.account(opg="10", approved=True)
    monkeypatch.setenv("OG_PRIVATE_KEY", account.private_key)
    monkeypatch.setenv("OG_NETWORK", f"{net.gateway_url}/network")
    deposited = pay(net, account, place, calls=2)
    code, found = check()
    assert (code, found["chain"]["payments_missing"]) == (0, 0)
    code, found = check("--ledger", str(place.with_name("anew.sqlite")))
    assert (code, found["chain"]["payments_missing"], found["chain"]["missing_atomic"]) == (1, 1, str(deposited))


# -- what can keep it from the chain


@pytest.mark.parametrize("fault", ["is gone", "refuses every range of logs"])
def test_a_node_that_does_not_answer_is_named_and_the_file_is_checked_all_the_same(net, account, place, check, fault):
    pay(net, account, place, calls=1)

    def refuses(method, params, number):
        return (200, {"error": {"code": -32005, "message": "range too large"}}) if method == "eth_getLogs" else None

    with serving(net.chain) as node:
        node.misbehave = refuses
        url = "http://127.0.0.1:9" if fault == "is gone" else node.url
        code, found = check("--rpc-url", url)
        assert (code, found["problems"], found["chain"]) == (0, [], None)
        assert url.removeprefix("http://").partition(":")[0] in found["chain_not_read"]
        assert len(node.requests) < 40
        shown = invoked("--rpc-url", url)
        assert (shown.exit_code, shown.stdout) == (0, "The ledger is sound.\n")
        assert "The ledger was not compared with the chain: The node" in shown.stderr
        place.write_bytes(b"this is not a database" * 400)
        code, found = check("--rpc-url", url)
    assert (code, found["problems"]) == (1, ["The file is damaged: file is not a database."])


@pytest.mark.parametrize("lost", ["eth_getTransactionReceipt", "eth_getTransactionByHash"])
def test_a_transaction_that_the_node_does_not_give_is_neither_missing_nor_known(net, place, check, lost):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, amount_atomic=8)
    ledger = Ledger(place)
    ledger.authorize(signed.authorization).result()
    ledger.close()
    settle(net, facilitator, signed)
    with serving(net.chain) as node:
        node.misbehave = lambda method, params, number: (200, {"result": None}) if method == lost else None
        code, found = check("--rpc-url", node.url, "--payer", payer.account.address)
        assert (code, found["chain"]["payments_missing"], found["chain"]["is_whole"]) == (0, 0, False)
        shown = invoked("--rpc-url", node.url, "--payer", payer.account.address).stdout
    assert "Not all transactions could be read. All payments of" in shown


@pytest.mark.parametrize(
    "change",
    [{"topics": slice(0, 2)}, {"topics": slice(0, 1)}, {"data": "0x"}, {"data": "0x" + "ff" * 100_000}],
    ids=["no payee", "no payer", "no amount", "an endless amount"],
)
def test_events_that_are_no_transfers_of_the_token_are_left_out(net, place, check, change):
    payer, facilitator = new_payer(net), net.account(opg="0")
    signed = payer.sign(facilitator=facilitator.address, scheme="exact", method="eip3009", amount_atomic=8)
    settle(net, facilitator, signed)

    def garbles(method, params, number):
        if method != "eth_getTransactionReceipt":
            return None
        done = json.loads(json.dumps(net.chain.rpc(method, params)))
        for log in done["logs"]:
            if log["topics"][0] == contract("OPG").topic("Transfer"):
                for name, value in change.items():
                    log[name] = log[name][value] if isinstance(value, slice) else value
        return 200, {"result": done}

    with serving(net.chain) as node:
        node.misbehave = garbles
        code, found = check("--rpc-url", node.url, "--payer", payer.account.address)
    assert (code, found["chain"]["payments_missing"]) == (0, 0)


def test_a_node_with_more_blocks_than_a_chain_makes_is_not_asked_without_end(net, account, check):
    def endless(method, params, number):
        if method != "eth_getBlockByNumber":
            return None
        place = 2**60 if params[0] == "latest" else int(params[0], 16)
        shown = net.chain.rpc(method, ["latest", False])
        return 200, {"result": {**shown, "number": hex(place), "timestamp": hex(int(time.time()))}}

    with serving(net.chain) as node:
        node.misbehave = endless
        code, found = check("--rpc-url", node.url)
        assert (code, found["chain"]) == (0, None)
        assert "which no chain makes" in found["chain_not_read"]
        assert node.count("eth_getLogs") == 0
        assert len(node.requests) < 100


def test_without_a_wallet_or_with_offline_no_chain_is_asked(net, account, place, check, monkeypatch):
    pay(net, account, place.with_name("lost.sqlite"), calls=1)
    with serving(net.chain) as node:
        assert check("--offline", "--rpc-url", node.url)[0] == 0
        monkeypatch.delenv("OG_PRIVATE_KEY")
        code, found = check("--rpc-url", node.url)
        assert (code, found["chain"]) == (0, None)
        assert "Set OG_PRIVATE_KEY, or name its address with `--payer`" in found["chain_not_read"]
        assert node.requests == []
        assert check("--rpc-url", node.url, "--payer", account.address)[0] == 1


def test_a_key_or_a_network_that_cannot_be_used_keeps_nobody_from_checking_the_file(check, monkeypatch, place):
    monkeypatch.setenv("OG_NETWORK", "nowhere")
    assert check()[0] == 0
    assert invoked("--network", "nowhere").exit_code == 2  # what is typed must be right
    monkeypatch.setenv("OG_PRIVATE_KEY", "0x12")
    code, found = check()
    assert (code, found["chain"]) == (0, None)
    place.write_bytes(b"this is not a database" * 400)
    assert check()[0] == 1


# -- how much is asked


def test_the_chain_is_read_with_few_requests_and_none_for_each_payment_that_the_ledger_has(net, account, place, check):
    pay(net, account, place, calls=3)
    with payments_for(net, account, place) as payments:
        payments.reconciler.reconcile()
    with serving(net.chain) as node:
        check("--rpc-url", node.url)
        assert node.count("eth_getLogs") == 1
        assert node.count("eth_getTransactionReceipt") == node.count("eth_getTransactionByHash") == 0
        check("--rpc-url", node.url, "--ledger", str(place.with_name("anew.sqlite")))
        assert node.count("eth_getTransactionReceipt") == 3


def test_only_so_many_transactions_are_read_and_the_result_says_that_there_may_be_more(net):
    network, payer = network_of(net), "0x8C2e0718822cE47cA8c74107e66cb0E4B2B3f4D5"
    transfers = [
        Log(
            address=network.asset.address,
            topics=(),
            data=b"\1",
            block_number=number,
            block_hash="0x00",
            tx_hash=f"0x{number:064x}",
            log_index=0,
        )
        for number in range(700)
    ]
    known = Known(first_signed_at=None, authorizations=[], channels=frozenset())
    with serving(net.chain) as node, ChainReader(node.url, network.chain_id) as chain:
        found = chain.ask(unrecorded(transfers, known, payer=payer, network=network))
        assert node.count("eth_getTransactionReceipt") == 500
        assert node.requests[1][1] == [transfers[-1].tx_hash]  # the newest first
    assert found == Unrecorded(count=0, amount_atomic=0, is_whole=False)
